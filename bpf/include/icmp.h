/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * icmp.h - make a packet its own answer: an ICMP error (RFC 792, 1812 section 4.3.2), an echo reply.
 *
 *   before: | L2 | IP | L4 | data ...            after: | L2 | IP' | ICMP | IP | first bytes of L4 |
 *
 * The quotation is the IP header and 8 bytes, 20 for TCP. When the client's checksum is still to be filled in
 * (CHECKSUM_PARTIAL), the field of its layer 4 holds P, the sum of the pseudo header; whoever fills it in later
 * sums from there to the end of the packet and stores the complement, after which the region sums to ~P. So
 * ~P is what it counts in our ICMP check, then and when nobody ever fills it in.
 */
#ifndef SU_ICMP_H
#define SU_ICMP_H

#include "work.h"

#define SU_ANSWER_TTL 64
#define SU_ICMP_FRAG_NEEDED 4	/* code; RFC 1191 section 4: its last 16 bits are the MTU */

struct su_ip_icmp {
	struct iphdr ip;
	struct su_icmp icmp;
};

/*
 * Is layer 4's check still to be filled in? A replacement that is no pseudo header's leaves the field alone then
 * (net/core/utils.c). `from` is what the field holds; when false, the field has been changed.
 */
static __always_inline bool su_partial(struct __sk_buff *skb, __u32 check_off, __sum16 *from)
{
	__sum16 now;

	if (bpf_skb_load_bytes(skb, check_off, from, 2) || bpf_l4_csum_replace(skb, check_off, 1, 2, 2) ||
	    bpf_skb_load_bytes(skb, check_off, &now, 2))
		return false;
	return now == *from;
}

/* Send what the packet has become back to where it came from. */
static __always_inline int su_answer(struct __sk_buff *skb, const struct su_pkt *p)
{
	__u8 mac[12], swapped[12];

	if (p->l2_len) {
		if (bpf_skb_load_bytes(skb, 0, mac, 12))
			return -SU_DROP_MALFORMED;
		__builtin_memcpy(swapped, mac + 6, 6);
		__builtin_memcpy(swapped + 6, mac, 6);
		if (bpf_skb_store_bytes(skb, 0, swapped, 12, 0))
			return -SU_DROP_MALFORMED;
	}
	return bpf_redirect(skb->ifindex, 0);
}

static __always_inline void su_answer_ip(struct iphdr *ip, __be32 from, __be32 to, __u8 proto, __u16 len)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 4;
	ip->ihl = 5;
	ip->tot_len = bpf_htons(len);
	ip->frag_off = bpf_htons(SU_IP4_DF);
	ip->ttl = SU_ANSWER_TTL;
	ip->protocol = proto;
	ip->saddr = from;
	ip->daddr = to;
	ip->check = su_csum_ip4(ip);
}

/*
 * Turn an IPv4 packet without options into an ICMP error to its sender. `from`: our address towards it.
 * TC_ACT_REDIRECT, or -SU_DROP_MALFORMED and the packet is fit for nothing.
 */
static __noinline int su_icmp_error4(struct __sk_buff *skb, const struct su_pkt *p, __be32 from, __u32 type,
				     __u32 code)
{
	__u32 l4_bytes = p->proto == IPPROTO_TCP ? 20 : 8, ip_off = p->ip_off, check_off = p->l4_off + su_check_off(p->proto);
	struct su_ip_icmp head = {};
	__u8 quote[40] = {};
	bool partial = false;
	__sum16 was = 0;
	__s64 sum;

	if (p->flags & (SU_PKT_OPTIONS | SU_PKT_IP6))
		return -SU_DROP_MALFORMED;
	if (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP) {
		partial = su_partial(skb, check_off, &was);
		if (!partial && bpf_skb_store_bytes(skb, check_off, &was, 2, 0))
			return -SU_DROP_MALFORMED;
	}
	if (bpf_skb_change_tail(skb, ip_off + 20 + l4_bytes, 0))
		return -SU_DROP_MALFORMED;
	if (bpf_skb_load_bytes(skb, ip_off, quote, 28))
		return -SU_DROP_MALFORMED;
	if (l4_bytes == 20 && bpf_skb_load_bytes(skb, ip_off + 28, quote + 28, 12))
		return -SU_DROP_MALFORMED;
	if (partial)
		sum = bpf_csum_diff(NULL, 0, (__be32 *)quote, 20, (__u16)~was);
	else
		sum = bpf_csum_diff(NULL, 0, (__be32 *)quote, 40, 0);
	head.icmp.type = type;
	head.icmp.code = code;
	if (code == SU_ICMP_FRAG_NEEDED && type == SU_ICMP_UNREACH)
		head.icmp.sequence = bpf_htons(p->mtu);
	head.icmp.check = su_csum_finish((__u64)(__u32)sum + bpf_htons(type << 8 | code) + head.icmp.sequence);
	su_answer_ip(&head.ip, from, p->src.w[3], IPPROTO_ICMP, sizeof(head) + 20 + l4_bytes);
	if (bpf_skb_adjust_room(skb, sizeof(head), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) ||
	    bpf_skb_store_bytes(skb, ip_off, &head, sizeof(head), BPF_F_RECOMPUTE_CSUM))
		return -SU_DROP_MALFORMED;
	su_count_bh(su_stats_get(), SU_COUNT_ICMP_SENT, 1);
	return su_answer(skb, p);
}

/* Turn an echo request into its reply, without keeping anything. TC_ACT_REDIRECT or -SU_DROP_MALFORMED. */
static __noinline int su_echo_reply(struct __sk_buff *skb, const struct su_pkt *p)
{
	__u32 ip_off = p->ip_off & 15, type_off = p->l4_off;
	__be16 was = bpf_htons(SU_ICMP_ECHO_REQUEST << 8 | p->icmp_code), now = bpf_htons(SU_ICMP_ECHO_REPLY << 8);
	void *data, *data_end;

	if (p->flags & SU_PKT_IP6) {
		was = bpf_htons(SU_ICMP6_ECHO_REQUEST << 8 | p->icmp_code);
		now = bpf_htons(SU_ICMP6_ECHO_REPLY << 8);
	}
	if (bpf_l4_csum_replace(skb, type_off + 2, was, now, 2) || bpf_skb_store_bytes(skb, type_off, &now, 2, 0))
		return -SU_DROP_MALFORMED;
	data = (void *)(long)skb->data + ip_off;
	data_end = (void *)(long)skb->data_end;
	if (p->flags & SU_PKT_IP6) {
		struct ipv6hdr *ip6 = data;

		if ((void *)(ip6 + 1) > data_end)
			return -SU_DROP_MALFORMED;
		ip6->hop_limit = SU_ANSWER_TTL;
		__builtin_memcpy(&ip6->saddr, &p->dst, 16);
		__builtin_memcpy(&ip6->daddr, &p->src, 16);
	} else {
		struct iphdr *ip = data;

		if ((void *)(ip + 1) > data_end)
			return -SU_DROP_MALFORMED;
		ip->check = su_csum_replace2(ip->check, bpf_htons(ip->ttl << 8 | IPPROTO_ICMP),
					     bpf_htons(SU_ANSWER_TTL << 8 | IPPROTO_ICMP));
		ip->ttl = SU_ANSWER_TTL;
		ip->saddr = p->dst.w[3];
		ip->daddr = p->src.w[3];
	}
	su_mark(skb);
	su_count_bh(su_stats_get(), SU_COUNT_ECHO_ANSWERED, 1);
	/* By the routes, as all that leaves a slice: the guard may learn the gateway's address from it. */
	return bpf_redirect_neigh(skb->ifindex, NULL, 0, 0);
}

#endif /* SU_ICMP_H */
