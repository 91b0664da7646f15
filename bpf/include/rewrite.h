/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * rewrite.h - put another address and port into a packet, checksums kept right.
 *
 * Layer 4 goes through bpf_l4_csum_replace, which alone knows whether the checksum is still to be filled in
 * (CHECKSUM_PARTIAL: the field holds the pseudo header's sum, so that only addresses count) or complete; so
 * GSO and offloads survive (net/core/filter.c, net/core/utils.c inet_proto_csum_replace4). The IP header is
 * written directly: its own sum does not change when its check follows, so CHECKSUM_COMPLETE stays true.
 *
 * ICMP errors: the address and port are also in the packet they quote (RFC 5508 section 4.2).
 */
#ifndef SU_REWRITE_H
#define SU_REWRITE_H

#include "csum.h"
#include "parse.h"

#ifndef BPF_F_IPV6
#define BPF_F_IPV6 (1ULL << 7)	/* since 6.16, 6.12.34, 6.6.94, 6.1.142 */
#endif

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

/*
 * A whole packet of TCP, UDP or echo: its source or destination becomes addr and port. p keeps what was.
 * 0 or -SU_DROP_MALFORMED.
 */
static __noinline int su_rewrite(struct __sk_buff *skb, const struct su_pkt *p, __u32 how, const struct su_addr *addr,
				 __u32 port)
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
	if (err)
		return -SU_DROP_MALFORMED;
	return su_set_ip(skb, p, side, addr, how & SU_HOP);
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
