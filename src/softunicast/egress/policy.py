# SPDX-License-Identifier: Apache-2.0
"""Policies of programs: which slices the sockets of a cgroup use.

A policy is a `su_policy` in the map `cgroups`, by cgroup id. The hooks look there when a socket is created
(the current cgroup, then its ancestors) and copy it onto the socket, which keeps it for life. While
`control.policies` is 0 they do not look at all; it is raised here, by the program `su_recount`, and lowered
by the agent's sweep.

What a person says (a pool, perhaps a part of a slice) is resolved against what the node holds *now*: the
tables in node.json, which the maps were filled from. Pure but for `CgroupPolicies`.
"""

from __future__ import annotations

import difflib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from softunicast.errors import KernelError, UsageError
from softunicast.kernel import abi, nodes
from softunicast.kernel.programs import Program
from softunicast.model.slice import Slice

CGROUP_KEY: Final = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class HeldSlice:
    """A slice this node holds: `index` is its place in the map `slices`."""

    index: int
    slice: Slice
    pool: str


@dataclass(frozen=True, slots=True)
class SlicePart:
    """What to stay in: an address, and inclusive ports of it (0-65535: all that is held there)."""

    address: IPv4Address | IPv6Address
    first: int = 0
    last: int = 65535

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return host if (self.first, self.last) == (0, 65535) else f"{host}:{self.first}-{self.last}"


def resolve(
    node: str, pools: Mapping[str, int], held: Sequence[HeldSlice], pool: str, part: SlicePart | None = None
) -> abi.Policy:
    """The policy of `pool`, or of one part of one slice of it, on this node.

    `pools` are all pools by name and index, `held` this node's slices. UsageError when there is no such pool,
    the node holds nothing of it, or `part` is not within one slice that it holds there.
    """
    if pool not in pools:
        near = difflib.get_close_matches(pool, pools, n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(pools)) or 'none'}"
        raise UsageError(f"pool {pool}: not in the plan of node {node}; {hint}")
    mine = [one for one in held if one.pool == pool]
    if not mine:
        raise UsageError(f"pool {pool}: node {node} holds no slice of it; `softunicast plan apply` gives it one")
    policy = abi.Policy(flags=abi.PolicyFlag.SET, pool=pools[pool])
    if part is None:
        return policy
    for one in mine:
        whole = one.slice
        if whole.address != part.address:
            continue
        first, last = part.first, part.last
        if (first, last) == (0, 65535):
            first, last = whole.first, whole.last
        if whole.first <= first and last <= whole.last:
            flags = abi.PolicyFlag.SET | abi.PolicyFlag.RANGE
            return abi.Policy(flags=flags, pool=pools[pool], slice=one.index, first=first, last=last)
    holds = ", ".join(str(one.slice) for one in mine)
    raise UsageError(f"slice {part}: node {node} does not hold it in pool {pool}; it holds {holds}")


class CgroupPolicies:
    """The policies of a node's cgroups, in the kernel."""

    def __init__(self, node: str) -> None:
        """UsageError when the node has no maps: its agent never ran here."""
        self._node = node
        self._maps = nodes.open_maps(node)

    def put(self, cgroup_id: int, policy: abi.Policy) -> None:
        """Sockets created in that cgroup from now on follow `policy`. KernelError; then they do not."""
        try:
            self._maps["cgroups"].update(CGROUP_KEY.pack(cgroup_id), policy.pack())
        except OSError as error:
            raise KernelError(f"policy of cgroup {cgroup_id}: {error.strerror}", errno=error.errno or 0) from error
        try:
            with Program.open_pinned(nodes.program_pin(self._node, "su_recount")) as program:
                program.test_run()
        except BaseException:
            self.drop(cgroup_id)
            raise

    def drop(self, cgroup_id: int) -> bool:
        """Forget the policy of a cgroup; False when it had none. Sockets that have it keep it."""
        return self._maps["cgroups"].delete(CGROUP_KEY.pack(cgroup_id))

    def close(self) -> None:
        """Give the descriptors back."""
        self._maps.close()
