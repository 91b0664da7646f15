# SPDX-License-Identifier: Apache-2.0
"""Devices, default routes and rules as values: what kernel.netlink reads and writes, and the agent compares. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

TABLE: Final = 1717
"""Routing table and rule priority for packets from slice addresses; everything in that table is the
agent's."""

ARPHRD_ETHER: Final = 1


@dataclass(frozen=True, slots=True)
class Device:
    """A network device of this namespace. `arphrd`: /sys/class/net/*/type; `mtu` in bytes without link header; `up`:
    administratively, and its carrier too; `below`: of a VLAN device, the ifindex of the one it sends by, else 0;
    `alias`: what somebody wrote on it."""

    name: str
    ifindex: int
    mtu: int
    arphrd: int = ARPHRD_ETHER
    addresses: tuple[str, ...] = ()
    up: bool = True
    below: int = 0
    alias: str = ""

    @property
    def ethernet(self) -> bool:
        """Frames have an Ethernet header; otherwise (tun, WireGuard) they begin with IP."""
        return self.arphrd == ARPHRD_ETHER


@dataclass(frozen=True, slots=True, order=True)
class Rule:
    """`ip rule`: packets from a slice's address look only in TABLE. `source` is an address without length."""

    version: int
    source: str
    table: int = TABLE
    priority: int = TABLE

    def __str__(self) -> str:
        return f"ip -{self.version} rule from {self.source} lookup {self.table} priority {self.priority}"


@dataclass(frozen=True, slots=True, order=True)
class NextHop:
    """`gateway` empty: on the link itself."""

    ifindex: int
    gateway: str
    device: str = field(default="", compare=False)

    def __str__(self) -> str:
        via = f"via {self.gateway} " if self.gateway else ""
        return f"{via}dev {self.device or self.ifindex}"


Option = tuple[str, int | str]
"""What a route says of its path (RTA_METRICS): a name of iproute2's, like mtu or advmss, and its value; `lock` is the
set of those (1 << number) that path MTU discovery and TCP must not change."""


@dataclass(frozen=True, slots=True, order=True)
class Route:
    """A default route in TABLE; without hops: `unreachable`. Its identity is (version, metric)."""

    version: int
    metric: int
    hops: tuple[NextHop, ...] = ()
    table: int = TABLE
    options: tuple[Option, ...] = ()

    def __str__(self) -> str:
        target = " ".join(f"nexthop {hop}" for hop in self.hops) if len(self.hops) > 1 else ""
        if len(self.hops) == 1:
            target = str(self.hops[0])
        kind = "" if self.hops else "unreachable "
        parts = (
            f"ip -{self.version} route {kind}default",
            target,
            f"table {self.table} metric {self.metric}",
            *(f"{name} {value}" for name, value in self.options),
        )
        return " ".join(part for part in parts if part)


@dataclass(frozen=True, slots=True)
class DefaultRoute:
    """A default route of the main table."""

    version: int
    metric: int
    hops: tuple[NextHop, ...]
    options: tuple[Option, ...] = ()
