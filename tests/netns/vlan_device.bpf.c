/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * vlan_device.bpf.c - what a VLAN device does, for kernels without any: the stack has one end of a veth pair, here is
 * the other, and `ends` says where that and the device below are. Tags are the kernel's own, in the skb.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

#define VLAN 100
#define ETH_P_8021Q 0x8100

enum end {
	BELOW = 0,
	INSIDE = 1,
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 2);
	__type(key, __u32);
	__type(value, __u32);
} ends SEC(".maps");

static __always_inline int to(__u32 end)
{
	__u32 *ifindex = bpf_map_lookup_elem(&ends, &end);

	return ifindex ? bpf_redirect(*ifindex, 0) : TC_ACT_SHOT;
}

/* Ingress of the pair's inside: what the stack sent. */
SEC("tc") int vlan_out(struct __sk_buff *skb)
{
	return bpf_skb_vlan_push(skb, bpf_htons(ETH_P_8021Q), VLAN) ? TC_ACT_SHOT : to(BELOW);
}

/* Ingress of the device below, behind whatever else is there. */
SEC("tc") int vlan_in(struct __sk_buff *skb)
{
	if (!skb->vlan_present || (skb->vlan_tci & 0xfff) != VLAN)
		return TC_ACT_UNSPEC;
	return bpf_skb_vlan_pop(skb) ? TC_ACT_SHOT : to(INSIDE);
}
