/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * owner.h - who owns an answer. docs/steering.md is the theory.
 *
 *   address       -> `addresses` (hash): its site
 *     mine          -> `owners[base + (port >> shift)]` (array) -> `nodes` (array)
 *     another's     -> `sites` (array) -> `site_nodes` (array), one by the hash of the flow -> `nodes` (array)
 *
 * There is no state for a packet, but for the fragments of one (frag.h). What is decided is decided from these tables
 * alone, so that src/softunicast/steering/oracle.py can say the same from the same tables.
 */
#ifndef SU_OWNER_H
#define SU_OWNER_H

#include "count.h"
#include "frag.h"
#include "maps.h"
#include "parse.h"

/* Answers of su_steer_decide and su_steer_where beside 0 and -SU_DROP_x. */
#define SU_STEER_NOT_FLEET 1	/* the destination is no address of the fleet: none of our business */
#define SU_STEER_HERE 2		/* answered where it arrives, whoever owns the address: a ping */
#define SU_STEER_HOME 3		/* a fragment, and this node is where its datagram's fragments meet */

#define SU_SITE_TRIES 64

/*
 * A hash of what all packets of a flow in one direction have in common; of a fragment that was not followed, what all
 * fragments of its datagram have. ICMP errors have no ports.
 */
static __always_inline __u32 su_flow_hash(const struct su_pkt *p)
{
	__u32 src = bpf_ntohl(p->src.w[0] ^ p->src.w[1] ^ p->src.w[2] ^ p->src.w[3]);
	__u32 dst = bpf_ntohl(p->dst.w[0] ^ p->dst.w[1] ^ p->dst.w[2] ^ p->dst.w[3]);
	__u32 ports = (__u32)bpf_ntohs(p->sport) << 16 | bpf_ntohs(p->dport), proto = p->proto, hash;

	if (p->flags & SU_PKT_FRAG) {
		ports = p->flags & SU_PKT_IP6 ? bpf_ntohl(p->frag_id) : bpf_ntohs((__u16)p->frag_id);
		proto = p->flags & SU_PKT_IP6 ? 0 : proto;
	}
	hash = src * 0x9e3779b1u ^ dst * 0x85ebca6bu ^ ports * 0xc2b2ae35u ^ proto;
	hash ^= hash >> 16;
	hash *= 0x7feb352d;
	return hash ^ hash >> 15;
}

/* Is this node fit, as it tells whoever probes it? */
static __always_inline bool su_is_fit(void)
{
	__u32 zero = 0;
	struct su_control *c = bpf_map_lookup_elem(&control, &zero);

	return c && c->probe_flags & SU_PROBE_FIT;
}

/*
 * A node of `site`, the same for all packets of that hash while the site's list and its nodes' states stay. Nodes that
 * are down are skipped, what was theirs spreads over the others; one that is unfit is taken when no fit one is found: a
 * site that drains as a whole keeps its flows. This node counts for what it tells the others. 0, or -SU_DROP_NO_OWNER
 * (no such site), _SITE_DOWN.
 *
 * The first tries are as random as the hash, those after them go along the list, so that a single living node is found.
 */
__noinline int su_site_node(__u32 site, __u32 hash, __u32 *node)
{
	struct su_site *at = bpf_map_lookup_elem(&sites, &site);
	__u32 first, count, i, unfit = SU_NONE;

	if (!node || !at || !at->count)
		return -SU_DROP_NO_OWNER;
	first = at->first;
	count = at->count;
	for (i = 0; i < SU_SITE_TRIES; i++) {
		__u32 place = first + hash % count, *index;
		struct su_node *n;

		index = bpf_map_lookup_elem(&site_nodes, &place);
		if (index) {
			n = bpf_map_lookup_elem(&nodes, index);
			if (n && (n->flags & (SU_NODE_SET | SU_NODE_DOWN)) == SU_NODE_SET) {
				if (*index == settings.node ? su_is_fit() : !(n->flags & SU_NODE_UNFIT)) {
					*node = *index;
					return 0;
				}
				if (unfit == SU_NONE)
					unfit = *index;
			}
		}
		hash = i < 4 ? hash * 0x85ebca6bu + 0x9e3779b1u : hash + 1;
	}
	if (unfit == SU_NONE)
		return -SU_DROP_SITE_DOWN;
	*node = unfit;
	return 0;
}

/*
 * Who is to have this packet, which came to that port (host order) of its destination? 0: *out is filled and its node is
 * somebody, the owner or a node of the address's site; SU_STEER_NOT_FLEET; -SU_DROP_NO_OWNER, _SITE_DOWN. *out is
 * untouched unless 0.
 */
static __noinline int su_steer_decide(const struct su_pkt *p, __u16 port_host, struct su_owner *out)
{
	struct su_address *address = bpf_map_lookup_elem(&addresses, &p->dst);
	struct su_owner *owner;
	__u32 index;

	if (!address)
		return SU_STEER_NOT_FLEET;
	if (address->site != settings.site) {
		out->slice = SU_NONE;
		return su_site_node(address->site, su_flow_hash(p), &out->node);
	}
	index = address->base + ((__u32)port_host >> (address->shift & 31));
	owner = bpf_map_lookup_elem(&owners, &index);
	if (!owner || owner->node == SU_NONE)
		return -SU_DROP_NO_OWNER;
	*out = *owner;
	return 0;
}

static __always_inline bool su_is_fleet(const struct su_addr *a)
{
	return bpf_map_lookup_elem(&addresses, a) != NULL;
}

/*
 * Where do the fragments of this one's datagram meet? At a node of the address's site, its home, by the hash of what they have
 * in common: whichever node asks finds the same. One that another node of the fleet carried here is at home, or past it, whatever
 * this node's tables say of it: it is not sent to look for another.
 * SU_STEER_HOME: here; 0: *out is another node; SU_STEER_NOT_FLEET; -SU_DROP_NO_OWNER, _SITE_DOWN.
 */
static __noinline int su_steer_home(const struct su_pkt *p, bool carried, struct su_owner *out)
{
	struct su_address *address = bpf_map_lookup_elem(&addresses, &p->dst);
	int err;

	if (!address)
		return SU_STEER_NOT_FLEET;
	if (carried && address->site == settings.site)
		return SU_STEER_HOME;
	out->slice = SU_NONE;
	err = su_site_node(address->site, su_flow_hash(p), &out->node);
	return err || out->node != settings.node ? err : SU_STEER_HOME;
}

/*
 * The same for a packet that came in, plain or taken out of the tunnel (`carried`). An ICMP error belongs to the flow it
 * quotes, which must be one of the address that the error came to. A fragment that is at home is followed, or only reported as
 * SU_STEER_HOME unless `follow`.
 * 0, SU_STEER_NOT_FLEET, SU_STEER_HERE, SU_STEER_HOME, or -SU_DROP_FRAGMENT, _FRAGMENT_EARLY, _MALFORMED (a fragment), _PROTOCOL,
 * _ERROR_UNKNOWN, _NO_OWNER, _SITE_DOWN.
 */
static __always_inline int su_steer_where(struct su_pkt *p, bool carried, bool follow, struct su_owner *out)
{
	__be16 port = p->dport;

	if (!(p->flags & SU_PKT_PORTS) || p->flags & (SU_PKT_FRAG | SU_PKT_ECHO_REQUEST)) {
		if (!su_is_fleet(&p->dst))
			return SU_STEER_NOT_FLEET;
		if (p->flags & SU_PKT_FRAG) {
			int err = su_steer_home(p, carried, out);

			if (err == SU_STEER_HOME && follow)
				err = su_frag_follow(p, SU_FRAG_INTERNET);
			else
				return err;
			if (err)
				return err;
			port = p->dport;
		}
		if (p->flags & SU_PKT_ECHO_REQUEST)
			return SU_STEER_HERE;
		if (!(p->flags & SU_PKT_PORTS)) {
			if (!(p->flags & SU_PKT_ERROR))
				return -SU_DROP_PROTOCOL;
			if (!(p->flags & SU_PKT_QUOTE) || !su_addr_equal(&p->q_src, &p->dst))
				return -SU_DROP_ERROR_UNKNOWN;
			port = p->q_sport;
		}
	}
	return su_steer_decide(p, bpf_ntohs(port), out);
}

#endif /* SU_OWNER_H */
