/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * word.h - the word of a claim, how long a claim lives, and reading one that others may be changing.
 *
 *    63            40 39     32 31                        0
 *   +----------------+---------+---------------------------+
 *   |   generation   |  state  |  last seen, boot seconds  |
 *   +----------------+---------+---------------------------+
 *
 * Whoever changes a claim first wins its word by compare-and-swap. LOCKED is the state in which one
 * program alone fills or deletes it. Each new holder publishes another generation, so a reader that sees
 * the same generation before and after has read one holder's data. An element of a preallocated hash can
 * be recycled for another key under a reader: `check`, a hash of the key, shows that.
 */
#ifndef SU_WORD_H
#define SU_WORD_H

#include <linux/bpf.h>
#include <linux/in.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

#define SU_NSEC_PER_SEC 1000000000ull
#define SU_GEN_MASK 0xffffffu
#define SU_FOREVER 0xffffffffu

static __always_inline __u64 su_word(__u32 generation, __u32 state, __u32 seen_s)
{
	return ((__u64)(generation & SU_GEN_MASK) << SU_WORD_GEN_SHIFT) |
	       ((__u64)(state & 0xff) << SU_WORD_STATE_SHIFT) | seen_s;
}

static __always_inline __u32 su_word_gen(__u64 word)
{
	return word >> SU_WORD_GEN_SHIFT;
}

static __always_inline __u32 su_word_state(__u64 word)
{
	return (word >> SU_WORD_STATE_SHIFT) & 0xff;
}

static __always_inline __u32 su_word_seen(__u64 word)
{
	return (__u32)word;
}

static __always_inline __u32 su_seconds(__u64 now_ns)
{
	return (__u32)(now_ns / SU_NSEC_PER_SEC);
}

static __always_inline __u64 su_word_read(const struct su_claim *c)
{
	return *(const volatile __u64 *)&c->word;
}

/* A finalizer of MurmurHash3: every input bit changes half of the output. */
static __always_inline __u32 su_mix(__u32 h)
{
	h ^= h >> 16;
	h *= 0x85ebca6bu;
	h ^= h >> 13;
	h *= 0xc2b2ae35u;
	h ^= h >> 16;
	return h;
}

/* The next of a sequence of random words. Without a branch: the verifier walks each iteration of our loops. */
static __always_inline __u32 su_next(__u32 *rnd)
{
	*rnd = *rnd * 1664525u + 1013904223u;
	return su_mix(*rnd);
}

static __always_inline __u32 su_flow_check(const struct su_flow *f)
{
	__u32 h = f->local.w[0] ^ f->local.w[1] ^ f->local.w[2] ^ f->local.w[3];

	h = h * 0x9e3779b1u + (f->remote.w[0] ^ f->remote.w[1] ^ f->remote.w[2]);
	h = h * 0x9e3779b1u + f->remote.w[3];
	h = h * 0x9e3779b1u + (((__u32)f->local_port << 16) | f->remote_port);
	return h * 0x9e3779b1u + f->proto;
}

static __always_inline bool su_is_v4(const struct su_addr *a)
{
	return a->w[0] == 0 && a->w[1] == 0 && a->w[2] == bpf_htonl(0xffff);
}

/* A claim towards every remote at once. */
static __always_inline bool su_is_wildcard(const struct su_flow *f)
{
	return !f->remote_port && f->proto == IPPROTO_UDP &&
	       !(f->remote.w[0] | f->remote.w[1] | f->remote.w[2] | f->remote.w[3]);
}

static __always_inline bool su_addr_eq(const struct su_addr *a, const struct su_addr *b)
{
	return a->w[3] == b->w[3] && a->w[2] == b->w[2] && a->w[1] == b->w[1] && a->w[0] == b->w[0];
}

static __always_inline bool su_flow_eq(const struct su_flow *a, const struct su_flow *b)
{
	return a->local_port == b->local_port && a->remote_port == b->remote_port && a->proto == b->proto &&
	       su_addr_eq(&a->remote, &b->remote) && su_addr_eq(&a->local, &b->local);
}

/* Seconds without a packet after which a claim is free for anybody; SU_FOREVER: never by time. */
static __always_inline __u32 su_lifetime_s(__u8 kind, __u32 state, __u8 proto)
{
	if (kind == SU_KIND_SOCKET)
		return state == SU_STATE_LINGER ? settings.sock_linger_s : SU_FOREVER;
	if (proto == IPPROTO_TCP) {
		if (state == SU_STATE_LINGER)
			return settings.tcp_linger_s;
		return state == SU_STATE_NEW ? settings.tcp_transitory_s : settings.tcp_established_s;
	}
	return proto == IPPROTO_UDP ? settings.udp_s : settings.icmp_s;
}

/* Seconds since the claim saw a packet; 0 when another CPU's clock is ahead. */
static __always_inline __u32 su_idle_s(__u64 word, __u32 now_s)
{
	__s32 idle = (__s32)(now_s - su_word_seen(word));

	return idle < 0 ? 0 : (__u32)idle;
}

static __always_inline bool su_expired_word(__u64 word, __u8 kind, __u8 proto, __u32 now_s)
{
	__u32 lifetime = su_lifetime_s(kind, su_word_state(word), proto);

	return lifetime != SU_FOREVER && su_idle_s(word, now_s) >= lifetime;
}

static __always_inline bool su_expired(const struct su_claim *c, __u8 proto, __u32 now_s)
{
	return su_expired_word(c->word, c->kind, proto, now_s);
}

/*
 * A socket may take over the port of a socket that ended more than sock_reuse_s ago: what is left of it
 * is a TIME_WAIT, and the kernel takes that over for an explicit bind when timestamps protect it.
 * Seconds are whole here, so "more than" waits at least the whole of sock_reuse_s.
 */
static __always_inline bool su_reusable(__u64 word, __u8 held_by, __u8 wanted_by, __u8 proto, __u32 now_s)
{
	return wanted_by == SU_KIND_SOCKET && held_by == SU_KIND_SOCKET && proto == IPPROTO_TCP &&
	       su_word_state(word) == SU_STATE_LINGER && su_idle_s(word, now_s) > settings.sock_reuse_s;
}

/*
 * The claim of a flow. Returns the living entry (for su_claim_refresh) and fills *out with a consistent
 * copy; NULL when there is none, or while somebody fills or deletes it. Expired claims are returned:
 * they hold until somebody takes them over.
 */
static __always_inline struct su_claim *su_claim_get(const struct su_flow *key, struct su_claim *out)
{
	struct su_claim *live = bpf_map_lookup_elem(&flows, key);
	__u64 word, after;

	if (!live)
		return NULL;
	word = su_word_read(live);
	if (su_word_state(word) == SU_STATE_LOCKED)
		return NULL;
	*out = *live;
	out->word = word;
	barrier();
	after = su_word_read(live);
	if (su_word_gen(after) != su_word_gen(word) || su_word_state(after) == SU_STATE_LOCKED ||
	    out->check != su_flow_check(key))
		return NULL;
	return live;
}

/*
 * A packet passed: last seen becomes now and the state `state`. Writes only when one of them changes.
 * Returns false when the claim is no longer what `word` said but for its time: somebody took it over.
 */
static __always_inline bool su_claim_refresh(struct su_claim *live, __u64 word, __u32 state, __u32 now_s)
{
	__u64 next = su_word(su_word_gen(word), state, now_s), was;

	if (next == word)
		return true;
	was = __sync_val_compare_and_swap(&live->word, word, next);
	if (was == word)
		return true;
	/* Another CPU refreshed the same holder's claim: as good, unless the state is still to change. */
	if (su_word_gen(was) != su_word_gen(word) || su_word_state(was) == SU_STATE_LOCKED)
		return false;
	if (su_word_state(was) != state && state > su_word_state(was))
		return __sync_val_compare_and_swap(&live->word, was,
						   su_word(su_word_gen(was), state, now_s)) == was;
	return true;
}

/*
 * The living claim of a flow and its word, without a copy: for who is going to win the word, which fails
 * if anything changed since. NULL as for su_claim_get.
 */
static __always_inline struct su_claim *su_claim_word(const struct su_flow *key, __u64 *word)
{
	struct su_claim *live = bpf_map_lookup_elem(&flows, key);

	if (!live)
		return NULL;
	*word = su_word_read(live);
	if (su_word_state(*word) == SU_STATE_LOCKED)
		return NULL;
	barrier();
	return *(volatile __u32 *)&live->check == su_flow_check(key) ? live : NULL;
}

/* Win the claim whose word is `word`. Until su_publish or deletion nobody else touches it. */
static __always_inline bool su_lock(struct su_claim *live, __u64 word, __u32 now_s)
{
	return __sync_val_compare_and_swap(&live->word, word,
					   su_word(su_word_gen(word), SU_STATE_LOCKED, now_s)) == word;
}

static __always_inline void su_publish(struct su_claim *live, __u64 word)
{
	__sync_lock_test_and_set(&live->word, word);
}

#endif /* SU_WORD_H */
