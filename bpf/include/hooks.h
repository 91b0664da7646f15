/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * hooks.h - what connect and sendmsg decide.
 *
 * connect(): the flow is claimed before the kernel sees the destination, in this order: claim in `flows`
 * (NOEXIST), ask the kernel's own socket tables, SO_REUSEADDR, bpf_bind, remember in the socket's storage. Every
 * later step that fails undoes the claim and tries another port. SO_REUSEADDR is what lets one port serve
 * several destinations (net/ipv4/inet_connection_sock.c, inet_csk_get_port); exclusiveness is the claim's.
 *
 * A socket whose port is fixed (the program bound it, or an earlier connect() did: bpf_bind locks it for the
 * socket's life) claims exactly what it has, or is refused. Its old claim is given up only once the new
 * one is held, so a refused UDP connect() leaves the old connection as it was.
 *
 * The results here are 0 (go on) or a negative errno for the program; docs/sockets.md is the table.
 */
#ifndef SU_HOOKS_H
#define SU_HOOKS_H

#include <asm-generic/errno.h>

#include "kernel_busy.h"
#include "sock.h"

#define SU_SOL_SOCKET 1		/* asm-generic/socket.h */
#define SU_SO_REUSEADDR 2

#define SU_TRIES 256		/* ports tried while the kernel has them in use outside of `flows` */
#define SU_SLICES 4096		/* entries of `slices` */
#define SU_TRIES_NS 5000000	/* and for how long, once SU_TRIES_SURE have failed */
#define SU_TRIES_SURE 16

/* A socket that is to get a port: what su_connect_try works on. */
struct su_bid {
	struct bpf_sock_addr *ctx;
	struct su_sock *sock;
	__u64 now_ns;
	__u32 at;		/* slice in which to choose, SU_NONE: by policy */
	int result;
	struct su_want want;
};

static __always_inline int su_refuse(int err)
{
	su_count(SU_COUNT_REFUSED_SOCKET);
	bpf_set_retval(err);
	return 0;
}

/* The errno for a claim that was not to be had; which flow that was is remembered with the reason. */
static __always_inline int su_errno(int drop, const struct su_flow *flow)
{
	su_drop(drop, flow);
	return drop == -SU_DROP_TABLE_FULL ? -ENOBUFS : -EADDRNOTAVAIL;
}

/*
 * A socket of the kernel's that would share a flow whose local end is fixed: another one connected to the same
 * remote. A socket that is bound only may be the very one that asks.
 */
static __noinline bool su_kernel_connected(struct bpf_sock_addr *ctx, const struct su_flow *f)
{
	struct bpf_sock_tuple tuple;
	__u32 size = su_tuple_of(&tuple, f);
	struct bpf_sock *sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	bool found;

	if (!sk)
		return false;
	found = sk->dst_port && sk->dst_port == f->remote_port;
	bpf_sk_release(sk);
	return found;
}

struct su_next_slice {
	struct su_addr addr;
	const struct su_policy *policy;
	__u32 from;
	__u32 found;
	__u16 first, last;
};

static long su_next_slice_one(__u64 i, struct su_next_slice *n)
{
	__u32 index = n->from + (__u32)i;
	struct su_slice *slice = bpf_map_lookup_elem(&slices, &index);

	if (!slice)
		return 1;
	if (!(slice->flags & SU_SLICE_LIVE) || !su_addr_eq(&slice->addr, &n->addr) || slice->last < n->first ||
	    slice->first > n->last)
		return 0;
	if (n->policy->flags & SU_POLICY_RANGE ? index != n->policy->slice :
	    n->policy->flags & SU_POLICY_SET && slice->pool != n->policy->pool)
		return 0;
	n->found = index;
	return 1;
}

/* The first slice at or after `from` at that address with ports within first-last that the policy allows, or SU_NONE. */
static __noinline __u32 su_next_slice(const struct su_addr *addr, const struct su_policy *policy, __u32 from,
				      __u32 ports)
{
	struct su_next_slice n = {
		.addr = *addr,
		.policy = policy,
		.from = from,
		.found = SU_NONE,
		.first = ports >> 16,
		.last = ports & 0xffff,
	};

	bpf_loop(SU_SLICES, su_next_slice_one, &n, 0);
	return n.found;
}

/* Bind the socket to the claimed address and port, if the kernel has no other there. 0 or a negative errno. */
static __noinline int su_bind_claimed(struct bpf_sock_addr *ctx, const struct su_flow *flow)
{
	int one = 1;

	if (su_kernel_busy(ctx, flow, SU_KIND_SOCKET))
		return -EADDRINUSE;
	if (bpf_setsockopt(ctx, SU_SOL_SOCKET, SU_SO_REUSEADDR, &one, sizeof(one)))
		return -EINVAL;
	if (ctx->family == SU_AF_INET) {
		struct sockaddr_in a = {
			.sin_family = SU_AF_INET,
			.sin_port = flow->local_port,
			.sin_addr.s_addr = flow->local.w[3],
		};

		return bpf_bind(ctx, (struct sockaddr *)&a, sizeof(a));
	} else {
		struct sockaddr_in6 a = {
			.sin6_family = SU_AF_INET6,
			.sin6_port = flow->local_port,
		};

		__builtin_memcpy(&a.sin6_addr, &flow->local, sizeof(a.sin6_addr));
		return bpf_bind(ctx, (struct sockaddr *)&a, sizeof(a));
	}
}

/*
 * One try to find a port. 1: over, see bid->result; 0: that port would not do, again.
 * A port that the kernel has is marked taken in its destination's bitmap, so that the next try goes elsewhere.
 */
static long su_connect_try(__u64 i, struct su_bid *bid)
{
	struct su_want *w = &bid->want;
	const struct su_policy *policy = &bid->sock->policy;
	__u32 rnd = bpf_get_prandom_u32();
	int err;

	if (i >= SU_TRIES_SURE && bpf_ktime_get_boot_ns() - bid->now_ns > SU_TRIES_NS)
		return 1;
	if (bid->at == SU_NONE) {
		err = su_choose(w, policy, policy->client, bid->now_ns, rnd);
	} else {
		err = su_choose_in(w, bid->at, bid->now_ns, rnd);
		if (err == -SU_DROP_SLICE_FULL || err == -SU_DROP_NO_SLICE) {
			bid->at = su_next_slice(&w->flow.local, policy, bid->at + 1,
						(__u32)w->first << 16 | w->last);
			if (bid->at != SU_NONE)
				return 0;
		}
	}
	if (err) {
		bid->result = su_errno(err, &w->flow);
		return 1;
	}
	if (su_bind_claimed(bid->ctx, &w->flow) == 0) {
		bid->result = 0;
		return 1;
	}
	su_busy(w, bid->now_ns);
	return 0;
}

/*
 * An MPTCP subflow's msk carries what the subflow cannot: NULL when the socket is no subflow. The record is made if
 * need be.
 */
static __always_inline struct su_sock *su_sock_of_msk(void *sk, __u64 flags)
{
	struct mptcp_sock *msk;

	if (!bpf_core_type_exists(struct mptcp_sock))
		return NULL;
	msk = bpf_skc_to_mptcp_sock(sk);
	return msk ? bpf_sk_storage_get(&socks, msk, NULL, flags) : NULL;
}

/* The policy a socket has, or else that of the cgroup which uses it; flags 0: none. */
static __always_inline void su_policy_of(struct bpf_sock_addr *ctx, struct su_policy *out)
{
	struct su_sock *s = bpf_sk_storage_get(&socks, ctx->sk, NULL, 0);

	if (s && s->policy.flags & SU_POLICY_SET) {
		*out = s->policy;
		return;
	}
	if (ctx->protocol == IPPROTO_TCP) {
		s = su_sock_of_msk(ctx->sk, 0);
		if (s && s->policy.flags & SU_POLICY_SET) {
			*out = s->policy;
			return;
		}
	}
	su_policy_current(out);
}

/* The record of a socket that is concerned: it has a policy, or (`fleet`) is bound to a slice. *err: 0, -ENOBUFS. */
static __noinline struct su_sock *su_record_of(struct bpf_sock_addr *ctx, bool fleet, int *err)
{
	struct su_policy policy = {};
	struct su_sock *s;

	su_policy_of(ctx, &policy);
	*err = 0;
	if (!(policy.flags & SU_POLICY_SET) && !fleet)
		return NULL;
	s = bpf_sk_storage_get(&socks, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (s)
		s->policy = policy;
	else
		*err = -ENOBUFS;
	return s;
}

/*
 * The flow may have begun with sendto() from the very port that now connects: the guard claimed it as LOCAL, as it stood.
 * Then the claim becomes the socket's. False: it is another's.
 */
static __noinline bool su_take_local(struct su_want *w, __u64 now_ns)
{
	__u32 now_s = su_seconds(now_ns);
	struct su_claim c, *live = su_claim_get(&w->flow, &c);

	if (!live || c.kind != SU_KIND_LOCAL || c.inner_port != w->flow.local_port ||
	    !su_addr_eq(&c.inner, &w->flow.local) || !su_lock(live, c.word, now_s))
		return false;
	live->kind = SU_KIND_SOCKET;
	live->owner = w->claim.owner;
	w->claim.word = su_word(su_word_gen(c.word) + 1, SU_STATE_NEW, now_s);
	su_publish(live, w->claim.word);
	return true;
}

/* The source is fixed: claim exactly w->flow. 0 or a negative errno; the record is changed only on success. */
static __noinline int su_connect_exact(struct bpf_sock_addr *ctx, struct su_sock *s, struct su_want *w, __u64 now_ns)
{
	__u32 port = bpf_ntohs(w->flow.local_port);
	int err;

	if (su_sock_holds(s) && s->flow.local_port == w->flow.local_port && s->flow.proto == w->flow.proto &&
	    su_addr_eq(&s->flow.local, &w->flow.local)) {
		/* The same destination again, or a wildcard claim, which covers every destination. */
		if (s->flow.remote_port == w->flow.remote_port && su_addr_eq(&s->flow.remote, &w->flow.remote))
			return 0;
		if (su_addr_any(&s->flow.remote))
			return 0;
	}
	w->claim.slice = su_slice_of(&w->flow.local, port);
	if (w->claim.slice == SU_NONE || !su_policy_allows(&s->policy, w->claim.slice, port))
		return -EADDRNOTAVAIL;
	err = su_claim_exact(w, now_ns, bpf_get_prandom_u32());
	if (err == -SU_DROP_GUARD_FOREIGN && su_take_local(w, now_ns))
		err = 0;
	if (err)
		return su_errno(err, &w->flow);
	/* TCP's own connect finds out, with its own errno; UDP's would share the flow with another socket. */
	if (w->flow.proto == IPPROTO_UDP && su_kernel_connected(ctx, &w->flow)) {
		su_busy(w, now_ns);
		return -EADDRNOTAVAIL;
	}
	return 0;
}

/* Before a flow is claimed: may this socket go there at all, and as what? 1: untouched; 0: claim; negative: errno. */
static __noinline int su_may_connect(struct su_sock *s, const struct su_flow *f, bool any, bool fleet, bool bound)
{
	bool tcp = f->proto == IPPROTO_TCP;

	s->flags &= ~(__u32)SU_SOCK_BYPASS;
	if (!fleet && su_bypassed(&s->policy, &f->remote)) {
		/* A UDP socket may send elsewhere later, without asking here: the guard looks at each packet of it. */
		if (tcp)
			s->flags |= SU_SOCK_BYPASS;
		return 1;
	}
	/* 0.0.0.0 and :: mean this host (net/ipv4/route.c, ip_route_connect). */
	if (su_addr_any(&f->remote))
		return fleet ? -ENETUNREACH : 1;
	if (su_fleet(&f->remote))
		return -EACCES;
	if (!fleet && !su_policy_family(&s->policy, su_is_v4(&f->remote)))
		return -ENETUNREACH;
	if (fleet || (any && !bound))
		return 0;
	/* The program fixed a source that is no slice's: UDP is rewritten at the uplink (LOCAL), TCP is refused. */
	return tcp ? -EADDRNOTAVAIL : 1;
}

/* connect(): bid->want.flow has protocol, both addresses and the remote port; local port `bound` (host order), 0: none. */
static __always_inline int su_connect(struct bpf_sock_addr *ctx, struct su_bid *bid, __u32 bound)
{
	struct su_want *w = &bid->want;
	bool any = su_addr_any(&w->flow.local), fleet = !any && su_fleet(&w->flow.local);
	struct su_sock *s, *msk;
	int err;

	if (w->flow.proto != IPPROTO_TCP && w->flow.proto != IPPROTO_UDP)
		return 0;
	s = su_record_of(ctx, fleet, &err);
	if (!s)
		return err;
	err = su_may_connect(s, &w->flow, any, fleet, bound != 0);
	if (err)
		return err < 0 ? err : 0;

	bid->ctx = ctx;
	bid->sock = s;
	bid->now_ns = bpf_ktime_get_boot_ns();
	bid->result = -EADDRNOTAVAIL;
	w->claim.kind = SU_KIND_SOCKET;
	w->claim.owner = bpf_get_socket_cookie(ctx);
	w->claim.tenant = s->policy.tenant;
	w->last = 65535;
	if (bound) {
		w->flow.local_port = bpf_htons(bound);
		err = su_connect_exact(ctx, s, w, bid->now_ns);
		if (err)
			return err;
		if (!w->claim.word)
			return 0;	/* it has that claim already */
	} else {
		su_port_range(su_inet_sock(ctx->sk), &w->first, &w->last);
		bid->at = SU_NONE;
		if (fleet) {
			bid->at = su_next_slice(&w->flow.local, &s->policy, 0, (__u32)w->first << 16 | w->last);
			if (bid->at == SU_NONE)
				return -EADDRNOTAVAIL;
		}
		bpf_loop(SU_TRIES, su_connect_try, bid, 0);
		if (bid->result)
			return bid->result;
		s->flags |= SU_SOCK_CHOSEN;
	}
	su_sock_take(s, w);
	msk = w->flow.proto == IPPROTO_TCP ? su_sock_of_msk(ctx->sk, BPF_SK_STORAGE_GET_F_CREATE) : NULL;
	if (msk)
		su_sock_take(msk, w);
	su_count(SU_COUNT_CLAIM_SOCKET);
	return 0;
}

/*
 * sendto() of a UDP socket to a destination it is not connected to. The guard rewrites what it sends, by the policy the
 * socket carries; only what must not leave is refused here, as a program understands an errno better than silence.
 */
static __always_inline int su_sendmsg(struct bpf_sock_addr *ctx, const struct su_addr *remote)
{
	struct su_sock *s = bpf_sk_storage_get(&socks, ctx->sk, NULL, 0);

	if (!s || !(s->policy.flags & SU_POLICY_SET) || su_addr_any(remote) || su_bypassed(&s->policy, remote))
		return 0;
	if (su_fleet(remote))
		return -EACCES;
	return su_policy_family(&s->policy, su_is_v4(remote)) ? 0 : -ENETUNREACH;
}

#endif /* SU_HOOKS_H */
