/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * work.h - what the tc programs share: their room, and following a flow they know.
 *
 * The 512 bytes of stack belong to the arbiter; what a program knows of its packet is in `work`, per CPU and per
 * program. tc programs run with bottom halves off and none starts inside another, so nobody else writes there.
 *
 * A forwarded TCP connection, as far as it is followed (RFC 5382 sections 5 and 7):
 *
 *   NEW --an answer--> OPEN --FIN both ways, or RST--> LINGER --SYN from inside--> NEW
 *
 * A SYN without ACK is no answer: both ends may have called at once (RFC 9293 section 3.5, simultaneous open), and such a
 * SYN may be sent again until it is answered. A LINGER that only a RST made is OPEN again when the inside goes on
 * sending: a forged RST ends nothing (RFC 7857 section 2.2: a RST is passed on, and does not end the session at once).
 */
#ifndef SU_WORK_H
#define SU_WORK_H

#include "arbiter.h"
#include "kernel_busy.h"
#include "parse.h"
#include "policy.h"
#include "rewrite.h"

#define SU_CLAIM_ROUNDS 8	/* times the kernel may call a chosen port busy */
#define SU_EEXIST 17
#define SU_ETH_LEN 14

/* What helpers of tc programs answer beside a tc action and -SU_DROP_x. */
#define SU_TO_CLAIM 100	/* it wants a claim */
#define SU_PASS 101	/* none of ours: TC_ACT_UNSPEC (which is -1, as -SU_DROP_NO_CLAIM is) */
#define SU_UNKNOWN 102	/* its flow has no claim */
#define SU_CLAIMED 103	/* it had none, and another CPU just made one */
#define SU_BEGUN 104	/* it had none, and now it has */
#define SU_UNSENT 105	/* its mapping has a claim and was not used towards that remote yet */

enum su_room {
	SU_ROOM_ONRAMP = 0,
	SU_ROOM_UPLINK = 1,
	SU_ROOM_GUARD = 2,
};

struct su_work {
	struct su_pkt pkt;
	struct su_flow flow;
	struct su_origin_key key;
	struct su_want want;
	struct su_claim claim;
	struct su_origin origin;
	struct su_policy policy;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 3);
	__type(key, __u32);
	__type(value, struct su_work);
} work SEC(".maps");

static __always_inline struct su_work *su_work_get(enum su_room room)
{
	__u32 index = room;

	return bpf_map_lookup_elem(&work, &index);
}

/* tcp_seen is the last byte of the word that begins with inner_port: set and clear it atomically. */
static __always_inline __u32 su_seen_bits(__u32 bits)
{
	return bpf_htonl(bits);
}

static __noinline __u32 su_tcp_ended(struct su_claim *live, __u32 state, __u32 tcp, bool out)
{
	__u32 bits = 0, seen = live->tcp_seen;

	if (tcp & SU_TCP_RST_BIT)
		bits |= SU_TCP_RST;
	if (tcp & SU_TCP_FIN)
		bits |= out ? SU_TCP_FIN_OUT : SU_TCP_FIN_IN;
	if ((seen & bits) != bits)
		__sync_fetch_and_or((__u32 *)&live->inner_port, su_seen_bits(bits));
	seen |= bits;
	if (seen & SU_TCP_RST || (seen & (SU_TCP_FIN_OUT | SU_TCP_FIN_IN)) == (SU_TCP_FIN_OUT | SU_TCP_FIN_IN)) {
		if (state != SU_STATE_LINGER)
			su_count(SU_COUNT_LINGER);
		return SU_STATE_LINGER;
	}
	return out || state != SU_STATE_NEW ? state : SU_STATE_OPEN;
}

static __noinline __u32 su_tcp_again(struct su_claim *live, __u32 tcp)
{
	__u32 seen = live->tcp_seen;

	if ((tcp & (SU_TCP_SYN | SU_TCP_ACK)) == SU_TCP_SYN) {
		__sync_fetch_and_and((__u32 *)&live->inner_port, ~su_seen_bits(0xff));
		return SU_STATE_NEW;
	}
	if ((seen & (SU_TCP_FIN_OUT | SU_TCP_FIN_IN)) == (SU_TCP_FIN_OUT | SU_TCP_FIN_IN))
		return SU_STATE_LINGER;
	__sync_fetch_and_and((__u32 *)&live->inner_port, ~su_seen_bits(SU_TCP_RST));
	return SU_STATE_OPEN;
}

/* The state that a claim is in after this packet. */
static __always_inline __u32 su_track(struct su_claim *live, __u64 word, const struct su_pkt *p, bool out)
{
	__u32 state = su_word_state(word);

	if (p->proto == IPPROTO_TCP) {
		if (p->tcp & (SU_TCP_FIN | SU_TCP_RST_BIT))
			return su_tcp_ended(live, state, p->tcp, out);
		if (state == SU_STATE_LINGER)
			return out ? su_tcp_again(live, p->tcp) : state;
		if ((p->tcp & (SU_TCP_SYN | SU_TCP_ACK)) == SU_TCP_SYN)
			return state;
	}
	return !out && state == SU_STATE_NEW ? SU_STATE_OPEN : state;
}

/*
 * Does the inner flow w->key have a claim, of that kind and owner? Then w->flow is its outer flow, *word the
 * claim's word, and the living entry is returned. NULL: none, or what `origin` says no longer holds (counted).
 */
static __always_inline struct su_claim *su_origin_claim(struct su_work *w, struct su_origin *o, __u32 kind, __u64 owner,
						       __u64 *word)
{
	__u32 generation = *(volatile __u32 *)&o->generation;
	struct su_claim *live;

	w->flow.local = o->local;
	w->flow.remote = w->key.remote;
	w->flow.local_port = o->local_port;
	w->flow.remote_port = w->key.remote_port;
	*(__u32 *)&w->flow.proto = 0;
	w->flow.proto = w->key.proto;
	live = bpf_map_lookup_elem(&flows, &w->flow);
	if (!live)
		goto stale;
	*word = su_word_read(live);
	if (su_word_gen(*word) != generation || su_word_state(*word) == SU_STATE_LOCKED || live->kind != kind ||
	    live->owner != owner || live->inner_port != w->key.inner_port ||
	    !su_addr_equal(&live->inner, &w->key.inner))
		goto stale;
	barrier();
	if (su_word_gen(su_word_read(live)) == generation)
		return live;
stale:
	su_count(SU_COUNT_STALE_ORIGIN);
	return NULL;
}

static __always_inline __u32 su_origin_check(const struct su_origin_key *k)
{
	__u32 h = k->onramp ^ k->inner.w[0] ^ k->inner.w[1] ^ k->inner.w[2];

	h = h * 0x9e3779b1u + k->inner.w[3];
	h = h * 0x9e3779b1u + (k->remote.w[0] ^ k->remote.w[1] ^ k->remote.w[2] ^ k->remote.w[3]);
	h = h * 0x9e3779b1u + ((__u32)k->inner_port << 16 | k->remote_port);
	return h * 0x9e3779b1u + k->proto;
}

/*
 * What *o says held a moment ago, in this very second: w->flow is the outer flow and `flows` need not be asked.
 * `owner` is the on-ramp's generation. False: it is to be asked.
 */
static __always_inline bool su_origin_fresh(struct su_work *w, const struct su_origin *o, __u32 owner, __u32 now_s)
{
	__u32 generation = *(volatile __u32 *)&o->generation;

	if (o->checked_s != now_s || o->owner != owner)
		return false;
	w->flow.local = o->local;
	w->flow.remote = w->key.remote;
	w->flow.local_port = o->local_port;
	w->flow.remote_port = w->key.remote_port;
	*(__u32 *)&w->flow.proto = 0;
	w->flow.proto = w->key.proto;
	barrier();
	return *(volatile __u32 *)&o->generation == generation && o->check == su_origin_check(&w->key);
}

/* Remember w->want's claim as the way of w->key. 0; -SU_EEXIST: somebody was first; -SU_DROP_TABLE_FULL. */
static __noinline int su_origin_add(struct su_work *w)
{
	__u32 generation = su_word_gen(w->want.claim.word), was;
	struct su_origin *o;
	long err;

	w->origin.local = w->want.flow.local;
	w->origin.local_port = w->want.flow.local_port;
	w->origin.generation = generation;
	w->origin.checked_s = su_word_seen(w->want.claim.word);
	w->origin.owner = (__u32)w->want.claim.owner;
	w->origin.check = su_origin_check(&w->key);
	err = bpf_map_update_elem(&origin, &w->key, &w->origin, BPF_NOEXIST);
	if (err == -SU_EEXIST) {
		/* A hint that no longer held, or that another CPU just made. Whoever wins its word writes it. */
		o = bpf_map_lookup_elem(&origin, &w->key);
		if (!o)
			return -SU_EEXIST;
		was = *(volatile __u32 *)&o->generation;
		w->flow.local = o->local;
		w->flow.local_port = o->local_port;
		w->flow.remote = w->key.remote;
		w->flow.remote_port = w->key.remote_port;
		*(__u32 *)&w->flow.proto = 0;
		w->flow.proto = w->key.proto;
		if (su_claim_get(&w->flow, &w->claim) && su_word_gen(w->claim.word) == was &&
		    w->claim.owner == w->want.claim.owner && w->claim.inner_port == w->key.inner_port &&
		    su_addr_equal(&w->claim.inner, &w->key.inner))
			return -SU_EEXIST;
		if (was == SU_NONE || __sync_val_compare_and_swap(&o->generation, was, SU_NONE) != was)
			return -SU_EEXIST;
		o->local = w->want.flow.local;
		o->local_port = w->want.flow.local_port;
		o->checked_s = w->origin.checked_s;
		o->owner = w->origin.owner;
		o->check = w->origin.check;
		__sync_lock_test_and_set(&o->generation, generation);
		return 0;
	}
	return err ? -SU_DROP_TABLE_FULL : 0;
}

/*
 * Claim an outer flow for the inner flow w->key under w->policy. 0: it is w->want.flow. SU_CLAIMED: another CPU
 * claimed one for the same inner flow a moment ago. -SU_DROP_SLICE_FULL, NO_SLICE, TABLE_FULL, CLAIM_ERROR.
 */
static __noinline int su_flow_begin(struct __sk_buff *skb, struct su_work *w, __u32 kind, __u64 owner)
{
	__u64 now_ns = bpf_ktime_get_boot_ns();
	__u32 seed = w->policy.client;
	int err = -SU_DROP_SLICE_FULL;

	if (!seed)
		seed = su_mix(w->key.inner.w[3] ^ su_mix(w->key.inner.w[2] ^ w->key.inner.w[1] ^ w->key.onramp));
	__builtin_memset(&w->want, 0, sizeof(w->want));
	for (int i = 0; i < SU_CLAIM_ROUNDS; i++) {
		w->want.flow.remote = w->key.remote;
		w->want.flow.remote_port = w->key.remote_port;
		w->want.flow.proto = w->key.proto;
		w->want.claim.kind = kind;
		w->want.claim.owner = owner;
		w->want.claim.inner = w->key.inner;
		w->want.claim.inner_port = w->key.inner_port;
		w->want.claim.tenant = w->policy.tenant;
		w->want.first = 0;
		w->want.last = 65535;
		err = su_choose(&w->want, &w->policy, seed, now_ns, bpf_get_prandom_u32());
		if (err)
			return err;
		if (!su_kernel_busy(skb, &w->want.flow, kind))
			break;
		su_busy(&w->want, now_ns);
		err = -SU_DROP_SLICE_FULL;
	}
	if (err)
		return err;
	err = su_origin_add(w);
	if (err) {
		su_claim_release(&w->want.flow, su_word_gen(w->want.claim.word), su_seconds(now_ns));
		return err == -SU_EEXIST ? SU_CLAIMED : err;
	}
	su_count(kind == SU_KIND_PACKET ? SU_COUNT_CLAIM_PACKET : SU_COUNT_CLAIM_LOCAL);
	return 0;
}

/* The inner flow of a packet from inside; of an ICMP error, of the packet that it quotes. */
static __always_inline void su_key_of(struct su_origin_key *key, const struct su_pkt *p, __u32 onramp)
{
	bool quote = p->flags & SU_PKT_QUOTE;

	key->onramp = onramp;
	key->inner = quote ? p->q_dst : p->src;
	key->remote = quote ? p->q_src : p->dst;
	key->inner_port = quote ? p->q_dport : p->sport;
	key->remote_port = quote ? p->q_sport : p->dport;
	*(__u32 *)&key->proto = 0;
	key->proto = quote ? p->q_proto : p->proto;
}

static __always_inline __u32 su_now_s(void)
{
	return su_seconds(bpf_ktime_get_boot_ns());
}

/* Bytes of the largest packet, IP header included, that this one will be on the wire. */
static __noinline __u32 su_segment_len(struct __sk_buff *skb, const struct su_pkt *p)
{
	__u32 gso_size = *(volatile __u32 *)&skb->gso_size, headers = p->l4_off - p->l2_len;
	__u8 doff;

	if (!gso_size)
		return skb->len - p->l2_len;
	if (p->proto != IPPROTO_TCP)
		return gso_size + headers + sizeof(struct udphdr);
	if (bpf_skb_load_bytes(skb, p->l4_off + 12, &doff, 1))
		return ~0u;
	return gso_size + headers + (doff >> 4) * 4;
}

static __always_inline void su_mark(struct __sk_buff *skb)
{
	skb->mark = (skb->mark & ~settings.mask) | settings.mark;
}

/* The uplink of a flow; NULL: there is none. They are filled from 0 on. */
static __always_inline const struct su_uplink *su_uplink_of(const struct su_flow *f)
{
	__u32 index = 1, count = 1;
	struct su_uplink *u = bpf_map_lookup_elem(&uplinks, &index);

	index = 0;
	if (u && u->ifindex) {
		for (count = 2; count < 8; count++) {
			__u32 next = count;

			u = bpf_map_lookup_elem(&uplinks, &next);
			if (!u || !u->ifindex)
				break;
		}
		index = su_mix(su_flow_check(f)) % count;
	}
	u = bpf_map_lookup_elem(&uplinks, &index);
	return u && u->ifindex ? u : NULL;
}

#endif /* SU_WORK_H */
