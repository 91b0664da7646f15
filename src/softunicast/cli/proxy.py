# SPDX-License-Identifier: Apache-2.0
"""`softunicast proxy`: SOCKS5 and HTTP in, sockets in slices out. docs/proxy.md is its manual."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from softunicast.agent import state
from softunicast.agent.logs import LogFormat, logger
from softunicast.agent.notify import notify
from softunicast.cli.arguments import log_format_option, node_option
from softunicast.egress.policy import HeldSlice, resolve
from softunicast.egress.tag import SocketPolicies, require_hooks
from softunicast.errors import UsageError
from softunicast.kernel import netns, nodes
from softunicast.model.plan import load_plan
from softunicast.model.slice import Slice
from softunicast.proxy.egress import Egress, PoolPolicy
from softunicast.proxy.master import Master
from softunicast.proxy.policy import ProxyConfig, User, read_policy


@click.command()
@click.option(
    "--policy",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Listeners, users and limits; every key is in docs/proxy.md.",
)
@node_option
@click.option("--check", is_flag=True, help="Check the policy against this node, say what it means, and leave.")
@log_format_option
def proxy(policy: Path, node: str | None, check: bool, log_format: LogFormat) -> None:
    """Serve SOCKS5 and HTTP clients from slices.

    Runs in the node's network namespace. HUP reads policy and program anew without breaking a connection.
    """
    config = read(policy)
    name = None
    if any(not user.direct for user in config.users.values()):
        name = the_node(node)
    tagger = SocketPolicies(name) if name else None
    egress = Egress(partial(pools_of, name) if name else lambda _: (), tagger)
    if check:
        click.echo(f"{policy}: {len(config.users)} users, {len(config.listeners)} listeners, {config.workers} workers")
        for user in config.users.values():
            click.echo(f"  {user.name}: {', '.join(way_of(user, egress)) or 'nothing on this node'}")
        return
    watched = nodes.node_file(name) if name else None
    Master(config, egress, watched, logger(log_format, **({"node": name} if name else {})), notify).run()


def read(path: Path) -> ProxyConfig:
    """The policy file. UsageError."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{path}: {os.strerror(error.errno or 0)}; name a policy file, see docs/proxy.md") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 ({error.reason}); save it as UTF-8") from error
    return read_policy(text, str(path))


def the_node(node: str | None) -> str:
    """The node that this process can serve from. UsageError: there is none, or it would not obey."""
    if os.geteuid() != 0:
        raise UsageError(
            "proxy: only root may put sockets under a pool's policy; use sudo, or `direct: true` users only"
        )
    name = nodes.find_node(node)
    if nodes.node_cookie(name) != netns.cookie():
        raise UsageError(f"proxy: node {name} lives in another network namespace; enter it first (nsenter --net=...)")
    require_hooks(name)
    return name


def pools_of(node: str, user: User) -> Sequence[PoolPolicy]:
    """A user's pools that a node holds slices of, now: of those named, or of all whose tags fit, by name.

    UsageError: a pool that is not in the plan, or the node holds nothing of any.
    """
    known = state.load(nodes.node_file(node))
    if known is None:
        raise UsageError(f"node {node}: not on this machine; start its agent")
    held = [HeldSlice(one.index, Slice.parse(one.slice), one.pool) for one in known.slices]
    mine = {one.pool for one in held}
    wanted = list(user.pools) or tagged(node, user)
    found = [
        PoolPolicy(
            pool,
            resolve(node, known.pools, held, pool),
            frozenset(str(one.slice.address) for one in held if one.pool == pool),
        )
        for pool in wanted
        if pool in mine or pool not in known.pools
    ]
    if not found:
        said = " ".join(f"{key}={value}" for key, value in user.tags.items())
        what = ", ".join(wanted) or f"any pool tagged {said}"
        raise UsageError(f"user {user.name}: node {node} holds no slice of {what}; see `softunicast slices`")
    return found


def tagged(node: str, user: User) -> list[str]:
    """Pools of the node's plan that have all of a user's tags."""
    file = nodes.plan_file(node)
    try:
        plan = load_plan(file.read_text(encoding="utf-8"), str(file))
    except FileNotFoundError as error:
        raise UsageError(f"{file}: there is none, and tags need it; start the node's agent") from error
    return sorted(pool.name for pool in plan.pools.values() if user.tags.items() <= pool.tags.items())


def way_of(user: User, egress: Egress) -> list[str]:
    """How a user leaves, for people."""
    if user.direct:
        return ["the node's own address"]
    return [f"pool {one.name}" for one in egress.pools(user)]
