/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * sweep.h - ending claims on behalf of user space, which may never delete one itself: a claim ends only by whoever
 * won its word (claim.h).
 */
#ifndef SU_SWEEP_H
#define SU_SWEEP_H

#include "arbiter.h"

struct bpf_map;

struct su_swept {
	__u64 seen;
	__u64 reaped;
	__u32 now_s;
};

static long su_sweep_one(struct bpf_map *map, const struct su_flow *at, struct su_claim *value, struct su_swept *s)
{
	struct su_flow key = *at;
	struct su_claim c, *live;

	s->seen++;
	live = su_claim_get(&key, &c);
	if (!live || !su_expired(&c, key.proto, s->now_s) || !su_lock(live, c.word, s->now_s))
		return 0;
	su_claim_delete_locked(&key, &c);
	su_count(SU_COUNT_REAPED);
	s->reaped++;
	return 0;
}

/* Reap every claim that expired. */
static __always_inline void su_sweep_all(struct su_swept *s)
{
	bpf_for_each_map_elem(&flows, su_sweep_one, s, 0);
}

/* End the claim of that flow if its word and owner are as given. 0; -ENOENT: none; -EAGAIN: it changed, read it again. */
static __noinline int su_release_one(const struct su_flow *flow, __u64 word, __u64 owner, bool linger, __u32 now_s)
{
	struct su_claim c, *live = su_claim_get(flow, &c);

	if (!live)
		return -ENOENT;
	if (c.word != word || c.owner != owner)
		return -EAGAIN;
	if (linger) {
		if (!su_claim_refresh(live, word, SU_STATE_LINGER, now_s))
			return -EAGAIN;
		su_count(SU_COUNT_LINGER);
		return 0;
	}
	if (!su_lock(live, word, now_s))
		return -EAGAIN;
	su_claim_delete_locked(flow, &c);
	su_count(SU_COUNT_RELEASED);
	return 0;
}

static long su_count_one(struct bpf_map *map, const __u64 *id, struct su_policy *policy, __u32 *count)
{
	*count += 1;
	return 0;
}

/*
 * control.policies becomes at least the number of entries in `cgroups`. It only rises here; the agent lowers it, once
 * it was idle for a while. Written by a program because user space can only write the whole of `control`.
 */
static __always_inline int su_policies_raise(void)
{
	__u32 count = 0, zero = 0;
	struct su_control *ctl = bpf_map_lookup_elem(&control, &zero);

	if (!ctl)
		return -ENOENT;
	bpf_for_each_map_elem(&cgroups, su_count_one, &count, 0);
	if (count > ctl->policies)
		ctl->policies = count;
	return 0;
}

#endif /* SU_SWEEP_H */
