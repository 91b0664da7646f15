# SPDX-License-Identifier: Apache-2.0
"""The four ways into a slice, and which of them is to be had.

    tag     root: the policy is written on the socket (egress.tag); the hooks choose among all slices of the pool
    agent   the node's agent does that for whoever it lets (api: `tag`); a message there and back a socket
    bind    anybody: bound to the slice's address by ourselves; the hooks choose the port and claim
    range   no hooks: bound likewise; the kernel chooses, and only sockets bound likewise keep out of the way

Chosen in that order of preference: tag, bind, range. `agent` is preferred to `bind` only for UDP sockets that never
connect, since a policy alone serves those towards every remote; else whoever wants it says so: it costs several times a
connect(), and waits while the agent reconciles (docs/adr/0012).
"""

from __future__ import annotations

import os
import socket
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING, Final

from softunicast.dial import ports
from softunicast.dial.choice import Choice, Holdings, Lane, pools_of
from softunicast.errors import KernelError
from softunicast.kernel import nodes

if TYPE_CHECKING:
    from softunicast.kernel import abi
    from softunicast.kernel.maps import Map

SURE_S: Final = 1.0
"""For how long what was found out about an address (hooks, the kernel's range) is believed."""


class Way(Enum):
    TAG = "tag"
    AGENT = "agent"
    BIND = "bind"
    RANGE = "range"


AskAgent = Callable[[str, socket.socket, Mapping[str, object]], None]
"""Node, socket, and what to ask (`pool`, `slice`, `client`): the agent's socket, which is above us."""


def policies(choice: Choice, held: Holdings, lanes: tuple[Lane, ...]) -> list[tuple[abi.Policy, tuple[Lane, ...]]]:
    """Policies to try one after the other, each with the lanes it covers: one a pool, that of the first lane first."""
    from softunicast.egress.policy import HeldSlice, SlicePart, resolve

    slices = [HeldSlice(one.index, one.slice, one.pool) for one in held.slices]
    wanted = choice.slice
    part = None if wanted is None else SlicePart(wanted.address, wanted.first, wanted.last)
    result = []
    for pool in dict.fromkeys(lane.pool for lane in lanes) or pools_of(choice, held):
        policy = replace(resolve(held.node, held.pools, slices, pool, part), client=choice.client)
        result.append((policy, tuple(lane for lane in lanes if lane.pool == pool)))
    return result


@dataclass(slots=True)
class _Known:
    at_s: float
    hooks: bool
    style: ports.Style


class Grounds:
    """What is found out about this process and node: may it tag, are there hooks, which style is safe.

    For several threads without a lock: what belongs together is one tuple, assigned at once.
    """

    def __init__(self, node: str | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.node = node
        self._clock = clock
        self._socks: tuple[int, Map | None] | None = None
        self._option: bool | None = None
        self._known: dict[Lane, _Known] = {}

    def socks(self, changes: int) -> Map | None:
        """The storage of sockets, when this process may write it; opened again when the node changed."""
        if self.node is None:
            return None
        known = self._socks
        if known is None or known[0] != changes:
            known = self._socks = (changes, self._open_socks(self.node))
        return known[1]

    @staticmethod
    def _open_socks(node: str) -> Map | None:
        from softunicast.kernel.maps import Map

        try:
            opened = Map.open_pinned(nodes.map_pin(node, "socks"))
        except (OSError, KernelError):
            return None
        # Another thread may be using the one before: it is closed when nobody has it any more.
        weakref.finalize(opened, os.close, opened.fd)
        return opened

    @property
    def option(self) -> bool:
        if self._option is None:
            self._option = ports.range_option()
        return self._option

    def about(self, lane: Lane, held: Holdings) -> tuple[bool, ports.Style]:
        """Whether hooks guard that lane, and the style to use. KernelError: its address is not this machine's."""
        now = self._clock()
        known = self._known.get(lane)
        if known is None or now - known.at_s > SURE_S:
            address = lane.slice.address
            try:
                hooks = ports.hooks_at_work(str(address), address.version, (one.slice for one in held.slices))
            except OSError as error:
                raise KernelError(
                    f"{address}: not this machine's ({error.strerror}); start the node's agent, or add it to lo",
                    errno=error.errno or 0,
                ) from error
            known = _Known(now, hooks, ports.style_for(lane.slice, hooks=hooks, option=self.option))
            self._known[lane] = known
        return known.hooks, known.style

    def close(self) -> None:
        self._socks = None
