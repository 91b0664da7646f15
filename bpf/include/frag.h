/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * frag.h - fragments: the first one of a datagram has its ports, `frags` remembers them for the later ones.
 *
 * A fragment that was followed (SU_PKT_FOLLOWED) looks like a whole packet of its flow to everything behind; only what
 * reads or writes layer 4 looks at p->frag_at first. Nothing is held back: tc cannot. A later fragment that comes before
 * its first one is dropped, and its datagram with it.
 *
 * The ports are in the first 8 bytes, where no other fragment can reach (RFC 1858 section 3; offsets count by 8). TCP's
 * flags are not: a later fragment within its header is dropped (RFC 3128).
 */
#ifndef SU_FRAG_H
#define SU_FRAG_H

#include "count.h"
#include "parse.h"

#define SU_FRAG_TCP_HEADER 20

static __always_inline __u32 su_frag_check(const struct su_frag_key *k)
{
	__u32 h = k->src.w[0] ^ k->src.w[1] ^ k->src.w[2];

	h = h * 0x9e3779b1u + k->src.w[3];
	h = h * 0x9e3779b1u + (k->dst.w[0] ^ k->dst.w[1] ^ k->dst.w[2] ^ k->dst.w[3]);
	h = h * 0x9e3779b1u + k->id;
	return h * 0x9e3779b1u + (k->entry ^ k->proto);
}

static __always_inline int su_frag_learn(struct su_pkt *p, const struct su_frag_key *key)
{
	struct su_frag said = {
		.learned_ns = bpf_ktime_get_boot_ns(),
		.sport = p->sport,
		.dport = p->dport,
		.proto = p->proto,
		.flags = p->flags & (SU_PKT_ECHO_REQUEST | SU_PKT_ECHO_REPLY),
		.check = su_frag_check(key),
	};

	if (!(p->flags & SU_PKT_PORTS) || bpf_map_update_elem(&frags, key, &said, BPF_ANY))
		return -SU_DROP_FRAGMENT;
	return 0;
}

static __always_inline int su_frag_recall(struct su_pkt *p, const struct su_frag_key *key)
{
	const struct su_frag *said = bpf_map_lookup_elem(&frags, key);

	if (!said || bpf_ktime_get_boot_ns() - said->learned_ns >= SU_FRAG_NS)
		return -SU_DROP_FRAGMENT_EARLY;
	p->sport = said->sport;
	p->dport = said->dport;
	p->proto = said->proto;
	p->flags |= said->flags | SU_PKT_PORTS;
	barrier();
	if (*(volatile __u32 *)&said->check != su_frag_check(key)) {
		p->flags &= ~(SU_PKT_PORTS | SU_PKT_ECHO_REQUEST | SU_PKT_ECHO_REPLY);
		return -SU_DROP_FRAGMENT_EARLY;
	}
	return p->proto == IPPROTO_TCP && p->frag_at < SU_FRAG_TCP_HEADER ? -SU_DROP_MALFORMED : 0;
}

/*
 * Follow a fragment (SU_PKT_FRAG) that came in at `entry`: p gets the ports, protocol and kind of echo of its first one,
 * and is no longer SU_PKT_FRAG but SU_PKT_FOLLOWED. 0, or -SU_DROP_FRAGMENT, _FRAGMENT_EARLY, _MALFORMED.
 */
__noinline int su_frag_follow(struct su_pkt *p, __u32 entry)
{
	struct su_frag_key key = {.entry = entry};
	int err;

	if (!p)
		return -SU_DROP_FRAGMENT;
	key.src = p->src;
	key.dst = p->dst;
	key.id = p->frag_id;
	key.proto = p->flags & SU_PKT_IP6 ? 0 : p->proto;
	err = p->frag_at ? su_frag_recall(p, &key) : su_frag_learn(p, &key);
	if (err)
		return err;
	p->flags = (p->flags & ~SU_PKT_FRAG) | SU_PKT_FOLLOWED;
	su_count_bh(su_stats_get(), SU_COUNT_FRAGMENTS, 1);
	return 0;
}

#endif /* SU_FRAG_H */
