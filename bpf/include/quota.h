/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * quota.h - how many flows an on-ramp may hold, how many it may begin a second, and what its tenant is told of it.
 *
 * Held: `uses` counts the claims of each on-ramp, exactly, for it changes where a claim is inserted, taken over or
 * deleted, by whoever won that claim's word. A claim that expired counts until it is reaped; so each flow that is
 * refused for this reason moves the clock hand as an insertion would. Two CPUs may both see room for one: whoever then
 * finds more held than allowed gives its claim back. Never more, for an instant one less.
 *
 * Begun: the generic cell rate algorithm (ITU-T I.371 annex A) with room for one second: after a quiet second
 * new_per_s flows may begin at once, from then on one every 1 / new_per_s. One word, changed by compare-and-swap; no
 * timer. A flow that finds no port has used its turn, so that a flood costs little whatever it asks for.
 *
 * Refused is refused as by a full slice: RST or ICMP, at once (refuse.h).
 */
#ifndef SU_QUOTA_H
#define SU_QUOTA_H

#include "claim.h"

#define SU_QUOTA_ROUNDS 16	/* CPUs that may begin flows of one on-ramp in the same instant */

static __always_inline bool su_quota_held(const struct su_use *use, __u32 max_flows)
{
	return max_flows && *(const volatile __s64 *)&use->flows >= max_flows;
}

/* Take a turn at `now_ns`. False: the on-ramp has none left. */
static __always_inline bool su_quota_turn(struct su_use *use, __u32 new_per_s, __u64 now_ns)
{
	__u64 period_ns, next_ns, from_ns;

	if (!new_per_s)
		return true;
	period_ns = SU_NSEC_PER_SEC / new_per_s;
	for (int i = 0; i < SU_QUOTA_ROUNDS; i++) {
		next_ns = *(volatile __u64 *)&use->next_ns;
		from_ns = next_ns > now_ns ? next_ns : now_ns;
		if (from_ns - now_ns > SU_NSEC_PER_SEC - period_ns)
			return false;
		if (__sync_val_compare_and_swap(&use->next_ns, next_ns, from_ns + period_ns) == next_ns)
			return true;
	}
	return false;
}

/* May this owner begin a flow? 0, -SU_DROP_QUOTA_FLOWS, -SU_DROP_QUOTA_NEW; -SU_DROP_CLAIM_ERROR: `uses` is full. */
static __noinline int su_quota_begin(const struct su_onramp *onramp, __u64 owner, __u64 now_ns)
{
	struct su_use *use = bpf_map_lookup_elem(&uses, &owner), fresh = {};
	__u32 zero = 0, slot;

	if (!use) {
		bpf_map_update_elem(&uses, &owner, &fresh, BPF_NOEXIST);
		use = bpf_map_lookup_elem(&uses, &owner);
		if (!use)
			return -SU_DROP_CLAIM_ERROR;
	}
	if (su_quota_held(use, onramp->max_flows)) {
		struct su_control *ctl = bpf_map_lookup_elem(&control, &zero);

		if (ctl)
			su_hand_pair(ctl, su_seconds(now_ns), false, &slot);
		if (su_quota_held(use, onramp->max_flows)) {
			__sync_fetch_and_add(&use->refused_flows, 1);
			return -SU_DROP_QUOTA_FLOWS;
		}
	}
	if (!su_quota_turn(use, onramp->new_per_s, now_ns)) {
		__sync_fetch_and_add(&use->refused_new, 1);
		return -SU_DROP_QUOTA_NEW;
	}
	return 0;
}

/* It claimed one: did another CPU take the last place? 0 or -SU_DROP_QUOTA_FLOWS: give it back. */
static __noinline int su_quota_kept(const struct su_onramp *onramp, __u64 owner)
{
	struct su_use *use = bpf_map_lookup_elem(&uses, &owner);

	if (!use || *(volatile __s64 *)&use->flows <= onramp->max_flows)
		return 0;
	__sync_fetch_and_add(&use->refused_flows, 1);
	return -SU_DROP_QUOTA_FLOWS;
}

/* This CPU's counters of a tenant; NULL: no such tenant. From tc, where nothing of ours interrupts. */
static __always_inline struct su_tenant *su_tenant_of(__u32 tenant)
{
	return bpf_map_lookup_elem(&tenants, &tenant);
}

#endif /* SU_QUOTA_H */
