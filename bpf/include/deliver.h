/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * deliver.h - answers that are this node's: to whoever claimed the flow.
 *
 *   PACKET  the destination becomes the client's, and off to its on-ramp; to a mapping, if its filter lets it (permit.h)
 *   SOCKET  to the stack as it is
 *   LOCAL   the destination becomes what the stack sent from, and to the stack
 *   PEER    on to the node that still holds the flow, final
 *   none    dropped: slices are for answers, a listener on 0.0.0.0 is not exposed by them
 *
 * An ICMP error follows the claim of the packet that it quotes and changes nothing in it (RFC 5508 section 4).
 */
#ifndef SU_DELIVER_H
#define SU_DELIVER_H

#include "steer.h"
#include "icmp.h"
#include "mss.h"
#include "permit.h"
#include "quota.h"

#define SU_AF_INET_NH 2
#define SU_AF_INET6_NH 10

/* Put the client's (the stack's) address and port in. */
static __always_inline int su_deliver_rewrite(struct __sk_buff *skb, struct su_work *w, __u32 hop)
{
	if (w->pkt.flags & SU_PKT_ERROR)
		return su_rewrite_error(skb, &w->pkt, SU_DST | hop, &w->claim.inner, w->claim.inner_port);
	return su_rewrite(skb, &w->pkt, SU_DST | hop, &w->claim.inner, w->claim.inner_port);
}

/* The flow may have ended: what comes next from inside is to be looked at. */
static __noinline void su_origin_doubt(const struct su_flow *f, const struct su_claim *c)
{
	struct su_origin_key key;
	struct su_origin *o;

	su_origin_key_of(&key, f, c);
	o = bpf_map_lookup_elem(&origin, &key);
	if (o)
		*(volatile __u32 *)&o->checked_s = 0;
}

/*
 * A packet passed in: the answered flow is OPEN; a flow that ended lives no longer for what still comes in, nor does an
 * endpoint-independent mapping (`wildcard`), for anybody could keep that alive (RFC 4787 section 4.3).
 */
static __always_inline bool su_deliver_refresh(struct su_claim *live, struct su_work *w, bool wildcard)
{
	__u64 word = w->claim.word;
	__u32 state;

	if (w->pkt.flags & SU_PKT_ERROR)
		return true;
	state = su_track(live, word, &w->pkt, false);
	if (wildcard)
		return su_claim_refresh(live, word, state, su_word_seen(word));
	if (state == SU_STATE_LINGER && su_word_state(word) == SU_STATE_LINGER)
		return true;
	if (state == SU_STATE_LINGER)
		su_origin_doubt(&w->flow, live);
	return su_claim_refresh(live, word, state, su_now_s());
}

static __always_inline bool su_bare_syn(const struct su_pkt *p)
{
	return p->proto == IPPROTO_TCP && (p->tcp & (SU_TCP_SYN | SU_TCP_ACK)) == SU_TCP_SYN;
}

static __always_inline int su_deliver_packet(struct __sk_buff *skb, struct su_work *w, struct su_claim *live, bool wildcard)
{
	__u32 id = w->claim.owner >> 32, len = skb->len - w->pkt.l2_len;
	struct su_tenant *tenant = su_tenant_of(w->claim.tenant);
	struct su_stats *s = su_stats_get();
	struct bpf_redir_neigh next = {};
	struct su_onramp *onramp;
	int err;

	if (su_bare_syn(&w->pkt) && su_word_state(w->claim.word) != SU_STATE_NEW)
		return -SU_DROP_INBOUND_NEW;
	onramp = bpf_map_lookup_elem(&onramps, &id);
	if (!onramp || !(onramp->flags & SU_ONRAMP_SET) || onramp->generation != (__u32)w->claim.owner)
		return -SU_DROP_ONRAMP;
	if (w->pkt.ttl <= 1)
		return -SU_DROP_TTL;
	if (wildcard) {
		err = su_permit_in(w, su_now_s());
		if (err)
			return err;
	}
	if (onramp->mtu && len > onramp->mtu && su_segment_len(skb, &w->pkt) > onramp->mtu) {
		w->pkt.mtu = onramp->mtu;
		return -SU_DROP_TOO_BIG;
	}
	if (!su_deliver_refresh(live, w, wildcard))
		return -SU_DROP_NO_CLAIM;
	/* From a client of the fleet to another: its source is a slice's, and su_guard_other is to let it go. */
	if (wildcard && su_fleet(&w->pkt.src))
		su_mark(skb);
	if (onramp->mss && w->pkt.tcp & SU_TCP_SYN) {
		err = su_mss_clamp(skb, &w->pkt, onramp->mss);
		if (err)
			return err;
	}
	err = su_deliver_rewrite(skb, w, SU_HOP);
	if (err)
		return err;
	su_count_bh(s, SU_COUNT_IN_PACKETS, 1);
	su_count_bh(s, SU_COUNT_IN_BYTES, len);
	if (tenant) {
		tenant->in_packets++;
		tenant->in_bytes += len;
	}
	if (!(onramp->flags & SU_ONRAMP_L2))
		return bpf_redirect(onramp->ifindex, 0);
	if (w->pkt.flags & SU_PKT_IP6) {
		next.nh_family = SU_AF_INET6_NH;
		__builtin_memcpy(next.ipv6_nh, &w->claim.inner, 16);
	} else {
		next.nh_family = SU_AF_INET_NH;
		next.ipv4_nh = w->claim.inner.w[3];
	}
	return bpf_redirect_neigh(onramp->ifindex, &next, sizeof(next), 0);
}

static __noinline int su_deliver_local(struct __sk_buff *skb, struct su_work *w, struct su_claim *live)
{
	int err;

	if (!su_deliver_refresh(live, w, false))
		return -SU_DROP_NO_CLAIM;
	if (!su_addr_equal(&w->claim.inner, &w->flow.local) || w->claim.inner_port != w->flow.local_port) {
		err = su_deliver_rewrite(skb, w, 0);
		if (err)
			return err;
	}
	su_count_bh(su_stats_get(), SU_COUNT_LOCAL_IN, 1);
	return TC_ACT_OK;
}

/* A packet for a slice of this node: w->flow is its flow. A tc action or -SU_DROP_x. */
static __always_inline int su_deliver(struct __sk_buff *skb, struct su_work *w)
{
	struct su_claim *live = su_claim_get(&w->flow, &w->claim);
	bool wildcard = !live;

	if (!live && w->flow.proto == IPPROTO_UDP) {
		w->want.flow = w->flow;
		__builtin_memset(&w->want.flow.remote, 0, sizeof(w->want.flow.remote));
		w->want.flow.remote_port = 0;
		live = su_claim_get(&w->want.flow, &w->claim);
	}
	if (!live)
		return -SU_DROP_NO_CLAIM;
	switch (w->claim.kind) {
	case SU_KIND_PACKET:
		return su_deliver_packet(skb, w, live, wildcard);
	case SU_KIND_SOCKET:
		if (su_bare_syn(&w->pkt) && su_word_state(w->claim.word) == SU_STATE_LINGER)
			return -SU_DROP_INBOUND_NEW;
		su_count_bh(su_stats_get(), SU_COUNT_SOCKET_IN, 1);
		return TC_ACT_OK;
	case SU_KIND_LOCAL:
		return su_deliver_local(skb, w, live);
	case SU_KIND_PEER:
		return su_tc_encap(skb, &w->pkt, (__u32)w->claim.owner, true);
	}
	return -SU_DROP_NO_CLAIM;
}

/* A ping is answered where it arrives and never carried, but for fragments, which meet at their home. */
static __always_inline int su_deliver_ping(struct __sk_buff *skb, const struct su_pkt *p, bool carried)
{
	const struct su_uplink *uplink;

	if (!settings.answer_ping)
		return -SU_DROP_NO_CLAIM;
	if (!carried)
		return su_echo_reply(skb, p, skb->ifindex);
	uplink = su_uplink_for(skb->ifindex);
	return p->flags & SU_PKT_FOLLOWED && uplink ? su_echo_reply(skb, p, uplink->ifindex) : -SU_DROP_NO_CLAIM;
}

/* Out of the tunnel if it is in one, to its owner, or to whoever claimed it. A tc action or -SU_DROP_x. */
static __always_inline int su_uplink_packet(struct __sk_buff *skb, struct su_work *w)
{
	bool final = false, carried = false;
	struct su_pkt *p = &w->pkt;
	struct su_owner owner = {};
	int err;

	if (su_is_gue(p)) {
		err = su_tc_probe(skb, p);
		if (err != SU_NOT_PROBE)
			return err == SU_PROBE_TO_STACK ? SU_PASS : err;
		err = su_tc_decap(skb, p, &final);
		if (err)
			return err;
		carried = true;
	}
	err = su_steer_where(p, carried, true, &owner);
	if (err < 0)
		return err;
	if (err == SU_STEER_NOT_FLEET)
		return carried ? -SU_DROP_INNER_NOT_SLICE : SU_PASS;
	if (err == SU_STEER_HERE)
		return su_deliver_ping(skb, p, carried);
	if (owner.node != settings.node)
		return final ? -SU_DROP_FINAL_NOT_MINE : su_tc_encap(skb, p, owner.node, carried);
	err = su_flow_of_in(p, &w->flow);
	return err ? err : su_deliver(skb, w);
}

#endif /* SU_DELIVER_H */
