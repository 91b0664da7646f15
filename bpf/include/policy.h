/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * policy.h - lists of prefixes (the LPM map `prefixes`): what is never sliced, who may send, what is bypassed.
 */
#ifndef SU_POLICY_H
#define SU_POLICY_H

#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "maps.h"

#define SU_PREFIX_WHOLE (32 + 128)	/* list and address */

static __noinline bool su_listed(__u32 list, const struct su_addr *addr)
{
	struct su_prefix key;

	key.prefix_len = SU_PREFIX_WHOLE;
	key.list = bpf_htonl(list);
	key.addr = *addr;
	return bpf_map_lookup_elem(&prefixes, &key) != NULL;
}

/* Is traffic to that destination left alone under this policy? */
static __noinline bool su_bypassed(const struct su_policy *policy, const struct su_addr *remote)
{
	if (su_listed(SU_LIST_NEVER, remote))
		return true;
	return policy->bypass && su_listed(policy->bypass, remote);
}

static __always_inline struct su_address *su_fleet(const struct su_addr *addr)
{
	return bpf_map_lookup_elem(&addresses, addr);
}

#endif /* SU_POLICY_H */
