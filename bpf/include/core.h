/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * core.h - the kernel's structures, as far as we read them.
 *
 * Only the fields used, relocated at load time (preserve_access_index), so that no vmlinux.h is needed and one
 * object fits every kernel. A name with ___ is a flavour: libbpf ignores what follows it.
 * Sources: include/net/sock.h, include/net/inet_sock.h, include/net/net_namespace.h, net/mptcp/protocol.h,
 * include/linux/bpf.h (bpf_iter__tcp: net/ipv4/tcp_ipv4.c, bpf_iter__udp: net/ipv4/udp.c).
 */
#ifndef SU_CORE_H
#define SU_CORE_H

#include <linux/bpf.h>
#include <linux/in6.h>
#include <linux/types.h>
#include <stdbool.h>
#include <bpf/bpf_core_read.h>
#include <bpf/bpf_helpers.h>

#define SU_CORE __attribute__((preserve_access_index))

#define SU_AF_INET 2
#define SU_AF_INET6 10
#define SU_PROTO_MPTCP 262	/* IPPROTO_MPTCP, include/uapi/linux/in.h */

/* include/net/tcp_states.h */
#define SU_TCP_ESTABLISHED 1
#define SU_TCP_SYN_SENT 2
/* SU_TCP_TIME_WAIT and SU_TCP_LISTEN are in kernel_busy.h */
#define SU_TCP_CLOSE 7
#define SU_TCP_CLOSE_WAIT 8
#define SU_TCP_LAST_ACK 9
#define SU_TCP_NEW_SYN_RECV 12

/* include/net/inet_sock.h, since 6.6; before it was a bit field. A test compares it with the running kernel's BTF. */
#define SU_INET_FLAGS_BIND_ADDRESS_NO_PORT 18

struct net {
	__u64 net_cookie;
} SU_CORE;

struct possible_net_t___su {
	struct net *net;
} SU_CORE;

struct sock_common {
	__be32 skc_daddr;
	__be32 skc_rcv_saddr;
	__be16 skc_dport;
	__u16 skc_num;
	unsigned short skc_family;
	volatile unsigned char skc_state;
	struct possible_net_t___su skc_net;
	struct in6_addr skc_v6_daddr;
	struct in6_addr skc_v6_rcv_saddr;
} SU_CORE;

struct sock {
	struct sock_common __sk_common;
	__u16 sk_type;
	__u16 sk_protocol;
} SU_CORE;

/* 6.8 and later. */
struct inet_sock {
	struct sock sk;
	unsigned long inet_flags;
	__u32 local_port_range;	/* high << 16 | low; 0: none */
} SU_CORE;

/* 6.3 to 6.7. */
struct inet_sock___range {
	struct {
		__u16 lo;
		__u16 hi;
	} local_port_range;
} SU_CORE;

/* Before 6.6. */
struct inet_sock___bits {
	__u8 bind_address_no_port : 1;
} SU_CORE;

struct udp_sock {
	struct inet_sock inet;
} SU_CORE;

struct mptcp_sock {
	__u64 local_key;
} SU_CORE;

struct bpf_iter__tcp {
	struct bpf_iter_meta *meta;
	struct sock_common *sk_common;
	__u32 uid;
} SU_CORE;

struct bpf_iter__udp {
	struct bpf_iter_meta *meta;
	struct udp_sock *udp_sk;
	__u32 uid;
} SU_CORE;

/* A kfunc since 6.2: an untrusted, readable view of a kernel object. */
extern void *bpf_rdonly_cast(const void *obj, __u32 btf_id) __attribute__((section(".ksyms"), weak));

/* The kernel's struct behind a context's socket; NULL where the kernel is too old to let us look. */
static __always_inline struct inet_sock *su_inet_sock(const void *sk)
{
	if (!bpf_rdonly_cast)
		return NULL;
	return bpf_rdonly_cast(sk, bpf_core_type_id_kernel(struct inet_sock));
}

/*
 * IP_LOCAL_PORT_RANGE of the socket. An end that is 0 is not limited; the option exists since 6.3, before that
 * there is no limit.
 */
static __always_inline void su_port_range(struct inet_sock *inet, __u16 *first, __u16 *last)
{
	struct inet_sock___range *old = (void *)inet;
	__u32 low = 0, high = 0;

	if (!inet)
		return;
	if (bpf_core_field_exists(old->local_port_range.lo)) {
		low = BPF_CORE_READ(old, local_port_range.lo);
		high = BPF_CORE_READ(old, local_port_range.hi);
	} else if (bpf_core_field_exists(inet->local_port_range)) {
		__u32 range = BPF_CORE_READ(inet, local_port_range);

		low = range & 0xffff;
		high = range >> 16;
	}
	if (low)
		*first = low;
	if (high)
		*last = high;
}

/* Was IP_BIND_ADDRESS_NO_PORT set? False where we cannot know. */
static __always_inline bool su_bind_no_port(struct inet_sock *inet)
{
	struct inet_sock___bits *old = (void *)inet;

	if (!inet)
		return false;
	if (bpf_core_field_exists(old->bind_address_no_port))
		return BPF_CORE_READ_BITFIELD_PROBED(old, bind_address_no_port);
	if (bpf_core_field_exists(inet->inet_flags))
		return BPF_CORE_READ(inet, inet_flags) >> SU_INET_FLAGS_BIND_ADDRESS_NO_PORT & 1;
	return false;
}

#endif /* SU_CORE_H */
