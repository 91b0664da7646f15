/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * sock.h - what a socket carries with it (`socks`, struct su_sock), and the life of its claim.
 *
 * The policy is tagged on a socket when it is created. A claim's key is kept here too, because nobody can read
 * addresses when a socket is released. One record holds one claim; it moves when the socket connects again.
 *
 * An MPTCP connection is two sockets: the msk that the program has (protocol 262) and subflows that the kernel
 * makes, which are what connects and what sock_ops sees. Subflows are born without hooks and released without
 * hooks. So a subflow takes its policy from the msk; and as long as sock_ops has not promised to report the
 * subflow's end, the msk's own record holds the claim too, for the msk's release to end.
 *
 * Sources: net/core/bpf_sk_storage.c, net/mptcp/protocol.c (mptcp_connect), net/ipv4/af_inet.c (inet_release).
 */
#ifndef SU_SOCK_H
#define SU_SOCK_H

#include "arbiter.h"
#include "core.h"
#include "policy.h"

#define SU_CGROUP_LEVELS 16	/* depth of cgroups in which a policy is looked for */

static __always_inline void su_addr_v4(struct su_addr *a, __be32 v4)
{
	a->w[0] = 0;
	a->w[1] = 0;
	a->w[2] = bpf_htonl(0xffff);
	a->w[3] = v4;
}

static __always_inline bool su_addr_any(const struct su_addr *a)
{
	if (a->w[0] | a->w[1] | a->w[3])
		return false;
	return !a->w[2] || a->w[2] == bpf_htonl(0xffff);
}

/* The policy of the current cgroup or of its nearest ancestor that has one. False: none. */
static __noinline bool su_policy_current(struct su_policy *out)
{
	__u64 id = bpf_get_current_cgroup_id(), zero_id = 0;
	struct su_policy *found;
	struct su_control *ctl;
	__u32 zero = 0;

	ctl = bpf_map_lookup_elem(&control, &zero);
	if (!ctl || !ctl->policies)
		return false;
	found = bpf_map_lookup_elem(&cgroups, &id);
	for (int level = SU_CGROUP_LEVELS - 1; !found && level > 0; level--) {
		__u64 above = bpf_get_current_ancestor_cgroup_id(level);

		if (above == zero_id || above == id)
			continue;
		id = above;
		found = bpf_map_lookup_elem(&cgroups, &id);
	}
	if (!found || !(found->flags & SU_POLICY_SET))
		return false;
	*out = *found;
	if (!out->client)
		out->client = su_mix((__u32)id ^ su_mix((__u32)(id >> 32)));
	return true;
}

/* May this policy use that port of that slice (index in `slices`)? A socket without a policy may use any of this node's. */
static __noinline bool su_policy_allows(const struct su_policy *policy, __u32 index, __u32 port)
{
	struct su_slice *slice;

	if (!(policy->flags & SU_POLICY_SET))
		return true;
	if (policy->flags & SU_POLICY_RANGE)
		return index == policy->slice && port >= policy->first && port <= policy->last;
	slice = bpf_map_lookup_elem(&slices, &index);
	return slice && slice->pool == policy->pool;
}

/* Has the policy a slice of that family on this node? */
static __noinline bool su_policy_family(const struct su_policy *policy, bool v4)
{
	__u32 index = policy->pool;
	struct su_pool *pool;

	if (policy->flags & SU_POLICY_RANGE) {
		__u32 only = policy->slice;
		struct su_slice *slice = bpf_map_lookup_elem(&slices, &only);

		return slice && su_is_v4(&slice->addr) == v4;
	}
	pool = bpf_map_lookup_elem(&pools, &index);
	return pool && (v4 ? pool->v4_count : pool->v6_count);
}

/* Give back the claim a record holds: the flow never was, or nothing of it can come any more. */
static __noinline void su_sock_let_go(struct su_sock *s)
{
	struct su_flow key;

	if (!(s->flags & SU_SOCK_CLAIMED))
		return;
	s->flags &= ~(__u32)SU_SOCK_CLAIMED;
	key = s->flow;
	su_claim_release(&key, s->generation, su_seconds(bpf_ktime_get_boot_ns()));
}

/*
 * The flow ended, a TIME_WAIT or a RST may still be on its way. `gone`: the kernel keeps no TIME_WAIT, so that a socket
 * need not wait sock_reuse_s for the port, as it would not without slices; the claim lingers as if seen that much earlier.
 */
static __noinline void su_sock_linger(struct su_sock *s, bool gone)
{
	__u32 now_s = su_seconds(bpf_ktime_get_boot_ns());
	struct su_flow key;

	if (!(s->flags & SU_SOCK_CLAIMED))
		return;
	s->flags &= ~(__u32)SU_SOCK_CLAIMED;
	key = s->flow;
	if (gone)
		now_s -= settings.sock_reuse_s + 1;
	su_claim_linger(&key, s->generation, now_s);
}

/* Put a new claim in the record, ending the one it held. */
static __always_inline void su_sock_take(struct su_sock *s, const struct su_want *w)
{
	su_sock_let_go(s);
	s->flow = w->flow;
	s->generation = su_word_gen(w->claim.word);
	s->flags |= SU_SOCK_CLAIMED;
}

/* The record holds a claim that is still its own (a claim can be lost only if somebody emptied the map). */
static __noinline bool su_sock_holds(const struct su_sock *s)
{
	struct su_flow key = s->flow;
	struct su_claim c;

	return s->flags & SU_SOCK_CLAIMED && su_claim_get(&key, &c) && su_word_gen(c.word) == s->generation;
}

/* The connection went from SYN_SENT to ESTABLISHED. */
static __noinline void su_sock_open(struct su_sock *s)
{
	struct su_flow key = s->flow;
	struct su_claim c, *live = su_claim_get(&key, &c);

	if (live && su_word_gen(c.word) == s->generation)
		su_claim_refresh(live, c.word, SU_STATE_OPEN, su_seconds(bpf_ktime_get_boot_ns()));
}

#endif /* SU_SOCK_H */
