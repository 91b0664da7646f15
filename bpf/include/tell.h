/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * tell.h - how often somebody is told why a packet went no further: a token bucket on each CPU for clients and one for
 * the Internet (RFC 1812 section 4.3.2.8).
 *
 *   clients    1,000 at once, 20,000 a second: a flood that is refused costs not much more than a flood that is dropped
 *   Internet   50 at once, 1,000 a second, as net.ipv4.icmp_msgs_per_sec and _burst: a flood of large packets does not
 *              become a flood of errors
 */
#ifndef SU_TELL_H
#define SU_TELL_H

#include "count.h"

#define SU_TELL_CLIENT 0
#define SU_TELL_INTERNET 1

struct su_bucket {
	__u64 refilled_ns;	/* boot clock */
	__u64 tokens;
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, struct su_bucket);
} tells SEC(".maps");

/* May one more of `whom` be told? tc programs run with bottom halves off: nobody else is at this CPU's bucket. */
static __always_inline bool su_tell_may(__u32 whom, __u64 now_ns)
{
	__u64 burst = whom == SU_TELL_CLIENT ? 1000 : 50, token_ns = whom == SU_TELL_CLIENT ? 50000 : 1000000, more;
	struct su_bucket *b = bpf_map_lookup_elem(&tells, &whom);

	if (!b)
		return false;
	more = (now_ns - b->refilled_ns) / token_ns;
	if (more) {
		b->tokens = more > burst - b->tokens ? burst : b->tokens + more;
		b->refilled_ns = now_ns;
	}
	if (!b->tokens)
		return false;
	b->tokens--;
	return true;
}

#endif /* SU_TELL_H */
