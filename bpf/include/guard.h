/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * guard.h - the last look at what leaves: nothing goes from a slice's address without a claim, and nothing of a
 * socket with a policy goes from the node's own.
 *
 *   marked                        ours, claimed at the on-ramp: the mark goes, the packet too
 *   source is of the fleet        claimed by a socket or by LOCAL: passes. By others: dropped. By nobody: a packet
 *                                 that may begin a flow claims it as it stands (LOCAL, inner = outer) if its port
 *                                 is in a slice of this node, else is given a port (echo, UDP under a policy)
 *   socket with a policy          UDP, echo and TCP of raw sockets from the node's own address are rewritten (LOCAL); a
 *                                 SYN of another socket is dropped, for the hooks should have claimed it
 *   a RST of no socket            the kernel's answer to what a raw socket asked for: goes the way of its SYN (LOCAL)
 *   anything else                 passes
 *
 * A fragment goes as the first one of its datagram did (frag.h); a later one begins nothing.
 *
 * TC_ACT_SHOT at egress is ENOBUFS to a sender that set IP_RECVERR (net/ipv4/udp.c, raw.c), silence to others.
 */
#ifndef SU_GUARD_H
#define SU_GUARD_H

#include "frag.h"
#include "work.h"

#define SU_GUARD_SLICES 4096
#define SU_SOCK_RAW 3	/* SOCK_RAW */

/* A packet of ours that went by the neighbour table shows how the gateway is reached, if somebody asked. */
static __always_inline void su_hop_learn(struct __sk_buff *skb)
{
	__u32 ifindex = skb->ifindex, at = ifindex % SU_HOPS;
	struct su_hop *hop = bpf_map_lookup_elem(&hops, &at);
	__u32 *header = (__u32 *)(long)skb->data;

	if (!hop || hop->wanted != ifindex || skb->protocol != bpf_htons(ETH_P_IP) || (void *)header + SU_ETH_LEN > (void *)(long)skb->data_end)
		return;
	hop->wanted = 0;
	*(volatile __u64 *)&hop->learned_ns = 0;
	hop->ifindex = ifindex;
	hop->mac[0] = header[0];
	hop->mac[1] = header[1];
	hop->mac[2] = header[2];
	barrier();
	*(volatile __u64 *)&hop->learned_ns = bpf_ktime_get_boot_ns();
}

struct su_slice_search {
	struct su_addr addr;
	__u32 found;
};

static long su_slice_search_one(__u32 i, struct su_slice_search *s)
{
	__u32 index = i;
	struct su_slice *slice = bpf_map_lookup_elem(&slices, &index);

	if (!slice)
		return 1;
	if ((slice->flags & (SU_SLICE_LIVE | SU_SLICE_DRAIN)) != SU_SLICE_LIVE || !su_addr_equal(&slice->addr, &s->addr))
		return 0;
	s->found = i;
	return 1;
}

/* A policy for whoever sends from an address of ours without having one: the first slice there that is live. */
static __noinline int su_guard_policy(struct su_work *w)
{
	struct su_slice_search s = {.addr = w->pkt.src, .found = SU_NONE};

	bpf_loop(SU_GUARD_SLICES, su_slice_search_one, &s, 0);
	if (s.found == SU_NONE)
		return -SU_DROP_GUARD_NO_CLAIM;
	__builtin_memset(&w->policy, 0, sizeof(w->policy));
	w->policy.flags = SU_POLICY_SET | SU_POLICY_RANGE;
	w->policy.slice = s.found;
	w->policy.last = 65535;
	return 0;
}

/* The policy of the socket that sends, if it has one and its destination is sliced. */
static __always_inline const struct su_sock *su_guard_sock(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;
	struct su_sock *s;

	if (!sk)
		return NULL;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return NULL;
	s = bpf_sk_storage_get(&socks, sk, 0, 0);
	if (!s || !(s->policy.flags & SU_POLICY_SET) || s->flags & SU_SOCK_BYPASS)
		return NULL;
	return s;
}

/*
 * The socket that sends holds the claim of this very flow: `flows` need not be asked, for a socket's claim is nobody
 * else's before it ends, and its record says so until then.
 */
static __always_inline bool su_guard_holds(struct __sk_buff *skb, const struct su_flow *f)
{
	struct bpf_sock *sk = skb->sk;
	struct su_sock *s;

	if (!sk)
		return false;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return false;
	s = bpf_sk_storage_get(&socks, sk, 0, 0);
	return s && s->flags & SU_SOCK_CLAIMED && su_flow_eq(&s->flow, f);
}

/* A local packet whose flow has its claim: rewrite it. A tc action, -SU_DROP_x, or SU_UNKNOWN. */
static __noinline int su_guard_known(struct __sk_buff *skb, struct su_work *w)
{
	struct su_claim *live;
	struct su_origin *o;
	__u64 word;
	int err;

	su_key_of(&w->key, &w->pkt, 0);
	o = bpf_map_lookup_elem(&origin, &w->key);
	live = o ? su_origin_claim(w, o, SU_KIND_LOCAL, 0, &word) : NULL;
	if (!live)
		return SU_UNKNOWN;
	if (!su_claim_refresh(live, word, su_track(live, word, &w->pkt, true), su_now_s()))
		return -SU_DROP_CLAIM_ERROR;
	err = su_rewrite(skb, &w->pkt, SU_SRC, &w->flow.local, w->flow.local_port);
	if (err)
		return err;
	su_count_bh(su_stats_get(), SU_COUNT_LOCAL_OUT, 1);
	return TC_ACT_OK;
}

/* A local packet that wants another port, under w->policy. A tc action or -SU_DROP_x. */
static __always_inline int su_guard_rewrite(struct __sk_buff *skb, struct su_work *w)
{
	int err = su_guard_known(skb, w);

	if (err == SU_UNKNOWN && w->pkt.frag_at)
		return -SU_DROP_FRAGMENT;
	if (err == SU_UNKNOWN) {
		err = su_flow_begin(skb, w, SU_KIND_LOCAL, 0);
		if (!err || err == SU_CLAIMED)
			err = su_guard_known(skb, w);
	}
	return err == SU_UNKNOWN ? -SU_DROP_CLAIM_ERROR : err;
}

/* Nobody holds w->flow: may this packet begin it, as it stands or with another port? */
static __noinline int su_guard_begin(struct __sk_buff *skb, struct su_work *w)
{
	const struct su_sock *sock = su_guard_sock(skb);
	const struct su_pkt *p = &w->pkt;
	__u32 index, port = bpf_ntohs(p->sport);
	struct su_slice *slice;
	int err;

	if (p->flags & (SU_PKT_ERROR | SU_PKT_ECHO_REPLY))
		return -SU_DROP_GUARD_NO_CLAIM;
	if (p->proto == IPPROTO_TCP && (p->tcp & (SU_TCP_SYN | SU_TCP_ACK | SU_TCP_RST_BIT)) != SU_TCP_SYN)
		return -SU_DROP_GUARD_NO_CLAIM;
	index = su_slice_of(&p->src, port);
	slice = bpf_map_lookup_elem(&slices, &index);
	if (index != SU_NONE && slice) {
		/* Ports for wildcard claims cannot be seen from an exact one. */
		if (p->frag_at || (p->proto == IPPROTO_UDP && port < slice->udp_exact_first))
			return -SU_DROP_GUARD_NO_CLAIM;
		__builtin_memset(&w->want, 0, sizeof(w->want));
		w->want.flow = w->flow;
		w->want.claim.kind = SU_KIND_LOCAL;
		w->want.claim.inner = p->src;
		w->want.claim.inner_port = p->sport;
		w->want.claim.slice = index;
		w->want.claim.tenant = sock ? sock->policy.tenant : 0;
		w->want.last = 65535;
		err = su_claim_exact(&w->want, bpf_ktime_get_boot_ns(), bpf_get_prandom_u32());
		if (err)
			return err == -SU_DROP_NO_SLICE ? -SU_DROP_GUARD_NO_CLAIM : err;
		su_count(SU_COUNT_CLAIM_LOCAL);
		su_count_bh(su_stats_get(), SU_COUNT_GUARD_PASSED, 1);
		return TC_ACT_OK;
	}
	if (p->proto == IPPROTO_TCP)
		return -SU_DROP_GUARD_NO_CLAIM;
	if (sock) {
		w->policy = sock->policy;
	} else {
		if (p->proto == IPPROTO_UDP)
			return -SU_DROP_GUARD_NO_CLAIM;
		err = su_guard_policy(w);
		if (err)
			return err;
	}
	return SU_TO_CLAIM;
}

/* From an address of the fleet. A tc action, -SU_DROP_x, or SU_TO_CLAIM (w->policy). */
static __noinline int su_guard_slice(struct __sk_buff *skb, struct su_work *w)
{
	const struct su_pkt *p = &w->pkt;
	struct su_claim *live;
	__u32 state;
	int err;

	err = su_flow_of_out(p, &w->flow);
	if (err == -SU_DROP_FRAGMENT) {
		err = su_frag_follow(&w->pkt, SU_FRAG_STACK);
		if (err)
			return err;
		err = su_flow_of_out(p, &w->flow);
	}
	if (err)
		return -SU_DROP_GUARD_NO_CLAIM;
	if (su_guard_holds(skb, &w->flow)) {
		su_count_bh(su_stats_get(), SU_COUNT_GUARD_PASSED, 1);
		return TC_ACT_OK;
	}
	live = su_claim_get(&w->flow, &w->claim);
	if (!live && p->proto == IPPROTO_UDP) {
		w->want.flow = w->flow;
		__builtin_memset(&w->want.flow.remote, 0, sizeof(w->want.flow.remote));
		w->want.flow.remote_port = 0;
		live = su_claim_get(&w->want.flow, &w->claim);
	}
	if (!live) {
		/* Held, but just being filled or ended. */
		if (bpf_map_lookup_elem(&flows, &w->flow))
			return -SU_DROP_GUARD_FOREIGN;
		return su_guard_begin(skb, w);
	}
	state = su_word_state(w->claim.word);
	switch (w->claim.kind) {
	case SU_KIND_LOCAL:
		if (w->claim.inner_port != w->flow.local_port || !su_addr_equal(&w->claim.inner, &w->flow.local))
			return -SU_DROP_GUARD_FOREIGN;
		if (!(p->flags & SU_PKT_ERROR))
			state = su_track(live, w->claim.word, p, true);
		break;
	case SU_KIND_SOCKET:
		if (state == SU_STATE_NEW && p->proto == IPPROTO_TCP && p->tcp & SU_TCP_ACK)
			state = SU_STATE_OPEN;
		break;
	default:
		return -SU_DROP_GUARD_FOREIGN;
	}
	/* The last RST of a socket that ended is not life: how soon its port is free again was decided at its end. */
	if (!(w->claim.kind == SU_KIND_SOCKET && state == SU_STATE_LINGER && p->tcp & SU_TCP_RST_BIT) &&
	    !su_claim_refresh(live, w->claim.word, state, su_now_s()))
		return -SU_DROP_GUARD_FOREIGN;
	su_count_bh(su_stats_get(), SU_COUNT_GUARD_PASSED, 1);
	return TC_ACT_OK;
}

/* Sent by a raw socket: connect() was never asked for a port. */
static __always_inline bool su_guard_raw(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	sk = sk ? bpf_sk_fullsock(sk) : NULL;
	return sk && sk->type == SU_SOCK_RAW;
}

/*
 * A RST as the kernel makes it for a segment that no socket wants (tcp_v4_send_reset(), tcp_v6_send_reset(): no IP
 * options, all in one piece). Asked for every packet that is none of ours, so it looks at two bytes.
 */
static __always_inline bool su_guard_reset(struct __sk_buff *skb)
{
	__u8 *data = (__u8 *)(long)skb->data, *end = (__u8 *)(long)skb->data_end;

	if (skb->protocol == bpf_htons(ETH_P_IP))
		return data + SU_ETH_LEN + 34 <= end && data[SU_ETH_LEN] == 0x45 && data[SU_ETH_LEN + 9] == IPPROTO_TCP &&
		       data[SU_ETH_LEN + 33] & SU_TCP_RST_BIT;
	return data + SU_ETH_LEN + 54 <= end && data[SU_ETH_LEN + 6] == IPPROTO_TCP &&
	       data[SU_ETH_LEN + 53] & SU_TCP_RST_BIT;
}

/* Of a socket with a policy, from the node's own address. A tc action, -SU_DROP_x, or SU_TO_CLAIM. */
static __noinline int su_guard_own(struct __sk_buff *skb, struct su_work *w)
{
	const struct su_pkt *p = &w->pkt;
	int err;

	if (su_bypassed(&w->policy, &p->dst))
		return SU_PASS;
	if (su_fleet(&p->dst))
		return -SU_DROP_TO_FLEET;
	if (p->flags & SU_PKT_FRAG) {
		err = su_frag_follow(&w->pkt, SU_FRAG_STACK);
		if (err)
			return err;
	}
	if (p->proto == IPPROTO_TCP) {
		bool syn = (p->tcp & (SU_TCP_SYN | SU_TCP_ACK)) == SU_TCP_SYN;

		if (!su_guard_raw(skb))	/* what a listener answers is no leak */
			return syn ? -SU_DROP_GUARD_LEAK : SU_PASS;
		if (syn)
			return SU_TO_CLAIM;
		err = su_guard_known(skb, w);
		return err == SU_UNKNOWN ? -SU_DROP_GUARD_LEAK : err;
	}
	if (p->proto == IPPROTO_UDP || p->flags & SU_PKT_ECHO_REQUEST)
		return SU_TO_CLAIM;
	return -SU_DROP_GUARD_LEAK;
}

#endif /* SU_GUARD_H */
