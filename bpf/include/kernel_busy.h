/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * kernel_busy.h - what the kernel's own socket tables say of a flow that was just claimed.
 *
 * They know sockets born before the hooks and those in TIME_WAIT. Asked after the claim, never before:
 * whoever claims later asks later. A listener is no obstacle. A TIME_WAIT is one, but for a socket when
 * timestamps protect the new connection: an explicit bind takes it over (tcp_twsk_unique in
 * net/ipv4/tcp_ipv4.c with twp NULL).
 */
#ifndef SU_KERNEL_BUSY_H
#define SU_KERNEL_BUSY_H

#include "word.h"

#define SU_TCP_TIME_WAIT 6
#define SU_TCP_LISTEN 10

/* net/linux/tcp.h, as far as needed */
struct tcp_timewait_sock {
	int tw_ts_recent_stamp;	/* monotonic seconds of the last segment with a timestamp, 0: none */
} __attribute__((preserve_access_index));

static __always_inline __u32 su_tuple_of(struct bpf_sock_tuple *t, const struct su_flow *f)
{
	__builtin_memset(t, 0, sizeof(*t));
	/* As of a packet coming in: the remote end is the source. */
	if (su_is_v4(&f->local)) {
		t->ipv4.saddr = f->remote.w[3];
		t->ipv4.daddr = f->local.w[3];
		t->ipv4.sport = f->remote_port;
		t->ipv4.dport = f->local_port;
		return sizeof(t->ipv4);
	}
	__builtin_memcpy(t->ipv6.saddr, f->remote.w, sizeof(f->remote.w));
	__builtin_memcpy(t->ipv6.daddr, f->local.w, sizeof(f->local.w));
	t->ipv6.sport = f->remote_port;
	t->ipv6.dport = f->local_port;
	return sizeof(t->ipv6);
}

/* May a socket of ours take the place of this TIME_WAIT? */
static __always_inline bool su_time_wait_yields(struct bpf_sock *sk)
{
	struct tcp_timewait_sock *tw = bpf_skc_to_tcp_timewait_sock(sk);
	__u32 now_s = (__u32)(bpf_ktime_get_ns() / SU_NSEC_PER_SEC), stamp;

	if (!tw)
		return false;
	stamp = (__u32)tw->tw_ts_recent_stamp;
	return stamp && now_s - stamp > settings.sock_reuse_s;
}

/* ctx: of tc, XDP or a cgroup sock_addr program. kind: who claims. */
static __noinline bool su_kernel_busy(void *ctx, const struct su_flow *f, __u8 kind)
{
	struct bpf_sock_tuple tuple;
	struct bpf_sock *sk;
	__u32 size;
	bool busy;

	if (f->proto == IPPROTO_TCP) {
		size = su_tuple_of(&tuple, f);
		sk = bpf_skc_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return false;
		busy = sk->state != SU_TCP_LISTEN;
		if (sk->state == SU_TCP_TIME_WAIT && kind == SU_KIND_SOCKET)
			busy = !su_time_wait_yields(sk);
		bpf_sk_release(sk);
		return busy;
	}
	if (f->proto == IPPROTO_UDP) {
		size = su_tuple_of(&tuple, f);
		sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
		if (!sk)
			return false;
		bpf_sk_release(sk);
		return true;
	}
	return false;
}

#endif /* SU_KERNEL_BUSY_H */
