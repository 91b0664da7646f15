/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * claim.bpf.c - sockets claim their flows.
 *
 * The programs hang on the root cgroup, where nobody escapes them, and return at once for other namespaces than
 * settings.netns_cookie's. Who decides what: hooks.h (connect, sendmsg), bind.h (bind), sock.h (what a socket carries),
 * arbiter.h (which port). This file is the entries, and when a socket's claim ends:
 *
 *   what happens                               events                                   the claim
 *   close(), exit, kill -9                     release (not CLOSE), STATE ... CLOSE      LINGER: TIME_WAIT answers
 *   linger 0, unread data (RST)                release, STATE -> CLOSE                   LINGER: the RST leaves
 *   refused, timed out, closed in SYN_SENT     STATE SYN_SENT -> CLOSE                   deleted
 *   connect() failed before any SYN            release (CLOSE)                           deleted
 *   fast open deferred, nothing ever sent      release (SYN_SENT), no sock_ops before    deleted
 *   adopted, sock_ops cannot be asked          release                                   LINGER
 *   UDP                                        release                                   deleted; late answers are dropped
 *   connect() again                            connect                                   moves: the new one first
 *   MPTCP subflow                              STATE; else the msk's release             as TCP
 *
 * LINGER holds the flow against others for settings.sock_linger_s after its last packet (sockets: sock_reuse_s).
 *
 * Sources: net/ipv4/af_inet.c (inet_create, inet_release, __inet_bind, __inet_stream_connect), net/ipv4/tcp.c
 * (tcp_set_state, tcp_close), net/ipv4/udp.c (udp_sendmsg, udp_pre_connect), kernel/bpf/cgroup.c.
 */
#include "adopt.h"
#include "bind.h"
#include "sweep.h"

char _license[] SEC("license") = "Dual BSD/GPL";

#define SU_GO_ON 1

static __always_inline bool su_elsewhere(void *ctx)
{
	return bpf_get_netns_cookie(ctx) != settings.netns_cookie;
}

/* A socket is born: it keeps the policy of the cgroup it is born in, wherever it goes. */
SEC("cgroup/sock_create")
int su_sock_create(struct bpf_sock *ctx)
{
	struct su_policy policy;
	struct su_sock *s;

	if (su_elsewhere(ctx) || !su_policy_current(&policy))
		return SU_GO_ON;
	s = bpf_sk_storage_get(&socks, ctx, NULL, BPF_SK_STORAGE_GET_F_CREATE);
	if (s)
		s->policy = policy;
	return SU_GO_ON;
}

SEC("cgroup/connect4")
int su_connect4(struct bpf_sock_addr *ctx)
{
	struct su_bid bid = {};
	int err;

	if (su_elsewhere(ctx))
		return SU_GO_ON;
	bid.want.flow.proto = ctx->protocol;
	bid.want.flow.remote_port = ctx->user_port;
	su_addr_v4(&bid.want.flow.remote, ctx->user_ip4);
	su_addr_v4(&bid.want.flow.local, ctx->sk->src_ip4);
	err = su_connect(ctx, &bid, ctx->sk->src_port);
	return err ? su_refuse(err) : SU_GO_ON;
}

SEC("cgroup/connect6")
int su_connect6(struct bpf_sock_addr *ctx)
{
	struct su_bid bid = {};
	int err;

	if (su_elsewhere(ctx))
		return SU_GO_ON;
	bid.want.flow.proto = ctx->protocol;
	bid.want.flow.remote_port = ctx->user_port;
	bid.want.flow.remote.w[0] = ctx->user_ip6[0];
	bid.want.flow.remote.w[1] = ctx->user_ip6[1];
	bid.want.flow.remote.w[2] = ctx->user_ip6[2];
	bid.want.flow.remote.w[3] = ctx->user_ip6[3];
	bid.want.flow.local.w[0] = ctx->sk->src_ip6[0];
	bid.want.flow.local.w[1] = ctx->sk->src_ip6[1];
	bid.want.flow.local.w[2] = ctx->sk->src_ip6[2];
	bid.want.flow.local.w[3] = ctx->sk->src_ip6[3];
	err = su_connect(ctx, &bid, ctx->sk->src_port);
	return err ? su_refuse(err) : SU_GO_ON;
}

SEC("cgroup/sendmsg4")
int su_sendmsg4(struct bpf_sock_addr *ctx)
{
	struct su_addr remote;
	int err;

	if (su_elsewhere(ctx))
		return SU_GO_ON;
	su_addr_v4(&remote, ctx->user_ip4);
	err = su_sendmsg(ctx, &remote);
	return err ? su_refuse(err) : SU_GO_ON;
}

SEC("cgroup/sendmsg6")
int su_sendmsg6(struct bpf_sock_addr *ctx)
{
	struct su_addr remote;
	int err;

	if (su_elsewhere(ctx))
		return SU_GO_ON;
	remote.w[0] = ctx->user_ip6[0];
	remote.w[1] = ctx->user_ip6[1];
	remote.w[2] = ctx->user_ip6[2];
	remote.w[3] = ctx->user_ip6[3];
	err = su_sendmsg(ctx, &remote);
	return err ? su_refuse(err) : SU_GO_ON;
}

SEC("cgroup/bind4")
int su_bind4(struct bpf_sock_addr *ctx)
{
	struct su_bid bid = {};
	int err;

	if (su_elsewhere(ctx))
		return SU_GO_ON;
	su_addr_v4(&bid.want.flow.local, ctx->user_ip4);
	err = su_bind(ctx, &bid);
	return err ? su_refuse(err) : SU_GO_ON;
}

SEC("cgroup/bind6")
int su_bind6(struct bpf_sock_addr *ctx)
{
	struct su_bid bid = {};
	int err;

	if (su_elsewhere(ctx))
		return SU_GO_ON;
	bid.want.flow.local.w[0] = ctx->user_ip6[0];
	bid.want.flow.local.w[1] = ctx->user_ip6[1];
	bid.want.flow.local.w[2] = ctx->user_ip6[2];
	bid.want.flow.local.w[3] = ctx->user_ip6[3];
	err = su_bind(ctx, &bid);
	return err ? su_refuse(err) : SU_GO_ON;
}

/* TCP tells about a connection that claimed: on its way, open, over. */
SEC("sockops")
int su_sockops(struct bpf_sock_ops *ctx)
{
	struct su_sock *s, *msk;
	struct bpf_sock *sk;

	if (ctx->op != BPF_SOCK_OPS_TCP_CONNECT_CB && ctx->op != BPF_SOCK_OPS_STATE_CB)
		return SU_GO_ON;
	if (su_elsewhere(ctx))
		return SU_GO_ON;
	sk = ctx->sk;
	if (!sk)
		return SU_GO_ON;
	s = bpf_sk_storage_get(&socks, sk, NULL, 0);
	if (!s || !(s->flags & SU_SOCK_CLAIMED))
		return SU_GO_ON;
	if (ctx->op == BPF_SOCK_OPS_TCP_CONNECT_CB) {
		if (bpf_sock_ops_cb_flags_set(ctx, ctx->bpf_sock_ops_cb_flags | BPF_SOCK_OPS_STATE_CB_FLAG))
			return SU_GO_ON;
		s->flags |= SU_SOCK_STATE_CB;
		msk = su_sock_of_msk(sk, 0);
		if (msk)
			msk->flags &= ~(__u32)SU_SOCK_CLAIMED;	/* the subflow's end is promised */
		return SU_GO_ON;
	}
	if (ctx->args[1] == SU_TCP_ESTABLISHED)
		su_sock_open(s);
	if (ctx->args[1] == SU_TCP_CLOSE) {
		s->flags &= ~(__u32)SU_SOCK_STATE_CB;
		if (ctx->args[0] == SU_TCP_SYN_SENT)
			su_sock_let_go(s);
		else	/* from these states without a TIME_WAIT: reset, or closed by the other side first */
			su_sock_linger(s, ctx->args[0] == SU_TCP_LAST_ACK || ctx->args[0] == SU_TCP_CLOSE_WAIT ||
						  ctx->args[0] == SU_TCP_ESTABLISHED);
	}
	return SU_GO_ON;
}

/* The last descriptor of a socket is closed. For TCP the end comes later, if sock_ops has promised to tell. */
SEC("cgroup/sock_release")
int su_sock_release(struct bpf_sock *ctx)
{
	struct su_sock *s;
	struct su_flow key;
	struct su_claim c;

	if (su_elsewhere(ctx))
		return SU_GO_ON;
	s = bpf_sk_storage_get(&socks, ctx, NULL, 0);
	if (!s || !(s->flags & SU_SOCK_CLAIMED))
		return SU_GO_ON;
	if (ctx->protocol != IPPROTO_TCP) {
		su_sock_let_go(s);
		return SU_GO_ON;
	}
	if (s->flags & SU_SOCK_STATE_CB)
		return SU_GO_ON;
	key = s->flow;
	if (su_claim_get(&key, &c) && su_word_state(c.word) == SU_STATE_NEW)
		su_sock_let_go(s);	/* never was on the wire */
	else
		su_sock_linger(s, false);	/* adopted */
	return SU_GO_ON;
}

/* Claims for the sockets that were there before the hooks: the agent runs these once before fish may claim. */
SEC("iter/tcp")
int su_adopt_tcp(struct bpf_iter__tcp *ctx)
{
	struct sock_common *sk = ctx->sk_common;

	if (sk)
		su_adopt(sk, sk, IPPROTO_TCP);
	return 0;
}

SEC("iter/udp")
int su_adopt_udp(struct bpf_iter__udp *ctx)
{
	struct udp_sock *sk = ctx->udp_sk;

	if (sk)
		su_adopt(&sk->inet.sk.__sk_common, sk, IPPROTO_UDP);
	return 0;
}

/* User space ends a claim (`softunicast flows`, the agent when an on-ramp goes): by the rules. */
SEC("syscall")
int su_release(struct su_release_args *args)
{
	struct su_flow flow = args->flow;

	args->result = su_release_one(&flow, args->word, args->owner, args->linger,
				      su_seconds(bpf_ktime_get_boot_ns()));
	return 0;
}

SEC("syscall")
int su_sweep(struct su_sweep_args *args)
{
	struct su_swept swept = { .now_s = su_seconds(bpf_ktime_get_boot_ns()) };

	su_sweep_all(&swept);
	args->seen = swept.seen;
	args->reaped = swept.reaped;
	return 0;
}

/* `softunicast run` put a policy into `cgroups`: hooks must look from now on. */
SEC("syscall")
int su_recount(void *ctx)
{
	return su_policies_raise();
}
