/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * tell.h - how many clients are told that they are refused: no more than SU_TELL_BURST at once and one every SU_TELL_NS,
 * on each CPU (a token bucket, RFC 1812 section 4.3.2.8). So a flood that is refused costs not much more than a flood
 * that is dropped.
 */
#ifndef SU_TELL_H
#define SU_TELL_H

#include "count.h"

#define SU_TELL_BURST 1000
#define SU_TELL_NS 50000	/* 20,000 answers a second */

struct su_tells {
	__u64 refilled_ns;	/* boot clock */
	__u64 left;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct su_tells);
} tells SEC(".maps");

/* May one more client be told? tc programs run with bottom halves off: nobody else is at this CPU's count. */
static __always_inline bool su_tell_may(__u64 now_ns)
{
	__u32 zero = 0;
	struct su_tells *t = bpf_map_lookup_elem(&tells, &zero);
	__u64 more;

	if (!t)
		return false;
	more = (now_ns - t->refilled_ns) / SU_TELL_NS;
	if (more) {
		t->left = more > SU_TELL_BURST - t->left ? SU_TELL_BURST : t->left + more;
		t->refilled_ns = now_ns;
	}
	if (!t->left)
		return false;
	t->left--;
	return true;
}

#endif /* SU_TELL_H */
