# SPDX-License-Identifier: Apache-2.0
"""What the agent puts into the kernel, as values: the common words of desired and observed state.

Every type here is frozen and comparable, so that `diff` is a comparison of two `Resources` and nothing else.
None of them touches the machine.

Links are named by role and ifindex (`guard-3`), never by the device's name: bpffs refuses dots in names and
devices are renamed while they live.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from softunicast.agent.terminus import Terminus
from softunicast.kernel.routing import Route, Rule

NFT_TABLE: Final = "softunicast"


class Hook(enum.Enum):
    """Where a program is attached. The value is what an operator reads."""

    INGRESS = "tc ingress"
    EGRESS = "tc egress"
    CGROUP = "cgroup"
    XDP = "XDP"
    XDP_GENERIC = "generic XDP"

    @property
    def xdp(self) -> bool:
        """One of the two ways before tc."""
        return self in (Hook.XDP, Hook.XDP_GENERIC)


@dataclass(frozen=True, slots=True)
class Attachment:
    """A program at a hook: `name` is the link's pin. For CGROUP ifindex is 0 and device empty."""

    name: str
    program: str
    hook: Hook
    device: str = ""
    ifindex: int = 0

    def __str__(self) -> str:
        if self.hook is Hook.CGROUP:
            return f"{self.program} at the root cgroup"
        device = self.device or "a device that is gone"
        return f"{self.program} at {self.hook.value} of {device} ({self.ifindex})"


@dataclass(frozen=True, slots=True)
class Notrack:
    """The nft table: addresses whose packets conntrack must not see. Empty sets are fine."""

    v4: frozenset[str] = frozenset()
    v6: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Build:
    """What the loaded programs are: equal hash, equal programs."""

    hash: str
    abi_version: int
    settings: bytes = field(repr=False, default=b"")
    map_sizes: Mapping[str, int] = field(default_factory=dict)


Tables = Mapping[str, Mapping[bytes, bytes]]
"""Contents of maps, by map name."""


@dataclass(frozen=True, slots=True)
class Resources:
    """Everything outside the maps that the agent owns in one namespace, as wanted or as found.

    `links` by pin name; `addresses` are on lo, with prefix length; `sysctls` by path below /proc/sys, and
    only those the agent cares about; `notrack` None: no such table; `files` by name in the run folder;
    `tables` the maps' contents, where an array's element that is all zeros is left out; `termini`: where TCP ends.
    """

    tables: Tables = field(default_factory=dict)
    links: Mapping[str, Attachment] = field(default_factory=dict)
    addresses: frozenset[str] = frozenset()
    rules: frozenset[Rule] = frozenset()
    routes: frozenset[Route] = frozenset()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    notrack: Notrack | None = None
    files: Mapping[str, str] = field(default_factory=dict)
    termini: frozenset[Terminus] = frozenset()
