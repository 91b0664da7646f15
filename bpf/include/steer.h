/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * steer.h - how an answer gets to its owner (owner.h): into the tunnel, out of it, on to another node. docs/steering.md is
 * the theory.
 *
 * One core (su_steer_where, su_gue_accept, su_carry_check, su_outer_fill4 and 6), which works on packet pointers and
 * plain values, and two sets of hands: su_tc_encap and su_tc_decap here, those of XDP in steer.bpf.c.
 */
#ifndef SU_STEER_H
#define SU_STEER_H

#include "count.h"
#include "csum.h"
#include "gue.h"
#include "maps.h"
#include "owner.h"
#include "parse.h"

#define SU_STEER_L2_LEN 14	/* uplinks are Ethernet */
#define SU_STEER_PARSE_BYTES (SU_PARSE_BYTES + SU_OUTER6_LEN)

#ifndef BPF_F_ADJ_ROOM_DECAP_L3_IPV6
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV4 (1ULL << 7)	/* Linux 6.3, both */
#define BPF_F_ADJ_ROOM_DECAP_L3_IPV6 (1ULL << 8)
#endif
#define SU_EALREADY 114

/* This node's own underlay address, of either family? */
static __always_inline bool su_is_underlay(const struct su_addr *a)
{
	return (a->w[3] == settings.underlay4.w[3] && a->w[2] == settings.underlay4.w[2] &&
		a->w[1] == settings.underlay4.w[1] && a->w[0] == settings.underlay4.w[0]) ||
	       (a->w[3] == settings.underlay6.w[3] && a->w[2] == settings.underlay6.w[2] &&
		a->w[1] == settings.underlay6.w[1] && a->w[0] == settings.underlay6.w[0]);
}

/* This node's underlay address of a family; false: it has none. Word by word: settings are volatile. */
static __always_inline bool su_underlay(bool six, struct su_addr *a)
{
	a->w[0] = six ? settings.underlay6.w[0] : settings.underlay4.w[0];
	a->w[1] = six ? settings.underlay6.w[1] : settings.underlay4.w[1];
	a->w[2] = six ? settings.underlay6.w[2] : settings.underlay4.w[2];
	a->w[3] = six ? settings.underlay6.w[3] : settings.underlay4.w[3];
	return su_addr_is4(a) != six;
}

/* Is it addressed to this node's end of the tunnel? */
static __always_inline bool su_is_gue(const struct su_pkt *p)
{
	return p->proto == IPPROTO_UDP && p->dport == settings.gue_port && p->flags & SU_PKT_PORTS &&
	       su_is_underlay(&p->dst);
}

static __always_inline bool su_is_listed(__u32 list, const struct su_addr *a)
{
	struct su_prefix key = {
		.prefix_len = 32 + 128,
		.list = bpf_htonl(list),
		.addr = *a,
	};

	return bpf_map_lookup_elem(&prefixes, &key) != NULL;
}

/* From a mapping of one client of the fleet to another's, or an error about that: of UDP, and its source is an address of ours. */
static __always_inline bool su_is_hairpin(const struct su_pkt *p)
{
	return (p->flags & SU_PKT_QUOTE ? p->q_proto : p->proto) == IPPROTO_UDP && su_is_fleet(&p->src);
}

#define SU_NOT_PROBE 1
#define SU_PROBE_TO_STACK 2

/*
 * A probe of another node, addressed to our end of the tunnel (su_is_gue(p)), is answered; the reply to one of ours is the
 * stack's. TC_ACT_REDIRECT, SU_PROBE_TO_STACK, SU_NOT_PROBE, or -SU_DROP_STRANGER, _GUE_MALFORMED. XDP passes probes up.
 */
static __noinline int su_tc_probe(struct __sk_buff *skb, struct su_pkt *p)
{
	__u32 zero = 0, at = p->l4_off + sizeof(struct udphdr);
	__u32 check_at = p->l4_off + offsetof(struct udphdr, check);
	__be16 ports[2], check, old[2], new[2];
	struct su_control *c;
	struct su_probe probe;
	__u8 mac[12];

	if (p->flags & (SU_PKT_OPTIONS | SU_PKT_FRAG) || bpf_skb_load_bytes(skb, at, &probe, sizeof(probe)) ||
	    probe.version_c_hlen != SU_GUE_CONTROL)
		return SU_NOT_PROBE;
	if (!bpf_map_lookup_elem(&peers, &p->src))
		return -SU_DROP_STRANGER;
	if (probe.type == SU_PROBE_TYPE_REPLY)
		return SU_PROBE_TO_STACK;
	c = bpf_map_lookup_elem(&control, &zero);
	if (!c || probe.type != SU_PROBE_TYPE_ASK || p->l2_len != SU_STEER_L2_LEN ||
	    bpf_skb_load_bytes(skb, check_at, &check, 2) || bpf_skb_load_bytes(skb, 0, mac, sizeof(mac)))
		return -SU_DROP_GUE_MALFORMED;
	__builtin_memcpy(old, &probe, sizeof(old));
	probe.type = SU_PROBE_TYPE_REPLY;
	probe.flags = bpf_htons((__u16)c->probe_flags);
	__builtin_memcpy(new, &probe, sizeof(new));
	ports[0] = p->dport;
	ports[1] = p->sport;
	/* Addresses and ports change places, which no checksum sees. */
	if (bpf_skb_store_bytes(skb, 0, mac + 6, 6, 0) || bpf_skb_store_bytes(skb, 6, mac, 6, 0) ||
	    bpf_skb_store_bytes(skb, p->l4_off, ports, sizeof(ports), 0) ||
	    bpf_skb_store_bytes(skb, at, new, sizeof(new), 0))
		return -SU_DROP_GUE_MALFORMED;
	if (p->flags & SU_PKT_IP6) {
		bpf_skb_store_bytes(skb, p->ip_off + 8, &p->dst, 16, 0);
		bpf_skb_store_bytes(skb, p->ip_off + 24, &p->src, 16, 0);
	} else {
		bpf_skb_store_bytes(skb, p->ip_off + 12, &p->dst.w[3], 4, 0);
		bpf_skb_store_bytes(skb, p->ip_off + 16, &p->src.w[3], 4, 0);
	}
	if (check) {
		bpf_l4_csum_replace(skb, check_at, old[0], new[0], BPF_F_MARK_MANGLED_0 | 2);
		bpf_l4_csum_replace(skb, check_at, old[1], new[1], BPF_F_MARK_MANGLED_0 | 2);
	}
	su_count_bh(su_stats_get(), SU_COUNT_PROBE_ANSWERED, 1);
	return bpf_redirect(skb->ifindex, 0);
}

/* What is left of the outer headers. */
struct su_outer_seen {
	__be16 eth_proto;	/* of the inner packet */
	__u8 ecn;		/* the inner packet's, once out */
	__u8 final;
	__u32 len;		/* SU_OUTER4_LEN or SU_OUTER6_LEN */
};

/*
 * May this encapsulated packet (p: its outer headers; `data`: linear for SU_STEER_PARSE_BYTES or all there
 * is; `frame_len`: the whole) come out here? Afterwards p describes the inner packet *where it still is*,
 * offsets included. 0, or -SU_DROP_STRANGER, _GUE_MALFORMED, _MALFORMED, _INNER_NOT_SLICE, _INNER_INTERNAL,
 * _ECN. Nothing in the packet is changed.
 */
static __always_inline int su_gue_accept(void *data, void *data_end, __u32 frame_len, bool gso, struct su_pkt *p,
					 struct su_outer_seen *seen)
{
	bool six = p->flags & SU_PKT_IP6;
	__u32 outer_len = p->tot_len, head_len = six ? sizeof(struct ipv6hdr) : sizeof(struct iphdr);
	const struct su_outer_tail *t = data + SU_STEER_L2_LEN + head_len;
	__u8 outer_ecn = p->tos & SU_ECN_MASK;
	int err;

	if (!bpf_map_lookup_elem(&peers, &p->src))
		return -SU_DROP_STRANGER;
	if (p->l2_len != SU_STEER_L2_LEN || p->flags & (SU_PKT_OPTIONS | SU_PKT_FRAG))
		return -SU_DROP_GUE_MALFORMED;
	if ((void *)(t + 1) > data_end)
		return -SU_DROP_GUE_MALFORMED;
	err = su_outer_check(t, outer_len - head_len, gso);
	if (err)
		return err;
	if (!gso && outer_len > frame_len - SU_STEER_L2_LEN)
		return -SU_DROP_GUE_MALFORMED;
	seen->final = !!(t->gue.flags & bpf_htons(SU_GUE_FINAL));
	seen->eth_proto = t->gue.proto == IPPROTO_IPIP ? bpf_htons(ETH_P_IP) : bpf_htons(ETH_P_IPV6);
	seen->len = head_len + sizeof(*t);
	if (six)
		err = su_parse(data, data_end, SU_STEER_L2_LEN + SU_OUTER6_LEN, seen->eth_proto, p);
	else
		err = su_parse(data, data_end, SU_STEER_L2_LEN + SU_OUTER4_LEN, seen->eth_proto, p);
	if (err)
		return -SU_DROP_MALFORMED;
	if (!gso && (!p->tot_len || p->tot_len > outer_len - seen->len))
		return -SU_DROP_MALFORMED;
	if (!su_is_fleet(&p->dst))
		return -SU_DROP_INNER_NOT_SLICE;
	if (su_is_listed(SU_LIST_INTERNAL, &p->src) && !su_is_hairpin(p))
		return -SU_DROP_INNER_INTERNAL;
	err = su_ecn_decap(p->tos & SU_ECN_MASK, outer_ecn);
	if (err < 0)
		return err;
	seen->ecn = err;
	return 0;
}

/* The inner packet is in front now: offsets and ECN follow. */
static __always_inline void su_pkt_uncovered(struct su_pkt *p, const struct su_outer_seen *seen)
{
	p->l2_len = SU_STEER_L2_LEN;
	p->ip_off -= seen->len;
	p->l4_off -= seen->len;
	if (p->q_ip_off)
		p->q_ip_off -= seen->len;
	if (p->q_l4_off)
		p->q_l4_off -= seen->len;
	p->tos = (p->tos & ~SU_ECN_MASK) | seen->ecn;
}

/* The uplink that a carried packet leaves by: the one it came by, else the node's first. */
static __always_inline const struct su_uplink *su_uplink_for(__u32 ifindex)
{
	struct su_uplink *first = NULL, *uplink;
	__u32 i;

#pragma unroll
	for (i = 0; i < 8; i++) {
		__u32 index = i;

		uplink = bpf_map_lookup_elem(&uplinks, &index);
		if (!uplink || !uplink->ifindex)
			continue;
		if (uplink->ifindex == ifindex)
			return uplink;
		if (!first)
			first = uplink;
	}
	return first;
}

/*
 * May p be carried to `node`, when its largest datagram has `seg_len` bytes (IP header included) and the
 * frame holds `ip_room` bytes from the IP header on (0: a GSO packet, not asked)?
 * 0, *to is the node's underlay address and *from ours of its family; or -SU_DROP_TTL, _NO_OWNER (a node that is not in
 * the table), _ENCAP (we have none of its family), _MALFORMED, _TOO_BIG (p->mtu is what would fit).
 */
static __always_inline int su_carry_check(struct su_pkt *p, __u32 node, __u32 seg_len, __u32 ip_room, __u32 mtu,
					  const struct su_addr **to, struct su_addr *from)
{
	const struct su_node *n = bpf_map_lookup_elem(&nodes, &node);
	__u32 len;

	if (p->ttl <= 1)
		return -SU_DROP_TTL;
	if (!n || !(n->flags & SU_NODE_SET))
		return -SU_DROP_NO_OWNER;
	if (!su_underlay(!su_addr_is4(&n->underlay), from))
		return -SU_DROP_ENCAP;
	len = su_addr_is4(&n->underlay) ? SU_OUTER4_LEN : SU_OUTER6_LEN;
	if (ip_room && (!p->tot_len || p->tot_len > ip_room))
		return -SU_DROP_MALFORMED;
	if (seg_len + len > mtu) {
		p->mtu = mtu > len ? mtu - len : 0;
		return -SU_DROP_TOO_BIG;
	}
	*to = &n->underlay;
	return 0;
}

/* Bytes of the largest segment, IP header included, that a GSO packet will be cut into. */
static __always_inline __u32 su_tc_gso_len(struct __sk_buff *skb, const struct su_pkt *p, __u32 gso_size)
{
	__u32 headers = p->l4_off - SU_STEER_L2_LEN;
	__u8 doff;

	if (p->proto != IPPROTO_TCP)
		return gso_size + headers + sizeof(struct udphdr);
	if (bpf_skb_load_bytes(skb, p->l4_off + 12, &doff, 1))
		return ~0u - SU_OUTER6_LEN;
	return gso_size + headers + (doff >> 4) * 4;
}

/* Set the ECN field of the (uncovered) packet, its checksum along. 0 or -SU_DROP_ENCAP. */
static __always_inline int su_tc_set_ecn(struct __sk_buff *skb, const struct su_pkt *p, __u8 ecn)
{
	__be16 word, new;

	if (bpf_skb_load_bytes(skb, SU_STEER_L2_LEN, &word, 2))
		return -SU_DROP_ENCAP;
	if (p->flags & SU_PKT_IP6) {
		new = (word & ~bpf_htons(SU_ECN_MASK << 4)) | bpf_htons(ecn << 4);
	} else {
		new = (word & ~bpf_htons(SU_ECN_MASK)) | bpf_htons(ecn);
		if (bpf_l3_csum_replace(skb, SU_STEER_L2_LEN + 10, word, new, 2))
			return -SU_DROP_ENCAP;
	}
	if (bpf_skb_store_bytes(skb, SU_STEER_L2_LEN, &new, 2, p->flags & SU_PKT_IP6 ? BPF_F_RECOMPUTE_CSUM : 0))
		return -SU_DROP_ENCAP;
	return 0;
}

/*
 * Take an encapsulated packet (su_is_gue(p)) out of its tunnel. 0: skb and p are the inner packet, *final says
 * that it must be ours; counted as CARRIED_IN. Or -SU_DROP_x as su_gue_accept, -SU_DROP_ENCAP: the packet is then in
 * no state to go anywhere. Packet pointers are to be read again.
 */
static __noinline int su_tc_decap(struct __sk_buff *skb, struct su_pkt *p, bool *final)
{
	__u32 want = skb->len < SU_STEER_PARSE_BYTES ? skb->len : SU_STEER_PARSE_BYTES;
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO;
	struct su_outer_seen seen = {};
	bool ecn_changes, crossed;
	int err;

	if ((long)skb->data + want > (long)skb->data_end)
		bpf_skb_pull_data(skb, want);
	err = su_gue_accept((void *)(long)skb->data, (void *)(long)skb->data_end, skb->len, skb->gso_size != 0, p,
			    &seen);
	if (err)
		return err;
	/* Without the flag the kernel would go on believing in the outer family; for the same inside it needs telling nothing. */
	crossed = (seen.len == SU_OUTER6_LEN) != !!(p->flags & SU_PKT_IP6);
	if (crossed)
		flags |= p->flags & SU_PKT_IP6 ? BPF_F_ADJ_ROOM_DECAP_L3_IPV6 : BPF_F_ADJ_ROOM_DECAP_L3_IPV4;
	if (bpf_skb_adjust_room(skb, -(__s32)seen.len, BPF_ADJ_ROOM_MAC, flags))
		return -SU_DROP_ENCAP;
	if (crossed && bpf_skb_store_bytes(skb, 12, &seen.eth_proto, 2, 0))
		return -SU_DROP_ENCAP;
	ecn_changes = (p->tos & SU_ECN_MASK) != seen.ecn;
	su_pkt_uncovered(p, &seen);
	if (ecn_changes) {
		err = su_tc_set_ecn(skb, p, seen.ecn);
		if (err)
			return err;
	}
	*final = seen.final;
	su_count_bh(su_stats_get(), SU_COUNT_CARRIED_IN, 1);
	return 0;
}

/* The outer headers and, behind them, as much of the inner IP header as changes. */
struct su_cover {
	union {
		struct su_outer6 outer6;
		struct {
			__u8 pad[SU_OUTER6_LEN - SU_OUTER4_LEN];
			struct su_outer4 outer4;
		};
	};
	__u8 inner[12];
};

/*
 * Make room for outer headers of one family (`six`) in front of a packet of the same or the other (`inner6`), and tell the
 * kernel where the inner packet begins. 0 or -errno.
 *
 * A packet that came out of a tunnel here and goes into the next: the kernel still holds it for encapsulated (nothing
 * ever clears that, -EALREADY), and all it would be told again is still true, but for the family. That can only be told
 * when headers are taken away: so some too many are put in front, and go.
 */
static __always_inline long su_tc_room(struct __sk_buff *skb, bool six, bool inner6)
{
	const __s32 more = SU_OUTER6_LEN - SU_OUTER4_LEN;
	__s32 len = six ? SU_OUTER6_LEN : SU_OUTER4_LEN;
	long ret;

	ret = bpf_skb_adjust_room(skb, len, BPF_ADJ_ROOM_MAC,
				  BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L4_UDP |
					  (six ? BPF_F_ADJ_ROOM_ENCAP_L3_IPV6 : BPF_F_ADJ_ROOM_ENCAP_L3_IPV4));
	if (ret != -SU_EALREADY)
		return ret;
	if (six == inner6)
		return bpf_skb_adjust_room(skb, len, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	ret = bpf_skb_adjust_room(skb, len + more, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO);
	if (ret)
		return ret;
	return bpf_skb_adjust_room(skb, -more, BPF_ADJ_ROOM_MAC,
				   BPF_F_ADJ_ROOM_FIXED_GSO |
					   (six ? BPF_F_ADJ_ROOM_DECAP_L3_IPV6 : BPF_F_ADJ_ROOM_DECAP_L3_IPV4));
}

/*
 * Carry a plain packet to `node`: encapsulate it and redirect it to the uplink. TC_ACT_REDIRECT (counted as
 * CARRIED_OUT), or -SU_DROP_x as su_carry_check, or -SU_DROP_ENCAP. On a drop the packet may be half rewritten.
 * Segmentation offload and partial checksums go on inside.
 */
static __noinline int su_tc_encap(struct __sk_buff *skb, struct su_pkt *p, __u32 node, bool final)
{
	const struct su_uplink *uplink = su_uplink_for(skb->ifindex);
	__u32 gso_size = *(volatile __u32 *)&skb->gso_size;	/* read once: no pointer into the context */
	bool inner6 = p->flags & SU_PKT_IP6, six;
	const struct su_addr *to;
	struct su_outer_of of;
	struct su_cover cover;
	struct su_addr from;
	__u32 ifindex;
	int err;

	if (!uplink || p->l2_len != SU_STEER_L2_LEN)
		return -SU_DROP_ENCAP;
	ifindex = uplink->ifindex;
	err = su_carry_check(p, node, gso_size ? su_tc_gso_len(skb, p, gso_size) : p->tot_len,
			     gso_size ? 0 : skb->len - SU_STEER_L2_LEN, uplink->mtu, &to, &from);
	if (err)
		return err;
	if (bpf_skb_load_bytes(skb, SU_STEER_L2_LEN, cover.inner, sizeof(cover.inner)))
		return -SU_DROP_ENCAP;
	if (inner6) {
		cover.inner[7]--;
	} else {
		__be16 *word = (__be16 *)&cover.inner[8], was = *word;	/* time to live, protocol */

		cover.inner[8]--;
		word[1] = su_csum_replace2(word[1], was, *word);
	}
	of.inner_len = p->tot_len;
	of.hash = su_flow_hash(p);
	of.gue_port = settings.gue_port;
	of.inner_proto = inner6 ? IPPROTO_IPV6 : IPPROTO_IPIP;
	of.tos = p->tos;
	of.final = final;
	six = !su_addr_is4(&from);
	if (six)
		su_outer_fill6(&cover.outer6, &of, &from, to);
	else
		su_outer_fill4(&cover.outer4, &of, from.w[3], to->w[3]);
	if (su_tc_room(skb, six, inner6))
		return -SU_DROP_ENCAP;
	if (six != inner6) {
		__be16 eth_proto = six ? bpf_htons(ETH_P_IPV6) : bpf_htons(ETH_P_IP);

		if (bpf_skb_store_bytes(skb, 12, &eth_proto, 2, 0))
			return -SU_DROP_ENCAP;
	}
	if (six)
		err = bpf_skb_store_bytes(skb, SU_STEER_L2_LEN, &cover.outer6,
					  SU_OUTER6_LEN + sizeof(cover.inner), BPF_F_RECOMPUTE_CSUM);
	else
		err = bpf_skb_store_bytes(skb, SU_STEER_L2_LEN, &cover.outer4,
					  SU_OUTER4_LEN + sizeof(cover.inner), BPF_F_RECOMPUTE_CSUM);
	if (err)
		return -SU_DROP_ENCAP;
	su_count_bh(su_stats_get(), SU_COUNT_CARRIED_OUT, 1);
	return bpf_redirect_neigh(ifindex, NULL, 0, 0);
}

#endif /* SU_STEER_H */
