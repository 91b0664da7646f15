/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * arbiter.h - choosing a port, exactly.
 *
 * Free ports first, by a few random probes (RFC 6056 section 3.3.2) with a stride coprime to the size. A
 * destination at which they fail is crowded: it gets a bitmap (`crowds`, one a 2,048-port chunk of the
 * slice), in which the next chooser finds a port that is believed free at once. The bitmap is a hint: bits
 * are set when a port proves taken and cleared when a claim ends. When it shows nothing free, every
 * port is looked at: what is free or expired is taken; else a LINGER port that a socket may reuse; only
 * then is the chunk full, and that is remembered for settings.full_ns or until a claim in it ends.
 *
 * Nothing here knows a context: clock and randomness are arguments. The caller, who knows the kernel's
 * socket tables, asks them after each claim (kernel_busy.h) and says su_busy() when the port is taken there.
 */
#ifndef SU_ARBITER_H
#define SU_ARBITER_H

#include "claim.h"

#define SU_PROBES 4
#define SU_BIT_ROUNDS 32
#define SU_POOL_SLICES 64	/* slices of one pool and family on one node that are considered */
#define SU_CHUNKS 32
#define SU_SEARCHING 1ull	/* in su_crowd.full_*_ns; no time lies before it */

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct su_crowd);
} crowd_new SEC(".maps");	/* always zero: what a new crowd starts from */

/* Lowest set bit of a non-zero word. */
static __always_inline __u32 su_lowest(__u64 v)
{
	__u32 n = 0;

	if (!(v & 0xffffffffull)) { n += 32; v >>= 32; }
	if (!(v & 0xffff)) { n += 16; v >>= 16; }
	if (!(v & 0xff)) { n += 8; v >>= 8; }
	if (!(v & 0xf)) { n += 4; v >>= 4; }
	if (!(v & 0x3)) { n += 2; v >>= 2; }
	return n + !(v & 1);
}

/* A bit of that word, between first and last, that is not set, at random; SU_CROWD_PORTS: none. */
__noinline __u32 su_free_in_word(const struct su_crowd *crowd, __u32 word, __u32 first, __u32 last, __u32 rnd)
{
	__u64 free, high;

	if (!crowd)
		return SU_CROWD_PORTS;
	word &= SU_CROWD_PORTS / 64 - 1;
	free = ~*(const volatile __u64 *)&crowd->taken[word];
	if (word == first >> 6)
		free &= ~0ull << (first & 63);
	if (word == last >> 6)
		free &= ~0ull >> (63 - (last & 63));
	if (!free)
		return SU_CROWD_PORTS;
	high = free & (~0ull << (rnd & 63));
	return (word << 6) + su_lowest(high ? high : free);
}

/* A bit between first and last (of one chunk) that is not set, at random; SU_CROWD_PORTS: none. */
__noinline __u32 su_free_bit(const struct su_crowd *crowd, __u32 first, __u32 last, __u32 rnd)
{
	__u32 from = first >> 6, words = (last >> 6) - from + 1, start = rnd >> 8, bit;

	for (__u32 i = 0; i < SU_CROWD_PORTS / 64; i++) {
		if (i >= words)
			break;
		bit = su_free_in_word(crowd, from + (start + i) % words, first, last, rnd);
		if (bit < SU_CROWD_PORTS)
			return bit;
	}
	return SU_CROWD_PORTS;
}

#define SU_NO_BIT 0xffffu

/* Narrow: it lies on the stack where little is left. */
struct su_scan {
	struct su_want *want;
	struct su_crowd *crowd;
	__u64 now_ns;
	__u16 base;		/* port of bit 0 */
	__u16 first, size;	/* bits to look at */
	__u16 start;		/* at random; also what generations are mixed from */
	__u16 reusable;		/* a bit that a socket may reuse, or SU_NO_BIT */
	__s16 result;
};

static long su_scan_one(__u64 i, struct su_scan *s)
{
	__u32 bit = s->start + (__u32)i;

	if (bit >= s->size)
		bit -= s->size;
	bit += s->first;
	s->result = su_try(s->want, s->base + bit, s->now_ns, su_mix(s->start ^ bit << 16 ^ (__u32)s->now_ns),
			   SU_TAKE_EXPIRED);
	if (s->result == SU_TAKEN_REUSABLE && s->reusable == SU_NO_BIT)
		s->reusable = bit;
	su_crowd_set(s->crowd, bit);
	return s->result <= 0;
}

/* Look at every port. 0: claimed; SU_TAKEN: all taken; -SU_DROP_*. */
static __always_inline int su_scan(struct su_scan *s)
{
	s->reusable = SU_NO_BIT;
	s->result = SU_TAKEN;
	bpf_loop(s->size, su_scan_one, s, 0);
	if (s->result > 0 && s->reusable != SU_NO_BIT)
		s->result = su_try(s->want, s->base + s->reusable, s->now_ns, su_mix(s->start), SU_TAKE_REUSABLE);
	return s->result;
}

static __noinline struct su_crowd *su_crowd_make(const struct su_flow *f, __u32 slice, __u32 chunk)
{
	struct su_crowd_key key;
	struct su_crowd *fresh;
	__u32 zero = 0;

	su_crowd_key_of(&key, f, slice, chunk);
	fresh = bpf_map_lookup_elem(&crowd_new, &zero);
	if (fresh && bpf_map_update_elem(&crowds, &key, fresh, BPF_NOEXIST) == 0)
		su_count(SU_COUNT_CROWDED);
	return bpf_map_lookup_elem(&crowds, &key);
}

/* Bits of a chunk that a chooser may use, in one word: functions verified on their own take five arguments. */
#define SU_RANGE(chunk, first, last, whole) ((chunk) << 24 | (whole) << 22 | (last) << 11 | (first))
#define SU_RANGE_CHUNK(r) ((r) >> 24)
#define SU_RANGE_WHOLE(r) ((r) >> 22 & 1)	/* these are all bits that anybody may use */
#define SU_RANGE_LAST(r) ((r) >> 11 & (SU_CROWD_PORTS - 1))
#define SU_RANGE_FIRST(r) ((r) & (SU_CROWD_PORTS - 1))

/* One chunk of the slice w->claim.slice, for a crowded destination. 0: claimed; SU_TAKEN: full; -SU_DROP_*. */
__noinline int su_choose_crowded(struct su_want *w, __u32 base, __u32 range, __u64 now_ns, __u32 rnd)
{
	__u32 first = SU_RANGE_FIRST(range), last = SU_RANGE_LAST(range);
	struct su_scan s = { .base = base, .first = first, .now_ns = now_ns };
	struct su_crowd *crowd;
	volatile __u64 *full;
	int err;

	if (!w || first > last)
		return SU_TAKEN;
	crowd = su_crowd_of(&w->flow, w->claim.slice, SU_RANGE_CHUNK(range));
	if (!crowd)
		crowd = su_crowd_make(&w->flow, w->claim.slice, SU_RANGE_CHUNK(range));
	if (!crowd)
		return -SU_DROP_CLAIM_ERROR;
	full = w->claim.kind == SU_KIND_SOCKET ? &crowd->full_socket_ns : &crowd->full_packet_ns;
	if (*full > now_ns) {
		__sync_fetch_and_add(&crowd->refused, 1);
		return SU_TAKEN;
	}
	for (__u32 i = 0; i < SU_BIT_ROUNDS; i++) {
		__u32 bit = su_free_bit(crowd, first, last, su_next(&rnd));

		if (bit >= SU_CROWD_PORTS)
			break;
		err = su_try(w, base + bit, now_ns, su_next(&rnd), SU_TAKE_LIKELY);
		su_crowd_set(crowd, bit);
		if (err <= 0)
			return err;
	}
	s.want = w;
	s.crowd = crowd;
	s.size = last - first + 1;
	s.start = su_next(&rnd) % s.size;
	/* "Being searched": a claim that ends meanwhile writes 0, and then full is not remembered. */
	*full = SU_SEARCHING;
	err = su_scan(&s);
	if (err > 0) {
		__sync_fetch_and_add(&crowd->refused, 1);
		su_count(SU_COUNT_VERIFIED_FULL);
		if (SU_RANGE_WHOLE(range))
			__sync_val_compare_and_swap(full, SU_SEARCHING, now_ns + settings.full_ns);
	}
	return err;
}

/* The ports of a slice that a claim of that kind may have, first << 16 | last: those for wildcards, or the others. */
static __noinline __u32 su_ports_for(const struct su_flow *f, __u32 first, __u32 udp_exact_first, __u32 last)
{
	if (f->proto != IPPROTO_UDP)
		return first << 16 | last;
	if (!su_is_wildcard(f))
		return (udp_exact_first > first ? udp_exact_first : first) << 16 | last;
	return udp_exact_first > first ? first << 16 | (udp_exact_first - 1) : 1 << 16;
}

/* Which family of its pool's slices? A wildcard has no remote, and a packet keeps its family. */
static __noinline bool su_wants_v4(const struct su_want *w)
{
	return su_is_v4(su_is_wildcard(&w->flow) ? &w->claim.inner : &w->flow.remote);
}

/* Choose in one slice. 0, or -SU_DROP_SLICE_FULL, NO_SLICE (not live, drained, lease over), TABLE_FULL, CLAIM_ERROR. */
__noinline int su_choose_in(struct su_want *w, __u32 slice_index, __u64 now_ns, __u32 rnd)
{
	struct su_slice *slice = bpf_map_lookup_elem(&slices, &slice_index);
	__u32 first, last, size, step, at, chunk, chunks;
	__u32 whole;
	int err;

	if (!w || !slice)
		return -SU_DROP_NO_SLICE;
	if ((slice->flags & (SU_SLICE_LIVE | SU_SLICE_DRAIN)) != SU_SLICE_LIVE || slice->claim_until_ns < now_ns)
		return -SU_DROP_NO_SLICE;
	at = su_ports_for(&w->flow, slice->first, slice->udp_exact_first, slice->last);
	first = at >> 16;
	last = at & 0xffff;
	whole = w->first <= first && w->last >= last;
	if (w->first > first)
		first = w->first;
	if (w->last < last)
		last = w->last;
	if (first > last)
		return -SU_DROP_SLICE_FULL;
	size = last - first + 1;
	w->flow.local = slice->addr;
	w->claim.slice = slice_index;

	/* 65,537 is prime and larger than any size, hence coprime to it; so is its remainder. */
	step = 65537 % size;
	at = su_next(&rnd) % size;
	chunk = (first + at - slice->first) / SU_CROWD_PORTS;
	if (!su_crowd_of(&w->flow, slice_index, chunk)) {
		for (__u32 i = 0; i < SU_PROBES; i++) {
			err = su_try(w, first + at, now_ns, su_next(&rnd), SU_TAKE_LIKELY);
			if (err <= 0)
				return err;
			at = (at + step) % size;
		}
	}
	chunks = (last - slice->first) / SU_CROWD_PORTS + 1;
	for (__u32 i = 0; i < SU_CHUNKS; i++) {
		__u32 base, low, high;

		if (i >= chunks)
			break;
		if (chunk >= chunks)
			chunk = 0;
		base = slice->first + chunk * SU_CROWD_PORTS;
		low = base < first ? first - base : 0;
		high = last - base < SU_CROWD_PORTS ? last - base : SU_CROWD_PORTS - 1;
		if (low < SU_CROWD_PORTS) {
			err = su_choose_crowded(w, base, SU_RANGE(chunk, low, high, whole), now_ns,
						su_next(&rnd));
			if (err <= 0)
				return err;
		}
		chunk++;
	}
	return -SU_DROP_SLICE_FULL;
}

/* Rendezvous hash of a client over the slices of its pool: the place of the best. RFC 4787 REQ-2 (pairing). */
__noinline __u32 su_rendezvous(__u32 from, __u32 count, __u32 client)
{
	__u32 best = 0, best_score = 0;

	for (__u32 i = 0; i < SU_POOL_SLICES; i++) {
		__u32 place = from + i, *index, score;
		struct su_slice *slice;

		if (i >= count)
			break;
		index = bpf_map_lookup_elem(&pool_slices, &place);
		if (!index)
			break;
		slice = bpf_map_lookup_elem(&slices, index);
		if (!slice)
			continue;
		score = su_mix(client ^ su_mix(slice->addr.w[0] ^ slice->addr.w[1] ^ slice->addr.w[2] ^
					       su_mix(slice->addr.w[3])));
		if (i == 0 || score > best_score) {
			best = i;
			best_score = score;
		}
	}
	return best;
}

/*
 * Claim a flow towards w->flow.remote (all zero: a wildcard, for UDP) for that policy, with an address by the client's rendezvous hash
 * and the others after it when that one is full. 0 or -SU_DROP_SLICE_FULL, NO_SLICE, TABLE_FULL, CLAIM_ERROR.
 */
static __always_inline int su_choose_once(struct su_want *w, const struct su_policy *policy, __u32 client,
					  __u64 now_ns, __u32 rnd)
{
	__u32 from, count, best, index = policy->pool;
	int err = -SU_DROP_NO_SLICE;
	struct su_pool *pool;
	bool v4;

	if (policy->flags & SU_POLICY_RANGE) {
		if (policy->first > w->first)
			w->first = policy->first;
		if (policy->last < w->last)
			w->last = policy->last;
		return su_choose_in(w, policy->slice, now_ns, rnd);
	}
	pool = bpf_map_lookup_elem(&pools, &index);
	if (!pool)
		return -SU_DROP_NO_SLICE;
	v4 = su_wants_v4(w);
	from = v4 ? pool->v4_first : pool->v6_first;
	count = v4 ? pool->v4_count : pool->v6_count;
	if (!count)
		return -SU_DROP_NO_SLICE;
	if (count > SU_POOL_SLICES)
		count = SU_POOL_SLICES;
	best = count > 1 ? su_rendezvous(from, count, client) : 0;
	for (__u32 i = 0; i < SU_POOL_SLICES; i++) {
		__u32 place, *slice;
		int one;

		if (i >= count)
			break;
		place = from + (best + i) % count;
		slice = bpf_map_lookup_elem(&pool_slices, &place);
		if (!slice)
			break;
		one = su_choose_in(w, *slice, now_ns, su_next(&rnd));
		if (one == 0 || one == -SU_DROP_TABLE_FULL || one == -SU_DROP_CLAIM_ERROR)
			return one;
		if (err == -SU_DROP_NO_SLICE)
			err = one;
	}
	return err;
}

/*
 * The hand moves before the search and not in it: a program may be eight calls deep at most. When the
 * table is full it looks further and the search is done once more.
 */
__noinline int su_choose(struct su_want *w, const struct su_policy *policy, __u32 client, __u64 now_ns,
			 __u32 rnd)
{
	int err = -SU_DROP_TABLE_FULL;

	if (!w || !policy)
		return -SU_DROP_NO_SLICE;
	for (int i = 0; i < 2 && err == -SU_DROP_TABLE_FULL; i++) {
		w->claim.slot = i ? su_hand_full(su_seconds(now_ns)) : su_hand(su_seconds(now_ns), rnd);
		err = su_choose_once(w, policy, client, now_ns, rnd);
	}
	return err;
}

/* Claim exactly w->flow; w->claim.slice says in which slice. 0, -SU_DROP_GUARD_FOREIGN when held, NO_SLICE, ... */
__noinline int su_claim_exact(struct su_want *w, __u64 now_ns, __u32 rnd)
{
	struct su_slice *slice;
	__u32 index;
	int err;

	if (!w)
		return -SU_DROP_NO_SLICE;
	index = w->claim.slice;
	slice = bpf_map_lookup_elem(&slices, &index);
	if (!slice || (slice->flags & (SU_SLICE_LIVE | SU_SLICE_DRAIN)) != SU_SLICE_LIVE ||
	    slice->claim_until_ns < now_ns)
		return -SU_DROP_NO_SLICE;
	w->claim.slot = su_hand(su_seconds(now_ns), rnd);
	err = su_try(w, bpf_ntohs(w->flow.local_port), now_ns, rnd, SU_TAKE_REUSABLE);
	if (err == -SU_DROP_TABLE_FULL) {
		w->claim.slot = su_hand_full(su_seconds(now_ns));
		err = su_try(w, bpf_ntohs(w->flow.local_port), now_ns, rnd, SU_TAKE_REUSABLE);
	}
	return err > 0 ? -SU_DROP_GUARD_FOREIGN : err;
}

/*
 * The kernel itself uses the port that su_choose claimed: give it back and remember it as taken. A claim
 * that was stolen from an ended socket goes back to LINGER: its TIME_WAIT still answers.
 */
__noinline int su_busy(struct su_want *w, __u64 now_ns)
{
	__u32 now_s = su_seconds(now_ns), index, bit;
	struct su_slice *slice;
	struct su_crowd *crowd;
	struct su_claim *live;
	__u64 word;

	if (!w)
		return 0;
	index = w->claim.slice;
	slice = bpf_map_lookup_elem(&slices, &index);
	su_count(SU_COUNT_KERNEL_BUSY);
	if (w->flags & SU_WANT_STOLEN) {
		live = su_claim_word(&w->flow, &word);
		if (live && su_word_gen(word) == su_word_gen(w->claim.word) && su_lock(live, word, now_s)) {
			su_use_add(live->kind, &live->owner, -1);
			live->kind = SU_KIND_SOCKET;
			live->owner = 0;
			su_publish(live, su_word(su_word_gen(word) + 1, SU_STATE_LINGER, now_s));
		}
	} else {
		su_claim_release(&w->flow, su_word_gen(w->claim.word), now_s);
	}
	if (!slice)
		return 0;
	bit = bpf_ntohs(w->flow.local_port) - slice->first;
	crowd = su_crowd_of(&w->flow, index, bit / SU_CROWD_PORTS);
	if (crowd)
		su_crowd_set(crowd, bit % SU_CROWD_PORTS);
	return 0;
}

/* The slice of this node that holds address and port (host order): index in `slices`, or SU_NONE. */
static __noinline __u32 su_slice_of(const struct su_addr *addr, __u32 port)
{
	struct su_address *a = bpf_map_lookup_elem(&addresses, addr);
	struct su_owner *o;
	__u32 at;

	if (!a)
		return SU_NONE;
	at = a->base + (port >> (a->shift & 31));
	o = bpf_map_lookup_elem(&owners, &at);
	return o && o->node == settings.node ? o->slice : SU_NONE;
}

#endif /* SU_ARBITER_H */
