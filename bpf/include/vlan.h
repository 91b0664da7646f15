/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * vlan.h - frames with a tag (IEEE 802.1Q, 802.1ad): whose they are.
 *
 * A tag makes it another network's frame, which the kernel gives to the VLAN device of that number; if that is an uplink or
 * an on-ramp, it has programs of its own. So on the device below tagged frames are left alone, in and out. A tag that
 * says VLAN 0 says priority only and makes no other network (802.1Q section 9.6): it is taken off.
 *
 * At tc the outer tag is no longer in the frame but in the skb (net/core/dev.c, skb_vlan_untag) and skb->protocol what
 * is behind it, so that a tagged packet would look like an untagged one. At XDP it is in the frame, and su_parse finds no
 * IP; a card that takes tags off for XDP hides them (`ethtool -K DEVICE rxvlan off`).
 */
#ifndef SU_VLAN_H
#define SU_VLAN_H

#include "maps.h"

#define SU_VLAN_ID 0x0fff

/* A frame that came in: is it a VLAN device's? If not, it has no tag any more. */
static __always_inline bool su_is_vlan(struct __sk_buff *skb)
{
	if (!skb->vlan_present)
		return false;
	return skb->vlan_tci & SU_VLAN_ID || bpf_skb_vlan_pop(skb);
}

/*
 * A tagged frame that leaves by this device: it comes from a VLAN device, at whose egress the guard has been asked, if that
 * is one of our uplinks.
 */
static __always_inline bool su_vlan_guarded(__u32 ifindex)
{
	struct su_uplink *uplink;
	__u32 i;

#pragma unroll
	for (i = 0; i < 8; i++) {
		__u32 index = i;

		uplink = bpf_map_lookup_elem(&uplinks, &index);
		if (uplink && uplink->ifindex && uplink->below == ifindex)
			return true;
	}
	return false;
}

#endif /* SU_VLAN_H */
