/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * onramp.h - packets from clients: known flows are rewritten and sent out, others are sorted into classes and
 * claimed, given to the stack, or refused.
 *
 * The fast path is one lookup in `origin`, and once a second one in `flows`, which together say that this very
 * client was allowed this very flow; everything else is looked at for the first packet only.
 *
 * To the stack go: what is not IP (ARP), ND, DHCP, link-local, multicast, broadcast, the gateway's own address, and
 * destinations that the policy or the node leaves alone. `forwarding` is off on the device: what is not for this
 * node goes nowhere. Spoofed sources are dropped before any of the last two.
 */
#ifndef SU_ONRAMP_H
#define SU_ONRAMP_H

#include "frag.h"
#include "mss.h"
#include "permit.h"
#include "quota.h"
#include "refuse.h"

/* Ids that onramp_devices gave, by ifindex: a hint, for the on-ramp itself says which device it is. */
#define SU_ONRAMP_HINTS 64
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, SU_ONRAMP_HINTS);
	__type(key, __u32);
	__type(value, __u32);
} onramp_hints SEC(".maps");

static __always_inline const struct su_onramp *su_onramp_get(__u32 id, __u32 ifindex)
{
	struct su_onramp *onramp = bpf_map_lookup_elem(&onramps, &id);

	return onramp && onramp->flags & SU_ONRAMP_SET && onramp->ifindex == ifindex ? onramp : NULL;
}

/* The on-ramp of a device, and its id; NULL: none is configured. */
static __always_inline const struct su_onramp *su_onramp_of(__u32 ifindex, __u32 *id)
{
	__u32 at = ifindex % SU_ONRAMP_HINTS, *hint = bpf_map_lookup_elem(&onramp_hints, &at), *found;
	const struct su_onramp *onramp;

	if (!hint)
		return NULL;
	*id = *(volatile __u32 *)hint;
	onramp = su_onramp_get(*id, ifindex);
	if (onramp)
		return onramp;
	found = bpf_map_lookup_elem(&onramp_devices, &ifindex);
	if (!found)
		return NULL;
	*hint = *id = *found;
	return su_onramp_get(*id, ifindex);
}

static __always_inline __u64 su_onramp_owner(__u32 id, const struct su_onramp *onramp)
{
	return (__u64)id << 32 | onramp->generation;
}

/*
 * Rewritten already: mark it, give it an Ethernet header, and let it go. To the uplink's one gateway by the header
 * that the guard learned, which is a third of the cost; once a second, and wherever there are several gateways,
 * by the kernel's routes and neighbours, so that these are asked, kept alive and believed.
 */
static __always_inline int su_onramp_leave(struct __sk_buff *skb, struct su_work *w, const struct su_uplink *uplink,
					   __u64 now_ns, __u32 len)
{
	__u32 at = uplink->ifindex % SU_HOPS;
	struct su_tenant *tenant = su_tenant_of(w->policy.tenant);
	struct su_stats *s = su_stats_get();
	struct su_hop *hop;

	su_mark(skb);
	if (!w->pkt.l2_len && bpf_skb_change_head(skb, SU_ETH_LEN, 0))
		return -SU_DROP_ENCAP;
	su_count_bh(s, SU_COUNT_OUT_PACKETS, 1);
	su_count_bh(s, SU_COUNT_OUT_BYTES, len);
	if (tenant) {
		tenant->out_packets++;
		tenant->out_bytes += len;
	}
	hop = bpf_map_lookup_elem(&hops, &at);
	if (hop && uplink->flags & SU_UPLINK_ONE_HOP && skb->protocol == bpf_htons(ETH_P_IP)) {
		__u32 *header = (__u32 *)(long)skb->data;

		if (hop->ifindex == uplink->ifindex && now_ns - *(volatile __u64 *)&hop->learned_ns < SU_HOP_NS &&
		    (void *)header + SU_ETH_LEN <= (void *)(long)skb->data_end) {
			header[0] = hop->mac[0];
			header[1] = hop->mac[1];
			header[2] = hop->mac[2];
			*(__be16 *)&header[3] = bpf_htons(ETH_P_IP);
			return bpf_redirect(uplink->ifindex, 0);
		}
		hop->wanted = uplink->ifindex;
	}
	return bpf_redirect_neigh(uplink->ifindex, NULL, 0, 0);
}

/*
 * Rewritten already, and its destination is an address of the fleet (RFC 4787 REQ-9): it turns round here and comes in
 * by the uplink as if from outside, source and all (REQ-9a), to be steered to its owner. No router sees it.
 */
static __noinline int su_onramp_turn(struct __sk_buff *skb, const struct su_pkt *p, __u32 ifindex)
{
	__be16 proto = skb->protocol;

	if (!p->l2_len && bpf_skb_change_head(skb, SU_ETH_LEN, 0))
		return -SU_DROP_ENCAP;
	if (bpf_skb_store_bytes(skb, SU_ETH_LEN - 2, &proto, 2, 0))
		return -SU_DROP_ENCAP;
	su_mark(skb);
	su_count_bh(su_stats_get(), SU_COUNT_HAIRPINNED, 1);
	return bpf_redirect(ifindex, BPF_F_INGRESS);
}

/* Its outer flow is w->flow: rewrite it and let it go. A tc action or -SU_DROP_x. */
static __noinline int su_onramp_send(struct __sk_buff *skb, struct su_work *w, __u64 now_ns)
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
	err = su_rewrite(skb, &w->pkt, SU_SRC | SU_HOP, &w->flow.local, w->flow.local_port);
	if (err)
		return err;
	if (su_is_wildcard(&w->flow) && su_fleet(&w->pkt.dst))
		return su_onramp_turn(skb, &w->pkt, uplink->ifindex);
	return su_onramp_leave(skb, w, uplink, now_ns, len);
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
	struct su_origin *o = bpf_map_lookup_elem(&origin, &w->key);
	__u32 len = skb->len - w->pkt.l2_len;
	const struct su_uplink *uplink;
	__u64 word;
	int err;

	if (!(w->pkt.flags & SU_PKT_QUOTE) || !o)
		return -SU_DROP_ERROR_UNKNOWN;
	if (!su_origin_claim(w, o, SU_KIND_PACKET, owner, &word))
		return -SU_DROP_ERROR_UNKNOWN;
	uplink = su_uplink_of(&w->flow);
	if (!uplink)
		return -SU_DROP_ENCAP;
	err = su_rewrite_error(skb, &w->pkt, SU_SRC | SU_HOP, &w->flow.local, w->flow.local_port);
	if (!err && su_fleet(&w->pkt.dst))
		return su_onramp_turn(skb, &w->pkt, uplink->ifindex);
	return err ? err : su_onramp_leave(skb, w, uplink, bpf_ktime_get_boot_ns(), len);
}

/* To an address of the fleet: is it for a mapping there? Such are only of UDP, and only those may use them who have one. */
static __always_inline bool su_onramp_hairpin(const struct su_onramp *onramp, const struct su_pkt *p)
{
	return su_onramp_eim(onramp, p->flags & SU_PKT_QUOTE ? p->q_proto : p->proto);
}

/* Whose a packet is: the stack's (TC_ACT_OK), the Internet's (SU_TO_CLAIM), or nobody's (-SU_DROP_x). */
static __always_inline int su_onramp_whose(struct __sk_buff *skb, const struct su_pkt *p, const struct su_onramp *onramp)
{
	const struct su_addr *gateway = p->flags & SU_PKT_IP6 ? &onramp->gateway6 : &onramp->gateway4;

	if (su_onramp_neighbour(skb, p))
		return TC_ACT_OK;
	if (!su_listed(onramp->sources, &p->src))
		return -SU_DROP_SPOOFED;
	if (su_addr_equal(&p->dst, gateway))
		return TC_ACT_OK;
	if (su_fleet(&p->dst)) {
		if (!su_onramp_hairpin(onramp, p))
			return -SU_DROP_TO_FLEET;
	} else if (su_bypassed(&onramp->policy, &p->dst)) {
		return TC_ACT_OK;
	}
	return SU_TO_CLAIM;
}

/* What is to become of a packet that has no flow. A tc action, SU_TO_CLAIM, or -SU_DROP_x. */
static __noinline int su_onramp_class(struct __sk_buff *skb, const struct su_pkt *p, const struct su_onramp *onramp)
{
	int err = su_onramp_whose(skb, p, onramp);

	if (err != SU_TO_CLAIM)
		return err;
	if (p->flags & SU_PKT_FRAG)
		return p->frag_at ? -SU_DROP_FRAGMENT_EARLY : -SU_DROP_FRAGMENT;
	if (p->frag_at)
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

/* What su_onramp_class said, and nothing is to be claimed: a packet for the stack is none of ours any more. */
static __always_inline int su_onramp_stack(struct __sk_buff *skb, int err)
{
	if (err == TC_ACT_OK)
		skb->mark &= ~settings.mask;
	return err;
}

/*
 * The outer flow of a packet whose flow has its claim: in w->flow, the claim refreshed. 0, SU_UNKNOWN: it has
 * none, SU_UNSENT: a mapping has, but not towards that remote, or -SU_DROP_x. A hint that was checked in this second is
 * believed, unless the packet may change the state.
 */
static __noinline int su_onramp_known(struct su_work *w, const struct su_onramp *onramp, __u64 owner, __u64 now_ns)
{
	const struct su_pkt *p = &w->pkt;
	__u32 now_s = su_seconds(now_ns);
	struct su_claim *live;
	struct su_origin *o;
	__u32 state;
	__u64 word;
	bool eim;

	su_key_of(&w->key, p, owner >> 32);
	eim = su_onramp_eim(onramp, w->key.proto);
	if (eim)
		su_key_any(&w->key);
	if ((p->flags & (SU_PKT_PORTS | SU_PKT_FRAG)) != SU_PKT_PORTS || p->ttl <= 1)
		return SU_UNKNOWN;
	o = bpf_map_lookup_elem(&origin, &w->key);
	if (!o)
		return SU_UNKNOWN;
	if (!(p->proto == IPPROTO_TCP && p->tcp & (SU_TCP_SYN | SU_TCP_FIN | SU_TCP_RST_BIT)) &&
	    su_origin_fresh(w, o, (__u32)owner, now_s))
		return eim && !su_permit_sent(w, onramp, now_s) ? SU_UNSENT : 0;
	live = su_origin_claim(w, o, SU_KIND_PACKET, owner, &word);
	if (!live)
		return SU_UNKNOWN;
	state = su_track(live, word, p, true);
	if (!su_claim_refresh(live, word, state, now_s))
		return -SU_DROP_CLAIM_ERROR;
	/* Of a flow that ended each packet may matter: none is believed, not even in this second. */
	if (o->owner == (__u32)owner)
		*(volatile __u32 *)&o->checked_s = state == SU_STATE_LINGER ? 0 : now_s;
	return eim && !su_permit_sent(w, onramp, now_s) ? SU_UNSENT : 0;
}

/* A claim for the flow w->key, within the on-ramp's quotas. As su_flow_begin, or -SU_DROP_QUOTA_FLOWS, QUOTA_NEW. */
static __always_inline int su_onramp_begin(struct __sk_buff *skb, struct su_work *w, const struct su_onramp *onramp,
					   __u64 owner)
{
	__u64 now_ns = bpf_ktime_get_boot_ns();
	int err = su_quota_begin(onramp, owner, now_ns);

	if (!err)
		err = su_flow_begin(skb, w, SU_KIND_PACKET, owner);
	if (err || !onramp->max_flows)
		return err;
	err = su_quota_kept(onramp, owner);
	if (err)
		su_claim_release(&w->want.flow, su_word_gen(w->want.claim.word), su_seconds(now_ns));
	return err;
}

/* A packet without: its class, and a claim if it may begin a flow. A tc action, -SU_DROP_x, SU_CLAIMED or SU_BEGUN. */
static __noinline int su_onramp_new(struct __sk_buff *skb, struct su_work *w, const struct su_onramp *onramp,
				    __u64 owner)
{
	int err = su_onramp_class(skb, &w->pkt, onramp);
	struct su_tenant *tenant;
	struct su_control *ctl;
	__u32 zero = 0;

	if (err != SU_TO_CLAIM)
		return su_onramp_stack(skb, err);
	if (w->pkt.flags & SU_PKT_ERROR)
		return su_onramp_error(skb, w, owner);
	ctl = bpf_map_lookup_elem(&control, &zero);
	if (!ctl || !ctl->ready)
		return -SU_DROP_NOT_READY;
	w->policy = onramp->policy;
	err = su_onramp_begin(skb, w, onramp, owner);
	tenant = su_tenant_of(w->policy.tenant);
	if (err < 0)
		su_count(SU_COUNT_REFUSED_PACKET);
	if (tenant && err < 0)
		tenant->refused++;
	else if (tenant && !err)
		tenant->flows++;
	return err ? err : SU_BEGUN;
}

/*
 * A parsed packet from on-ramp `id`. A tc action or -SU_DROP_x. Always inline, and with little of its own on the
 * stack: what the arbiter needs is on top of it.
 */
static __always_inline int su_onramp_packet(struct __sk_buff *skb, struct su_work *w, const struct su_onramp *onramp,
					    __u64 owner)
{
	__u64 now_ns = bpf_ktime_get_boot_ns();
	int err;

	/* One that cannot be followed stays SU_PKT_FRAG, and may still be the stack's. */
	if (w->pkt.flags & SU_PKT_FRAG && su_frag_follow(&w->pkt, owner >> 32) == -SU_DROP_MALFORMED)
		return -SU_DROP_MALFORMED;
	w->policy.tenant = onramp->policy.tenant;
	err = su_onramp_known(w, onramp, owner, now_ns);
	if (err == SU_UNSENT) {
		err = su_onramp_class(skb, &w->pkt, onramp);
		if (err != SU_TO_CLAIM)
			return su_onramp_stack(skb, err);
		err = su_permit_add(w, onramp, su_seconds(now_ns));
	} else if (err == SU_UNKNOWN) {
		err = su_onramp_new(skb, w, onramp, owner);
		if (err == SU_BEGUN) {
			w->flow = w->want.flow;
			err = 0;
		} else if (err == SU_CLAIMED) {
			err = su_onramp_known(w, onramp, owner, now_ns);
		} else {
			return err;
		}
		if ((!err || err == SU_UNSENT) && su_onramp_eim(onramp, w->pkt.proto))
			err = su_permit_add(w, onramp, su_seconds(now_ns));
	}
	if (err)
		return err == SU_UNKNOWN ? -SU_DROP_CLAIM_ERROR : err;
	if (onramp->mss && w->pkt.tcp & SU_TCP_SYN) {
		err = su_mss_clamp(skb, &w->pkt, onramp->mss);
		if (err)
			return err;
	}
	return su_onramp_send(skb, w, now_ns);
}

#endif /* SU_ONRAMP_H */
