/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * bind.h - what bind() decides: a program may name an address of the fleet only with ports of this node's slices.
 *
 * A port is bound, a flow is claimed: binding claims nothing, because several sockets may share a port towards different
 * remotes, and connect() claims exactly. But a UDP socket may never connect. For those each slice keeps its first
 * ports (up to udp_exact_first) apart: binding one of them claims it towards every remote at once, remote 0:0.
 *
 * Port 0 would be chosen by the kernel from its own range, outside of any slice, so it is chosen here; not under
 * IP_BIND_ADDRESS_NO_PORT, where connect() does it.
 *
 * Source: net/ipv4/af_inet.c (__inet_bind), net/ipv4/inet_connection_sock.c (inet_csk_get_port).
 */
#ifndef SU_BIND_H
#define SU_BIND_H

#include "hooks.h"

/* A socket that listens or waits at f's local end; f has no remote. */
static __noinline bool su_kernel_bound(struct bpf_sock_addr *ctx, const struct su_flow *f)
{
	struct bpf_sock_tuple tuple;
	__u32 size = su_tuple_of(&tuple, f);
	struct bpf_sock *sk;

	if (f->proto == IPPROTO_TCP)
		sk = bpf_skc_lookup_tcp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_sk_lookup_udp(ctx, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return false;
	bpf_sk_release(sk);
	return true;
}

/* One wildcard port: bid->at is where the search began, want.first and last the ports. */
static long su_bind_try(__u64 i, struct su_bid *bid)
{
	struct su_want *w = &bid->want;
	__u32 size = w->last - w->first + 1, port = bid->at + (__u32)i;
	int err;

	if (port >= size)
		port -= size;
	w->flow.local_port = bpf_htons(w->first + port);
	err = su_claim_exact(w, bid->now_ns, bpf_get_prandom_u32());
	if (err == -SU_DROP_GUARD_FOREIGN)
		return 0;
	if (!err && su_kernel_bound(bid->ctx, &w->flow)) {
		su_busy(w, bid->now_ns);
		return 0;
	}
	bid->result = err ? su_errno(err, &w->flow) : 0;
	return 1;
}

/* One port that is only bound, its flows are claimed by connect(): want.first and last are the ports. */
static long su_bind_random(__u64 i, struct su_bid *bid)
{
	struct su_want *w = &bid->want;
	__u32 size = w->last - w->first + 1;

	w->flow.local_port = bpf_htons(w->first + bpf_get_prandom_u32() % size);
	if (su_kernel_bound(bid->ctx, &w->flow))
		return 0;
	bid->result = 0;
	return 1;
}

/* bind(address, 0): a port within the slices of that address, instead of the kernel's. */
static __always_inline int su_bind_any(struct bpf_sock_addr *ctx, struct su_bid *bid, const struct su_policy *policy)
{
	struct su_want *w = &bid->want;
	struct su_slice *slice;
	int one = 1;

	su_port_range(su_inet_sock(ctx->sk), &w->first, &w->last);
	if (policy->flags & SU_POLICY_RANGE) {
		w->first = policy->first > w->first ? policy->first : w->first;
		w->last = policy->last < w->last ? policy->last : w->last;
	}
	w->claim.slice = su_next_slice(&w->flow.local, policy, 0, (__u32)w->first << 16 | w->last);
	slice = bpf_map_lookup_elem(&slices, &w->claim.slice);
	if (!slice)
		return -EADDRNOTAVAIL;
	w->first = slice->first > w->first ? slice->first : w->first;
	w->last = slice->last < w->last ? slice->last : w->last;
	if (w->flow.proto == IPPROTO_UDP && slice->udp_exact_first > w->first) {
		if (w->last >= slice->udp_exact_first)
			w->last = slice->udp_exact_first - 1;
		bid->at = bpf_get_prandom_u32() % (w->last - w->first + 1);
		bpf_loop(w->last - w->first + 1, su_bind_try, bid, 0);
		return bid->result;
	}
	if (w->last < w->first)
		return -EADDRNOTAVAIL;
	bpf_loop(SU_TRIES, su_bind_random, bid, 0);
	if (!bid->result && w->flow.proto == IPPROTO_TCP)
		bpf_setsockopt(ctx, SU_SOL_SOCKET, SU_SO_REUSEADDR, &one, sizeof(one));
	return bid->result;
}

/*
 * bind(): bid->want.flow.local is the address. An address of the fleet is given with ports of this node's slices only; UDP
 * ports of the part for wildcards are claimed here, all others when their flow begins.
 */
static __always_inline int su_bind(struct bpf_sock_addr *ctx, struct su_bid *bid)
{
	__u32 port = bpf_ntohs(ctx->user_port);
	struct su_policy policy = {};
	struct su_want *w = &bid->want;
	struct su_slice *slice;
	struct su_sock *s;
	int err;

	if (!su_fleet(&w->flow.local))
		return 0;
	w->flow.proto = ctx->protocol;
	if (w->flow.proto != IPPROTO_TCP && w->flow.proto != IPPROTO_UDP)
		return 0;
	su_policy_of(ctx, &policy);
	bid->ctx = ctx;
	bid->now_ns = bpf_ktime_get_boot_ns();
	bid->result = -EADDRNOTAVAIL;
	w->claim.kind = SU_KIND_SOCKET;
	w->claim.owner = bpf_get_socket_cookie(ctx);
	w->claim.tenant = policy.tenant;
	w->last = 65535;
	if (port) {
		w->flow.local_port = ctx->user_port;
		w->claim.slice = su_slice_of(&w->flow.local, port);
		slice = bpf_map_lookup_elem(&slices, &w->claim.slice);
		if (!slice || !su_policy_allows(&policy, w->claim.slice, port))
			return -EADDRNOTAVAIL;
		if (w->flow.proto != IPPROTO_UDP || port >= slice->udp_exact_first)
			return 0;
		err = su_claim_exact(w, bid->now_ns, bpf_get_prandom_u32());
		if (err)
			return err == -SU_DROP_GUARD_FOREIGN ? -EADDRINUSE : su_errno(err, &w->flow);
	} else {
		if (su_bind_no_port(su_inet_sock(ctx->sk)))
			return 0;
		err = su_bind_any(ctx, bid, &policy);
		if (err)
			return err;
		ctx->user_port = w->flow.local_port;
		if (!w->claim.word)
			return 0;
	}
	s = bpf_sk_storage_get(&socks, ctx->sk, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (!s) {
		su_claim_release(&w->flow, su_word_gen(w->claim.word), su_seconds(bid->now_ns));
		return -ENOBUFS;
	}
	s->policy = policy;
	su_sock_take(s, w);
	su_count(SU_COUNT_CLAIM_SOCKET);
	return 0;
}

#endif /* SU_BIND_H */
