/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * terminate.h - the strategy `terminate`: a client's TCP ends at this node, in a namespace of its on-ramp's own (the
 * terminus), and goes on from a socket in a slice. UDP and ICMP stay with fish.
 *
 *   on-ramp --su_onramp_in--> TCP, and ICMP errors about TCP --redirect_peer--> in0 | TPROXY, kernel sockets |
 *   on-ramp <--su_terminus_in (ingress of the terminus' end here)-------------- in0 | the terminus           |
 *
 * Nothing is rewritten: in the terminus all addresses are local, so its sockets have the very addresses and ports that
 * the client knows. Each on-ramp has one of its own, so inner addresses may overlap. What comes back is put on the
 * on-ramp's device as answers are (deliver.h).
 *
 * Who may send, and what is the stack's, is decided as for any packet (su_onramp_whose). A TCP packet that belongs to no
 * connection is for the kernel there to answer, by RST.
 */
#ifndef SU_TERMINATE_H
#define SU_TERMINATE_H

#include "deliver.h"
#include "onramp.h"

static __always_inline bool su_terminated(const struct su_onramp *onramp, const struct su_pkt *p)
{
	if (!(onramp->flags & SU_ONRAMP_TERMINATE))
		return false;
	if (p->flags & SU_PKT_ERROR)
		return p->flags & SU_PKT_QUOTE && p->q_proto == IPPROTO_TCP;
	return p->proto == IPPROTO_TCP;
}

/* A parsed packet of the client's TCP: to the terminus, as it is. A tc action or -SU_DROP_x. */
static __noinline int su_terminate(struct __sk_buff *skb, const struct su_pkt *p, const struct su_onramp *onramp)
{
	int err = su_onramp_whose(skb, p, onramp);
	struct su_tenant *tenant;

	if (err != SU_TO_CLAIM)
		return su_onramp_stack(skb, err);
	if (p->ttl <= 1)
		return -SU_DROP_HOPS;
	if (!onramp->terminus)
		return -SU_DROP_TERMINUS;
	su_count(SU_COUNT_TERMINATED_OUT);
	tenant = su_tenant_of(onramp->policy.tenant);
	if (tenant) {
		tenant->out_packets++;
		tenant->out_bytes += skb->len - p->l2_len;
	}
	skb->mark = 0;
	return bpf_redirect_peer(onramp->terminus, 0);
}

/* From the terminus `ifindex`: to the client, as it is. A tc action or -SU_DROP_x. */
static __always_inline int su_terminus_packet(struct __sk_buff *skb, __u32 ifindex)
{
	struct bpf_redir_neigh next = {};
	struct su_onramp *onramp;
	struct su_tenant *tenant;
	__u32 *id;

	id = bpf_map_lookup_elem(&onramp_devices, &ifindex);
	onramp = id ? bpf_map_lookup_elem(&onramps, id) : NULL;
	if (!onramp || !(onramp->flags & SU_ONRAMP_SET) || onramp->terminus != ifindex)
		return -SU_DROP_ONRAMP;
	su_count(SU_COUNT_TERMINATED_IN);
	tenant = su_tenant_of(onramp->policy.tenant);
	if (tenant) {
		tenant->in_packets++;
		tenant->in_bytes += skb->len - SU_ETH_LEN;
	}
	if (!(onramp->flags & SU_ONRAMP_L2))
		return bpf_redirect(onramp->ifindex, 0);
	if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		next.nh_family = SU_AF_INET6_NH;
		if (bpf_skb_load_bytes(skb, SU_ETH_LEN + 24, next.ipv6_nh, 16))
			return -SU_DROP_MALFORMED;
	} else {
		next.nh_family = SU_AF_INET_NH;
		if (bpf_skb_load_bytes(skb, SU_ETH_LEN + 16, &next.ipv4_nh, 4))
			return -SU_DROP_MALFORMED;
	}
	return bpf_redirect_neigh(onramp->ifindex, &next, sizeof(next), 0);
}

#endif /* SU_TERMINATE_H */
