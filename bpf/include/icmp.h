/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * icmp.h - make a packet its own answer: an ICMP or ICMPv6 error (RFC 792, 1812 section 4.3.2; RFC 4443), an echo reply.
 *
 *   before: | L2 | IP | L4 | data ...            after: | L2 | IP' | ICMP | IP | first bytes of L4 |
 *
 * The quotation is the IP header with its options or extension headers and 8 bytes, 20 for TCP. When the client's
 * checksum is still to be filled in (CHECKSUM_PARTIAL), the field of its layer 4 holds P, the sum of the pseudo
 * header; whoever fills it in later sums from there to the end of the packet and stores the complement, after which
 * the region sums to ~P. So ~P is what it counts in our ICMP check, then and when nobody ever fills it in.
 */
#ifndef SU_ICMP_H
#define SU_ICMP_H

#include "work.h"

#define SU_ANSWER_TTL 64
#define SU_ICMP_FRAG_NEEDED 4	/* code; RFC 1191 section 4: its last 16 bits are the MTU */
#define SU_QUOTE_BYTES 188	/* IPv6, a chain of 128, TCP */

struct su_ip_icmp {
	struct iphdr ip;
	struct su_icmp icmp;
};

struct su_ip6_icmp {
	struct ipv6hdr ip;
	struct su_icmp icmp;
};

/* What is quoted: no stack has room for it. */
struct su_quote {
	__u8 bytes[SU_QUOTE_BYTES];
	__u8 pad[4];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct su_quote);
} quote_room SEC(".maps");

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

static __always_inline void su_answer_ip6(struct ipv6hdr *ip, const struct su_addr *from, const struct su_addr *to,
					  __u8 proto, __u16 len)
{
	__builtin_memset(ip, 0, sizeof(*ip));
	ip->version = 6;
	ip->payload_len = bpf_htons(len - sizeof(*ip));
	ip->nexthdr = proto;
	ip->hop_limit = SU_ANSWER_TTL;
	__builtin_memcpy(&ip->saddr, from, 16);
	__builtin_memcpy(&ip->daddr, to, 16);
}

/* Cut the packet down to what is quoted: that many bytes, and *sum is theirs. Or -SU_DROP_MALFORMED. */
static __noinline int su_icmp_quote(struct __sk_buff *skb, const struct su_pkt *p, __u64 *sum)
{
	__u32 zero = 0, ip_off = p->ip_off, header = p->l4_off - ip_off, size, loaded;
	struct su_quote *q = bpf_map_lookup_elem(&quote_room, &zero);
	__u32 check_off = p->l4_off + su_check_off(p->proto);
	bool partial = false;
	__sum16 was = 0;

	if (!q)
		return -SU_DROP_MALFORMED;
	if (p->flags & SU_PKT_PORTS && (p->proto == IPPROTO_TCP || p->proto == IPPROTO_UDP)) {
		partial = su_partial(skb, check_off, &was);
		if (!partial && bpf_skb_store_bytes(skb, check_off, &was, 2, 0))
			return -SU_DROP_MALFORMED;
	}
	size = header + (p->proto == IPPROTO_TCP ? 20 : 8);
	if (size > skb->len - ip_off)
		size = skb->len - ip_off;
	if (bpf_skb_change_tail(skb, ip_off + size, 0))
		return -SU_DROP_MALFORMED;
	__builtin_memset(q, 0, sizeof(*q));
	loaded = partial ? header : size;
	asm volatile("" : "+r"(loaded));
	if (loaded < 20 || loaded > SU_QUOTE_BYTES || bpf_skb_load_bytes(skb, ip_off, q->bytes, loaded))
		return -SU_DROP_MALFORMED;
	*sum = (__u32)bpf_csum_diff(NULL, 0, (__be32 *)q->bytes, SU_QUOTE_BYTES, partial ? (__u16)~was : 0);
	return size;
}

static __always_inline int su_icmp_error4(struct __sk_buff *skb, const struct su_pkt *p, const struct su_addr *from,
					  __u32 size, struct su_icmp *icmp, __u64 sum)
{
	struct su_ip_icmp head = {.icmp = *icmp};

	head.icmp.check = su_csum_finish(sum);
	su_answer_ip(&head.ip, from->w[3], p->src.w[3], IPPROTO_ICMP, sizeof(head) + size);
	if (bpf_skb_adjust_room(skb, sizeof(head), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) ||
	    bpf_skb_store_bytes(skb, p->ip_off, &head, sizeof(head), BPF_F_RECOMPUTE_CSUM))
		return -SU_DROP_MALFORMED;
	return 0;
}

static __noinline int su_icmp_error6(struct __sk_buff *skb, const struct su_pkt *p, const struct su_addr *from,
				     __u64 size_sum, struct su_icmp *icmp)
{
	struct su_ip6_icmp head = {.icmp = *icmp};
	__u32 size = size_sum >> 32;
	__u64 sum = (__u32)size_sum;

	sum += su_csum_pseudo(from, &p->src, IPPROTO_ICMPV6, sizeof(head.icmp) + size, false);
	head.icmp.check = su_csum_finish(sum);
	su_answer_ip6(&head.ip, from, &p->src, IPPROTO_ICMPV6, sizeof(head) + size);
	if (bpf_skb_adjust_room(skb, sizeof(head), BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO) ||
	    bpf_skb_store_bytes(skb, p->ip_off, &head, sizeof(head), BPF_F_RECOMPUTE_CSUM))
		return -SU_DROP_MALFORMED;
	return 0;
}

/*
 * Turn a packet into an ICMP (ICMPv6) error to its sender. `from`: our address towards it. p->mtu is told where the
 * type has room for it. TC_ACT_REDIRECT, or -SU_DROP_MALFORMED and the packet is fit for nothing.
 */
static __noinline int su_icmp_error(struct __sk_buff *skb, const struct su_pkt *p, const struct su_addr *from, __u32 type,
				    __u32 code)
{
	bool ip6 = p->flags & SU_PKT_IP6;
	struct su_icmp icmp = {.type = type, .code = code};
	__u64 sum = 0;
	int size = su_icmp_quote(skb, p, &sum), err;

	if (size < 0)
		return size;
	if (ip6 ? type == SU_ICMP6_TOO_BIG : type == SU_ICMP_UNREACH && code == SU_ICMP_FRAG_NEEDED)
		icmp.sequence = bpf_htons(p->mtu);	/* IPv6 has 32 bits for it, these are the lower ones */
	sum += bpf_htons(type << 8 | code) + icmp.sequence;
	if (ip6)
		err = su_icmp_error6(skb, p, from, (__u64)size << 32 | su_csum_fold(sum), &icmp);
	else
		err = su_icmp_error4(skb, p, from, size, &icmp, sum);
	if (err)
		return err;
	su_count_bh(su_stats_get(), SU_COUNT_ICMP_SENT, 1);
	return su_answer(skb, p);
}

/*
 * Turn an echo request into its reply, without keeping anything, and send it by that uplink. A later fragment of one has no
 * type to turn. TC_ACT_REDIRECT or -SU_DROP_MALFORMED.
 */
static __noinline int su_echo_reply(struct __sk_buff *skb, const struct su_pkt *p, __u32 ifindex)
{
	__u32 ip_off = p->ip_off & 15, type_off = p->l4_off;
	__be16 was = bpf_htons(SU_ICMP_ECHO_REQUEST << 8 | p->icmp_code), now = bpf_htons(SU_ICMP_ECHO_REPLY << 8);
	void *data, *data_end;

	if (p->flags & SU_PKT_IP6) {
		was = bpf_htons(SU_ICMP6_ECHO_REQUEST << 8 | p->icmp_code);
		now = bpf_htons(SU_ICMP6_ECHO_REPLY << 8);
	}
	if (!p->frag_at && (bpf_l4_csum_replace(skb, type_off + 2, was, now, 2) ||
			    bpf_skb_store_bytes(skb, type_off, &now, 2, 0)))
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
	return bpf_redirect_neigh(ifindex, NULL, 0, 0);
}

#endif /* SU_ICMP_H */
