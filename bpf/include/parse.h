/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * parse.h - a packet's headers, read once: struct su_pkt.
 *
 * Works on direct packet pointers, so that XDP and tc share it; a tc caller makes the first SU_PARSE_BYTES
 * linear first (su_tc_parse does). Offsets count from the start of the frame, ports are in network order.
 *
 *   frame:  | L2 (l2_len) | IP header (+ options) | L4 header | ...
 *                         ^ ip_off                ^ l4_off
 *   ICMP error:           | ICMP (8) | quoted IP header | 8 bytes of the quoted L4 |
 *                                    ^ q_ip_off         ^ q_l4_off
 *
 * ICMP and ICMPv6 echo are made to look like a protocol with ports: a request has source port = id and
 * destination port 0, a reply the other way round. So `local = source` going out and `local = destination`
 * coming in give the same flow (RFC 5508 section 3.1). The same holds in quotations.
 *
 * l4_off is behind IPv4 options and IPv6 extension headers, quoted ones too. A chain that goes on beyond
 * SU_EXT_HEADERS or SU_EXT_BYTES, or that has a routing header with way still to go (the destination is then not the
 * one that checksums count, RFC 8200 section 8.1), ends there: proto is that header's. AH, ESP and all else without
 * ports we know are protocols without ports. A fragment header of a whole packet (RFC 6946) makes no fragment.
 *
 * Sources: RFC 791, 8200, 792, 4443, 1812 section 4.3.2.3 (what an error quotes).
 */
#ifndef SU_PARSE_H
#define SU_PARSE_H

#include "pkt.h"

/* The 8 bytes of L4 that are in the quotation. Ports stay 0 for protocols without. */
static __always_inline void su_parse_quote4(void *data, void *data_end, struct su_pkt *p)
{
	struct iphdr *ip = data + p->q_ip_off;
	struct su_icmp *l4;
	__u32 len;

	if ((void *)(ip + 1) > data_end || ip->version != 4 || ip->ihl < 5)
		return;
	if (ip->frag_off & bpf_htons(SU_IP4_OFFSET))
		return;
	len = (__u32)ip->ihl * 4;
	su_addr_set4(&p->q_src, ip->saddr);
	su_addr_set4(&p->q_dst, ip->daddr);
	p->q_proto = ip->protocol;
	p->q_l4_off = p->q_ip_off + len;
	l4 = (void *)ip + len;
	if ((void *)(l4 + 1) > data_end)
		return;
	if (p->q_proto == IPPROTO_TCP || p->q_proto == IPPROTO_UDP) {
		p->q_sport = ((__be16 *)l4)[0];
		p->q_dport = ((__be16 *)l4)[1];
		p->flags |= SU_PKT_QUOTE;
	} else if (p->q_proto == IPPROTO_ICMP && l4->type == SU_ICMP_ECHO_REQUEST) {
		p->q_sport = l4->id;
		p->flags |= SU_PKT_QUOTE;
	} else if (p->q_proto == IPPROTO_ICMP && l4->type == SU_ICMP_ECHO_REPLY) {
		p->q_dport = l4->id;
		p->flags |= SU_PKT_QUOTE;
	}
}

static __always_inline bool su_is_ext(__u32 proto)
{
	return proto == IPPROTO_HOPOPTS || proto == IPPROTO_ROUTING || proto == IPPROTO_FRAGMENT || proto == IPPROTO_DSTOPTS;
}

/* A chain of extension headers: what is behind it, and the fragment header in it. */
struct su_chain {
	__u32 off;
	__u32 proto;
	__u32 frag_off;		/* 0: none */
	__be32 frag_id;
	__u16 frag_place;	/* host order: offset in bytes, and 1: more come */
};

/*
 * Follow c from c->off, c->proto. 0, or -SU_DROP_MALFORMED when the packet ends in it. A later fragment ends the
 * chain: what is behind is no header.
 */
static __noinline int su_parse_chain(void *data, void *data_end, struct su_chain *c)
{
	__u32 start = c->off & SU_PARSE_MASK, at = 0, proto = c->proto;

	for (int i = 0; i < SU_EXT_HEADERS && su_is_ext(proto); i++) {
		__u8 *h = data + start + at;
		__u32 len;

		if ((void *)(h + 8) > data_end)
			return -SU_DROP_MALFORMED;
		len = proto == IPPROTO_FRAGMENT ? 8 : 8 + h[1] * 8;
		if ((proto == IPPROTO_ROUTING && h[3]) || at + len > SU_EXT_BYTES)
			break;
		if (proto == IPPROTO_FRAGMENT) {
			c->frag_off = start + at;
			c->frag_place = (__u16)h[2] << 8 | (h[3] & 0xf9);
			c->frag_id = *(__be32 *)(h + 4);
		}
		proto = h[0];
		at += len;
		if (c->frag_place & ~1)
			break;
	}
	c->off = start + at;
	c->proto = proto;
	return 0;
}

static __always_inline void su_parse_quote6(void *data, void *data_end, struct su_pkt *p)
{
	struct ipv6hdr *ip = data + (p->q_ip_off & SU_PARSE_MASK);
	struct su_chain c = {};
	struct su_icmp *l4;

	if ((void *)(ip + 1) > data_end || ip->version != 6)
		return;
	su_addr_set6(&p->q_src, &ip->saddr);
	su_addr_set6(&p->q_dst, &ip->daddr);
	c.off = p->q_ip_off + sizeof(*ip);
	c.proto = ip->nexthdr;
	if (su_is_ext(c.proto) && (su_parse_chain(data, data_end, &c) || c.frag_place & ~1))
		return;
	p->q_proto = c.proto;
	p->q_l4_off = c.off;
	l4 = data + (c.off & SU_PARSE_MASK);
	if ((void *)(l4 + 1) > data_end)
		return;
	if (p->q_proto == IPPROTO_TCP || p->q_proto == IPPROTO_UDP) {
		p->q_sport = ((__be16 *)l4)[0];
		p->q_dport = ((__be16 *)l4)[1];
		p->flags |= SU_PKT_QUOTE;
	} else if (p->q_proto == IPPROTO_ICMPV6 && l4->type == SU_ICMP6_ECHO_REQUEST) {
		p->q_sport = l4->id;
		p->flags |= SU_PKT_QUOTE;
	} else if (p->q_proto == IPPROTO_ICMPV6 && l4->type == SU_ICMP6_ECHO_REPLY) {
		p->q_dport = l4->id;
		p->flags |= SU_PKT_QUOTE;
	}
}

static __always_inline int su_parse_icmp4(void *data, void *data_end, struct su_icmp *icmp, struct su_pkt *p)
{
	if ((void *)(icmp + 1) > data_end)
		return -SU_DROP_MALFORMED;
	p->icmp_type = icmp->type;
	p->icmp_code = icmp->code;
	switch (icmp->type) {
	case SU_ICMP_ECHO_REQUEST:
		p->sport = icmp->id;
		p->flags |= SU_PKT_ECHO_REQUEST | SU_PKT_PORTS;
		break;
	case SU_ICMP_ECHO_REPLY:
		p->dport = icmp->id;
		p->flags |= SU_PKT_ECHO_REPLY | SU_PKT_PORTS;
		break;
	case SU_ICMP_UNREACH:
	case SU_ICMP_TIME_EXCEEDED:
	case SU_ICMP_PARAMETER:
		p->flags |= SU_PKT_ERROR;
		if (p->flags & SU_PKT_FRAG)
			break;
		p->q_ip_off = p->l4_off + sizeof(*icmp);
		su_parse_quote4(data, data_end, p);
		break;
	}
	return 0;
}

static __always_inline int su_parse_icmp6(void *data, void *data_end, struct su_icmp *icmp, struct su_pkt *p)
{
	if ((void *)(icmp + 1) > data_end)
		return -SU_DROP_MALFORMED;
	p->icmp_type = icmp->type;
	p->icmp_code = icmp->code;
	if (icmp->type == SU_ICMP6_ECHO_REQUEST) {
		p->sport = icmp->id;
		p->flags |= SU_PKT_ECHO_REQUEST | SU_PKT_PORTS;
	} else if (icmp->type == SU_ICMP6_ECHO_REPLY) {
		p->dport = icmp->id;
		p->flags |= SU_PKT_ECHO_REPLY | SU_PKT_PORTS;
	} else if (icmp->type >= SU_ICMP6_UNREACH && icmp->type <= SU_ICMP6_PARAMETER) {
		p->flags |= SU_PKT_ERROR;
		if (p->flags & SU_PKT_FRAG)
			return 0;
		p->q_ip_off = p->l4_off + sizeof(*icmp);
		su_parse_quote6(data, data_end, p);
	}
	return 0;
}

static __always_inline int su_parse_l4(void *l4, void *data_end, struct su_pkt *p)
{
	if (p->proto == IPPROTO_TCP) {
		struct tcphdr *tcp = l4;

		if ((void *)(tcp + 1) > data_end || tcp->doff < 5)
			return -SU_DROP_MALFORMED;
		p->sport = tcp->source;
		p->dport = tcp->dest;
		p->tcp = ((__u8 *)tcp)[13];
		p->flags |= SU_PKT_PORTS;
	} else if (p->proto == IPPROTO_UDP) {
		struct udphdr *udp = l4;

		if ((void *)(udp + 1) > data_end)
			return -SU_DROP_MALFORMED;
		p->sport = udp->source;
		p->dport = udp->dest;
		p->flags |= SU_PKT_PORTS;
	}
	return 0;
}

static __always_inline int su_parse4(void *data, void *data_end, struct su_pkt *p)
{
	struct iphdr *ip = data + p->ip_off;
	__u32 len;
	void *l4;

	if ((void *)(ip + 1) > data_end || ip->version != 4 || ip->ihl < 5)
		return -SU_DROP_MALFORMED;
	len = (__u32)ip->ihl * 4;
	if (len > sizeof(*ip))
		p->flags |= SU_PKT_OPTIONS;
	p->proto = ip->protocol;
	p->ttl = ip->ttl;
	p->tos = ip->tos;
	p->tot_len = bpf_ntohs(ip->tot_len);
	if (p->tot_len && p->tot_len < len)
		return -SU_DROP_MALFORMED;
	su_addr_set4(&p->src, ip->saddr);
	su_addr_set4(&p->dst, ip->daddr);
	p->l4_off = p->ip_off + len;
	if (ip->frag_off & bpf_htons(SU_IP4_MF | SU_IP4_OFFSET)) {
		p->flags |= SU_PKT_FRAG;
		p->frag_id = ip->id;
		p->frag_at = (bpf_ntohs(ip->frag_off) & SU_IP4_OFFSET) * 8;
		if (p->frag_at)
			return 0;
	}
	l4 = (void *)ip + len;
	if (p->proto == IPPROTO_ICMP)
		return su_parse_icmp4(data, data_end, l4, p);
	return su_parse_l4(l4, data_end, p);
}

static __always_inline int su_parse6(void *data, void *data_end, struct su_pkt *p)
{
	struct ipv6hdr *ip = data + p->ip_off;
	struct su_chain c = {};
	__u32 len;
	void *l4;

	if ((void *)(ip + 1) > data_end || ip->version != 6)
		return -SU_DROP_MALFORMED;
	p->flags = SU_PKT_IP6;
	p->proto = ip->nexthdr;
	p->ttl = ip->hop_limit;
	p->tos = bpf_ntohs(*(__be16 *)ip) >> 4;
	len = bpf_ntohs(ip->payload_len);
	p->tot_len = len && len + sizeof(*ip) <= 65535 ? len + sizeof(*ip) : 0;
	su_addr_set6(&p->src, &ip->saddr);
	su_addr_set6(&p->dst, &ip->daddr);
	p->l4_off = p->ip_off + sizeof(*ip);
	l4 = ip + 1;
	if (su_is_ext(p->proto)) {
		c.off = p->l4_off;
		c.proto = p->proto;
		if (su_parse_chain(data, data_end, &c))
			return -SU_DROP_MALFORMED;
		p->flags |= SU_PKT_OPTIONS;
		p->proto = c.proto;
		p->l4_off = c.off;
		p->frag_off = c.frag_off;
		if (c.frag_place) {
			p->flags |= SU_PKT_FRAG;
			p->frag_id = c.frag_id;
			p->frag_at = c.frag_place & ~1;
			if (p->frag_at)
				return 0;
		}
		l4 = data + (c.off & SU_PARSE_MASK);
	}
	if (p->proto == IPPROTO_ICMPV6)
		return su_parse_icmp6(data, data_end, l4, p);
	return su_parse_l4(l4, data_end, p);
}

/*
 * Read the headers of an IP packet whose Ethernet type is `eth_proto` and which starts `l2_len` bytes (a
 * constant for the verifier) into the frame. 0, or -SU_DROP_MALFORMED; -SU_DROP_PROTOCOL when it is not IP.
 * p is filled as far as parsing went.
 */
static __noinline int su_parse(void *data, void *data_end, __u32 l2_len, __be16 eth_proto, struct su_pkt *p)
{
	__builtin_memset(p, 0, sizeof(*p));
	p->l2_len = l2_len;
	p->ip_off = l2_len;
	if (eth_proto == bpf_htons(ETH_P_IP))
		return su_parse4(data, data_end, p);
	if (eth_proto == bpf_htons(ETH_P_IPV6))
		return su_parse6(data, data_end, p);
	return -SU_DROP_PROTOCOL;
}

/*
 * Parse what a tc program was given. A packet whose headers are not all linear is pulled and read once more;
 * packet pointers are to be read again after this.
 */
static __always_inline int su_tc_parse(struct __sk_buff *skb, __u32 l2_len, struct su_pkt *p)
{
	__u32 want = skb->len < SU_PARSE_BYTES ? skb->len : SU_PARSE_BYTES;
	int err = su_parse((void *)(long)skb->data, (void *)(long)skb->data_end, l2_len, (__be16)skb->protocol, p);

	if (!err && (p->flags & (SU_PKT_ERROR | SU_PKT_QUOTE)) != SU_PKT_ERROR)
		return 0;
	if ((long)skb->data + want <= (long)skb->data_end || bpf_skb_pull_data(skb, want))
		return err;
	return su_parse((void *)(long)skb->data, (void *)(long)skb->data_end, l2_len, (__be16)skb->protocol, p);
}

/* The flow seen from one end of the packet: `in`: local is where it goes to; else where it comes from. */
static __always_inline int su_flow_of(const struct su_pkt *p, struct su_flow *f, bool in)
{
	__builtin_memset(f, 0, sizeof(*f));
	f->local = in ? p->dst : p->src;
	f->remote = in ? p->src : p->dst;
	f->proto = p->proto;
	if (p->flags & SU_PKT_FRAG)
		return -SU_DROP_FRAGMENT;
	if (p->flags & SU_PKT_ERROR) {
		if (!(p->flags & SU_PKT_QUOTE))
			return -SU_DROP_ERROR_UNKNOWN;
		f->local = in ? p->q_src : p->q_dst;
		f->remote = in ? p->q_dst : p->q_src;
		f->local_port = in ? p->q_sport : p->q_dport;
		f->remote_port = in ? p->q_dport : p->q_sport;
		f->proto = p->q_proto;
		return 0;
	}
	if (!(p->flags & SU_PKT_PORTS))
		return -SU_DROP_PROTOCOL;
	f->local_port = in ? p->dport : p->sport;
	f->remote_port = in ? p->sport : p->dport;
	return 0;
}

/*
 * The flow of a packet that came from the Internet: local = destination. Of an ICMP error, the flow of the
 * packet it quotes: local = quoted source. 0, or -SU_DROP_FRAGMENT (not followed), _PROTOCOL, _ERROR_UNKNOWN.
 */
static __always_inline int su_flow_of_in(const struct su_pkt *p, struct su_flow *f)
{
	return su_flow_of(p, f, true);
}

/* The flow of a packet that leaves: local = source; of an ICMP error, local = quoted destination. */
static __always_inline int su_flow_of_out(const struct su_pkt *p, struct su_flow *f)
{
	return su_flow_of(p, f, false);
}

#endif /* SU_PARSE_H */
