/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * abi_types.c - makes every type of abi.h appear in BTF, for tools/gen_abi.py. No part of the data plane.
 *
 * Compilers leave out of BTF what nothing uses; a variable of each type is a use. A type that is missing
 * here is missing in the codec, and tests/unit/test_abi_generated.py compares this list with abi.h.
 */
#include "abi.h"

struct su_flow flow;
struct su_slot slot;
enum su_kind kind;
enum su_state state;
enum su_tcp_seen tcp_seen;
struct su_claim claim;
struct su_origin_key origin_key;
struct su_origin origin;
enum su_slice_flag slice_flag;
struct su_slice slice;
struct su_pool pool;
enum su_policy_flag policy_flag;
struct su_policy policy;
enum su_sock_flag sock_flag;
struct su_sock sock;
enum su_onramp_flag onramp_flag;
struct su_onramp onramp;
struct su_permit permit;
struct su_use use;
struct su_tenant tenant;
struct su_address address;
struct su_owner owner;
struct su_site site;
enum su_node_flag node_flag;
struct su_node node;
enum su_list list;
struct su_prefix prefix;
struct su_crowd_key crowd_key;
struct su_crowd crowd;
struct su_frag_key frag_key;
struct su_frag frag;
enum su_uplink_flag uplink_flag;
struct su_uplink uplink;
struct su_hop hop;
struct su_control control;
struct su_settings settings;
struct su_gue gue;
enum su_probe_type probe_type;
enum su_probe_flag probe_flag;
struct su_probe probe;
enum su_drop drop;
enum su_counter counter;
struct su_stats stats;
struct su_last_drop last_drop;
struct su_release_args release_args;
struct su_sweep_args sweep_args;
