/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * mss.h - lower the MSS that a SYN or SYN-ACK announces (RFC 9293 section 3.7.1, option kind 2), both ways, so that
 * segments fit a path whose too-big errors get lost.
 *
 *   | kind 2 | length 4 | MSS, 16 bits |       anywhere among the options, at odd offsets too
 *
 * Only lowered, never added: without the option a host takes 536 (IPv4) or 1220 (IPv6), which fits.
 */
#ifndef SU_MSS_H
#define SU_MSS_H

#include "count.h"
#include "pkt.h"

#define SU_TCP_OPTIONS 40	/* bytes at most */
#define SU_TCPOPT_END 0
#define SU_TCPOPT_NOP 1
#define SU_TCPOPT_MSS 2

static __always_inline __u16 su_swap16(__u16 v)
{
	return v << 8 | v >> 8;
}

/* Write an MSS at `at`. A checksum adds words of even offsets: at an odd one its bytes count the other way round. */
static __noinline int su_mss_write(struct __sk_buff *skb, __u32 tcp_off, __u32 at, __u32 was, __u32 mss)
{
	__be16 from = bpf_htons(was), to = bpf_htons(mss);
	bool odd = (at - tcp_off) & 1;

	if (bpf_l4_csum_replace(skb, tcp_off + 16, odd ? su_swap16(from) : from, odd ? su_swap16(to) : to, 2) ||
	    bpf_skb_store_bytes(skb, at, &to, 2, 0))
		return -SU_DROP_MALFORMED;
	su_count_bh(su_stats_get(), SU_COUNT_MSS_CLAMPED, 1);
	return 0;
}

/* A walk along the options: from `at` to before `end`. */
struct su_mss_walk {
	struct __sk_buff *skb;
	__u32 at, end;
	__u32 was;		/* the MSS, whose two bytes are at `at` then; 0: none found */
};

static long su_mss_step(__u64 i, struct su_mss_walk *w)
{
	__u8 o[4];

	/* The first two bytes say which it is; a NOP or the end may be the last byte. */
	if (w->at + 2 > w->end || bpf_skb_load_bytes(w->skb, w->at, o, 2) || o[0] == SU_TCPOPT_END)
		return 1;
	if (o[0] == SU_TCPOPT_NOP) {
		w->at++;
		return 0;
	}
	if (o[0] == SU_TCPOPT_MSS && o[1] == 4) {
		if (w->at + 4 <= w->end && !bpf_skb_load_bytes(w->skb, w->at, o, 4))
			w->was = (__u32)o[2] << 8 | o[3];
		w->at += 2;
		return 1;
	}
	w->at += o[1];
	return o[1] < 2;
}

/* p is a SYN. `mss`: the largest for IPv4. 0, or -SU_DROP_MALFORMED. Packet pointers are to be read again. */
static __noinline int su_mss_clamp(struct __sk_buff *skb, const struct su_pkt *p, __u32 mss)
{
	struct su_mss_walk w = {.skb = skb, .at = p->l4_off + sizeof(struct tcphdr)};
	__u8 doff;

	if (p->flags & SU_PKT_IP6)
		mss -= sizeof(struct ipv6hdr) - sizeof(struct iphdr);
	if (bpf_skb_load_bytes(skb, p->l4_off + 12, &doff, 1))
		return -SU_DROP_MALFORMED;
	w.end = p->l4_off + (doff >> 4) * 4;
	bpf_loop(SU_TCP_OPTIONS, su_mss_step, &w, 0);
	return w.was > mss ? su_mss_write(skb, p->l4_off, w.at, w.was, mss) : 0;
}

#endif /* SU_MSS_H */
