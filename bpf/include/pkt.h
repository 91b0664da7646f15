/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * pkt.h - struct su_pkt: what parse.h finds out about a packet, and addresses.
 */
#ifndef SU_PKT_H
#define SU_PKT_H

#include <stdbool.h>
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/*
 * IPv6 extension headers that are followed (RFC 8200 section 4): hop-by-hop, routing, fragment, destination options,
 * so many of them and so many bytes in all. What is behind a longer chain is not looked for, in hosts and routers
 * alike (RFC 8504 section 5.3, RFC 9098).
 */
#define SU_EXT_HEADERS 6
#define SU_EXT_BYTES 128

/* Ethernet 14; IPv6 40 with its chain 128; ICMPv6 8; the quoted IPv6 and chain; 8 of its L4. Bounds every offset. */
#define SU_PARSE_BYTES 366
#define SU_PARSE_MASK 511	/* the same with the headers of a tunnel and tags in front, for the verifier */

#define SU_IP4_MF 0x2000
#define SU_IP4_OFFSET 0x1fff
#define SU_IP4_DF 0x4000

/* ICMP and ICMPv6 alike (linux/icmp.h drags in glibc's socket headers). */
struct su_icmp {
	__u8 type;
	__u8 code;
	__sum16 check;
	__be16 id;		/* echo */
	__be16 sequence;	/* echo; next-hop MTU in frag-needed (RFC 1191) */
};

enum su_icmp_type {
	SU_ICMP_ECHO_REPLY = 0,
	SU_ICMP_UNREACH = 3,
	SU_ICMP_ECHO_REQUEST = 8,
	SU_ICMP_TIME_EXCEEDED = 11,
	SU_ICMP_PARAMETER = 12,
	SU_ICMP6_UNREACH = 1,
	SU_ICMP6_TOO_BIG = 2,
	SU_ICMP6_TIME_EXCEEDED = 3,
	SU_ICMP6_PARAMETER = 4,
	SU_ICMP6_ECHO_REQUEST = 128,
	SU_ICMP6_ECHO_REPLY = 129,
};

enum su_pkt_flag {
	SU_PKT_IP6 = 1,
	SU_PKT_FRAG = 2,	/* a fragment, the first too, until frag.h has followed it */
	SU_PKT_PORTS = 4,	/* sport, dport are valid: whole packet, first or followed fragment of TCP, UDP, echo */
	SU_PKT_ERROR = 8,	/* ICMP error; q_* are valid when QUOTE is set too */
	SU_PKT_QUOTE = 16,
	SU_PKT_ECHO_REQUEST = 32,
	SU_PKT_ECHO_REPLY = 64,
	SU_PKT_OPTIONS = 128,	/* IPv4 options, IPv6 extension headers */
	SU_PKT_FOLLOWED = 256,	/* a fragment whose ports are known: what its first one said */
};

/* enum su_pkt.tcp, as in the header's 14th byte */
#define SU_TCP_FIN 0x01
#define SU_TCP_SYN 0x02
#define SU_TCP_RST_BIT 0x04
#define SU_TCP_ACK 0x10

struct su_pkt {
	struct su_addr src;
	struct su_addr dst;
	struct su_addr q_src;
	struct su_addr q_dst;
	__be16 sport;
	__be16 dport;
	__be16 q_sport;
	__be16 q_dport;
	__u16 l2_len;
	__u16 ip_off;
	__u16 l4_off;
	__u16 q_ip_off;
	__u16 q_l4_off;
	__u16 mtu;		/* filled in by whoever finds the packet too big */
	__u16 tot_len;		/* IP header and payload, host order; 0: more than 65535 (BIG TCP) */
	__u16 frag_at;		/* FRAG: where in the whole packet it belongs, bytes; 0: the first part */
	__be32 frag_id;		/* FRAG: the identification; IPv4's 16 bits as read, zero-extended */
	__u16 frag_off;		/* IPv6: offset of the fragment header, also of one that is no fragment's; 0: none */
	__u16 flags;		/* enum su_pkt_flag */
	__u8 proto;
	__u8 ttl;
	__u8 tos;		/* DSCP and ECN */
	__u8 tcp;		/* TCP flags */
	__u8 icmp_type;
	__u8 icmp_code;
	__u8 q_proto;
};

static __always_inline void su_addr_set4(struct su_addr *a, __be32 v4)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = v4;
}

static __always_inline void su_addr_set6(struct su_addr *a, const struct in6_addr *v6)
{
	a->w[0] = v6->in6_u.u6_addr32[0];
	a->w[1] = v6->in6_u.u6_addr32[1];
	a->w[2] = v6->in6_u.u6_addr32[2];
	a->w[3] = v6->in6_u.u6_addr32[3];
}

static __always_inline bool su_addr_is4(const struct su_addr *a)
{
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == bpf_htonl(0xffff);
}

static __always_inline bool su_addr_is_zero(const struct su_addr *a)
{
	return !(a->w[0] | a->w[1] | a->w[2] | a->w[3]);
}

static __always_inline bool su_addr_equal(const struct su_addr *a, const struct su_addr *b)
{
	return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

#endif /* SU_PKT_H */
