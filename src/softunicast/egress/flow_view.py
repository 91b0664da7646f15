# SPDX-License-Identifier: Apache-2.0
"""A claim as people and programs read it: who holds a flow, in what state, for how long yet.

    key of `flows`   local address and port | remote address and port | protocol
    its value        word (generation | state | last seen) | owner | inner | kind | slice | born

What `owner` is depends on the kind: a socket's cookie, an on-ramp's id and generation, a node's id. How long a
claim lives without a packet is that of bpf/include/word.h, su_lifetime_s: sockets' claims end with their
socket and then linger; the others by the timers of RFC 5382 section 5, RFC 4787 section 4.3, RFC 5508 section 3.2.

Reading is no snapshot: a listing of a busy table shows each claim as it was when its batch was read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol

from softunicast.kernel.abi import NO_ADDRESS, Claim, Flow, Kind, State
from softunicast.kernel.abi_util import addr_ip, word_generation, word_seen_s

IPAddress = IPv4Address | IPv6Address

TCP, UDP = 6, 17
PROTOCOLS = {1: "icmp", TCP: "tcp", UDP: "udp", 58: "icmpv6"}
ONRAMP_SHIFT = 32
STATE_SHIFT = 32


class Reader(Protocol):
    """What reading needs of a map: kernel.bpf.Map has it, and a dictionary in a test's clothing."""

    def lookup(self, key: bytes) -> bytes | None: ...

    def items(self) -> Iterator[tuple[bytes, bytes]]: ...


class Timers(Protocol):
    """Seconds without a packet; kernel.abi.Settings has them, and so has the plan."""

    @property
    def tcp_transitory_s(self) -> int: ...
    @property
    def tcp_established_s(self) -> int: ...
    @property
    def tcp_linger_s(self) -> int: ...
    @property
    def sock_linger_s(self) -> int: ...
    @property
    def udp_s(self) -> int: ...
    @property
    def icmp_s(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Names:
    """Names for the indices in the maps. What has no name is shown by its number."""

    node: str = ""
    nodes: Mapping[int, str] = field(default_factory=dict)
    sites: Mapping[int, str] = field(default_factory=dict)
    pools: Mapping[int, str] = field(default_factory=dict)
    onramps: Mapping[int, str] = field(default_factory=dict)

    def of_node(self, index: int) -> str:
        return self.nodes.get(index, f"node {index}")

    def of_site(self, index: int) -> str:
        return self.sites.get(index, f"site {index}")

    def of_pool(self, index: int) -> str:
        return self.pools.get(index, f"pool {index}")

    def of_onramp(self, index: int) -> str:
        return self.onramps.get(index, f"on-ramp {index}")


# The same few addresses come again and again in a listing, and ipaddress is slow.
address_of = lru_cache(maxsize=1 << 16)(addr_ip)


def lifetime_s(kind: int, state: int, proto: int, timers: Timers) -> int | None:
    """Seconds without a packet after which a claim is free for anybody; None: never by time."""
    if kind == Kind.SOCKET:
        return timers.sock_linger_s if state == State.LINGER else None
    if proto == TCP:
        if state == State.LINGER:
            return timers.tcp_linger_s
        return timers.tcp_transitory_s if state == State.NEW else timers.tcp_established_s
    return timers.udp_s if proto == UDP else timers.icmp_s


def state_of(word: int) -> int:
    """The state's number in a claim's word, whatever it is (a newer version's too)."""
    return word >> STATE_SHIFT & 0xFF


def idle_s(word: int, now_s: int) -> int:
    """Seconds since a claim saw a packet; 0 when another CPU's clock is ahead."""
    return max(0, now_s - word_seen_s(word))


def expired(word: int, kind: int, proto: int, now_s: int, timers: Timers) -> bool:
    """Whether anybody may take that claim over."""
    lifetime = lifetime_s(kind, state_of(word), proto, timers)
    return lifetime is not None and idle_s(word, now_s) >= lifetime


def name_of(enum: type[Kind] | type[State], value: int) -> str:
    """The lower-case name of a member, or its number when this version does not know it."""
    try:
        return enum(value).name.lower()
    except ValueError:
        return str(value)


@dataclass(frozen=True, slots=True)
class FlowView:
    """One claim. Times in seconds; `expires_s` None: never by time, 0: expired. `owner` by kind (above).

    `remote_port` None with `remote` None: a wildcard claim, every remote. For ICMP echo `local_port` is the id.
    """

    proto: str
    local: IPAddress
    local_port: int
    remote: IPAddress | None
    remote_port: int | None
    kind: str
    state: str
    owner: int
    owner_name: str
    inner: IPAddress | None
    inner_port: int | None
    born_ago_s: int
    idle_s: int
    expires_s: int | None
    slice: int
    tenant: int
    generation: int

    def as_json(self) -> dict[str, Any]:
        """The keys of docs/cli.md, `flows`."""
        return {
            "proto": self.proto,
            "local": str(self.local),
            "local_port": self.local_port,
            "remote": None if self.remote is None else str(self.remote),
            "remote_port": self.remote_port,
            "kind": self.kind,
            "state": self.state,
            "owner": self.owner,
            "owner_name": self.owner_name,
            "inner": None if self.inner is None else str(self.inner),
            "inner_port": self.inner_port,
            "age_s": self.born_ago_s,
            "idle_s": self.idle_s,
            "expires_s": self.expires_s,
            "slice": self.slice,
            "tenant": self.tenant,
            "generation": self.generation,
        }


def flow_view(key: bytes, value: bytes, names: Names, now_s: int, timers: Timers) -> FlowView:
    """Decodes an entry of `flows`. ValueError or struct.error when it is none."""
    return view_of(Flow.unpack(key), Claim.unpack(value), names, now_s, timers)


def view_of(flow: Flow, claim: Claim, names: Names, now_s: int, timers: Timers) -> FlowView:
    """The same of what was decoded already."""
    wildcard = flow.proto == UDP and flow.remote == NO_ADDRESS and flow.remote_port == 0
    state = state_of(claim.word)
    lifetime = lifetime_s(claim.kind, state, flow.proto, timers)
    idle = idle_s(claim.word, now_s)
    has_inner = claim.kind in (Kind.PACKET, Kind.LOCAL)
    owner, owner_name = owner_of(claim, names)
    return FlowView(
        proto=PROTOCOLS.get(flow.proto, str(flow.proto)),
        local=address_of(flow.local),
        local_port=flow.local_port,
        remote=None if wildcard else address_of(flow.remote),
        remote_port=None if wildcard else flow.remote_port,
        kind=name_of(Kind, claim.kind),
        state=name_of(State, state),
        owner=owner,
        owner_name=owner_name,
        inner=address_of(claim.inner) if has_inner else None,
        inner_port=claim.inner_port if has_inner else None,
        born_ago_s=max(0, now_s - claim.born_s),
        idle_s=idle,
        expires_s=None if lifetime is None else max(0, lifetime - idle),
        slice=claim.slice,
        tenant=claim.tenant,
        generation=word_generation(claim.word),
    )


def owner_of(claim: Claim, names: Names) -> tuple[int, str]:
    """The owner's number (cookie, on-ramp id, node id) and a name for it ('' for sockets: see socket_users)."""
    if claim.kind == Kind.PACKET:
        onramp = claim.owner >> ONRAMP_SHIFT
        return onramp, names.of_onramp(onramp)
    if claim.kind == Kind.PEER:
        return claim.owner, names.of_node(claim.owner)
    if claim.kind == Kind.LOCAL:
        return claim.owner, names.node or "this node"
    return claim.owner, ""


class FlowFilter(Protocol):
    """Says whether a claim is wanted, before it costs more than its key and kind."""

    def __call__(self, flow: Flow, claim: Claim) -> bool: ...


def read_flows(
    flows: Reader, names: Names, now_s: int, timers: Timers, wanted: FlowFilter | None = None
) -> Iterator[FlowView]:
    """All claims that `wanted` lets pass, as a stream: memory does not grow with the table."""
    for key, value in flows.items():
        flow, claim = Flow.unpack(key), Claim.unpack(value)
        if wanted is None or wanted(flow, claim):
            yield view_of(flow, claim, names, now_s, timers)
