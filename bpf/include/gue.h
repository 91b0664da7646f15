/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * gue.h - the tunnel between nodes: outer IPv4, UDP, GUE variant 0. No context, no maps: bytes only.
 *
 * A packet that one node carries to another, behind the Ethernet header (docs/steering.md has the diagram):
 *
 *   0      20    28    32
 *   | IPv4 | UDP | GUE | inner IPv4 or IPv6 packet, unchanged but for its time to live
 *
 * All 32 bytes are fixed: no IP options, no optional GUE fields, so that both directions move a constant.
 *
 * Sources: draft-ietf-intarea-gue-09 section 3 (variant 0), RFC 6040 (ECN in tunnels, normal mode), RFC 2983
 * section 3.1 (DSCP: uniform on the way in, the inner one kept on the way out), RFC 8085 section 5.1.1
 * (source port as entropy), RFC 6864 (the id of an atomic datagram means nothing).
 */
#ifndef SU_GUE_H
#define SU_GUE_H

#include <linux/in.h>
#include <linux/ip.h>
#include <linux/types.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

#define SU_OUTER_TTL 64
#define SU_OUTER_DF 0x4000
#define SU_OUTER_SPORT 49152	/* 49152-65535, RFC 6335 section 6 */

/* Everything between the Ethernet header and the inner packet. */
struct su_outer {
	struct iphdr ip;
	struct udphdr udp;
	struct su_gue gue;
};
#define SU_OUTER_LEN 32
_Static_assert(sizeof(struct su_outer) == SU_OUTER_LEN, "su_outer");

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

/*
 * Fills `o`. `inner_len` is the inner packet's own length (not the frame's, which may be padded), 0 for a GSO
 * packet longer than 65,535 bytes: segmentation writes the lengths then. `tos` is the inner DSCP and ECN
 * (RFC 6040 normal mode copies both). The UDP checksum is 0 (RFC 768: not used): the inner packet has its own.
 */
static __always_inline void su_outer_fill(struct su_outer *o, __be32 from, __be32 to, __be16 gue_port,
					  __u32 inner_len, __u8 inner_proto, __u8 tos, __u16 entropy,
					  bool final)
{
	__u32 len = inner_len + SU_OUTER_LEN;

	if (!inner_len || len > 65535)
		len = 0;
	o->ip.version = 4;
	o->ip.ihl = 5;
	o->ip.tos = tos;
	o->ip.tot_len = bpf_htons(len);
	o->ip.id = 0;
	o->ip.frag_off = bpf_htons(SU_OUTER_DF);
	o->ip.ttl = SU_OUTER_TTL;
	o->ip.protocol = IPPROTO_UDP;
	o->ip.check = 0;
	o->ip.saddr = from;
	o->ip.daddr = to;
	o->ip.check = su_outer_checksum(&o->ip);
	o->udp.source = bpf_htons(SU_OUTER_SPORT | (entropy & 0x3fff));
	o->udp.dest = gue_port;
	o->udp.len = bpf_htons(len ? len - sizeof(struct iphdr) : 0);
	o->udp.check = 0;
	o->gue.version_c_hlen = 0;
	o->gue.proto = inner_proto;
	o->gue.flags = bpf_htons(final ? SU_GUE_FINAL : 0);
}

/* Is this, addressed to our own underlay address and port, GUE as our nodes speak it? 0 or -SU_DROP_GUE_MALFORMED. */
static __always_inline int su_outer_check(const struct su_outer *o, bool gso)
{
	__u16 ip_len = bpf_ntohs(o->ip.tot_len);

	if (o->gue.version_c_hlen != 0)
		return -SU_DROP_GUE_MALFORMED;
	if (o->gue.proto != IPPROTO_IPIP && o->gue.proto != IPPROTO_IPV6)
		return -SU_DROP_GUE_MALFORMED;
	if (o->gue.flags & bpf_htons((__u16)~SU_GUE_FINAL))
		return -SU_DROP_GUE_MALFORMED;
	if (o->udp.check != 0)
		return -SU_DROP_GUE_MALFORMED;
	if (gso)
		return 0;	/* lengths are those of the unsegmented packet, or 0 */
	if (ip_len < SU_OUTER_LEN || bpf_ntohs(o->udp.len) != ip_len - sizeof(struct iphdr))
		return -SU_DROP_GUE_MALFORMED;
	return 0;
}

#endif /* SU_GUE_H */
