/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * onramp.h - packets from clients: known flows are rewritten and sent out, others are sorted into classes and
 * claimed, given to the stack, or refused.
 *
 * The fast path is one lookup in `origin` and one in `flows`, which together say that this very client was
 * allowed this very flow; everything else is looked at for the first packet only.
 *
 * To the stack go: what is not IP (ARP), ND, DHCP, link-local, multicast, broadcast, the gateway's own address, and
 * destinations that the policy or the node leaves alone. `forwarding` is off on the device: what is not for this
 * node goes nowhere. Spoofed sources are dropped before any of the last two.
 */
#ifndef SU_ONRAMP_H
#define SU_ONRAMP_H

#include "refuse.h"

static __always_inline __u64 su_onramp_owner(__u32 id, const struct su_onramp *onramp)
{
	return (__u64)id << 32 | onramp->generation;
}

/* Rewritten already: mark it, give it an Ethernet header if it has none, and let it go. */
static __always_inline int su_onramp_leave(struct __sk_buff *skb, struct su_work *w, const struct su_uplink *uplink,
					   __u32 len)
{
	struct su_stats *s = su_stats_get();

	su_mark(skb);
	if (!w->pkt.l2_len && bpf_skb_change_head(skb, SU_ETH_LEN, 0))
		return -SU_DROP_ENCAP;
	su_count_bh(s, SU_COUNT_OUT_PACKETS, 1);
	su_count_bh(s, SU_COUNT_OUT_BYTES, len);
	return bpf_redirect_neigh(uplink->ifindex, NULL, 0, 0);
}

/* Bytes of the largest packet, IP header included, that this one will be on the wire. */
static __noinline __u32 su_segment_len(struct __sk_buff *skb, const struct su_pkt *p)
{
	__u32 gso_size = *(volatile __u32 *)&skb->gso_size, headers = p->l4_off - p->l2_len;
	__u8 doff;

	if (!gso_size)
		return skb->len - p->l2_len;
	if (p->proto != IPPROTO_TCP)
		return gso_size + headers + sizeof(struct udphdr);
	if (bpf_skb_load_bytes(skb, p->l4_off + 12, &doff, 1))
		return ~0u;
	return gso_size + headers + (doff >> 4) * 4;
}

/* Of the flow w->flow, whose claim is `live`: out it goes. A tc action or -SU_DROP_x. */
static __always_inline int su_onramp_send(struct __sk_buff *skb, struct su_work *w, struct su_claim *live, __u64 word)
{
	const struct su_uplink *uplink = su_uplink_of(&w->flow);
	__u32 len = skb->len - w->pkt.l2_len;
	int err;

	if (!uplink)
		return -SU_DROP_ENCAP;
	if (len > uplink->mtu && su_segment_len(skb, &w->pkt) > uplink->mtu) {
		w->pkt.mtu = uplink->mtu;
		return -SU_DROP_TOO_BIG;
	}
	if (!su_claim_refresh(live, word, su_track(live, word, &w->pkt, true), su_now_s()))
		return -SU_DROP_CLAIM_ERROR;
	err = su_rewrite(skb, &w->pkt, SU_SRC | SU_HOP, &w->flow.local, w->flow.local_port);
	return err ? err : su_onramp_leave(skb, w, uplink, len);
}

/* Destinations that a router never forwards, and what only makes sense between neighbours. */
static __always_inline bool su_onramp_neighbour(struct __sk_buff *skb, const struct su_pkt *p)
{
	__u32 dst = bpf_ntohl(p->dst.w[3]), src = bpf_ntohl(p->src.w[3]);

	if (skb->pkt_type != 0 /* PACKET_HOST */)
		return true;
	if (p->flags & SU_PKT_IP6) {
		if ((p->dst.w[0] & bpf_htonl(0xff000000)) == bpf_htonl(0xff000000))
			return true;
		if ((p->dst.w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000) ||
		    (p->src.w[0] & bpf_htonl(0xffc00000)) == bpf_htonl(0xfe800000))
			return true;
		return p->proto == IPPROTO_ICMPV6 && p->icmp_type >= 133 && p->icmp_type <= 137;
	}
	/* 224.0.0.0/4 and above, 169.254.0.0/16, 0.0.0.0/8 (a client without an address: DHCP) */
	return dst >> 28 >= 14 || dst >> 16 == 0xa9fe || src >> 16 == 0xa9fe || src >> 24 == 0 || dst >> 24 == 0;
}

/* An ICMP error from a client about a packet of one of its flows. */
static __noinline int su_onramp_error(struct __sk_buff *skb, struct su_work *w, __u64 owner)
{
	__u32 len = skb->len - w->pkt.l2_len;
	const struct su_uplink *uplink;
	__u64 word;
	int err;

	if (!(w->pkt.flags & SU_PKT_QUOTE))
		return -SU_DROP_ERROR_UNKNOWN;
	if (!su_origin_claim(w, SU_KIND_PACKET, owner, &word))
		return -SU_DROP_ERROR_UNKNOWN;
	uplink = su_uplink_of(&w->flow);
	if (!uplink)
		return -SU_DROP_ENCAP;
	err = su_rewrite_error(skb, &w->pkt, SU_SRC | SU_HOP, &w->flow.local, w->flow.local_port);
	return err ? err : su_onramp_leave(skb, w, uplink, len);
}

/* What is to become of a packet that has no flow. A tc action, SU_TO_CLAIM, or -SU_DROP_x. */
static __noinline int su_onramp_class(struct __sk_buff *skb, const struct su_pkt *p, const struct su_onramp *onramp)
{
	const struct su_addr *gateway = p->flags & SU_PKT_IP6 ? &onramp->gateway6 : &onramp->gateway4;

	if (su_onramp_neighbour(skb, p))
		return TC_ACT_OK;
	if (!su_listed(onramp->sources, &p->src))
		return -SU_DROP_SPOOFED;
	if (su_addr_equal(&p->dst, gateway))
		return TC_ACT_OK;
	if (su_fleet(&p->dst))
		return -SU_DROP_TO_FLEET;
	if (su_bypassed(&onramp->policy, &p->dst))
		return TC_ACT_OK;
	if (p->flags & SU_PKT_FRAG)
		return -SU_DROP_FRAGMENT;
	if (p->ttl <= 1)
		return -SU_DROP_HOPS;
	if (p->flags & SU_PKT_ERROR)
		return SU_TO_CLAIM;
	if (!(p->flags & SU_PKT_PORTS))
		return -SU_DROP_PROTOCOL;
	if (p->flags & SU_PKT_ECHO_REPLY)
		return -SU_DROP_NOT_INITIAL;
	if (p->proto == IPPROTO_TCP && (p->tcp & (SU_TCP_SYN | SU_TCP_ACK | SU_TCP_RST_BIT)) != SU_TCP_SYN)
		return -SU_DROP_NOT_INITIAL;
	return SU_TO_CLAIM;
}

/* A packet of a flow that has its claim: out with it. A tc action, -SU_DROP_x, or SU_UNKNOWN: it has none. */
static __noinline int su_onramp_known(struct __sk_buff *skb, struct su_work *w, __u64 owner)
{
	const struct su_pkt *p = &w->pkt;
	struct su_claim *live;
	__u64 word;

	su_key_of(&w->key, p, owner >> 32);
	if ((p->flags & (SU_PKT_PORTS | SU_PKT_FRAG)) != SU_PKT_PORTS || p->ttl <= 1)
		return SU_UNKNOWN;
	live = su_origin_claim(w, SU_KIND_PACKET, owner, &word);
	return live ? su_onramp_send(skb, w, live, word) : SU_UNKNOWN;
}

/* A packet without: its class, and a claim if it may begin a flow. A tc action, -SU_DROP_x, or SU_CLAIMED. */
static __noinline int su_onramp_new(struct __sk_buff *skb, struct su_work *w, const struct su_onramp *onramp,
				    __u64 owner)
{
	int err = su_onramp_class(skb, &w->pkt, onramp);
	struct su_control *ctl;
	__u32 zero = 0;

	if (err == TC_ACT_OK)
		skb->mark &= ~settings.mask;
	if (err != SU_TO_CLAIM)
		return err;
	if (w->pkt.flags & SU_PKT_ERROR)
		return su_onramp_error(skb, w, owner);
	ctl = bpf_map_lookup_elem(&control, &zero);
	if (!ctl || !ctl->ready)
		return -SU_DROP_NOT_READY;
	w->policy = onramp->policy;
	err = su_flow_begin(skb, w, SU_KIND_PACKET, owner);
	if (!err)
		return SU_CLAIMED;
	su_count(SU_COUNT_REFUSED_PACKET);
	return err;
}

/*
 * A parsed packet from on-ramp `id`. A tc action or -SU_DROP_x. Always inline, and with little of its own on the
 * stack: what the arbiter needs is on top of it.
 */
static __always_inline int su_onramp_packet(struct __sk_buff *skb, struct su_work *w, const struct su_onramp *onramp,
					    __u64 owner)
{
	int err = su_onramp_known(skb, w, owner);

	if (err == SU_UNKNOWN) {
		err = su_onramp_new(skb, w, onramp, owner);
		if (err == SU_CLAIMED)
			err = su_onramp_known(skb, w, owner);
	}
	return err == SU_UNKNOWN ? -SU_DROP_CLAIM_ERROR : err;
}

#endif /* SU_ONRAMP_H */
