/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * claim.h - making, taking over and ending a claim.
 *
 * Inserting into `flows` with BPF_NOEXIST is the claim. One that expired is stolen: its word is won
 * (LOCKED), it is filled, and published with the next generation. It is deleted only by whoever won its
 * word, so two can never end one claim, nor end another's.
 *
 * The clock hand: `slots` lists the keys of all claims. Each insertion moves the hand by two slots, or by four where
 * nothing expired, reaps what did, and takes a free slot for itself. There are twice as many slots as claims: so no more
 * than half of the table can be dead and not yet found, and while no more than the other half lives, new flows go on,
 * without timers and without the agent.
 */
#ifndef SU_CLAIM_H
#define SU_CLAIM_H

#include <asm-generic/errno-base.h>

#include "count.h"
#include "word.h"

#define SU_WANT_STOLEN 1	/* su_want.flags, out: the claim was taken over from a socket that ended */
#define SU_LOOK_S 60		/* the hand looks at a claim this often at least */
#define SU_SLOT_PROBES 8	/* slots looked at for a free one, at random */
#define SU_HAND_PAIRS 2		/* pairs of slots looked at for an expired claim at each insertion */
#define SU_HAND_ROUNDS_FULL 64	/* pairs of slots looked at for an expired claim when `flows` is full */

/* How su_try may take a port that is not free. */
#define SU_TAKE_EXPIRED 0
#define SU_TAKE_REUSABLE 1
#define SU_TAKE_LIKELY 2	/* SU_TAKE_EXPIRED, of a port that is probably free: insert first, look afterwards */

/* What it answers beside 0 (claimed) and -SU_DROP_x (no use trying on). */
#define SU_TAKEN 1
#define SU_TAKEN_REUSABLE 2	/* a later try with SU_TAKE_REUSABLE may have it */

struct su_want {
	struct su_flow flow;	/* in: proto, remote, remote_port; out: local, local_port */
	struct su_claim claim;	/* in: kind, owner, inner, inner_port, tenant; out: word, slice, slot, check */
	__u16 first, last;	/* in: further limit on the port, host order; 0 and 65535: none */
	__u32 flags;		/* out: SU_WANT_* */
};

/* Where a port's bit is. */
static __always_inline void su_crowd_key_of(struct su_crowd_key *key, const struct su_flow *f, __u32 slice,
					    __u32 chunk)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->remote = f->remote;
	key->slice = slice;
	key->remote_port = f->remote_port;
	key->proto = f->proto;
	key->chunk = chunk;
}

static __always_inline void su_crowd_set(struct su_crowd *crowd, __u32 bit)
{
	__sync_fetch_and_or(&crowd->taken[(bit >> 6) & (SU_CROWD_PORTS / 64 - 1)], 1ull << (bit & 63));
}

/* The hints of one chunk; NULL: that destination never proved crowded. */
static __noinline struct su_crowd *su_crowd_of(const struct su_flow *f, __u32 slice, __u32 chunk)
{
	struct su_crowd_key key;

	su_crowd_key_of(&key, f, slice, chunk);
	return bpf_map_lookup_elem(&crowds, &key);
}

/* A port became free: its destination is not full any more. */
static __always_inline void su_crowd_free(const struct su_flow *f, __u32 slice_index)
{
	struct su_slice *slice = bpf_map_lookup_elem(&slices, &slice_index);
	struct su_crowd_key key;
	struct su_crowd *crowd;
	__u32 bit;

	if (!slice)
		return;
	bit = bpf_ntohs(f->local_port) - slice->first;
	if (bit > 0xffff)
		return;
	su_crowd_key_of(&key, f, slice_index, bit / SU_CROWD_PORTS);
	crowd = bpf_map_lookup_elem(&crowds, &key);
	if (!crowd)
		return;
	bit %= SU_CROWD_PORTS;
	__sync_fetch_and_and(&crowd->taken[(bit >> 6) & (SU_CROWD_PORTS / 64 - 1)], ~(1ull << (bit & 63)));
	*(volatile __u64 *)&crowd->full_socket_ns = 0;
	*(volatile __u64 *)&crowd->full_packet_ns = 0;
}

static __always_inline void su_origin_key_of(struct su_origin_key *key, const struct su_flow *f,
					     const struct su_claim *c)
{
	__builtin_memset(key, 0, sizeof(*key));
	key->onramp = c->kind == SU_KIND_PACKET ? (__u32)(c->owner >> 32) : 0;
	key->inner = c->inner;
	key->remote = f->remote;
	key->inner_port = c->inner_port;
	key->remote_port = f->remote_port;
	key->proto = f->proto;
}

/* Forget the way to a claim that ends. Only if it still leads to that very claim. */
static __always_inline void su_origin_forget(const struct su_flow *f, const struct su_claim *c)
{
	struct su_origin_key key;
	struct su_origin *o;

	if (c->kind != SU_KIND_PACKET && c->kind != SU_KIND_LOCAL)
		return;
	su_origin_key_of(&key, f, c);
	o = bpf_map_lookup_elem(&origin, &key);
	if (o && o->generation == su_word_gen(c->word) && o->local_port == f->local_port &&
	    su_addr_eq(&o->local, &f->local))
		bpf_map_delete_elem(&origin, &key);
}

/* The slot of a claim that ends is free, if it is its own. */
static __always_inline void su_slot_free(const struct su_flow *f, __u32 slot)
{
	struct su_slot *at = bpf_map_lookup_elem(&slots, &slot);

	if (at && su_flow_eq(&at->flow, f))
		*(volatile __u8 *)&at->flow.proto = 0;
}

/* An on-ramp holds one claim more, or one less. Done by whoever inserted the claim or won its word, so never twice. */
static __always_inline void su_use_add(__u8 kind, const __u64 *owner, __s64 n)
{
	struct su_use *use;

	if (kind != SU_KIND_PACKET)
		return;
	use = bpf_map_lookup_elem(&uses, owner);
	if (!use)
		return;
	__sync_fetch_and_add(&use->flows, n);
	if (n > 0)
		__sync_fetch_and_add(&use->begun, 1);
}

/* Delete a claim whose word the caller won. */
static __noinline void su_claim_delete_locked(const struct su_flow *f, const struct su_claim *c)
{
	__u32 slice = c->slice, slot = c->slot;

	su_use_add(c->kind, &c->owner, -1);
	su_origin_forget(f, c);
	bpf_map_delete_elem(&flows, f);
	su_crowd_free(f, slice);
	su_slot_free(f, slot);	/* last: f may be the very key in it */
}

/* A claim that lives so much longer if nothing happens is looked at then; its state may change, so within a minute. */
static __always_inline __u32 su_look_after_s(__u32 lifetime)
{
	return lifetime < SU_LOOK_S ? lifetime : SU_LOOK_S;
}

/*
 * Look at one slot (`early`: also before its claim can have expired). SU_SLOT_FREE: it is free for a new claim;
 * SU_SLOT_REAPED: the same, and what stood there expired and was removed; 0: a living claim's; negative: no such slot.
 */
#define SU_SLOT_FREE 1
#define SU_SLOT_REAPED 2

__noinline int su_hand_look(__u32 slot, __u32 now_s, bool early)
{
	struct su_slot *at = bpf_map_lookup_elem(&slots, &slot);
	struct su_claim *live;
	__u32 lifetime;
	__u64 word;

	if (!at)
		return -1;
	if (!at->flow.proto)
		return SU_SLOT_FREE;
	if (!early && (__s32)(at->look_s - now_s) > 0)
		return 0;
	live = su_claim_word(&at->flow, &word);
	if (!live) {
		/* Gone; or just being filled or deleted, then it is not ours to take. */
		return bpf_map_lookup_elem(&flows, &at->flow) ? 0 : SU_SLOT_FREE;
	}
	if (live->slot != slot)
		return SU_SLOT_FREE;
	lifetime = su_lifetime_s(live->kind, su_word_state(word), at->flow.proto);
	if (lifetime == SU_FOREVER || su_idle_s(word, now_s) < lifetime) {
		at->look_s = now_s + su_look_after_s(lifetime - su_idle_s(word, now_s));
		return 0;
	}
	if (!su_lock(live, word, now_s))
		return 0;
	su_claim_delete_locked(&at->flow, live);
	su_count(SU_COUNT_REAPED);
	return SU_SLOT_REAPED;
}

/* Look at the two slots under the hand and move it on. A slot of either (`*found`), SU_SLOT_REAPED first. */
static __always_inline int su_hand_pair(struct su_control *ctl, __u32 now_s, bool early, __u32 *found)
{
	__u32 mask = settings.slots - 1, slot = (__u32)__sync_fetch_and_add(&ctl->hand, 2) & mask;
	int best = 0, seen;

	for (int half = 0; half < 2; half++) {
		seen = su_hand_look(slot, now_s, early);
		if (seen > 0 && seen >= best) {
			best = seen;
			*found = slot;
		}
		slot = (slot + 1) & mask;
	}
	return best;
}

/*
 * A free slot for a new claim, after the hand has looked at its pairs: one of these, else one found at random, for long-lived
 * claims stand side by side where the hand put them and would be walked over again and again. Nothing is kept
 * from another CPU that finds the same one: one of the two claims is then unknown to the hand and left to the sweep,
 * as is one that finds none (SU_NONE).
 */
__noinline __u32 su_hand(__u32 now_s, __u32 rnd)
{
	__u32 zero = 0, found = SU_NONE;
	struct su_control *ctl = bpf_map_lookup_elem(&control, &zero);
	int seen = 0;

	for (int i = 0; ctl && i < SU_HAND_PAIRS && seen != SU_SLOT_REAPED; i++)
		seen = su_hand_pair(ctl, now_s, false, &found);
	if (!ctl || found != SU_NONE)
		return found;
	for (int i = 0; i < SU_SLOT_PROBES; i++) {
		__u32 slot = su_next(&rnd) & (settings.slots - 1);
		struct su_slot *at = bpf_map_lookup_elem(&slots, &slot);

		if (at && !at->flow.proto)
			return slot;
	}
	return SU_NONE;
}

/*
 * `flows` is full: the hand goes on until it reaped something. A slot that was free all along is no help, as there
 * are twice as many slots as claims.
 */
__noinline __u32 su_hand_full(__u32 now_s)
{
	__u32 zero = 0, found = SU_NONE;
	struct su_control *ctl = bpf_map_lookup_elem(&control, &zero);

	for (int i = 0; ctl && i < SU_HAND_ROUNDS_FULL; i++) {
		if (su_hand_pair(ctl, now_s, true, &found) == SU_SLOT_REAPED)
			break;
	}
	return found;
}

/* Claim w->flow, which nobody holds, with w->claim.slot from su_hand. 0, SU_TAKEN, or -SU_DROP_TABLE_FULL / -SU_DROP_CLAIM_ERROR. */
static __always_inline int su_insert(struct su_want *w, __u64 now_ns, __u32 rnd)
{
	__u32 now_s = su_seconds(now_ns);
	long err;

	w->claim.word = su_word(rnd, SU_STATE_NEW, now_s);
	w->claim.check = su_flow_check(&w->flow);
	w->claim.born_s = now_s;
	w->claim.tcp_seen = 0;
	err = bpf_map_update_elem(&flows, &w->flow, &w->claim, BPF_NOEXIST);
	if (err == 0) {
		__u32 slot = w->claim.slot;
		struct su_slot *at = bpf_map_lookup_elem(&slots, &slot);

		su_use_add(w->claim.kind, &w->claim.owner, 1);
		if (at) {
			at->flow = w->flow;
			at->look_s = now_s + su_look_after_s(su_lifetime_s(w->claim.kind, SU_STATE_NEW,
									   w->flow.proto));
		}
		return 0;
	}
	if (err == -EEXIST) {
		su_count(SU_COUNT_CLAIM_EXISTS);
		return SU_TAKEN;
	}
	if (err == -E2BIG) {
		su_count(SU_COUNT_CLAIM_TABLE_FULL);
		return -SU_DROP_TABLE_FULL;
	}
	su_count(SU_COUNT_CLAIM_ERROR);
	return -SU_DROP_CLAIM_ERROR;
}

/* w->flow is held by *live: take it over if it expired, or if `take` lets a socket reuse it. */
static __always_inline int su_take_over(struct su_want *w, struct su_claim *live, __u32 now_s, __u32 take)
{
	__u64 word = su_word_read(live);
	__u8 kind;

	if (su_word_state(word) == SU_STATE_LOCKED)
		return SU_TAKEN;
	barrier();
	if (*(volatile __u32 *)&live->check != su_flow_check(&w->flow))
		return SU_TAKEN;
	kind = live->kind;
	if (!su_expired_word(word, kind, w->flow.proto, now_s)) {
		if (!su_reusable(word, kind, w->claim.kind, w->flow.proto, now_s))
			return SU_TAKEN;
		if (take != SU_TAKE_REUSABLE)
			return SU_TAKEN_REUSABLE;
	}
	if (!su_lock(live, word, now_s))
		return SU_TAKEN;
	su_use_add(kind, &live->owner, -1);
	su_use_add(w->claim.kind, &w->claim.owner, 1);
	su_origin_forget(&w->flow, live);
	w->claim.check = live->check;
	w->claim.slot = live->slot;
	w->claim.born_s = now_s;
	w->claim.tcp_seen = 0;
	w->claim.word = su_word(su_word_gen(word) + 1, SU_STATE_NEW, now_s);
	live->owner = w->claim.owner;
	live->inner = w->claim.inner;
	live->inner_port = w->claim.inner_port;
	live->kind = w->claim.kind;
	live->tcp_seen = 0;
	live->slice = w->claim.slice;
	live->born_s = now_s;
	live->tenant = w->claim.tenant;
	su_publish(live, w->claim.word);
	if (kind == SU_KIND_SOCKET)
		w->flags |= SU_WANT_STOLEN;
	su_count(SU_COUNT_STOLEN);
	return 0;
}

/*
 * Try to claim w->flow with this local port (host order), in w->claim.slice, w->claim.slot. 0: claimed. SU_TAKEN,
 * SU_TAKEN_REUSABLE: not. -SU_DROP_TABLE_FULL, -SU_DROP_CLAIM_ERROR: no use trying on.
 */
__noinline int su_try(struct su_want *w, __u32 port, __u64 now_ns, __u32 rnd, __u32 take)
{
	struct su_claim *live = NULL;
	int err = SU_TAKEN;

	if (!w)
		return -SU_DROP_CLAIM_ERROR;
	w->flags = 0;
	w->flow.local_port = bpf_htons(port);
	if (take != SU_TAKE_LIKELY)
		live = bpf_map_lookup_elem(&flows, &w->flow);
	if (!live)
		err = su_insert(w, now_ns, rnd);
	if (err == SU_TAKEN && !live)
		live = bpf_map_lookup_elem(&flows, &w->flow);
	return live && err == SU_TAKEN ? su_take_over(w, live, su_seconds(now_ns), take) : err;
}
/* End a claim: delete it if it is still of that generation. 0 or -ENOENT. */
__noinline int su_claim_release(const struct su_flow *key, __u32 generation, __u32 now_s)
{
	struct su_claim *live;
	__u64 word;

	if (!key)
		return -ENOENT;
	live = su_claim_word(key, &word);
	if (!live || su_word_gen(word) != generation)
		return -ENOENT;
	if (!su_lock(live, word, now_s)) {
		/* A refresh may have come between: once more. */
		word = su_word_read(live);
		if (su_word_gen(word) != generation || su_word_state(word) == SU_STATE_LOCKED ||
		    !su_lock(live, word, now_s))
			return -ENOENT;
	}
	su_claim_delete_locked(key, live);
	su_count(SU_COUNT_RELEASED);
	return 0;
}

/* The flow ended, packets may still come and go: LINGER from now on. 0 or -ENOENT. */
__noinline int su_claim_linger(const struct su_flow *key, __u32 generation, __u32 now_s)
{
	struct su_claim *live;
	__u64 word;

	if (!key)
		return -ENOENT;
	live = su_claim_word(key, &word);
	if (!live || su_word_gen(word) != generation)
		return -ENOENT;
	if (!su_claim_refresh(live, word, SU_STATE_LINGER, now_s))
		return -ENOENT;
	su_count(SU_COUNT_LINGER);
	return 0;
}

#endif /* SU_CLAIM_H */
