/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * egress.bpf.c - packets in and out of slices, at tc, before routing and netfilter see them.
 *
 *   client --> su_onramp_in (ingress of a tun, veth, tap) ----------------------------> uplink
 *          \-> and back by su_terminus_in, where the on-ramp's TCP ends at this node (terminate.h)
 *   uplink --> su_uplink_in (ingress of an uplink: steering and delivery) --> on-ramp, stack, or another node
 *   stack  --> su_guard (egress of an uplink), su_guard_other (egress of every other device)
 *
 * Helpers return a tc action or -SU_DROP_x; each entry counts drops in one place. A packet that a program does not
 * understand is the stack's (TC_ACT_UNSPEC: other programs may look too); one that it refuses is dropped and counted.
 */
#include <linux/pkt_cls.h>

#include "deliver.h"
#include "guard.h"
#include "onramp.h"
#include "terminate.h"
#include "toobig.h"
#include "vlan.h"

char _license[] SEC("license") = "Dual BSD/GPL";

static __always_inline bool su_is_ip(const struct __sk_buff *skb)
{
	return skb->protocol == bpf_htons(ETH_P_IP) || skb->protocol == bpf_htons(ETH_P_IPV6);
}

/* Source or destination of an Ethernet frame that carries IP, without reading the rest. */
static __always_inline bool su_peek(struct __sk_buff *skb, enum su_side side, struct su_addr *a)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;

	if (data + SU_ETH_LEN + sizeof(struct ipv6hdr) > data_end) {
		if (bpf_skb_pull_data(skb, skb->len < SU_PARSE_BYTES ? skb->len : SU_PARSE_BYTES))
			return false;
		data = (void *)(long)skb->data;
		data_end = (void *)(long)skb->data_end;
	}
	data += SU_ETH_LEN;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr *ip = data;

		if ((void *)(ip + 1) > data_end)
			return false;
		su_addr_set4(a, side == SU_DST ? ip->daddr : ip->saddr);
	} else {
		struct ipv6hdr *ip6 = data;

		if ((void *)(ip6 + 1) > data_end)
			return false;
		su_addr_set6(a, side == SU_DST ? &ip6->daddr : &ip6->saddr);
	}
	return true;
}

/* The one exit: a tc action, or a drop (-SU_DROP_x) counted. */
static __noinline int su_exit(int err, struct su_work *w, bool out)
{
	if (err >= 0)
		return err == SU_PASS ? TC_ACT_UNSPEC : err;
	if (out)
		su_flow_of_out(&w->pkt, &w->flow);
	else
		su_flow_of_in(&w->pkt, &w->flow);
	su_drop(err, &w->flow);
	return TC_ACT_SHOT;
}

SEC("tc") int su_onramp_in(struct __sk_buff *skb)
{
	struct su_work *w = su_work_get(SU_ROOM_ONRAMP);
	const struct su_onramp *onramp;
	const struct su_addr *gateway;
	__u32 id;
	int err;

	onramp = su_onramp_of(skb->ifindex, &id);
	if (!w || !onramp) {
		su_drop(-SU_DROP_ONRAMP, NULL);
		return TC_ACT_SHOT;
	}
	if (!su_is_ip(skb) || su_is_vlan(skb))
		return TC_ACT_OK;
	if (onramp->flags & SU_ONRAMP_L2)
		err = su_tc_parse(skb, SU_ETH_LEN, &w->pkt);
	else
		err = su_tc_parse(skb, 0, &w->pkt);
	if (!err && su_terminated(onramp, &w->pkt))
		err = su_terminate(skb, &w->pkt, onramp);
	else if (!err)
		err = su_onramp_packet(skb, w, onramp, su_onramp_owner(id, onramp));
	if (err >= 0)
		return err;
	su_exit(err, w, true);
	gateway = w->pkt.flags & SU_PKT_IP6 ? &onramp->gateway6 : &onramp->gateway4;
	return su_refuse(skb, &w->pkt, gateway, err);
}

SEC("tc") int su_terminus_in(struct __sk_buff *skb)
{
	int err = su_is_ip(skb) ? su_terminus_packet(skb, skb->ifindex) : TC_ACT_SHOT;

	if (err >= 0)
		return err;
	su_drop(err, NULL);
	return TC_ACT_SHOT;
}

SEC("tc") int su_uplink_in(struct __sk_buff *skb)
{
	struct su_addr dst;
	struct su_work *w;
	int err;

	if (!su_is_ip(skb) || !su_peek(skb, SU_DST, &dst))
		return TC_ACT_UNSPEC;
	/* A client's packet that turned round (su_onramp_turn): for us, whatever its Ethernet header says. */
	if (settings.mask && (skb->mark & settings.mask) == settings.mark) {
		skb->mark &= ~settings.mask;
		bpf_skb_change_type(skb, 0 /* PACKET_HOST */);
	}
	/* A switch that does not know where a node is floods its frames to all: they are not ours to carry, the stack drops them. */
	if (skb->pkt_type != 0 /* PACKET_HOST */)
		return TC_ACT_UNSPEC;
	if (!su_fleet(&dst) && !su_is_underlay(&dst))
		return TC_ACT_UNSPEC;
	if (su_is_vlan(skb))
		return TC_ACT_UNSPEC;
	w = su_work_get(SU_ROOM_UPLINK);
	if (!w)
		return TC_ACT_SHOT;
	err = su_tc_parse(skb, SU_ETH_LEN, &w->pkt);
	if (err && !su_fleet(&dst))
		return TC_ACT_UNSPEC;
	if (!err)
		err = su_uplink_packet(skb, w);
	if (err == -SU_DROP_TOO_BIG) {
		su_exit(err, w, false);
		return su_toobig(skb, w);
	}
	return su_exit(err, w, false);
}

SEC("tc") int su_guard(struct __sk_buff *skb)
{
	const struct su_sock *sock;
	struct su_addr src;
	struct su_work *w;
	int err;

	if (settings.mask && (skb->mark & settings.mask) == settings.mark) {
		skb->mark &= ~settings.mask;
		su_hop_learn(skb);
		return TC_ACT_OK;
	}
	if (!su_is_ip(skb) || !su_peek(skb, SU_SRC, &src))
		return TC_ACT_UNSPEC;
	w = su_work_get(SU_ROOM_GUARD);
	if (!w)
		return TC_ACT_SHOT;
	if (skb->vlan_present && su_vlan_guarded(skb->ifindex))
		return TC_ACT_UNSPEC;
	if (su_fleet(&src)) {
		err = su_tc_parse(skb, SU_ETH_LEN, &w->pkt);
		if (!err)
			err = su_guard_slice(skb, w);
	} else {
		sock = su_guard_sock(skb);
		if (sock)
			w->policy = sock->policy;
		else if (!su_guard_reset(skb))
			return TC_ACT_UNSPEC;
		err = su_tc_parse(skb, SU_ETH_LEN, &w->pkt);
		if (!sock) {
			err = err ? SU_UNKNOWN : su_guard_known(skb, w);
			if (err == SU_UNKNOWN)
				return TC_ACT_UNSPEC;
		} else if (!err) {
			err = su_guard_own(skb, w);
		}
	}
	if (err == SU_TO_CLAIM)
		err = su_guard_rewrite(skb, w);
	return su_exit(err, w, true);
}

SEC("tc") int su_guard_other(struct __sk_buff *skb)
{
	struct su_work *w = su_work_get(SU_ROOM_GUARD);
	__u32 ifindex = skb->ifindex;
	struct su_addr src;

	if (!w || !su_is_ip(skb))
		return TC_ACT_UNSPEC;
	/* Delivered to a client, and from another one: hairpinned. */
	if (settings.mask && (skb->mark & settings.mask) == settings.mark &&
	    bpf_map_lookup_elem(&onramp_devices, &ifindex)) {
		skb->mark &= ~settings.mask;
		return TC_ACT_UNSPEC;
	}
	/* Whether the device has Ethernet headers is not known here; the network header is. */
	if (bpf_skb_load_bytes_relative(skb, skb->protocol == bpf_htons(ETH_P_IP) ? 12 : 8, &src,
					sizeof(src), BPF_HDR_START_NET))
		return TC_ACT_UNSPEC;
	if (skb->protocol == bpf_htons(ETH_P_IP))
		su_addr_set4(&src, src.w[0]);
	if (!su_fleet(&src) || (skb->vlan_present && su_vlan_guarded(skb->ifindex)))
		return TC_ACT_UNSPEC;
	__builtin_memset(&w->flow, 0, sizeof(w->flow));
	w->flow.local = src;
	su_drop(-SU_DROP_GUARD_DEVICE, &w->flow);
	return TC_ACT_SHOT;
}
