/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * rewrite.h - put another address and port into a packet, checksums kept right.
 *
 * What is in layer 4's check depends on the packet (include/linux/skbuff.h, ip_summed): with CHECKSUM_PARTIAL the
 * pseudo header's sum, not complemented, so that only addresses count; else the whole check. Keeping it so keeps
 * GSO and offloads. Where the kernel lets us look (6.2), all is written directly; where it does not, and with
 * CHECKSUM_COMPLETE, layer 4 goes through bpf_l4_csum_replace, which knows (net/core/utils.c
 * inet_proto_csum_replace4). The IP header's own sum does not change when its check follows: it needs no care.
 *
 * ICMP errors: the address and port are also in the packet they quote (RFC 5508 section 4.2).
 */
#ifndef SU_REWRITE_H
#define SU_REWRITE_H

#include <bpf/bpf_core_read.h>

#include "csum.h"
#include "parse.h"

#ifndef BPF_F_IPV6
#define BPF_F_IPV6 (1ULL << 7)	/* since 6.16, 6.12.34, 6.6.94, 6.1.142 */
#endif

struct sk_buff___su {
	__u8 ip_summed : 2;
} __attribute__((preserve_access_index));

extern void *bpf_cast_to_kern_ctx(void *skb) __attribute__((section(".ksyms"), weak));

enum su_summed {
	SU_SUMMED_NONE = 0,
	SU_SUMMED_UNNECESSARY = 1,
	SU_SUMMED_COMPLETE = 2,	/* and where we cannot know */
	SU_SUMMED_PARTIAL = 3,
};

static __always_inline enum su_summed su_summed(struct __sk_buff *skb)
{
	struct sk_buff___su *kernel;

	if (!bpf_cast_to_kern_ctx)
		return SU_SUMMED_COMPLETE;
	kernel = bpf_cast_to_kern_ctx(skb);
	return BPF_CORE_READ_BITFIELD(kernel, ip_summed);
}

/* What of a packet is rewritten. */
enum su_side {
	SU_SRC = 0,
	SU_DST = 1,
	SU_HOP = 2,	/* or-ed in: take one from the time to live (a helper has five arguments) */
};

/* Offset of the check in the header of that protocol; of the field that is the port. */
static __always_inline __u32 su_check_off(__u8 proto)
{
	return proto == IPPROTO_TCP ? 16 : proto == IPPROTO_UDP ? 6 : 2;
}

static __always_inline __u32 su_port_off(__u8 proto, enum su_side side)
{
	if (proto == IPPROTO_TCP || proto == IPPROTO_UDP)
		return side == SU_DST ? 2 : 0;
	return 4;
}

/* The addresses of 128 bits in an ICMPv6, TCP or UDP check. BPF_F_IPV6 matters with CHECKSUM_COMPLETE only. */
static __always_inline long su_check6(struct __sk_buff *skb, __u32 off, const struct su_addr *from,
				      const struct su_addr *to, __u64 flags)
{
	__s64 diff = bpf_csum_diff((__be32 *)from, sizeof(*from), (__be32 *)to, sizeof(*to), 0);
	long err = bpf_l4_csum_replace(skb, off, 0, diff, flags | BPF_F_PSEUDO_HDR | BPF_F_IPV6);

	return err ? bpf_l4_csum_replace(skb, off, 0, diff, flags | BPF_F_PSEUDO_HDR) : 0;
}

/* Write source or destination into the IP header and, if asked, take one from its time to live. */
static __always_inline int su_set_ip(struct __sk_buff *skb, const struct su_pkt *p, enum su_side side,
				     const struct su_addr *addr, bool hop)
{
	void *data = (void *)(long)skb->data + (p->ip_off & 15);
	void *data_end = (void *)(long)skb->data_end;

	if (p->flags & SU_PKT_IP6) {
		struct ipv6hdr *ip6 = data;
		struct in6_addr *a = side == SU_DST ? &ip6->daddr : &ip6->saddr;

		if ((void *)(ip6 + 1) > data_end)
			return -SU_DROP_MALFORMED;
		a->in6_u.u6_addr32[0] = addr->w[0];
		a->in6_u.u6_addr32[1] = addr->w[1];
		a->in6_u.u6_addr32[2] = addr->w[2];
		a->in6_u.u6_addr32[3] = addr->w[3];
		ip6->hop_limit -= hop;
	} else {
		struct iphdr *ip = data;
		__u64 sum;

		if ((void *)(ip + 1) > data_end)
			return -SU_DROP_MALFORMED;
		sum = (__u16)~ip->check;
		if (side == SU_DST) {
			sum += (__u64)(__u32)~ip->daddr + addr->w[3];
			ip->daddr = addr->w[3];
		} else {
			sum += (__u64)(__u32)~ip->saddr + addr->w[3];
			ip->saddr = addr->w[3];
		}
		if (hop) {
			sum += (__u16)~bpf_htons(0x0100);
			ip->ttl--;
		}
		ip->check = su_csum_finish(sum);
	}
	return 0;
}

/* Layer 4's check and port, through helpers that look after everything. */
static __noinline int su_rewrite_l4_slow(struct __sk_buff *skb, const struct su_pkt *p, __u32 how,
					 const struct su_addr *addr, __u32 port)
{
	enum su_side side = how & SU_DST;
	const struct su_addr *was = side == SU_DST ? &p->dst : &p->src;
	__be16 was_port = side == SU_DST ? p->dport : p->sport, to_port = port;
	__u32 check = p->l4_off + su_check_off(p->proto);
	__u64 zero = p->proto == IPPROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
	long err = 0;

	if (p->flags & SU_PKT_IP6)
		err = su_check6(skb, check, was, addr, zero);
	else if (p->proto != IPPROTO_ICMP)
		err = bpf_l4_csum_replace(skb, check, was->w[3], addr->w[3], zero | BPF_F_PSEUDO_HDR | 4);
	if (was_port != to_port) {
		err |= bpf_l4_csum_replace(skb, check, was_port, to_port, zero | 2);
		err |= bpf_skb_store_bytes(skb, p->l4_off + su_port_off(p->proto, side), &to_port, 2, 0);
	}
	return err ? -SU_DROP_MALFORMED : 0;
}

/* The same, directly. */
static __always_inline int su_rewrite_l4(struct __sk_buff *skb, const struct su_pkt *p, enum su_side side,
					 const struct su_addr *addr, __be16 port, bool partial)
{
	const struct su_addr *was = side == SU_DST ? &p->dst : &p->src;
	__be16 was_port = side == SU_DST ? p->dport : p->sport;
	__u32 off = p->l4_off, tail = p->proto == IPPROTO_TCP ? 18 : 8;
	void *data_end = (void *)(long)skb->data_end, *l4;
	__u64 sum = 0;
	__u16 *check;

	if (off > SU_PARSE_BYTES)
		return -SU_DROP_MALFORMED;
	l4 = (void *)(long)skb->data + off;
	if (l4 + tail > data_end)
		return -SU_DROP_MALFORMED;
	/* The mapped prefix of IPv4 adds nothing: it does not change. */
	if (p->proto != IPPROTO_ICMP)
		sum = (__u64)(__u32)~was->w[0] + addr->w[0] + (__u32)~was->w[1] + addr->w[1] +
		      (__u32)~was->w[2] + addr->w[2] + (__u32)~was->w[3] + addr->w[3];
	check = l4 + (p->proto == IPPROTO_TCP ? 16 : p->proto == IPPROTO_UDP ? 6 : 2);
	if ((void *)(check + 1) > data_end)
		return -SU_DROP_MALFORMED;
	if (partial) {
		*check = su_csum_fold(sum + *check);
	} else if (p->proto != IPPROTO_UDP || *check) {
		*check = su_csum_finish(sum + (__u16)~*check + (__u16)~was_port + port);
		if (p->proto == IPPROTO_UDP && !*check)
			*check = 0xffff;
	}
	if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP)
		((__be16 *)l4)[side == SU_DST] = port;
	else
		((__be16 *)l4)[2] = port;
	return 0;
}

/* A later fragment has no port and no check. Only CHECKSUM_COMPLETE counts what an IPv6 header says. */
static __always_inline void su_rewrite_later(struct __sk_buff *skb, const struct su_pkt *p, enum su_side side,
					     const struct su_addr *addr, enum su_summed summed)
{
	const struct su_addr *was = side == SU_DST ? &p->dst : &p->src;

	if (p->flags & SU_PKT_IP6 && summed == SU_SUMMED_COMPLETE)
		bpf_csum_update(skb, bpf_csum_diff((__be32 *)was, sizeof(*was), (__be32 *)addr, sizeof(*addr), 0));
}

/*
 * A whole packet of TCP, UDP or echo, or a fragment that was followed: its source or destination becomes addr and port.
 * p keeps what was. 0 or -SU_DROP_MALFORMED.
 */
static __noinline int su_rewrite(struct __sk_buff *skb, const struct su_pkt *p, __u32 how, const struct su_addr *addr,
				 __u32 port)
{
	enum su_summed summed = su_summed(skb);
	enum su_side side = how & SU_DST;
	int err = 0;

	if (p->frag_at)
		su_rewrite_later(skb, p, side, addr, summed);
	else if (summed == SU_SUMMED_COMPLETE)
		err = su_rewrite_l4_slow(skb, p, how, addr, port);
	else
		err = su_rewrite_l4(skb, p, side, addr, port, summed == SU_SUMMED_PARTIAL);
	return err ? err : su_set_ip(skb, p, side, addr, how & SU_HOP);
}

/*
 * The quotation in an ICMP error: quoted source (side SU_SRC) or destination and port. The quoted IP header's
 * check and, where it is quoted, that of layer 4 follow; then the ICMP check.
 */
static __always_inline int su_rewrite_quote(struct __sk_buff *skb, const struct su_pkt *p, enum su_side side,
					    const struct su_addr *addr, __be16 port)
{
	const struct su_addr *was = side == SU_DST ? &p->q_dst : &p->q_src;
	__be16 was_port = side == SU_DST ? p->q_dport : p->q_sport;
	__u32 icmp = p->l4_off + 2, l4 = p->q_l4_off + su_check_off(p->q_proto);
	bool ip6 = p->flags & SU_PKT_IP6, pseudo = ip6 || p->q_proto != IPPROTO_ICMP;
	__sum16 from, to;
	long err = 0;

	if (l4 + 2 <= skb->len) {
		if (bpf_skb_load_bytes(skb, l4, &from, 2))
			return -SU_DROP_MALFORMED;
		to = su_csum_replace2(from, was_port, port);
		if (pseudo) {
			to = su_csum_replace4(to, was->w[3], addr->w[3]);
			if (ip6) {
				to = su_csum_replace4(to, was->w[0], addr->w[0]);
				to = su_csum_replace4(to, was->w[1], addr->w[1]);
				to = su_csum_replace4(to, was->w[2], addr->w[2]);
			}
		}
		if (p->q_proto != IPPROTO_UDP || from) {
			err |= bpf_l4_csum_replace(skb, icmp, from, to, 2);
			err |= bpf_skb_store_bytes(skb, l4, &to, 2, 0);
		}
	}
	err |= bpf_l4_csum_replace(skb, icmp, was_port, port, 2);
	err |= bpf_skb_store_bytes(skb, p->q_l4_off + su_port_off(p->q_proto, side), &port, 2, 0);
	if (ip6) {
		__s64 diff = bpf_csum_diff((__be32 *)was, sizeof(*was), (__be32 *)addr, sizeof(*addr), 0);

		err |= bpf_l4_csum_replace(skb, icmp, 0, diff, 0);
		err |= bpf_skb_store_bytes(skb, p->q_ip_off + (side == SU_DST ? 24 : 8), addr, 16, 0);
		return err ? -SU_DROP_MALFORMED : 0;
	}
	/* The quoted header's sum stays what it was when its check follows: the ICMP check need not. */
	if (bpf_skb_load_bytes(skb, p->q_ip_off + 10, &from, 2))
		return -SU_DROP_MALFORMED;
	to = su_csum_replace4(from, was->w[3], addr->w[3]);
	err |= bpf_skb_store_bytes(skb, p->q_ip_off + 10, &to, 2, 0);
	err |= bpf_skb_store_bytes(skb, p->q_ip_off + (side == SU_DST ? 16 : 12), &addr->w[3], 4, 0);
	return err ? -SU_DROP_MALFORMED : 0;
}

/* An ICMP error: its own source or destination, and the opposite side of what it quotes. */
static __noinline int su_rewrite_error(struct __sk_buff *skb, const struct su_pkt *p, __u32 how,
				       const struct su_addr *addr, __u32 port)
{
	enum su_side side = how & SU_DST;
	const struct su_addr *was = side == SU_DST ? &p->dst : &p->src;
	int err = su_rewrite_quote(skb, p, side == SU_DST ? SU_SRC : SU_DST, addr, port);

	if (err)
		return err;
	if ((p->flags & SU_PKT_IP6) && su_check6(skb, p->l4_off + 2, was, addr, 0))
		return -SU_DROP_MALFORMED;
	return su_set_ip(skb, p, side, addr, how & SU_HOP);
}

#endif /* SU_REWRITE_H */
