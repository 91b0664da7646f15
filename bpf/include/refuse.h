/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * refuse.h - full means closed: what a client is told when its packet goes no further.
 *
 *                IPv4                                  IPv6
 *   TCP SYN      RST|ACK, as the destination would (RFC 9293 section 3.10.7.1): connect() fails at once
 *   UDP          port unreachable (3, 3)               port unreachable (1, 4): ECONNREFUSED at once
 *   ICMP echo    host unreachable (3, 1)               address unreachable (1, 3)
 *   no ports     protocol unreachable (3, 2)           administratively prohibited (1, 1)
 *   no hop left  time exceeded (11, 0)                 time exceeded (3, 0)
 *   too big      fragmentation needed (3, 4), DF or not: tc cannot fragment; packet too big (2, 0)
 *
 * Nobody is told about an ICMP error or a later fragment (RFC 1812 section 4.3.2.7, RFC 4443 section 2.4), and all together
 * not too often (tell.h): who asks again is told then.
 */
#ifndef SU_REFUSE_H
#define SU_REFUSE_H

#include "icmp.h"
#include "tell.h"

/* Turn a SYN into the RST|ACK that refuses it. TC_ACT_REDIRECT or -SU_DROP_MALFORMED. */
static __noinline int su_refuse_syn(struct __sk_buff *skb, const struct su_pkt *p)
{
	bool ip6 = p->flags & SU_PKT_IP6, partial;
	__u32 header = ip6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr), len;
	struct tcphdr tcp;
	__sum16 was;
	__u64 sum;
	long err;

	if (bpf_skb_load_bytes(skb, p->l4_off, &tcp, sizeof(tcp)))
		return -SU_DROP_MALFORMED;
	partial = su_partial(skb, p->l4_off + 16, &was);
	/* Whoever fills the check in would look for it where it was. */
	if (partial && p->flags & SU_PKT_OPTIONS)
		return -SU_DROP_MALFORMED;
	if (bpf_skb_change_tail(skb, p->ip_off + header + sizeof(tcp), 0))
		return -SU_DROP_MALFORMED;
	/* The SYN counts one, data (fast open) too. */
	len = p->tot_len - (p->l4_off - p->ip_off) - tcp.doff * 4 + 1;
	tcp.ack_seq = bpf_htonl(bpf_ntohl(tcp.seq) + len);
	tcp.seq = 0;
	tcp.source = p->dport;
	tcp.dest = p->sport;
	((__be16 *)&tcp)[6] = bpf_htons(5 << 12 | SU_TCP_RST_BIT | SU_TCP_ACK);
	tcp.window = 0;
	tcp.urg_ptr = 0;
	tcp.check = 0;
	sum = su_csum_pseudo(&p->dst, &p->src, IPPROTO_TCP, sizeof(tcp), !ip6);
	if (partial) {
		tcp.check = su_csum_fold(sum);
	} else {
		sum += (__u32)bpf_csum_diff(NULL, 0, (__be32 *)&tcp, sizeof(tcp), 0);
		tcp.check = su_csum_finish(sum);
	}
	if (ip6) {
		struct ipv6hdr ip;

		su_answer_ip6(&ip, &p->dst, &p->src, IPPROTO_TCP, sizeof(ip) + sizeof(tcp));
		err = bpf_skb_store_bytes(skb, p->ip_off, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	} else {
		struct iphdr ip;

		su_answer_ip(&ip, p->dst.w[3], p->src.w[3], IPPROTO_TCP, sizeof(ip) + sizeof(tcp));
		err = bpf_skb_store_bytes(skb, p->ip_off, &ip, sizeof(ip), BPF_F_RECOMPUTE_CSUM);
	}
	if (err || bpf_skb_store_bytes(skb, p->ip_off + header, &tcp, sizeof(tcp), BPF_F_RECOMPUTE_CSUM))
		return -SU_DROP_MALFORMED;
	su_count_bh(su_stats_get(), SU_COUNT_RST_SENT, 1);
	return su_answer(skb, p);
}

/* Type and code for IPv4 and, in the upper half, for IPv6. */
#define SU_TELL(type4, code4, type6, code6) ((type4) << 8 | (code4) | (type6) << 24 | (code6) << 16)

/* What a client is told about `err`; 0: nothing. */
static __always_inline __u32 su_refuse_tell(const struct su_pkt *p, int err)
{
	bool icmp = p->proto == IPPROTO_ICMP || p->proto == IPPROTO_ICMPV6;

	switch (-err) {
	case SU_DROP_SLICE_FULL:
	case SU_DROP_TABLE_FULL:
	case SU_DROP_CLAIM_ERROR:
	case SU_DROP_NO_SLICE:
	case SU_DROP_QUOTA_FLOWS:
	case SU_DROP_QUOTA_NEW:
		if (p->proto == IPPROTO_UDP)
			return SU_TELL(SU_ICMP_UNREACH, 3, SU_ICMP6_UNREACH, 4);
		return SU_TELL(SU_ICMP_UNREACH, 1, SU_ICMP6_UNREACH, 3);
	case SU_DROP_TOO_BIG:
		return SU_TELL(SU_ICMP_UNREACH, SU_ICMP_FRAG_NEEDED, SU_ICMP6_TOO_BIG, 0);
	case SU_DROP_PROTOCOL:
		return icmp ? 0 : SU_TELL(SU_ICMP_UNREACH, 2, SU_ICMP6_UNREACH, 1);
	case SU_DROP_HOPS:
		return SU_TELL(SU_ICMP_TIME_EXCEEDED, 0, SU_ICMP6_TIME_EXCEEDED, 0);
	}
	return 0;
}

/*
 * A client's packet is dropped for `err` (-SU_DROP_x): tell it, if it should know. A tc action.
 * `gateway`: our address towards it; without one the destination itself is said to refuse.
 */
static __noinline int su_refuse(struct __sk_buff *skb, const struct su_pkt *p, const struct su_addr *gateway, int err)
{
	const struct su_addr *from = gateway->w[0] || gateway->w[3] ? gateway : &p->dst;
	__u32 tell = su_refuse_tell(p, err);
	int act;

	if (!tell || p->flags & SU_PKT_ERROR || p->frag_at || !su_tell_may(SU_TELL_CLIENT, bpf_ktime_get_boot_ns()))
		return TC_ACT_SHOT;
	if (p->proto == IPPROTO_TCP && (tell & 0xff) == 1 && (tell >> 8 & 0xff) == SU_ICMP_UNREACH)
		act = su_refuse_syn(skb, p);
	else if (p->flags & SU_PKT_IP6)
		act = su_icmp_error(skb, p, from, tell >> 24, tell >> 16 & 0xff);
	else
		act = su_icmp_error(skb, p, from, tell >> 8 & 0xff, tell & 0xff);
	return act < 0 ? TC_ACT_SHOT : act;
}

#endif /* SU_REFUSE_H */
