/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * permit.h - endpoint-independent mappings of UDP: one outer address and port for whatever remotes a client's port
 * speaks to (RFC 4787 section 4.1).
 *
 *   claim    a wildcard, remote 0:0, in the part of the slice's ports that is kept for them
 *   origin   inner address and port, remote 0:0 -> the claim
 *   permits  outer address and port, remote -> when it was last sent to
 *
 * A permit says two things. Outwards, that this remote was looked at (is it bypassed, the gateway's, a neighbour's?), so
 * that only the first packet to it is. Inwards, with filtering, that it may answer (section 5); only what goes out
 * keeps it alive, as it does the mapping (REQ-6): what comes in is anybody's.
 *
 * Permits are hints in an LRU map: one that was evicted costs another look, or an answer that is dropped until the client
 * sends again. Claims are not touched by that.
 */
#ifndef SU_PERMIT_H
#define SU_PERMIT_H

#include "work.h"

/* Does an on-ramp map packets of w->key's protocol so? */
static __always_inline bool su_onramp_eim(const struct su_onramp *onramp, __u8 proto)
{
	return onramp->flags & SU_ONRAMP_EIM && proto == IPPROTO_UDP;
}

/* The inner flow of a mapping has no remote. */
static __always_inline void su_key_any(struct su_origin_key *key)
{
	__builtin_memset(&key->remote, 0, sizeof(key->remote));
	key->remote_port = 0;
}

/* The key of a permit, in w->want.flow, which nobody needs by then. */
static __always_inline void su_permit_key(struct su_work *w, const struct su_onramp *onramp, const struct su_addr *remote,
					  __be16 remote_port)
{
	w->want.flow.local = w->flow.local;
	w->want.flow.local_port = w->flow.local_port;
	w->want.flow.remote = *remote;
	w->want.flow.remote_port = onramp->flags & SU_ONRAMP_APDF ? remote_port : 0;
	*(__u32 *)&w->want.flow.proto = 0;
	w->want.flow.proto = IPPROTO_UDP;
}

/* w->flow is the mapping of w->key. Was its client allowed to send there, a moment ago? It is said again then. */
static __noinline bool su_permit_sent(struct su_work *w, const struct su_onramp *onramp, __u32 now_s)
{
	struct su_permit *permit;

	su_permit_key(w, onramp, &w->pkt.dst, w->pkt.dport);
	permit = bpf_map_lookup_elem(&permits, &w->want.flow);
	if (!permit || permit->who != su_origin_check(&w->key) || now_s - permit->sent_s >= settings.udp_s)
		return false;
	if (permit->sent_s != now_s)
		*(volatile __u32 *)&permit->sent_s = now_s;
	return true;
}

/* It is allowed to. A map that has no room in an instant forgets it, as it may. */
static __noinline int su_permit_add(struct su_work *w, const struct su_onramp *onramp, __u32 now_s)
{
	struct su_permit permit = {.who = su_origin_check(&w->key), .sent_s = now_s};

	su_permit_key(w, onramp, &w->pkt.dst, w->pkt.dport);
	bpf_map_update_elem(&permits, &w->want.flow, &permit, BPF_ANY);
	return 0;
}

/*
 * May a packet from w->flow's remote come in by the mapping w->claim? An ICMP error may when the remote it quotes may.
 * 0, -SU_DROP_FILTERED, -SU_DROP_ONRAMP.
 */
static __noinline int su_permit_in(struct su_work *w, __u32 now_s)
{
	__u32 id = w->claim.owner >> 32;
	struct su_onramp *onramp = bpf_map_lookup_elem(&onramps, &id);
	struct su_permit *permit;

	if (!onramp || !(onramp->flags & SU_ONRAMP_SET))
		return -SU_DROP_ONRAMP;
	if (!(onramp->flags & (SU_ONRAMP_ADF | SU_ONRAMP_APDF)))
		return 0;
	su_permit_key(w, onramp, &w->flow.remote, w->flow.remote_port);
	permit = bpf_map_lookup_elem(&permits, &w->want.flow);
	/* The mapping as its client has it, to be told from another one's on that port. */
	w->key.onramp = id;
	w->key.inner = w->claim.inner;
	w->key.inner_port = w->claim.inner_port;
	su_key_any(&w->key);
	*(__u32 *)&w->key.proto = 0;
	w->key.proto = IPPROTO_UDP;
	if (!permit || permit->who != su_origin_check(&w->key) || now_s - permit->sent_s >= settings.udp_s)
		return -SU_DROP_FILTERED;
	return 0;
}

#endif /* SU_PERMIT_H */
