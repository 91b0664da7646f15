/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * toobig.h - an answer that does not fit the tunnel, or its on-ramp: its sender is told, from the slice's address, how large
 * it may be (RFC 1191 section 4, RFC 4443 section 3.2), so that a path through the wrong node only costs it the bytes of the
 * tunnel's headers, and a client behind a tunnel of its own only those of that.
 *
 * The error leaves by the routes of slices' addresses, marked as ours for the guard, and not too often (tell.h).
 * Nobody is told about an ICMP error or a later fragment.
 */
#ifndef SU_TOOBIG_H
#define SU_TOOBIG_H

#include "icmp.h"
#include "steer.h"
#include "tell.h"

/* w->pkt came in by an uplink and is not to be carried, being larger than w->pkt.mtu (0: nothing fits). A tc action: the error on its way, or nothing. */
static __noinline int su_toobig(struct __sk_buff *skb, struct su_work *w)
{
	__u32 ifindex = skb->ifindex;
	int err;

	if (!w->pkt.mtu || w->pkt.flags & SU_PKT_ERROR || w->pkt.frag_at)
		return TC_ACT_SHOT;
	if (!su_tell_may(SU_TELL_INTERNET, bpf_ktime_get_boot_ns()))
		return TC_ACT_SHOT;
	if (w->pkt.flags & SU_PKT_IP6)
		err = su_icmp_error(skb, &w->pkt, &w->pkt.dst, SU_ICMP6_TOO_BIG, 0);
	else
		err = su_icmp_error(skb, &w->pkt, &w->pkt.dst, SU_ICMP_UNREACH, SU_ICMP_FRAG_NEEDED);
	if (err != TC_ACT_REDIRECT)
		return TC_ACT_SHOT;
	su_mark(skb);
	/* Not back to where it came from (another node may have carried it here), but as all that leaves a slice. */
	return bpf_redirect_neigh(ifindex, NULL, 0, 0);
}

#endif /* SU_TOOBIG_H */
