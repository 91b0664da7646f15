/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * gue.h - the tunnel between nodes: outer IPv4 or IPv6, UDP, GUE variant 0. No context, no maps: bytes only.
 *
 * A packet that one node carries to another, behind the Ethernet header (docs/steering.md has the diagrams):
 *
 *   0      20    28    32
 *   | IPv4 | UDP | GUE | inner IPv4 or IPv6 packet, unchanged but for its time to live
 *
 *   0                   40    48    52
 *   | IPv6              | UDP | GUE | the same
 *
 * All of it is fixed: no IP options or extension headers, no optional GUE fields, so that both directions move a
 * constant. The UDP checksum is 0 in both families: the kernel's segmentation leaves it so (net/ipv4/udp_offload.c
 * fills it in only for SKB_GSO_UDP_TUNNEL_CSUM, which bpf_skb_adjust_room cannot ask for), and the inner packet has
 * its own. docs/steering.md says how this meets RFC 6935 and 6936.
 *
 * Sources: draft-ietf-intarea-gue-09 section 3 (variant 0), RFC 6040 (ECN in tunnels, normal mode), RFC 2983
 * section 3.1 (DSCP: uniform on the way in, the inner one kept on the way out), RFC 8085 section 5.1.1
 * (source port as entropy), RFC 6437 and 6438 (flow label), RFC 6864 (the id of an atomic datagram means nothing).
 */
#ifndef SU_GUE_H
#define SU_GUE_H

#include <stdbool.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/types.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "pkt.h"

#define SU_OUTER_TTL 64
#define SU_OUTER_DF 0x4000
#define SU_OUTER_SPORT 49152	/* 49152-65535, RFC 6335 section 6 */

/* What both families have in front of the inner packet. */
struct su_outer_tail {
	struct udphdr udp;
	struct su_gue gue;
};

/* Everything between the Ethernet header and the inner packet. */
struct su_outer4 {
	struct iphdr ip;
	struct su_outer_tail tail;
};
#define SU_OUTER4_LEN 32
_Static_assert(sizeof(struct su_outer4) == SU_OUTER4_LEN, "su_outer4");

struct su_outer6 {
	struct ipv6hdr ip;
	struct su_outer_tail tail;
};
#define SU_OUTER6_LEN 52
_Static_assert(sizeof(struct su_outer6) == SU_OUTER6_LEN, "su_outer6");

#define SU_ECN_MASK 3
#define SU_ECN_NOT_ECT 0
#define SU_ECN_ECT1 1
#define SU_ECN_ECT0 2
#define SU_ECN_CE 3

/*
 * The inner packet's ECN field after decapsulation, RFC 6040 section 4.2 figure 4, or -SU_DROP_ECN: congestion
 * was marked on a packet whose sender would not understand it, and a drop is the only way left to tell.
 */
static __always_inline int su_ecn_decap(__u8 inner, __u8 outer)
{
	if (outer == SU_ECN_CE)
		return inner == SU_ECN_NOT_ECT ? -SU_DROP_ECN : SU_ECN_CE;
	if (outer == SU_ECN_ECT1 && inner == SU_ECN_ECT0)
		return SU_ECN_ECT1;
	return inner;
}

/* RFC 1071 over a 20-byte header whose check field is 0. */
static __always_inline __u16 su_outer_checksum(const struct iphdr *ip)
{
	const __u16 *half = (const __u16 *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += half[i];
	sum = (sum & 0xffff) + (sum >> 16);
	sum += sum >> 16;
	return ~sum;
}

/* What the outer headers say, whatever their family. */
struct su_outer_of {
	__u32 inner_len;	/* the inner packet's own length (not the frame's, which may be padded); 0: GSO, over 65,535 */
	__u32 hash;		/* of the flow */
	__be16 gue_port;
	__u8 inner_proto;	/* 4 or 41 */
	__u8 tos;		/* the inner DSCP and ECN: RFC 6040 normal mode copies both */
	bool final;
};

/* `len`: UDP header and all behind it, 0: more than fits, segmentation writes the lengths. */
static __always_inline void su_outer_fill_tail(struct su_outer_tail *t, const struct su_outer_of *of, __u32 len)
{
	t->udp.source = bpf_htons(SU_OUTER_SPORT | (of->hash & 0x3fff));
	t->udp.dest = of->gue_port;
	t->udp.len = bpf_htons(len);
	t->udp.check = 0;
	t->gue.version_c_hlen = 0;
	t->gue.proto = of->inner_proto;
	t->gue.flags = bpf_htons(of->final ? SU_GUE_FINAL : 0);
}

static __always_inline void su_outer_fill4(struct su_outer4 *o, const struct su_outer_of *of, __be32 from, __be32 to)
{
	__u32 len = of->inner_len + SU_OUTER4_LEN;

	if (!of->inner_len || len > 65535)
		len = 0;
	o->ip.version = 4;
	o->ip.ihl = 5;
	o->ip.tos = of->tos;
	o->ip.tot_len = bpf_htons(len);
	o->ip.id = 0;
	o->ip.frag_off = bpf_htons(SU_OUTER_DF);
	o->ip.ttl = SU_OUTER_TTL;
	o->ip.protocol = IPPROTO_UDP;
	o->ip.check = 0;
	o->ip.saddr = from;
	o->ip.daddr = to;
	o->ip.check = su_outer_checksum(&o->ip);
	su_outer_fill_tail(&o->tail, of, len ? len - sizeof(o->ip) : 0);
}

/* The flow label is 20 bits of the hash that the port has not, and never 0, which would mean none (RFC 6437 section 2). */
static __always_inline void su_outer_fill6(struct su_outer6 *o, const struct su_outer_of *of,
					   const struct su_addr *from, const struct su_addr *to)
{
	__u32 len = of->inner_len + sizeof(o->tail), label = of->hash >> 12;

	if (!of->inner_len || len > 65535)
		len = 0;
	*(__be32 *)&o->ip = bpf_htonl(6u << 28 | (__u32)of->tos << 20 | (label ? label : 1));
	o->ip.payload_len = bpf_htons(len);
	o->ip.nexthdr = IPPROTO_UDP;
	o->ip.hop_limit = SU_OUTER_TTL;
	__builtin_memcpy(&o->ip.saddr, from, sizeof(*from));
	__builtin_memcpy(&o->ip.daddr, to, sizeof(*to));
	su_outer_fill_tail(&o->tail, of, len);
}

/*
 * Is this, behind an outer IP header that is addressed to us, GUE as our nodes speak it? `len`: what the IP header says
 * of the bytes behind it; not asked of a GSO packet, whose lengths are those before segmentation, or 0.
 * 0 or -SU_DROP_GUE_MALFORMED.
 */
static __always_inline int su_outer_check(const struct su_outer_tail *t, __u32 len, bool gso)
{
	if (t->gue.version_c_hlen != 0)
		return -SU_DROP_GUE_MALFORMED;
	if (t->gue.proto != IPPROTO_IPIP && t->gue.proto != IPPROTO_IPV6)
		return -SU_DROP_GUE_MALFORMED;
	if (t->gue.flags & bpf_htons((__u16)~SU_GUE_FINAL))
		return -SU_DROP_GUE_MALFORMED;
	if (t->udp.check != 0)
		return -SU_DROP_GUE_MALFORMED;
	if (!gso && (len < sizeof(*t) || bpf_ntohs(t->udp.len) != len))
		return -SU_DROP_GUE_MALFORMED;
	return 0;
}

#endif /* SU_GUE_H */
