/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * refuse.h - full means closed: what a client is told when its packet goes no further.
 *
 *   TCP SYN      RST|ACK, as the destination would (RFC 9293 section 3.10.7.1): connect() fails at once
 *   UDP          port unreachable: a connected socket gets ECONNREFUSED at once
 *   ICMP echo    host unreachable
 *   no ports     protocol unreachable; time to live used up: time exceeded
 *   too big      fragmentation needed, DF or not: tc cannot fragment
 *
 * IPv4 packets with options, fragments and IPv6 are dropped and counted without an answer.
 */
#ifndef SU_REFUSE_H
#define SU_REFUSE_H

#include "icmp.h"

struct su_ip_tcp {
	struct iphdr ip;
	struct tcphdr tcp;
};

/* Turn a SYN into the RST|ACK that refuses it. TC_ACT_REDIRECT or -SU_DROP_MALFORMED. */
static __noinline int su_refuse_syn4(struct __sk_buff *skb, const struct su_pkt *p)
{
	struct su_ip_tcp head = {};
	__u32 check_off = p->l4_off + 16, len;
	bool partial;
	__sum16 was;
	__u64 sum;

	if (bpf_skb_load_bytes(skb, p->l4_off, &head.tcp, sizeof(head.tcp)))
		return -SU_DROP_MALFORMED;
	partial = su_partial(skb, check_off, &was);
	if (bpf_skb_change_tail(skb, p->ip_off + sizeof(head), 0))
		return -SU_DROP_MALFORMED;
	/* The SYN counts one, data (fast open) too. */
	len = p->tot_len - sizeof(struct iphdr) - head.tcp.doff * 4 + 1;
	su_answer_ip(&head.ip, p->dst.w[3], p->src.w[3], IPPROTO_TCP, sizeof(head));
	head.tcp.ack_seq = bpf_htonl(bpf_ntohl(head.tcp.seq) + len);
	head.tcp.seq = 0;
	head.tcp.source = p->dport;
	head.tcp.dest = p->sport;
	((__be16 *)&head.tcp)[6] = bpf_htons(5 << 12 | SU_TCP_RST_BIT | SU_TCP_ACK);
	head.tcp.window = 0;
	head.tcp.urg_ptr = 0;
	head.tcp.check = 0;
	sum = su_csum_pseudo(&p->dst, &p->src, IPPROTO_TCP, sizeof(head.tcp), true);
	if (partial) {
		head.tcp.check = su_csum_fold(sum);
	} else {
		sum += (__u32)bpf_csum_diff(NULL, 0, (__be32 *)&head.tcp, sizeof(head.tcp), 0);
		head.tcp.check = su_csum_finish(sum);
	}
	if (bpf_skb_store_bytes(skb, p->ip_off, &head, sizeof(head), BPF_F_RECOMPUTE_CSUM))
		return -SU_DROP_MALFORMED;
	su_count_bh(su_stats_get(), SU_COUNT_RST_SENT, 1);
	return su_answer(skb, p);
}

/*
 * A client's packet is dropped for `err` (-SU_DROP_x): tell it, if it should know. A tc action.
 * `gateway`: our address towards it; without one the destination itself is said to refuse.
 */
static __noinline int su_refuse(struct __sk_buff *skb, const struct su_pkt *p, const struct su_addr *gateway, int err)
{
	__be32 from = gateway->w[3] ? gateway->w[3] : p->dst.w[3];
	int act = TC_ACT_SHOT;

	if (p->flags & (SU_PKT_IP6 | SU_PKT_OPTIONS | SU_PKT_FRAG))
		return TC_ACT_SHOT;
	switch (-err) {
	case SU_DROP_SLICE_FULL:
	case SU_DROP_TABLE_FULL:
	case SU_DROP_CLAIM_ERROR:
	case SU_DROP_NO_SLICE:
		if (p->proto == IPPROTO_TCP)
			act = su_refuse_syn4(skb, p);
		else if (p->proto == IPPROTO_UDP)
			act = su_icmp_error4(skb, p, from, SU_ICMP_UNREACH, 3);
		else
			act = su_icmp_error4(skb, p, from, SU_ICMP_UNREACH, 1);
		break;
	case SU_DROP_TOO_BIG:
		act = su_icmp_error4(skb, p, from, SU_ICMP_UNREACH, SU_ICMP_FRAG_NEEDED);
		break;
	case SU_DROP_PROTOCOL:
		if (p->proto != IPPROTO_ICMP)
			act = su_icmp_error4(skb, p, from, SU_ICMP_UNREACH, 2);
		break;
	case SU_DROP_HOPS:
		if (!(p->flags & SU_PKT_ERROR))
			act = su_icmp_error4(skb, p, from, SU_ICMP_TIME_EXCEEDED, 0);
		break;
	}
	return act < 0 ? TC_ACT_SHOT : act;
}

#endif /* SU_REFUSE_H */
