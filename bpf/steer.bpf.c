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
#define SU_AF_INET6 10
#define SU_IFINDEX_LO 1

/*
 * How XDP reaches a node: what bpf_fib_lookup said, by the node's index modulo SU_WAYS (`to` says whose it is). The kernel
 * is asked again after SU_WAY_NS: a lookup costs as much as all the rest, and a route or neighbour that changed is followed
 * that much later. Each CPU has its own, so that none is read while it is written.
 */
#define SU_WAYS 1024
#define SU_WAY_NS 10000000
struct su_way {
	__u64 learned_ns;	/* coarse monotonic clock */
	struct su_addr to;
	__u32 ifindex;
	__u32 mtu;		/* of the route, bytes */
	__u32 mac[3];		/* destination and source, as on the wire */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, SU_WAYS);
	__type(key, __u32);
	__type(value, struct su_way);
} ways SEC(".maps");

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
	__u32 len = seen->len == SU_OUTER6_LEN ? SU_OUTER6_LEN : SU_OUTER4_LEN;
	struct ethhdr eth;
	__be16 *word, was;

	word = data + SU_STEER_L2_LEN + len;
	if ((void *)word + sizeof(struct iphdr) > data_end)
		return -SU_DROP_ENCAP;
	eth = *(struct ethhdr *)data;
	eth.h_proto = seen->eth_proto;
	was = *word;
	if (p->flags & SU_PKT_IP6) {
		*word = (was & ~bpf_htons(SU_ECN_MASK << 4)) | bpf_htons(seen->ecn << 4);
	} else {
		*word = (was & ~bpf_htons(SU_ECN_MASK)) | bpf_htons(seen->ecn);
		if (*word != was)
			word[5] = su_csum_replace2(word[5], was, *word);
	}
	if (bpf_xdp_adjust_head(ctx, len))
		return -SU_DROP_ENCAP;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	if (data + sizeof(eth) > data_end)
		return -SU_DROP_ENCAP;
	*(struct ethhdr *)data = eth;
	su_pkt_uncovered(p, seen);
	return 0;
}

/*
 * Ask the kernel for the way of a packet of `len` bytes (outer IP header included). False: it knows no route or no
 * neighbour, or the packet is larger than the route's MTU, or the device would not send it.
 *
 * Asked through lo's eyes: the uplink itself need not forward, net.ipv4.conf.lo.forwarding (ipv6) must be 1. The flow
 * label is left out: with several next hops it would lead the flows of one node different ways, and the answer is
 * remembered for all of them.
 */
static __noinline bool su_xdp_learn(struct xdp_md *ctx, struct su_way *way, const struct su_addr *to, __u32 len)
{
	struct bpf_fib_lookup fib = {};
	const struct su_uplink *uplink;
	struct su_addr from;

	su_underlay(!su_addr_is4(to), &from);
	fib.l4_protocol = IPPROTO_UDP;
	fib.tot_len = len;
	fib.ifindex = SU_IFINDEX_LO;
	if (su_addr_is4(to)) {
		fib.family = SU_AF_INET;
		fib.ipv4_src = from.w[3];
		fib.ipv4_dst = to->w[3];
	} else {
		fib.family = SU_AF_INET6;
		__builtin_memcpy(fib.ipv6_src, &from, sizeof(from));
		__builtin_memcpy(fib.ipv6_dst, to, sizeof(*to));
	}
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0))
		return false;
	/* Not every driver sends what XDP redirects to it, and then nobody would be told: tc behind carries it. */
	if (fib.ifindex != ctx->ingress_ifindex) {
		uplink = su_uplink_for(fib.ifindex);
		if (!uplink || uplink->ifindex != fib.ifindex || !(uplink->flags & SU_UPLINK_XMIT))
			return false;
	}
	way->to = *to;
	way->ifindex = fib.ifindex;
	way->mtu = fib.mtu_result;	/* where a kernel does not say: tot_len, and a larger packet asks again */
	__builtin_memcpy(way->mac, fib.dmac, ETH_ALEN);
	__builtin_memcpy((void *)way->mac + ETH_ALEN, fib.smac, ETH_ALEN);
	way->learned_ns = bpf_ktime_get_coarse_ns();
	return true;
}

/* The same, remembered. */
static __always_inline const struct su_way *su_xdp_way(struct xdp_md *ctx, __u32 node, const struct su_addr *to, __u32 len)
{
	__u32 place = node % SU_WAYS;
	struct su_way *way = bpf_map_lookup_elem(&ways, &place);

	if (!way)
		return NULL;
	if (way->learned_ns && bpf_ktime_get_coarse_ns() - way->learned_ns < SU_WAY_NS && len <= way->mtu &&
	    su_addr_equal(&way->to, to))
		return way;
	return su_xdp_learn(ctx, way, to, len) ? way : NULL;
}

/* An inner header with one hop less to live. */
static __always_inline void su_xdp_inner(void *inner, bool inner6, __u8 tos)
{
	if (inner6) {
		struct ipv6hdr *ip6 = inner;
		__be16 *word = inner;

		ip6->hop_limit--;
		*word = (*word & ~bpf_htons(0xff << 4)) | bpf_htons(tos << 4);
	} else {
		struct iphdr *ip = inner;
		__be16 *word = inner, was0 = word[0], was4 = word[4];

		ip->ttl--;
		ip->tos = tos;
		ip->check = su_csum_replace2(su_csum_replace2(ip->check, was4, word[4]), was0, word[0]);
	}
}

/*
 * Carry to `node`. A packet that is in a tunnel already (`seen`, and p describes what is inside) has its outer headers
 * written anew where they are. An XDP action, or -SU_DROP_x.
 */
static __always_inline int su_xdp_carry(struct xdp_md *ctx, struct su_pkt *p, __u32 node, const struct su_outer_seen *seen)
{
	const struct su_uplink *uplink = su_uplink_for(ctx->ingress_ifindex);
	__s32 was = seen ? seen->len : 0, len;
	bool inner6 = p->flags & SU_PKT_IP6, six;
	struct su_outer_of of = {};
	const struct su_addr *to;
	const struct su_way *way;
	void *data, *data_end;
	struct su_addr from;
	__u32 ifindex;
	int err;

	if (!uplink)
		return -SU_DROP_ENCAP;
	err = su_carry_check(p, node, p->tot_len, bpf_xdp_get_buff_len(ctx) - SU_STEER_L2_LEN - was, uplink->mtu, &to,
			     &from);
	if (err)
		return err;
	six = !su_addr_is4(&from);
	len = six ? SU_OUTER6_LEN : SU_OUTER4_LEN;
	way = su_xdp_way(ctx, node, to, p->tot_len + len);
	if (!way)
		return XDP_PASS;
	ifindex = way->ifindex;
	of.inner_len = p->tot_len;
	of.hash = su_flow_hash(p);
	of.gue_port = settings.gue_port;
	of.inner_proto = inner6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	of.tos = seen ? (p->tos & ~SU_ECN_MASK) | seen->ecn : p->tos;
	of.final = seen != NULL;
	if (was != len && bpf_xdp_adjust_head(ctx, was - len))
		return -SU_DROP_ENCAP;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	if (six) {
		struct su_outer6 *o = data + SU_STEER_L2_LEN;

		if ((void *)(o + 1) + sizeof(struct iphdr) > data_end)
			return -SU_DROP_ENCAP;
		su_outer_fill6(o, &of, &from, to);
		su_xdp_inner(o + 1, inner6, of.tos);
		((struct ethhdr *)data)->h_proto = bpf_htons(ETH_P_IPV6);
	} else {
		struct su_outer4 *o = data + SU_STEER_L2_LEN;

		if ((void *)(o + 1) + sizeof(struct iphdr) > data_end)
			return -SU_DROP_ENCAP;
		su_outer_fill4(o, &of, from.w[3], to->w[3]);
		su_xdp_inner(o + 1, inner6, of.tos);
		((struct ethhdr *)data)->h_proto = bpf_htons(ETH_P_IP);
	}
	__builtin_memcpy(data, way->mac, sizeof(way->mac));
	su_count_bh(su_stats_get(), SU_COUNT_CARRIED_OUT, 1);
	if (seen)
		su_count_bh(su_stats_get(), SU_COUNT_CARRIED_IN, 1);
	if (ifindex == ctx->ingress_ifindex)
		return XDP_TX;
	return bpf_redirect(ifindex, 0);
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
