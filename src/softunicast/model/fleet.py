# SPDX-License-Identifier: Apache-2.0
"""What a plan describes: prefixes, sites, nodes, on-ramps, pools, settings. model.plan reads and checks.

Indices used in the kernel's maps follow from sorted names, so that every node computes the same ones:
nodes 1.. over the fleet, sites 1.., pools 0... Those of on-ramps and tenants are a node's own (egress.numbers).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from softunicast.errors import UsageError
from softunicast.model.address import IPAddress, IPNetwork
from softunicast.model.slice import Slice, parts_of

DEFAULT_SLICE_PORTS: Final = 2048
DEFAULT_SLICE_PORTS6: Final = 65536
WILDCARD_PORTS: Final = 64
"""Slices smaller than this have no UDP ports for wildcard claims."""


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prefix that BGP carries, and the names of the sites that announce it."""

    network: IPNetwork
    announce: tuple[str, ...]


class MappingBehaviour(Enum):
    """How far an outer address and port of UDP depends on the remote (RFC 4787 section 4.1)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


class Filtering(Enum):
    """Whose packets come in by it (RFC 4787 section 5)."""

    ENDPOINT_INDEPENDENT = "endpoint-independent"
    ADDRESS_DEPENDENT = "address-dependent"
    ADDRESS_AND_PORT_DEPENDENT = "address-and-port-dependent"


class Strategy(Enum):
    """What becomes of an on-ramp's TCP; UDP and ICMP are always packets that are rewritten (`bpf`)."""

    BPF = "bpf"
    TERMINATE = "terminate"


class Handshake(Enum):
    """When a client's handshake is completed where its TCP is terminated: when the destination's is, or at once."""

    HELD = "held"
    EARLY = "early"


@dataclass(frozen=True, slots=True)
class Onramp:
    """Where inner packets come in. `slice` limits its flows; `sources` are its clients' networks.

    `mapping` and `filtering` are of UDP. `mss`: the largest in a SYN of IPv4, 20 less for IPv6; None: as it is.
    `max_flows` it may hold and `new_per_s` it may begin a second; 0: no limit.
    """

    name: str
    device: str
    pool: str
    sources: tuple[IPNetwork, ...]
    gateway4: IPv4Address | None = None
    gateway6: IPv6Address | None = None
    bypass: tuple[IPNetwork, ...] = ()
    tenant: str | None = None
    slice: Slice | None = None
    mapping: MappingBehaviour = MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT
    filtering: Filtering = Filtering.ADDRESS_AND_PORT_DEPENDENT
    mss: int | None = None
    max_flows: int = 0
    new_per_s: int = 0
    strategy: Strategy = Strategy.BPF
    handshake: Handshake = Handshake.HELD


AUTO: Final = "auto"
ATTACH: Final = (AUTO, "xdp", "xdp-generic", "tc")


@dataclass(frozen=True, slots=True)
class BirdSpeaker:
    """The node's BIRD. `control`: its socket; `include`: the file the agent writes, None: in the node's run folder.

    A draining node announces with `drain_med` and `drain_community` (the default: GRACEFUL_SHUTDOWN, RFC 8326) for
    `drain_settle_s` seconds before it withdraws.
    """

    control: str = "/run/bird/bird.ctl"
    include: str | None = None
    drain_med: int = 1000
    drain_community: str | None = "65535:0"
    drain_settle_s: float = 30


@dataclass(frozen=True, slots=True)
class Probes:
    """Every `interval_ms` a node asks each other one whether it lives; after `lost` questions without an answer it is
    down."""

    interval_ms: int = 300
    lost: int = 3


@dataclass(frozen=True, slots=True)
class Node:
    """A server. `underlays`: one address, or one of each family, the preferred one first. `uplinks` empty: the agent
    finds them by route. `weight`: its share of its pools, relative.

    `attach`: where steering begins, "auto", "xdp", "xdp-generic" or "tc", by device; "" stands for all others.
    """

    name: str
    site: str
    underlays: tuple[IPAddress, ...]
    uplinks: tuple[str, ...] = ()
    onramps: Mapping[str, Onramp] = field(default_factory=dict)
    bypass: tuple[IPNetwork, ...] = ()
    weight: int = 1
    bird: BirdSpeaker | None = None
    attach: Mapping[str, str] = field(default_factory=dict)

    @property
    def underlay(self) -> IPAddress:
        """The preferred one of its underlay addresses."""
        return self.underlays[0]

    def underlay_of(self, version: int) -> IPAddress | None:
        """Its underlay address of that family."""
        return next((address for address in self.underlays if address.version == version), None)

    def reached_at(self, other: Node) -> IPAddress | None:
        """The underlay address by which `other` reaches it: the first of a family that both have. None: there is none,
        and then no plan of the two is accepted."""
        return next((address for address in self.underlays if other.underlay_of(address.version) is not None), None)

    def attach_of(self, device: str) -> str:
        """Where steering begins on an uplink, as the plan says."""
        return self.attach.get(device, self.attach.get("", AUTO))


@dataclass(frozen=True, slots=True)
class Site:
    """A data centre."""

    name: str
    nodes: Mapping[str, Node]


@dataclass(frozen=True, slots=True)
class StaticSlice:
    """A slice that the plan itself gives to a node."""

    slice: Slice
    node: str


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses homed at one site. `addresses` are allocated in parts of 2^`shift` ports (IPv4) or 2^`shift6`
    (IPv6) to `nodes`; `slices` are given by the plan and their addresses are not in `addresses`.
    """

    name: str
    site: str
    nodes: tuple[str, ...]
    addresses: tuple[IPAddress, ...] = ()
    slice_ports: int | None = None
    slice_ports6: int | None = None
    shift: int = 0
    shift6: int = 0
    slices: tuple[StaticSlice, ...] = ()
    tags: Mapping[str, str] = field(default_factory=dict)

    def shift_of(self, address: IPAddress) -> int:
        """log2 of the ports in one part of one of `addresses`."""
        return self.shift if address.version == 4 else self.shift6

    def parts(self) -> tuple[Slice, ...]:
        """The allocatable slices, by address and port (not the static ones)."""
        return tuple(part for address in self.addresses for part in parts_of(address, self.shift_of(address)))

    @property
    def static_addresses(self) -> tuple[IPAddress, ...]:
        """The addresses of the static slices, each once, in the plan's order."""
        return tuple(dict.fromkeys(static.slice.address for static in self.slices))


@dataclass(frozen=True, slots=True)
class Timers:
    """Seconds. Defaults: RFC 5382 section 5, RFC 4787 section 4.3, RFC 5508 section 3.2."""

    tcp_transitory_s: int = 240
    tcp_established_s: int = 7440
    tcp_linger_s: int = 240
    sock_linger_s: int = 60
    sock_reuse_s: int = 1
    udp_s: int = 300
    icmp_s: int = 60


@dataclass(frozen=True, slots=True)
class Terminate:
    """Of terminated TCP. `connect_s`: a destination has so long to answer; `access_log`: a file, None: none."""

    connect_s: float = 130
    access_log: str | None = None


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of every node. `flows`: entries of the claims' table."""

    mark: int = 0x20000000
    mark_mask: int = 0x20000000
    gue_port: int = 6080
    answer_ping: bool = True
    flows: int = 131072
    full_ms: int = 5
    udp_wildcard_fraction: float = 0.25
    timers: Timers = Timers()
    probes: Probes = Probes()
    terminate: Terminate = Terminate()


@dataclass(frozen=True, slots=True)
class Plan:
    """A checked plan: every name in it resolves, every address is within an announced prefix, nothing overlaps."""

    file: str
    prefixes: tuple[Prefix, ...]
    sites: Mapping[str, Site]
    pools: Mapping[str, Pool]
    settings: Settings = Settings()

    @property
    def nodes(self) -> dict[str, Node]:
        """All nodes of the fleet, sorted by name."""
        return dict(sorted((name, node) for site in self.sites.values() for name, node in site.nodes.items()))

    def node(self, name: str) -> Node:
        """UsageError: no such node."""
        for site in self.sites.values():
            if name in site.nodes:
                return site.nodes[name]
        raise UsageError(f"{self.file}: no node {name!r} in the plan; its nodes: {', '.join(self.nodes) or 'none'}")

    def pool(self, name: str) -> Pool:
        """UsageError: no such pool."""
        if name in self.pools:
            return self.pools[name]
        raise UsageError(
            f"{self.file}: no pool {name!r} in the plan; its pools: {', '.join(sorted(self.pools)) or 'none'}"
        )

    def node_index(self, name: str) -> int:
        """Index in the map `nodes`, from 1."""
        return self.node_indices()[self.node(name).name]

    def node_indices(self) -> dict[str, int]:
        """Name -> index in the map `nodes`."""
        return {name: index for index, name in enumerate(self.nodes, start=1)}

    def pool_index(self, name: str) -> int:
        """Index in the map `pools`, from 0."""
        return sorted(self.pools).index(self.pool(name).name)

    def site_index(self, name: str) -> int:
        """Number of a site in the map `addresses`, from 1."""
        return sorted(self.sites).index(name) + 1

    def address_shifts(self, site: str | None = None) -> dict[IPAddress, int]:
        """Every address of the fleet, or of one site, -> shift, pools in sorted order.

        A static slice may be any range: its address has the largest shift that all its slices agree with.
        """
        shifts: dict[IPAddress, int] = {}
        for _, pool in sorted(self.pools.items()):
            if site is None or pool.site == site:
                shifts.update((address, pool.shift_of(address)) for address in pool.addresses)
                shifts.update(static_shifts(static.slice for static in pool.slices))
        return shifts


def static_shifts(slices: Iterable[Slice]) -> dict[IPAddress, int]:
    """Address -> the largest shift, 16 at most, by which the bounds of all its slices can be divided."""
    bounds: dict[IPAddress, int] = {}
    for part in slices:
        bounds[part.address] = bounds.get(part.address, 1 << 16) | part.first | (part.last + 1)
    return {address: (bound & -bound).bit_length() - 1 for address, bound in bounds.items()}
