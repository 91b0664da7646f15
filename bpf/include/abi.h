/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * abi.h - every map key and value, flag, counter and drop reason of the data plane.
 *
 * This header is the one source of truth. The Python codec (src/softunicast/kernel/abi.py) is
 * generated from its BTF; a test regenerates it and compares.
 *
 * Rules: fixed widths, explicit padding, flat, no bitfields. Addresses and ports are in network byte
 * order (__be32, __be16) where they are keys or go on the wire, in host order (__u16) where they are
 * compared as numbers. Ranges are inclusive (first, last). Zero a key before use. Units are in names.
 */
#ifndef SU_ABI_H
#define SU_ABI_H

#include <linux/types.h>

#define SU_ABI_VERSION 4

#define SU_NONE 0xffffffffu	/* no slice, no node, no pool, no slot */

/* An address. IPv4 is IPv4-mapped (::ffff:a.b.c.d, RFC 4291 section 2.5.5.2), so that every key fits both. */
struct su_addr {
	__be32 w[4];
};

/*
 * A flow as it is on the wire, seen from the slice: key of `flows`.
 * For ICMP and ICMPv6 echo the id is the local port and the remote port is 0.
 * A wildcard claim (UDP without a remote) has remote 0 and remote_port 0.
 */
struct su_flow {
	struct su_addr local;	/* the slice's address */
	struct su_addr remote;
	__be16 local_port;
	__be16 remote_port;
	__u8 proto;		/* IPPROTO_TCP, UDP, ICMP, ICMPV6 */
	__u8 pad[3];
};
_Static_assert(sizeof(struct su_flow) == 40, "su_flow");

/* Value of `slots` (array): the key of a claim, proto 0: free. The clock hand need not look at the claim before look_s. */
struct su_slot {
	struct su_flow flow;
	__u32 look_s;		/* boot clock */
};
_Static_assert(sizeof(struct su_slot) == 44, "su_slot");

/* Who holds a flow. */
enum su_kind {
	SU_KIND_NONE = 0,
	SU_KIND_SOCKET = 1,	/* owner: socket cookie */
	SU_KIND_PACKET = 2,	/* owner: on-ramp id << 32 | on-ramp generation; inner, inner_port */
	SU_KIND_LOCAL = 3,	/* a local packet that no hook claimed; inner, inner_port are what the stack uses */
	SU_KIND_PEER = 4,	/* owner: node id that still holds the flow */
};

/* State of a claim, bits 32..39 of its word. */
enum su_state {
	SU_STATE_LOCKED = 0,	/* being filled or deleted: nobody else touches it, readers see no claim */
	SU_STATE_NEW = 1,	/* transitory: one direction seen */
	SU_STATE_OPEN = 2,	/* both directions seen */
	SU_STATE_LINGER = 3,	/* ended; packets may still come and go */
};

/* The word: generation (24 bits) | state (8 bits) | last seen (32 bits, seconds of the boot clock). */
#define SU_WORD_GEN_SHIFT 40
#define SU_WORD_STATE_SHIFT 32

enum su_tcp_seen {
	SU_TCP_FIN_OUT = 1,
	SU_TCP_FIN_IN = 2,
	SU_TCP_RST = 4,
};

/* Value of `flows`: the claim. */
struct su_claim {
	__u64 word;		/* first: refresh, steal and delete are compare-and-swap on it */
	__u64 owner;		/* by kind, above */
	struct su_addr inner;	/* PACKET, LOCAL: source as the client (the stack) has it */
	__be16 inner_port;
	__u8 kind;		/* enum su_kind */
	__u8 tcp_seen;		/* enum su_tcp_seen */
	__u32 check;		/* su_flow_check() of the key: a recycled element shows */
	__u32 slot;		/* its place in `slots`, for the clock hand */
	__u32 slice;		/* index in `slices` */
	__u32 born_s;		/* seconds of the boot clock */
	__u32 tenant;
};
_Static_assert(sizeof(struct su_claim) == 56, "su_claim");

/* An inner flow: key of `origin`. onramp 0 is this node's own stack (LOCAL). */
struct su_origin_key {
	__u32 onramp;
	struct su_addr inner;
	struct su_addr remote;
	__be16 inner_port;
	__be16 remote_port;
	__u8 proto;
	__u8 pad[3];
};
_Static_assert(sizeof(struct su_origin_key) == 44, "su_origin_key");

/*
 * Value of `origin`: where its outer flow is. A hint, checked against `flows` once a second: no claim expires
 * within the second in which it was seen, and whoever ends one otherwise removes its hint first.
 */
struct su_origin {
	struct su_addr local;
	__be16 local_port;
	__u16 pad;
	__u32 generation;	/* of the claim, 24 bits */
	__u32 checked_s;	/* boot clock: when `flows` last said so */
	__u32 owner;		/* generation of the on-ramp */
	__u32 check;		/* hash of the key: a recycled element shows */
	__u32 pad2;
};
_Static_assert(sizeof(struct su_origin) == 40, "su_origin");

/* Value of `slices` (array): a slice this node holds. */
enum su_slice_flag {
	SU_SLICE_LIVE = 1,	/* may claim */
	SU_SLICE_DRAIN = 2,	/* no new flows */
};

struct su_slice {
	struct su_addr addr;
	__u16 first;		/* host order, inclusive */
	__u16 last;
	__u16 udp_exact_first;	/* UDP: [first, udp_exact_first) is for wildcard claims; == first: none */
	__u16 flags;		/* enum su_slice_flag */
	__u32 pool;
	__u32 epoch;
	__u64 claim_until_ns;	/* boot clock; no new claim after it */
};
_Static_assert(sizeof(struct su_slice) == 40, "su_slice");

/* Value of `pools` (array): which of `pool_slices` (array of slice indices) are its own, on this node. */
struct su_pool {
	__u32 v4_first;
	__u32 v4_count;
	__u32 v6_first;
	__u32 v6_count;
};
_Static_assert(sizeof(struct su_pool) == 16, "su_pool");

/* A policy: value of `cgroups` (by cgroup id), part of an on-ramp, copied to each socket at its creation. */
enum su_policy_flag {
	SU_POLICY_SET = 1,	/* there is a policy at all */
	SU_POLICY_RANGE = 2,	/* only slice, first-last (softunicast run --slice) */
};

struct su_policy {
	__u32 flags;		/* enum su_policy_flag */
	__u32 pool;
	__u32 slice;		/* RANGE: index in `slices` */
	__u16 first;		/* RANGE: host order, inclusive */
	__u16 last;
	__u32 bypass;		/* list in `prefixes` that is not sliced; 0: none but the node's own */
	__u32 client;		/* seed of the address choice; 0: by inner address or cgroup */
	__u32 tenant;
};
_Static_assert(sizeof(struct su_policy) == 28, "su_policy");

/* Value of the socket storage `socks`. */
enum su_sock_flag {
	SU_SOCK_CLAIMED = 1,	/* flow holds the claim's key */
	SU_SOCK_CHOSEN = 2,	/* a hook chose the local port, not the program */
	SU_SOCK_STATE_CB = 4,	/* sock_ops will report its CLOSE */
	SU_SOCK_BYPASS = 8,	/* its destination is not sliced */
};

struct su_sock {
	struct su_policy policy;
	__u32 flags;		/* enum su_sock_flag */
	__u32 generation;	/* of the claim */
	__u32 pad;
	struct su_flow flow;
};
_Static_assert(sizeof(struct su_sock) == 80, "su_sock");

/* Value of `onramps` (array by id; 0 is never used). `onramp_devices` leads to it from its device, and from its terminus. */
enum su_onramp_flag {
	SU_ONRAMP_SET = 1,
	SU_ONRAMP_L2 = 2,	/* Ethernet (veth, tap); otherwise bare IP (tun) */
	SU_ONRAMP_EIM = 4,	/* UDP: endpoint-independent mapping (RFC 4787 section 4.1), wildcard claims, hairpinning */
	SU_ONRAMP_ADF = 8,	/* with EIM: address-dependent filtering (section 5) */
	SU_ONRAMP_APDF = 16,	/* with EIM: address-and-port-dependent filtering; neither: endpoint-independent */
	SU_ONRAMP_TERMINATE = 32,	/* its clients' TCP ends at this node (terminate.h) */
};

struct su_onramp {
	__u32 flags;		/* enum su_onramp_flag */
	__u32 generation;
	__u32 ifindex;
	__u32 sources;		/* list in `prefixes` of allowed inner sources */
	struct su_addr gateway4;	/* our address towards the clients; source of our ICMP errors */
	struct su_addr gateway6;
	struct su_policy policy;
	__u32 max_flows;	/* claims it may hold at a time; 0: no limit */
	__u32 new_per_s;	/* flows it may begin a second, at most 1,000,000; 0: no limit */
	__u16 mss;		/* largest MSS in a SYN of IPv4, of IPv6 20 less; 0: as it is */
	__u16 mtu;		/* of the device, bytes, Ethernet header not counted; 0: not known, all fits */
	__u32 terminus;		/* TERMINATE: ifindex of the veth towards the namespace where TCP ends; 0: not there */
};
_Static_assert(sizeof(struct su_onramp) == 92, "su_onramp");

/*
 * Value of `uses` (hash by owner: on-ramp id << 32 | generation): what the claims of one on-ramp come to. Made by its
 * first flow; the agent removes those of generations that are gone.
 */
struct su_use {
	__s64 flows;		/* claims held, expired ones too until somebody reaps or takes them */
	__u64 next_ns;		/* boot clock: until then its allowance of new flows is spent (ITU-T I.371, GCRA) */
	__u64 begun;		/* claims made since this generation began */
	__u64 refused_flows;	/* refused because it held max_flows */
	__u64 refused_new;	/* refused because it began new_per_s */
};
_Static_assert(sizeof(struct su_use) == 40, "su_use");

/* Value of `tenants` (per-CPU array by number; 0: on-ramps without a tenant): what clients did. */
struct su_tenant {
	__u64 flows;		/* begun */
	__u64 refused;		/* new flows refused, for whatever reason */
	__u64 out_packets;	/* forwarded out of a slice */
	__u64 out_bytes;	/* the same in bytes, IP headers counted */
	__u64 in_packets;	/* answers forwarded to an on-ramp */
	__u64 in_bytes;
};
_Static_assert(sizeof(struct su_tenant) == 48, "su_tenant");

/*
 * Value of `permits` (LRU: what it forgets, the next packet to that remote says again). Its key is a flow of a mapping
 * that is endpoint-independent: an outer address and port, and where they were used towards; remote_port is 0 unless
 * filtering depends on it.
 */
struct su_permit {
	__u32 who;		/* hash of the key of `origin`: another client's mapping on that port is another mapping */
	__u32 sent_s;		/* boot clock: the last packet to that remote; believed for settings.udp_s */
};
_Static_assert(sizeof(struct su_permit) == 8, "su_permit");

/*
 * Value of `addresses` (hash by su_addr): an address of the fleet, written as one 64-bit word. An address of another
 * site has no owners here (base and shift are 0): any node of that site knows them.
 */
struct su_address {
	__u32 base;		/* owner of port p: owners[base + (p >> shift)] */
	__u8 shift;		/* 0..16 */
	__u8 pad;
	__u16 site;		/* index in `sites` */
};
_Static_assert(sizeof(struct su_address) == 8, "su_address");

/* Value of `owners` (array), written as one 64-bit word. */
struct su_owner {
	__u32 node;		/* index in `nodes`, SU_NONE: nobody */
	__u32 slice;		/* index in `slices` when node is this one, else SU_NONE */
};
_Static_assert(sizeof(struct su_owner) == 8, "su_owner");

/*
 * Value of `sites` (array), written as one 64-bit word: where in `site_nodes` (array of node indices) a site's
 * nodes are. A new list is written beside the old one before the word points to it.
 */
struct su_site {
	__u32 first;
	__u32 count;		/* 0: no such site */
};
_Static_assert(sizeof(struct su_site) == 8, "su_site");

/* Value of `nodes` (array): its underlay address of a family that this node has too. All of them are keys of `peers` (hash),
 * value its index. */
enum su_node_flag {
	SU_NODE_SET = 1,	/* in use */
	SU_NODE_DOWN = 2,	/* does not answer: another node of its site is asked */
	SU_NODE_UNFIT = 4,	/* answers and says that it is not fit, or drains: asked when all others are no better */
};

struct su_node {
	struct su_addr underlay;
	__u32 flags;		/* enum su_node_flag; all but SET are written by the prober alone */
	__u32 pad;
};
_Static_assert(sizeof(struct su_node) == 24, "su_node");

/* Key of `prefixes` (LPM): lists of prefixes. prefix_len counts list and address: 32 + 96 + n for IPv4. */
enum su_list {
	SU_LIST_NEVER = 0,	/* never sliced: loopback, link-local, multicast, underlay, the node's bypass */
	SU_LIST_INTERNAL = 1,	/* never an inner source of an answer: underlay and slices themselves */
	SU_LIST_FIRST_FREE = 16,	/* on-ramps' sources and policies' bypass lists */
};

struct su_prefix {
	__u32 prefix_len;
	__be32 list;
	struct su_addr addr;
};
_Static_assert(sizeof(struct su_prefix) == 24, "su_prefix");

/* Key of `crowds` (LRU: a hint): a destination that proved crowded, in 2,048-port chunks of a slice. */
#define SU_CROWD_PORTS 2048
struct su_crowd_key {
	struct su_addr remote;
	__u32 slice;
	__be16 remote_port;
	__u8 proto;
	__u8 chunk;		/* (port - slice.first) / SU_CROWD_PORTS */
};
_Static_assert(sizeof(struct su_crowd_key) == 24, "su_crowd_key");

struct su_crowd {
	__u64 full_socket_ns;	/* verified full until then, boot clock: for sockets, which may reuse LINGER */
	__u64 full_packet_ns;	/* the same for everybody else */
	__u64 refused;		/* asked for in vain */
	__u64 taken[SU_CROWD_PORTS / 64];	/* believed taken; checked before it is believed full */
};
_Static_assert(sizeof(struct su_crowd) == 280, "su_crowd");

/*
 * Key of `frags` (LRU): a datagram that comes in fragments (RFC 791 section 3.2). IPv6 has no protocol in it, as the
 * fragments of one may name different ones (RFC 8200 section 4.5): 0.
 */
struct su_frag_key {
	struct su_addr src;
	struct su_addr dst;
	__be32 id;		/* IPv4's 16 bits as read, zero-extended */
	__u32 entry;		/* where it came in: on-ramp id, SU_FRAG_INTERNET or SU_FRAG_STACK */
	__u8 proto;
	__u8 pad[3];
};
_Static_assert(sizeof(struct su_frag_key) == 44, "su_frag_key");
#define SU_FRAG_INTERNET 0
#define SU_FRAG_STACK 0xffffffffu

/* Value of `frags`: what its first fragment said, which the later ones do not; believed for SU_FRAG_NS. */
#define SU_FRAG_NS 5000000000
struct su_frag {
	__u64 learned_ns;	/* boot clock */
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad;
	__u16 flags;		/* enum su_pkt_flag: which kind of echo */
	__u32 check;		/* hash of the key: a recycled element shows */
	__u32 pad2;
};
_Static_assert(sizeof(struct su_frag) == 24, "su_frag");

/* Value of `uplinks` (array). */
enum su_uplink_flag {
	SU_UPLINK_ONE_HOP = 1,	/* all IPv4 that leaves a slice by it goes to one gateway */
	SU_UPLINK_XDP = 2,	/* steered at XDP, with tc behind */
	SU_UPLINK_XMIT = 4,	/* its driver sends what XDP redirects to it */
};

struct su_uplink {
	__u32 ifindex;		/* 0: unused */
	__u32 mtu;		/* of the device, bytes, Ethernet header not counted */
	__u32 flags;		/* enum su_uplink_flag */
	__u32 below;		/* ifindex of the device that a VLAN device sends by, 0: it is none */
};
_Static_assert(sizeof(struct su_uplink) == 16, "su_uplink");

/*
 * Value of `hops` (array by ifindex % SU_HOPS): the Ethernet header that leads to an uplink's one gateway. The guard
 * learns it from a packet that went by the kernel's neighbour table, and it is believed for SU_HOP_NS.
 */
#define SU_HOPS 16
#define SU_HOP_NS 1000000000
struct su_hop {
	__u64 learned_ns;	/* boot clock */
	__u32 ifindex;
	__u32 wanted;		/* ifindex of whoever asks to learn it, 0: nobody */
	__u32 mac[3];		/* destination and source, as on the wire */
	__u32 pad;
};
_Static_assert(sizeof(struct su_hop) == 32, "su_hop");

/* Value of `control` (array of one): what changes while programs run. */
struct su_control {
	__u32 ready;		/* 0: living sockets not yet adopted, fish claims nothing */
	__u32 policies;		/* entries in `cgroups`; 0: hooks need not look */
	__u64 hand;		/* clock hand, index in `slots` modulo its size */
	__u32 probe_flags;	/* what probes are answered with, enum su_probe_flag */
	__u32 pad;
};
_Static_assert(sizeof(struct su_control) == 24, "su_control");

/* What the loader writes into .rodata.settings of every object. Seconds unless named otherwise. */
struct su_settings {
	__u64 netns_cookie;	/* hooks are concerned with this namespace only */
	__u64 full_ns;		/* how long "full" is remembered for a chunk */
	struct su_addr underlay4;	/* this node's; the only one it has stands in both places */
	struct su_addr underlay6;
	__u32 node;		/* index in `nodes` */
	__u32 mark;		/* our packets carry mark & mask == mark until they leave */
	__u32 mask;
	__u32 slots;		/* entries of `slots`, a power of two */
	__u32 tcp_transitory_s;	/* RFC 5382 section 5: 240 */
	__u32 tcp_established_s;	/* RFC 5382 section 5: 7440 */
	__u32 tcp_linger_s;	/* a forwarded connection that ended, RFC 7857 section 2.2: 240 */
	__u32 sock_linger_s;	/* a socket that ended, for packets (TIME_WAIT): 60 */
	__u32 sock_reuse_s;	/* the same, for sockets with timestamps: 1 */
	__u32 udp_s;		/* RFC 4787 section 4.3: 300 */
	__u32 icmp_s;		/* RFC 5508 section 3.2: 60 */
	__be16 gue_port;	/* 6080 */
	__u8 answer_ping;	/* a ping to a slice's address is answered where it arrives */
	__u8 pad;
	__u32 site;		/* this node's, index in `sites` */
	__u32 pad2;
};
_Static_assert(sizeof(struct su_settings) == 104, "su_settings");

/*
 * GUE variant 0, draft-ietf-intarea-gue-09 section 3: 4 bytes, no optional fields, behind UDP.
 * FINAL is ours alone: the receiver must own the packet or drop it. Nodes only accept known peers.
 */
#define SU_GUE_PORT 6080
#define SU_GUE_FINAL 0x0002	/* in flags, host order */
struct su_gue {
	__u8 version_c_hlen;	/* 0 */
	__u8 proto;		/* 4 (IPv4) or 41 (IPv6) */
	__be16 flags;
};
_Static_assert(sizeof(struct su_gue) == 4, "su_gue");

/*
 * A probe between nodes, to the port of the tunnel: GUE variant 0 with the C bit (a control message, section 3.2). Only
 * known peers are answered, and by the data plane: addresses and ports swapped, type REPLY, flags from `control`. So it
 * is the programs that live or do not, whatever the agent does.
 */
#define SU_GUE_CONTROL 0x20	/* version_c_hlen of a probe */
enum su_probe_type {
	SU_PROBE_TYPE_ASK = 1,
	SU_PROBE_TYPE_REPLY = 2,	/* goes up to the stack: the prober's socket */
};
enum su_probe_flag {
	SU_PROBE_FIT = 1,	/* in a reply: this node steers and wants to be asked */
};
struct su_probe {
	__u8 version_c_hlen;	/* SU_GUE_CONTROL */
	__u8 type;		/* enum su_probe_type */
	__be16 flags;		/* enum su_probe_flag */
	__be32 sequence;	/* echoed */
};
_Static_assert(sizeof(struct su_probe) == 8, "su_probe");

/*
 * Drop reasons. Helpers return 0 or -SU_DROP_x; one exit function a program counts. The comment says
 * what it means to an operator; `softunicast drops` shows it.
 */
enum su_drop {
	SU_DROP_NONE = 0,
	SU_DROP_NO_CLAIM = 1,		/* inbound to a slice, nobody claims it: a late answer or a scan */
	SU_DROP_NO_OWNER = 2,		/* inbound to an address of the fleet, a port that nobody holds */
	SU_DROP_STRANGER = 3,		/* encapsulated, from an address that is no node of the fleet */
	SU_DROP_GUE_MALFORMED = 4,	/* encapsulated, but not as we speak it */
	SU_DROP_INNER_NOT_SLICE = 5,	/* encapsulated, its destination is no slice of the fleet */
	SU_DROP_INNER_INTERNAL = 6,	/* encapsulated or answered from an address that is internal */
	SU_DROP_FINAL_NOT_MINE = 7,	/* carried here as final, but the slice is not ours: tables differ */
	SU_DROP_TTL = 8,		/* time to live used up while being carried */
	SU_DROP_SPOOFED = 9,		/* a client's source is not among its on-ramp's */
	SU_DROP_MALFORMED = 10,		/* too short, or headers that contradict themselves */
	SU_DROP_FRAGMENT = 11,		/* a first fragment without ports, or a later one whose flow has no claim */
	SU_DROP_PROTOCOL = 12,		/* from a client, a protocol without ports */
	SU_DROP_SLICE_FULL = 13,	/* no port left towards that destination */
	SU_DROP_TABLE_FULL = 14,	/* `flows` is full */
	SU_DROP_CLAIM_ERROR = 15,	/* the kernel refused the claim for another reason */
	SU_DROP_NO_SLICE = 16,		/* the pool has no live slice on this node for that family */
	SU_DROP_NOT_READY = 17,		/* the agent has not adopted the living sockets yet */
	SU_DROP_GUARD_NO_CLAIM = 18,	/* leaving from a slice's address without a claim */
	SU_DROP_GUARD_FOREIGN = 19,	/* leaving from a slice's address, the flow is somebody else's */
	SU_DROP_GUARD_DEVICE = 20,	/* leaving from a slice's address by a device that is no uplink */
	SU_DROP_GUARD_LEAK = 21,	/* of a socket with a policy, but from the node's own address */
	SU_DROP_TO_FLEET = 22,		/* from inside to an address of the fleet, and not to be hairpinned */
	SU_DROP_NOT_INITIAL = 23,	/* from a client, of no flow, and cannot begin one (TCP without SYN) */
	SU_DROP_ERROR_UNKNOWN = 24,	/* an ICMP error that quotes no flow of ours */
	SU_DROP_TOO_BIG = 25,		/* does not fit the tunnel, a client's packet the uplink, an answer the on-ramp (its sender is told) */
	SU_DROP_ENCAP = 26,		/* the kernel refused to add or remove headers */
	SU_DROP_ONRAMP = 27,		/* the on-ramp is gone or not configured */
	SU_DROP_HOPS = 28,		/* a client's time to live ran out here (it is told) */
	SU_DROP_INBOUND_NEW = 29,	/* inbound, would begin a flow on a claim that allows none (a SYN to a client) */
	SU_DROP_ECN = 30,		/* congestion marked in the tunnel on a packet that cannot say so (RFC 6040) */
	SU_DROP_SITE_DOWN = 31,		/* for another site, none of whose nodes answers */
	SU_DROP_FRAGMENT_EARLY = 32,	/* a later fragment, and its first one, which has the ports, has not been here */
	SU_DROP_FILTERED = 38,		/* inbound to a client's mapping, from a remote that it did not send to */
	SU_DROP_QUOTA_FLOWS = 34,	/* from a client whose on-ramp holds as many flows as it may */
	SU_DROP_QUOTA_NEW = 35,		/* from a client whose on-ramp began as many flows this second as it may */
	SU_DROP_TERMINUS = 36,		/* TCP of a terminated on-ramp, and there is nowhere to end it (yet) */
	SU_DROP_MAX = 48,
};

/* Counters. */
enum su_counter {
	SU_COUNT_CLAIM_SOCKET = 0,	/* claims made by sockets */
	SU_COUNT_CLAIM_PACKET = 1,	/* claims made by forwarded packets */
	SU_COUNT_CLAIM_LOCAL = 2,	/* claims made by local packets that no hook saw */
	SU_COUNT_CLAIM_EXISTS = 3,	/* a port tried was taken (EEXIST) */
	SU_COUNT_CLAIM_TABLE_FULL = 4,	/* `flows` full (E2BIG) */
	SU_COUNT_CLAIM_ERROR = 5,	/* another error of the map */
	SU_COUNT_KERNEL_BUSY = 6,	/* a port tried was taken in the kernel's own tables */
	SU_COUNT_STOLEN = 7,		/* expired claims taken over */
	SU_COUNT_REAPED = 8,		/* expired claims removed by the clock hand or a sweep */
	SU_COUNT_RELEASED = 9,		/* claims removed by their owner */
	SU_COUNT_LINGER = 10,		/* claims whose flow ended */
	SU_COUNT_REFUSED_SOCKET = 11,	/* connects and binds refused with an errno */
	SU_COUNT_REFUSED_PACKET = 12,	/* new forwarded flows refused */
	SU_COUNT_OUT_PACKETS = 13,	/* forwarded out of a slice */
	SU_COUNT_OUT_BYTES = 14,	/* the same in bytes, IP headers counted */
	SU_COUNT_IN_PACKETS = 15,	/* answers forwarded to an on-ramp */
	SU_COUNT_IN_BYTES = 16,	/* the same in bytes, IP headers counted */
	SU_COUNT_SOCKET_IN = 17,	/* answers given to the stack for a socket */
	SU_COUNT_LOCAL_OUT = 18,	/* local packets rewritten */
	SU_COUNT_LOCAL_IN = 19,	/* answers rewritten back for the stack */
	SU_COUNT_CARRIED_OUT = 20,	/* answers for another node, encapsulated */
	SU_COUNT_CARRIED_IN = 21,	/* answers that another node carried here */
	SU_COUNT_RST_SENT = 22,		/* RST to a client: slice full */
	SU_COUNT_ICMP_SENT = 23,	/* ICMP errors to a client */
	SU_COUNT_ECHO_ANSWERED = 24,	/* pings to a slice's address, answered */
	SU_COUNT_GUARD_PASSED = 25,	/* slice-sourced local packets that the guard let go */
	SU_COUNT_CROWDED = 26,		/* destinations that proved crowded */
	SU_COUNT_VERIFIED_FULL = 27,	/* exact searches that found nothing */
	SU_COUNT_STALE_ORIGIN = 28,	/* hints that no longer held */
	SU_COUNT_ADOPTED = 29,		/* living sockets claimed at start */
	SU_COUNT_PROBE_ANSWERED = 30,	/* probes of other nodes answered */
	SU_COUNT_FRAGMENTS = 31,	/* fragments whose ports were known, first ones too */
	SU_COUNT_HAIRPINNED = 34,	/* client's packets to a mapping of the fleet, turned round here */
	SU_COUNT_MSS_CLAMPED = 35,	/* SYNs whose MSS was lowered */
	SU_COUNT_TERMINATED_OUT = 36,	/* clients' packets handed to where their TCP ends */
	SU_COUNT_TERMINATED_IN = 37,	/* packets from there to clients */
	SU_COUNT_MAX = 48,
};

/* Value of `stats` (per-CPU array of one). */
struct su_stats {
	__u64 drops[SU_DROP_MAX];
	__u64 counters[SU_COUNT_MAX];
};
_Static_assert(sizeof(struct su_stats) == 768, "su_stats");

/* Value of `last_drops` (array by reason): the last packet that met it. */
struct su_last_drop {
	__u64 boot_ns;
	struct su_flow flow;
};
_Static_assert(sizeof(struct su_last_drop) == 48, "su_last_drop");

/* Context of the syscall programs `release` and `sweep` (claim.bpf.c). */
struct su_release_args {
	struct su_flow flow;
	__u64 word;		/* the claim is touched only while its word is this */
	__u64 owner;
	__u32 linger;		/* 1: turn into LINGER, 0: delete */
	__s32 result;		/* 0, or -errno (-ENOENT, -EAGAIN) */
};
_Static_assert(sizeof(struct su_release_args) == 64, "su_release_args");

struct su_sweep_args {
	__u64 seen;
	__u64 reaped;
};
_Static_assert(sizeof(struct su_sweep_args) == 16, "su_sweep_args");

#endif /* SU_ABI_H */
