/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * parse_fuzz.bpf.c - what su_parse makes of a frame, for fuzz.py to compare.
 */
#include "parse.h"

char _license[] SEC("license") = "Dual BSD/GPL";

struct su_parsed {
	__s32 err;
	struct su_pkt p;
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct su_parsed);
} parsed SEC(".maps");

SEC("xdp") int parse_frame(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data, *data_end = (void *)(long)ctx->data_end;
	struct ethhdr *eth = data;
	__u32 zero = 0;
	struct su_parsed *out = bpf_map_lookup_elem(&parsed, &zero);

	if (!out || (void *)(eth + 1) > data_end)
		return XDP_ABORTED;
	out->err = su_parse(data, data_end, sizeof(*eth), eth->h_proto, &out->p);
	return XDP_PASS;
}
