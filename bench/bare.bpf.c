/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * bare.bpf.c - what ours is measured against: the least that moves a packet, and nothing at all; and the sender.
 *
 * bare_blast is run by BPF_PROG_TEST_RUN with live frames: each run makes the next frame of `plan` and puts it on the
 * device. Frame i goes to target i % targets from port 10000 + (i / targets) % ports: one flow with 1 and 1, only new
 * ones when targets * ports is not less than the number sent. UDP, or SYNs of TCP.
 *
 * Sources: net/bpf/test_run.c (bpf_test_run_xdp_live), drivers/net/veth.c (veth_xdp_xmit).
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/tcp.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

char _license[] SEC("license") = "Dual BSD/GPL";

struct settings {
	__u32 ifindex;		/* where to */
	__u8 target[6];
	__u8 source[6];
	__be32 router;
};
const volatile struct settings settings SEC(".rodata.settings");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} arrived SEC(".maps");

SEC("tc") int bare_empty_tc(struct __sk_buff *skb)
{
	return TC_ACT_UNSPEC;
}

SEC("xdp") int bare_empty_xdp(struct xdp_md *ctx)
{
	return XDP_PASS;
}

/*
 * BPF_PROG_TEST_RUN with `repeat` runs a program on what the run before made of the packet. So that a program which puts
 * OUTER bytes in front can be repeated, bare_again takes them off, writes the headers as they were and goes on into
 * `measured`. What that costs by itself is had from the two programs below, which go on into the empty one: the
 * first does not move the packet's head, the second moves it twice.
 */
#define OUTER 32
#define HEADERS 34

struct frame {
	__u32 len;
	__u8 headers[HEADERS];
	__u8 pad[2];
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct frame);
} frame SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(__u32));
} measured SEC(".maps");

static __always_inline int again(struct xdp_md *ctx, int grow)
{
	__u32 zero = 0;
	struct frame *f = bpf_map_lookup_elem(&frame, &zero);
	void *data, *data_end;

	if (!f || (grow && bpf_xdp_adjust_head(ctx, -OUTER)))
		return XDP_ABORTED;
	if ((__u32)(ctx->data_end - ctx->data) != f->len && bpf_xdp_adjust_head(ctx, OUTER))
		return XDP_ABORTED;
	data = (void *)(long)ctx->data;
	data_end = (void *)(long)ctx->data_end;
	if (data + HEADERS > data_end)
		return XDP_ABORTED;
	__builtin_memcpy(data, f->headers, HEADERS);
	bpf_tail_call(ctx, &measured, zero);
	return XDP_ABORTED;
}

SEC("xdp") int bare_again(struct xdp_md *ctx)
{
	return again(ctx, 0);
}

SEC("xdp") int bare_again_moved(struct xdp_md *ctx)
{
	return again(ctx, 1);
}

/* The kernel finds route and neighbour. */
SEC("tc") int bare_neigh(struct __sk_buff *skb)
{
	return bpf_redirect_neigh(settings.ifindex, NULL, 0, 0);
}

/* The next hop is known, the kernel finds its neighbour entry. */
SEC("tc") int bare_nexthop(struct __sk_buff *skb)
{
	struct bpf_redir_neigh next = {.nh_family = 2, .ipv4_nh = settings.router};

	return bpf_redirect_neigh(settings.ifindex, &next, sizeof(next), 0);
}

/* Everything is known beforehand. */
SEC("tc") int bare_macs(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *data_end = (void *)(long)skb->data_end;
	struct ethhdr *eth = data;

	if ((void *)(eth + 1) > data_end)
		return TC_ACT_SHOT;
	for (int i = 0; i < 6; i++) {
		eth->h_dest[i] = settings.target[i];
		eth->h_source[i] = settings.source[i];
	}
	return bpf_redirect(settings.ifindex, 0);
}

/* The end of the way: counted and gone, before the stack. */
SEC("tc") int bare_sink(struct __sk_buff *skb)
{
	__u32 zero = 0;
	__u64 *n = bpf_map_lookup_elem(&arrived, &zero);

	if (n && skb->protocol == bpf_htons(ETH_P_IP))
		*n += 1;
	return TC_ACT_SHOT;
}

struct plan {
	__u32 ifindex;
	__u32 first;		/* host order */
	__u32 targets;
	__u32 ports;
	__u32 ip_sum;		/* of the headers but for target address and source port */
	__u32 l4_sum;
	__u64 sent;
	__be32 source;
	__u8 macs[12];
	__u32 tcp;		/* 0: UDP */
	__u32 pad;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct plan);
} plan SEC(".maps");

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum += sum >> 16;
	return ~sum;
}

SEC("xdp") int bare_blast(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct iphdr *ip = data + sizeof(struct ethhdr);
	struct udphdr *udp = (void *)(ip + 1);
	struct tcphdr *tcp = (void *)(ip + 1);
	__u32 zero = 0, i, target, port;
	struct plan *p = bpf_map_lookup_elem(&plan, &zero);
	__sum16 check;

	if (!p || (void *)(tcp + 1) > data_end)
		return XDP_DROP;
	i = p->sent++;
	target = p->first + i % p->targets;
	port = 10000 + i / p->targets % p->ports;
	/* Frames are used again as the last receiver left them. */
	__builtin_memcpy(data, p->macs, sizeof(p->macs));
	ip->ttl = 64;
	ip->saddr = p->source;
	ip->daddr = bpf_htonl(target);
	ip->check = bpf_htons(fold(p->ip_sum + (target >> 16) + (target & 0xffff)));
	udp->source = bpf_htons(port);
	check = bpf_htons(fold(p->l4_sum + (target >> 16) + (target & 0xffff) + port));
	if (p->tcp) {
		/* A receiver that refused it made a RST of it. */
		ip->tot_len = bpf_htons(46);
		tcp->dest = bpf_htons(7);
		tcp->seq = bpf_htonl(1);
		tcp->ack_seq = 0;
		((__be16 *)tcp)[6] = bpf_htons(0x5002);
		tcp->window = 0xffff;
		tcp->check = check;
	} else {
		udp->check = check;
	}
	return bpf_redirect(p->ifindex, 0);
}
