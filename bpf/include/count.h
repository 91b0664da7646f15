/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * count.h - counters and drop reasons.
 *
 * `stats` is per CPU. tc and XDP programs run with bottom halves off, so that nothing of ours interrupts
 * them on their CPU and a plain addition is right (su_count_bh). cgroup hooks run in process context and may
 * be interrupted between load and store: they use su_count, which is atomic.
 */
#ifndef SU_COUNT_H
#define SU_COUNT_H

#include <stdbool.h>

#include "maps.h"

/* This CPU's counters; never NULL in practice, but the verifier wants to see the test. */
static __always_inline struct su_stats *su_stats_get(void)
{
	__u32 zero = 0;

	return bpf_map_lookup_elem(&stats, &zero);
}

/* From any context. */
static __always_inline void su_count(enum su_counter counter)
{
	struct su_stats *s = su_stats_get();

	if (s)
		__sync_fetch_and_add(&s->counters[counter], 1);
}

/* From tc and XDP. */
static __always_inline void su_count_bh(struct su_stats *s, enum su_counter counter, __u64 n)
{
	if (s)
		s->counters[counter] += n;
}

/* Count a drop and remember the flow that met it (may be NULL). `err` is -SU_DROP_x. From any context. */
static __noinline int su_drop(int err, const struct su_flow *flow)
{
	struct su_stats *s = su_stats_get();
	__u32 reason = (__u32)-err;
	struct su_last_drop *last;

	if (reason >= SU_DROP_MAX)
		reason = SU_DROP_NONE;
	if (s)
		__sync_fetch_and_add(&s->drops[reason], 1);
	last = bpf_map_lookup_elem(&last_drops, &reason);
	if (last) {
		last->boot_ns = bpf_ktime_get_boot_ns();
		if (flow)
			last->flow = *flow;
		else
			__builtin_memset(&last->flow, 0, sizeof(last->flow));
	}
	return err;
}

#endif /* SU_COUNT_H */
