/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * csum.h - the Internet checksum (RFC 1071) and its incremental update (RFC 1624 section 3, equation 3).
 *
 * Sums are kept unfolded in 64 bits and in network byte order as read from memory: the checksum does not
 * care for byte order as long as one keeps to one. A *sum* is not complemented, a *check* is what stands in
 * a header. Everything here is arithmetic on plain values: XDP, tc and tests share it.
 */
#ifndef SU_CSUM_H
#define SU_CSUM_H

#include <linux/types.h>
#include <linux/ip.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "abi.h"

/* Fold a sum to 16 bits; not complemented. */
static __always_inline __u16 su_csum_fold(__u64 sum)
{
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__u16)sum;
}

/* The check of a sum. */
static __always_inline __sum16 su_csum_finish(__u64 sum)
{
	return (__sum16)~su_csum_fold(sum);
}

/* A header's check after 16 bits of what it covers changed from `from` to `to` (both as in the packet). */
static __always_inline __sum16 su_csum_replace2(__sum16 check, __be16 from, __be16 to)
{
	return su_csum_finish((__u64)(__u16)~check + (__u16)~from + to);
}

/* The same for 32 bits at an even offset. */
static __always_inline __sum16 su_csum_replace4(__sum16 check, __be32 from, __be32 to)
{
	return su_csum_finish((__u64)(__u16)~check + (__u32)~from + to);
}

/* Check of an IPv4 header without options; its check field need not be zero. */
static __always_inline __sum16 su_csum_ip4(const struct iphdr *ip)
{
	const __u16 *w = (const __u16 *)ip;
	__u64 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += i == 5 ? 0 : w[i];
	return su_csum_finish(sum);
}

/*
 * Sum of the pseudo header (RFC 793 section 3.1, RFC 8200 section 8.1). `len` is the length of header and
 * payload of layer 4, host order. For IPv4 the mapped prefix ::ffff is left out, as it must.
 */
static __always_inline __u64 su_csum_pseudo(const struct su_addr *src, const struct su_addr *dst, __u8 proto,
					    __u32 len, bool ip4)
{
	__u64 sum = (__u64)src->w[3] + dst->w[3] + bpf_htonl(len) + bpf_htonl(proto);

	if (!ip4)
		sum += (__u64)src->w[0] + src->w[1] + src->w[2] + dst->w[0] + dst->w[1] + dst->w[2];
	return sum;
}

#endif /* SU_CSUM_H */
