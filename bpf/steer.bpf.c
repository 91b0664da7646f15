/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * steer.bpf.c - steering alone: carries what belongs to other nodes, lets everything else go on.
 *
 * su_steer     XDP, for NICs with native support. Also takes packets for this node out of the tunnel, so that
 *              what is behind it (su_uplink_in at tc ingress) sees plain packets only.
 * su_steer_tc  tc ingress, for virtual devices and nodes that only steer; keeps GSO and partial checksums.
 *
 * XDP cannot ask for a neighbour's address: when the kernel knows no route or no neighbour, the packet goes up as
 * it came, and tc behind (su_uplink_in or su_steer_tc), which decides the same, carries it and makes the kernel ask.
 * So su_steer is never attached without one of the two behind it. It keeps no state either: a fragment that is at its
 * home goes up as it came.
 *
 * Sources: net/core/filter.c (bpf_fib_lookup, bpf_xdp_adjust_head), drivers/net/veth.c (XDP_TX).
 */
#include <linux/pkt_cls.h>

#include "steer.h"
#include "vlan.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define SU_AF_INET 2
#define SU_IFINDEX_LO 1

static __always_inline int su_steer_drop(int err, const struct su_pkt *p)
{
	struct su_flow flow;

	su_flow_of_in(p, &flow);
	return su_drop(err, &flow);
}

/* A packet that does not parse is dropped if it was for us, else the stack may judge. */
static __always_inline bool su_steer_bad(int err, const struct su_pkt *p)
{
	return err == -SU_DROP_MALFORMED && su_is_fleet(&p->dst);
}

SEC("tc") int su_steer_tc(struct __sk_buff *skb)
{
	struct su_owner owner = {};
	bool final = false, carried = false;
	struct su_pkt p;
	int err;

	if (su_is_vlan(skb))
		return TC_ACT_UNSPEC;
	err = su_tc_parse(skb, SU_STEER_L2_LEN, &p);
	if (err) {
		if (!su_steer_bad(err, &p))
			return TC_ACT_UNSPEC;
		goto drop;
	}
	if (su_is_gue(&p)) {
		err = su_tc_probe(skb, &p);
		if (err < 0)
			goto drop;
		if (err != SU_NOT_PROBE)
			return err == SU_PROBE_TO_STACK ? TC_ACT_UNSPEC : err;
		err = su_tc_decap(skb, &p, &final);
		if (err)
			goto drop;
		carried = true;
	}
	err = su_steer_where(&p, carried, true, &owner);
	if (err < 0)
		goto drop;
	if (err || owner.node == settings.node)
		return TC_ACT_UNSPEC;
	err = -SU_DROP_FINAL_NOT_MINE;
	if (final)
		goto drop;
	err = su_tc_encap(skb, &p, owner.node, carried);
	if (err >= 0)
		return err;
drop:
	su_steer_drop(err, &p);
	return TC_ACT_SHOT;
}

/* Take the packet out of the tunnel: p is still where su_gue_accept found it. 0 or -SU_DROP_ENCAP. */
static __always_inline int su_xdp_uncover(struct xdp_md *ctx, struct su_pkt *p, const struct su_outer_seen *seen)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct ethhdr eth;
	__be16 *word, was;

	if (data + SU_INNER_OFF + sizeof(struct iphdr) > data_end)
		return -SU_DROP_ENCAP;
	eth = *(struct ethhdr *)data;
	eth.h_proto = seen->eth_proto;
	word = data + SU_INNER_OFF;
	was = *word;
	if (p->flags & SU_PKT_IP6) {
		*word = (was & ~bpf_htons(SU_ECN_MASK << 4)) | bpf_htons(seen->ecn << 4);
	} else {
		*word = (was & ~bpf_htons(SU_ECN_MASK)) | bpf_htons(seen->ecn);
		if (*word != was)
			word[5] = su_csum_replace2(word[5], was, *word);
	}
	if (bpf_xdp_adjust_head(ctx, SU_OUTER_LEN))
		return -SU_DROP_ENCAP;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	if (data + sizeof(eth) > data_end)
		return -SU_DROP_ENCAP;
	*(struct ethhdr *)data = eth;
	su_pkt_uncovered(p, seen->ecn);
	return 0;
}

/*
 * Carry to `node`. A packet that is in a tunnel already (`seen`, and p describes what is inside) has its outer headers
 * written anew in place. An XDP action, or -SU_DROP_x.
 */
static __always_inline int su_xdp_carry(struct xdp_md *ctx, const struct su_pkt *p, __u32 node,
					const struct su_outer_seen *seen)
{
	const struct su_uplink *uplink = su_uplink_for(ctx->ingress_ifindex);
	struct su_addr underlay = settings.underlay;
	struct bpf_fib_lookup fib = {};
	__u32 off = seen ? SU_INNER_OFF : SU_STEER_L2_LEN;
	__u8 tos = seen ? (p->tos & ~SU_ECN_MASK) | seen->ecn : p->tos;
	void *data, *data_end;
	struct ethhdr *eth;
	__be32 to;
	int err;

	if (!uplink)
		return -SU_DROP_ENCAP;
	err = su_carry_check(p, node, p->tot_len, bpf_xdp_get_buff_len(ctx) - off, uplink->mtu, &to);
	if (err)
		return err;
	/* Through lo's eyes: the uplink itself need not forward, net.ipv4.conf.lo.forwarding must be 1. */
	fib.family = SU_AF_INET;
	fib.l4_protocol = IPPROTO_UDP;
	fib.tot_len = p->tot_len + SU_OUTER_LEN;
	fib.ifindex = SU_IFINDEX_LO;
	fib.ipv4_src = underlay.w[3];
	fib.ipv4_dst = to;
	err = bpf_fib_lookup(ctx, &fib, sizeof(fib), 0);
	if (err == BPF_FIB_LKUP_RET_FRAG_NEEDED)
		return -SU_DROP_TOO_BIG;
	if (err)
		return XDP_PASS;
	/* Not every driver sends what XDP redirects to it, and then nobody would be told: tc behind carries it. */
	if (fib.ifindex != ctx->ingress_ifindex) {
		uplink = su_uplink_for(fib.ifindex);
		if (!uplink || uplink->ifindex != fib.ifindex || !(uplink->flags & SU_UPLINK_XMIT))
			return XDP_PASS;
	}
	if (!seen && bpf_xdp_adjust_head(ctx, -SU_OUTER_LEN))
		return -SU_DROP_ENCAP;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	if (data + SU_INNER_OFF + sizeof(struct iphdr) > data_end)
		return -SU_DROP_ENCAP;
	eth = data;
	__builtin_memcpy(eth->h_dest, fib.dmac, ETH_ALEN);
	__builtin_memcpy(eth->h_source, fib.smac, ETH_ALEN);
	eth->h_proto = bpf_htons(ETH_P_IP);
	if (p->flags & SU_PKT_IP6) {
		struct ipv6hdr *ip6 = data + SU_INNER_OFF;
		__be16 *word = (__be16 *)ip6;

		ip6->hop_limit--;
		*word = (*word & ~bpf_htons(0xff << 4)) | bpf_htons(tos << 4);
	} else {
		struct iphdr *ip = data + SU_INNER_OFF;
		__be16 *word = (__be16 *)ip, was0 = word[0], was4 = word[4];

		ip->ttl--;
		ip->tos = tos;
		ip->check = su_csum_replace2(su_csum_replace2(ip->check, was4, word[4]), was0, word[0]);
	}
	su_outer_fill(data + SU_STEER_L2_LEN, underlay.w[3], to, settings.gue_port, p->tot_len,
		      p->flags & SU_PKT_IP6 ? IPPROTO_IPV6 : IPPROTO_IPIP, tos, su_flow_hash(p), seen != NULL);
	su_count_bh(su_stats_get(), SU_COUNT_CARRIED_OUT, 1);
	if (seen)
		su_count_bh(su_stats_get(), SU_COUNT_CARRIED_IN, 1);
	if (fib.ifindex == ctx->ingress_ifindex)
		return XDP_TX;
	return bpf_redirect(fib.ifindex, 0);
}

/* tc behind answers it. */
static __always_inline bool su_xdp_is_probe(void *data, void *data_end, const struct su_pkt *p)
{
	__u8 *first = data + SU_STEER_L2_LEN + sizeof(struct iphdr) + sizeof(struct udphdr);

	if (p->flags & SU_PKT_IP6)
		first += sizeof(struct ipv6hdr) - sizeof(struct iphdr);
	return (void *)(first + sizeof(struct su_probe)) <= data_end && *first == SU_GUE_CONTROL &&
	       !(p->flags & (SU_PKT_OPTIONS | SU_PKT_FRAG));
}

SEC("xdp") int su_steer(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct su_outer_seen seen = {};
	struct ethhdr *eth = data;
	struct su_owner owner = {};
	bool carried = false;
	struct su_pkt p;
	int err;

	if ((void *)(eth + 1) > data_end)
		return XDP_PASS;
	err = su_parse(data, data_end, SU_STEER_L2_LEN, eth->h_proto, &p);
	if (err) {
		if (!su_steer_bad(err, &p))
			return XDP_PASS;
		goto drop;
	}
	if (su_is_gue(&p)) {
		if (su_xdp_is_probe(data, data_end, &p))
			return XDP_PASS;
		err = su_gue_accept(data, data_end, bpf_xdp_get_buff_len(ctx), false, &p, &seen);
		if (err)
			goto drop;
		carried = true;
	}
	err = su_steer_where(&p, carried, false, &owner);
	/* As it came: its ports are tc's to know. */
	if (err == SU_STEER_HOME)
		return XDP_PASS;
	if (err < 0)
		goto drop;
	if (err || owner.node == settings.node) {
		if (!carried)
			return XDP_PASS;
		err = su_xdp_uncover(ctx, &p, &seen);
		if (err)
			goto drop;
		su_count_bh(su_stats_get(), SU_COUNT_CARRIED_IN, 1);
		return XDP_PASS;
	}
	err = -SU_DROP_FINAL_NOT_MINE;
	if (seen.final)
		goto drop;
	err = su_xdp_carry(ctx, &p, owner.node, carried ? &seen : NULL);
	/* As it came: tc behind decides the same and tells its sender (toobig.h). */
	if (err == -SU_DROP_TOO_BIG)
		return XDP_PASS;
	if (err >= 0)
		return err;
drop:
	su_steer_drop(err, &p);
	return XDP_DROP;
}
