/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* A small object for the tests of softunicast.kernel: one map and one program of each sort. */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

const volatile struct su_settings settings SEC(".rodata.settings");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, struct su_flow);
	__type(value, struct su_claim);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 64);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct su_prefix);
	__type(value, __u32);
} prefixes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u64);
} numbers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct su_stats);
} stats SEC(".maps");

/* Not a multiple of eight, and no batches. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, 8);
	__type(key, __u32);
	__type(value, __u32);
} odd SEC(".maps");

static int count(__u32 index)
{
	__u64 *number = bpf_map_lookup_elem(&numbers, &index);

	if (number)
		__sync_fetch_and_add(number, 1);
	return 0;
}

SEC("tc")
int tc_count(struct __sk_buff *skb)
{
	__u32 zero = 0;
	struct su_stats *found = bpf_map_lookup_elem(&stats, &zero);

	count(0);
	if (found)
		found->counters[SU_COUNT_OUT_PACKETS]++;
	skb->mark = settings.mark;
	return TC_ACT_OK;
}

SEC("tc")
int tc_count_twice(struct __sk_buff *skb)
{
	count(1);
	count(1);
	return TC_ACT_OK;
}

SEC("tc")
int tc_drop(struct __sk_buff *skb)
{
	return TC_ACT_SHOT;
}

SEC("xdp")
int xdp_swap(struct xdp_md *ctx)
{
	unsigned char *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;

	count(2);
	if (data + 14 > end)
		return XDP_DROP;
	data[0] = 0xaa;
	return XDP_PASS;
}

SEC("syscall")
int call_add(struct su_sweep_args *args)
{
	args->reaped = args->seen + settings.node;
	return 7;
}

SEC("cgroup/connect4")
int connect_refuse(struct bpf_sock_addr *ctx)
{
	count(3);
	if (ctx->user_port != bpf_htons(9))
		return 1;
	bpf_set_retval(-99);
	return 0;
}

SEC("cgroup/sock_create")
int sock_count(struct bpf_sock *ctx)
{
	count(4);
	return 1;
}

struct seq_file;
struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
} __attribute__((preserve_access_index));

struct bpf_iter__bpf_map {
	struct bpf_iter_meta *meta;
	void *map;
} __attribute__((preserve_access_index));

/* Writes a letter for each map, and a newline at the end. */
SEC("iter/bpf_map")
int iter_maps(struct bpf_iter__bpf_map *ctx)
{
	bpf_seq_write(ctx->meta->seq, ctx->map ? "m" : "\n", 1);
	return 0;
}

char _license[] SEC("license") = "GPL";
