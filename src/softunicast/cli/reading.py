# SPDX-License-Identifier: Apache-2.0
"""What the verbs that only read have in common: which node, its maps, names and timers, and the clock.

Nothing is changed: maps are opened by their pins, names and the programs' constants come from the agent's node.json.
A node whose agent is not running reads as well as one whose is. Only who asks for the plan pays for reading it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from softunicast.agent import state
from softunicast.agent.state import NodeState
from softunicast.egress.flow_view import Names
from softunicast.errors import KernelError
from softunicast.kernel import abi, nodes
from softunicast.kernel.nodes import NodeMaps

if TYPE_CHECKING:
    from softunicast.model.plan import Plan


@dataclass(frozen=True)
class Reading:
    """An opened node; `state` as the agent last wrote it."""

    node: str
    maps: NodeMaps
    state: NodeState

    @cached_property
    def plan(self) -> Plan:
        """The agent's copy of the plan. KernelError when it is gone."""
        # What reads a plan takes 0.2 s to import: too much for `flows` and `slices`, which do without.
        from softunicast.model.plan import load_plan

        file = nodes.plan_file(self.node)
        try:
            text = file.read_text(encoding="utf-8")
        except OSError as error:
            raise KernelError(f"{file}: {error.strerror}; start the node's agent again") from error
        return load_plan(text, str(file))

    @cached_property
    def settings(self) -> abi.Settings:
        """The constants of the programs that run, timers among them. KernelError while the first start is under way."""
        raw = bytes.fromhex(self.state.settings)
        if len(raw) != abi.Settings.SIZE:
            raise KernelError(f"node {self.node}: its agent has not completed a start yet; see its log")
        return abi.Settings.unpack(raw)

    @property
    def names(self) -> Names:
        return names_of(self.state)

    def now_ns(self) -> int:
        """The boot clock, which the data plane's times are of."""
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def now_s(self) -> int:
        return self.now_ns() // 1_000_000_000


def names_of(node: NodeState) -> Names:
    """Names by the indices in the maps."""
    return Names(
        node=node.node,
        nodes={index: name for name, index in node.places.nodes.items()},
        sites={index: name for name, index in node.places.sites.items()},
        pools={index: name for name, index in node.pools.items()},
        onramps={onramp.id: name for name, onramp in node.onramps.items()},
    )


@contextmanager
def reading(name: str | None) -> Iterator[Reading]:
    """The node named, or the one of this network namespace. UsageError when there is none here."""
    node = nodes.find_node(name)
    held = state.load(nodes.node_file(node))
    if held is None:
        raise KernelError(f"node {node}: {nodes.node_file(node)} went away; was the node just uninstalled?")
    with nodes.open_maps(node) as maps:
        yield Reading(node, maps, held)
