/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * arbiter_test.bpf.c - the arbiter's functions as programs that a test calls, one operation a run.
 *
 * Clock and randomness come in the context, so that a test lives through hours at once and its seed says
 * what happens. Compiled by tests/bpf/test_arbiter.py against the headers of the product, loaded with
 * small maps, never attached.
 */
#include "../../bpf/include/arbiter.h"
#include "../../bpf/include/quota.h"
#include "../../bpf/include/tell.h"

char LICENSE[] SEC("license") = "Dual BSD/GPL";

/* The context of every program here; mirrored in tests/bpf/arbiter_harness.py. */
struct test_args {
	struct su_want want;
	struct su_policy policy;
	__u32 client;
	__u64 now_ns;
	__u32 rnd;
	__u32 generation;
	__u32 state;
	__s32 result;
	__u32 thread;
	__u32 pad;
};
_Static_assert(sizeof(struct su_want) == 104, "su_want");
_Static_assert(sizeof(struct test_args) == 168, "test_args");

/*
 * The arbiter itself needs most of a program's 512 bytes of stack, so what it works on lies in a map:
 * one place for each thread of the test, `thread`.
 */
struct place {
	struct su_want want;
	struct su_policy policy;
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 4);
	__type(key, __u32);
	__type(value, struct place);
} places SEC(".maps");

static __always_inline struct place *place_of(const struct test_args *args)
{
	__u32 thread = args->thread;

	return bpf_map_lookup_elem(&places, &thread);
}

SEC("syscall")
int t_choose(struct test_args *args)
{
	struct place *at = place_of(args);

	if (!at)
		return 1;
	at->want = args->want;
	at->policy = args->policy;
	args->result = su_choose(&at->want, &at->policy, args->client, args->now_ns, args->rnd);
	args->want = at->want;
	return 0;
}

SEC("syscall")
int t_exact(struct test_args *args)
{
	struct place *at = place_of(args);

	if (!at)
		return 1;
	at->want = args->want;
	args->result = su_claim_exact(&at->want, args->now_ns, args->rnd);
	args->want = at->want;
	return 0;
}

/* The kernel has the port that the last choice returned in `want`. */
SEC("syscall")
int t_busy(struct test_args *args)
{
	struct place *at = place_of(args);

	if (!at)
		return 1;
	at->want = args->want;
	args->result = su_busy(&at->want, args->now_ns);
	return 0;
}

/* result: 1 and the claim in want.claim, or 0. */
SEC("syscall")
int t_get(struct test_args *args)
{
	struct su_flow key = args->want.flow;
	struct su_claim claim = {};

	args->result = su_claim_get(&key, &claim) != NULL;
	args->want.claim = claim;
	return 0;
}

SEC("syscall")
int t_refresh(struct test_args *args)
{
	struct su_flow key = args->want.flow;
	struct su_claim claim, *live;

	live = su_claim_get(&key, &claim);
	args->result = live ? su_claim_refresh(live, claim.word, args->state, su_seconds(args->now_ns)) : 0;
	return 0;
}

/*
 * A refresh by one who read the claim long ago: `want.claim.word` is what it read. 1: it still holds,
 * 0: somebody else's claim by now, and untouched.
 */
SEC("syscall")
int t_refresh_stale(struct test_args *args)
{
	struct su_flow key = args->want.flow;
	struct su_claim claim, *live;

	live = su_claim_get(&key, &claim);
	args->result =
		live ? su_claim_refresh(live, args->want.claim.word, args->state, su_seconds(args->now_ns)) : 0;
	return 0;
}

SEC("syscall")
int t_linger(struct test_args *args)
{
	struct su_flow key = args->want.flow;

	args->result = su_claim_linger(&key, args->generation, su_seconds(args->now_ns));
	return 0;
}

SEC("syscall")
int t_release(struct test_args *args)
{
	struct su_flow key = args->want.flow;

	args->result = su_claim_release(&key, args->generation, su_seconds(args->now_ns));
	return 0;
}

/* result: 1 when the claim expired. */
SEC("syscall")
int t_expired(struct test_args *args)
{
	struct su_claim claim = args->want.claim;

	args->result = su_expired(&claim, args->want.flow.proto, su_seconds(args->now_ns));
	return 0;
}

/* One look of the clock hand at the slot `state`. */
SEC("syscall")
int t_reap(struct test_args *args)
{
	args->result = su_hand_look(args->state, su_seconds(args->now_ns), true);
	return 0;
}

SEC("syscall")
int t_slice_of(struct test_args *args)
{
	struct su_addr address = args->want.flow.local;

	args->result = (__s32)su_slice_of(&address, args->state);
	return 0;
}

/*
 * What one thread of the race test runs `client` times: choose, look whether the claim is ours, release.
 * `state` counts claims made, `generation` claims that were not ours afterwards (a double grant), `result`
 * refusals.
 */
struct race {
	struct place *at;
	struct su_claim seen;
	__u64 now_ns;
	__u32 slice;
	__u32 rnd;
	__u32 made, wrong, refused;
};

static long race_once(__u64 i, struct race *r)
{
	struct su_want *want = &r->at->want;
	__u64 owner = want->claim.owner;
	__u32 generation;

	want->first = 0;
	want->last = 0xffff;
	if (su_choose_in(want, r->slice, r->now_ns, su_next(&r->rnd))) {
		r->refused++;
		return 0;
	}
	r->made++;
	generation = su_word_gen(want->claim.word);
	if (!su_claim_get(&want->flow, &r->seen) || r->seen.owner != owner ||
	    su_word_gen(r->seen.word) != generation)
		r->wrong++;
	if (su_claim_release(&want->flow, generation, su_seconds(r->now_ns)))
		r->wrong++;
	return 0;
}

SEC("syscall")
int t_race(struct test_args *args)
{
	struct race r = {
		.at = place_of(args),
		.now_ns = args->now_ns,
		.slice = args->want.claim.slice,
		.rnd = args->rnd,
	};

	if (!r.at)
		return 1;
	r.at->want = args->want;
	bpf_loop(args->client, race_once, &r, 0);
	args->state = r.made;
	args->generation = r.wrong;
	args->result = r.refused;
	return 0;
}

/* A turn of the owner in `want` at `now_ns`, of `client` a second. `result`: it had one. */
SEC("syscall")
int t_turn(struct test_args *args)
{
	__u64 owner = args->want.claim.owner;
	struct su_use *use = bpf_map_lookup_elem(&uses, &owner);

	if (!use)
		return 1;
	args->result = su_quota_turn(use, args->client, args->now_ns);
	return 0;
}

SEC("syscall")
int t_tell(struct test_args *args)
{
	args->result = su_tell_may(args->client, args->now_ns);
	return 0;
}
