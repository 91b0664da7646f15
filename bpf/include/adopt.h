/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * adopt.h - claims for sockets that lived before the hooks did, or whose record was lost.
 *
 * The agent reads the iterators iter/tcp and iter/udp once in the node's namespace, before fish may claim. A socket whose
 * source is in a slice of this node gets its claim (NOEXIST: what is claimed already stays), and its record, so that its
 * release finds it. A TIME_WAIT becomes a LINGER claim without a socket. Drained slices are adopted too: nothing
 * new begins here. Running it again changes nothing.
 *
 * Sources: net/ipv4/tcp_ipv4.c (bpf_iter_tcp_seq_show: the socket is locked), net/ipv4/udp.c.
 */
#ifndef SU_ADOPT_H
#define SU_ADOPT_H

#include "kernel_busy.h"
#include "sock.h"

#define SU_SOL_TCP 6
#define SU_TCP_BPF_SOCK_OPS_CB_FLAGS 1008	/* include/uapi/linux/bpf.h, since 6.12 */

static __always_inline void su_addr_v6(struct su_addr *a, const struct in6_addr *v6)
{
	__builtin_memcpy(a, v6, sizeof(*a));
}

/* What the socket's flow is. False: it has none in a slice of this node. */
static __noinline bool su_adopt_flow(struct sock_common *sk, struct su_want *w, __u8 proto)
{
	struct su_slice *slice;
	__u32 index;

	w->flow.proto = proto;
	if (sk->skc_family == SU_AF_INET) {
		su_addr_v4(&w->flow.local, sk->skc_rcv_saddr);
		su_addr_v4(&w->flow.remote, sk->skc_daddr);
	} else {
		struct in6_addr v6;

		BPF_CORE_READ_INTO(&v6, sk, skc_v6_rcv_saddr);
		su_addr_v6(&w->flow.local, &v6);
		BPF_CORE_READ_INTO(&v6, sk, skc_v6_daddr);
		su_addr_v6(&w->flow.remote, &v6);
	}
	w->flow.local_port = bpf_htons(sk->skc_num);
	w->flow.remote_port = sk->skc_dport;
	index = su_slice_of(&w->flow.local, sk->skc_num);
	slice = bpf_map_lookup_elem(&slices, &index);
	if (!slice)
		return false;
	w->claim.slice = index;
	if (proto == IPPROTO_UDP && sk->skc_num < slice->udp_exact_first) {
		w->flow.remote_port = 0;
		__builtin_memset(&w->flow.remote, 0, sizeof(w->flow.remote));
		return true;
	}
	return w->flow.remote_port != 0;
}

static __always_inline void su_adopt(struct sock_common *sk, void *owner, __u8 proto)
{
	__u64 now_ns = bpf_ktime_get_boot_ns();
	__u8 state = sk->skc_state;
	struct su_want w = {};
	struct su_claim c, *live;
	struct su_sock *s = NULL;
	int flags = BPF_SOCK_OPS_STATE_CB_FLAG;

	if (sk->skc_net.net->net_cookie != settings.netns_cookie)
		return;
	if (proto == IPPROTO_TCP && (state == SU_TCP_LISTEN || state == SU_TCP_NEW_SYN_RECV || state == SU_TCP_CLOSE))
		return;
	if (!su_adopt_flow(sk, &w, proto))
		return;
	w.claim.kind = SU_KIND_SOCKET;
	w.claim.owner = bpf_get_socket_cookie(sk);
	if (proto == IPPROTO_UDP || state != SU_TCP_TIME_WAIT) {
		s = bpf_sk_storage_get(&socks, owner, NULL, BPF_SK_STORAGE_GET_F_CREATE);
		if (!s || su_sock_holds(s))
			return;
		w.claim.tenant = s->policy.tenant;
	}
	live = su_claim_get(&w.flow, &c);
	if (live && c.kind == SU_KIND_SOCKET && (!s || c.owner == w.claim.owner)) {
		w.claim.word = c.word;	/* it is claimed; at most the record was lost */
	} else {
		if (su_try(&w, sk->skc_num, now_ns, bpf_get_prandom_u32(), SU_TAKE_REUSABLE))
			return;
		su_count(SU_COUNT_ADOPTED);
		live = su_claim_get(&w.flow, &c);
		if (!live)
			return;
		if (!s)
			su_claim_refresh(live, c.word, SU_STATE_LINGER, su_seconds(now_ns));
		else if (proto == IPPROTO_TCP && state != SU_TCP_SYN_SENT)
			su_claim_refresh(live, c.word, SU_STATE_OPEN, su_seconds(now_ns));
	}
	if (!s)
		return;
	s->flow = w.flow;
	s->generation = su_word_gen(w.claim.word);
	s->flags |= SU_SOCK_CLAIMED;
	if (proto == IPPROTO_TCP && !bpf_setsockopt(owner, SU_SOL_TCP, SU_TCP_BPF_SOCK_OPS_CB_FLAGS, &flags, sizeof(flags)))
		s->flags |= SU_SOCK_STATE_CB;
}

#endif /* SU_ADOPT_H */
