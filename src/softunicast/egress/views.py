# SPDX-License-Identifier: Apache-2.0
"""What `softunicast slices`, `counters` and `drops` read from a node's maps.

Ports run out towards one destination at a time, and unseen: a slice with 2,048 ports and 1 % of its claims in use
can still refuse every new connection to one popular server. So for each slice the most crowded destination is
counted exactly, from the claims themselves, next to the size that it has:

    TCP, ICMP    every port of the slice
    UDP          the ports for exact claims, [udp_exact_first, last]; those before serve wildcard claims, which
                 compete with each other whatever their remote, and count as one destination, "*"

Claims that expired are free and do not count; those that linger do, until their timer ends.

One pass over `flows`, by batches; memory grows with the number of destinations, not with the claims.
"""

from __future__ import annotations

import struct
from collections import Counter as Tally
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol

from softunicast.egress.flow_view import PROTOCOLS, STATE_SHIFT, UDP, Names, Reader, Timers, lifetime_s, name_of
from softunicast.kernel.abi import (
    COUNTER_MEANINGS,
    DROP_MEANINGS,
    NO_ADDRESS,
    Counter,
    Crowd,
    CrowdKey,
    Drop,
    Flow,
    Kind,
    LastDrop,
    Slice,
    SliceFlag,
    State,
    Stats,
)
from softunicast.kernel.abi_util import SEEN_MASK, addr_ip

IPAddress = IPv4Address | IPv6Address

WARN_PERCENT = 90
NS = 1_000_000_000
LOCKED = int(State.LOCKED)

# Where things are in the value and the key of `flows`; tests/unit/test_views.py holds them against the codec.
CLAIM_PARTS = struct.Struct("=Q26xB9xI8x")  # word, kind, slice
REMOTE_FIRST, REMOTE_LAST = 16, 31
REMOTE_PORT, PROTO = 34, 36


class PerCpuReader(Protocol):
    """What reading needs of the per-CPU map `stats`."""

    def lookup_percpu(self, key: bytes) -> list[bytes]: ...


@dataclass(frozen=True, slots=True)
class CrowdView:
    """A slice's most crowded destination. `remote` None: wildcard claims, whatever their remote.

    `used` of `size` ports are held; `refused` times somebody asked in vain, as far as the data plane remembers.
    """

    proto: str
    remote: IPAddress | None
    remote_port: int | None
    used: int
    size: int
    refused: int
    full: bool

    @property
    def percent(self) -> int:
        """Used, in whole percent, rounded down: 100 means that none is left."""
        return 100 * self.used // self.size if self.size else 100

    def as_json(self) -> dict[str, Any]:
        return {
            "proto": self.proto,
            "remote": None if self.remote is None else str(self.remote),
            "remote_port": self.remote_port,
            "used": self.used,
            "size": self.size,
            "used_percent": self.percent,
            "refused": self.refused,
            "full": self.full,
        }


@dataclass(frozen=True, slots=True)
class SliceView:
    """A slice of this node. `claims`: protocol -> kind -> how many that have not expired.

    `state`: live, drain (no new flows), off, or lease-over. `claim_for_s`: seconds for which new claims are allowed.
    """

    index: int
    address: IPAddress
    first: int
    last: int
    wildcard_ports: int
    pool: str
    epoch: int
    state: str
    claim_for_s: int
    claims: Mapping[str, Mapping[str, int]]
    lingering: int
    expired: int
    crowded: CrowdView | None
    refused: int

    @property
    def ports(self) -> int:
        return self.last - self.first + 1

    @property
    def warning(self) -> bool:
        """A destination at 90 % or more, or one that was refused."""
        return self.crowded is not None and (self.crowded.percent >= WARN_PERCENT or self.crowded.refused > 0)

    def as_json(self) -> dict[str, Any]:
        """The keys of docs/cli.md, `slices`."""
        return {
            "index": self.index,
            "address": str(self.address),
            "first": self.first,
            "last": self.last,
            "ports": self.ports,
            "udp_wildcard_ports": self.wildcard_ports,
            "pool": self.pool,
            "epoch": self.epoch,
            "state": self.state,
            "claim_for_s": self.claim_for_s,
            "claims": {proto: dict(kinds) for proto, kinds in self.claims.items()},
            "lingering": self.lingering,
            "expired": self.expired,
            "crowded": None if self.crowded is None else self.crowded.as_json(),
            "refused": self.refused,
            "warning": self.warning,
        }


@dataclass(slots=True)
class _Use:
    """What one pass over `flows` finds out about a slice. Destinations: remote | remote port | protocol."""

    kinds: Tally[tuple[int, int, int]] = field(default_factory=Tally)  # kind, state, protocol
    destinations: Tally[bytes] = field(default_factory=Tally)
    expired: int = 0

    @property
    def lingering(self) -> int:
        return sum(count for (_, state, _), count in self.kinds.items() if state == State.LINGER)


def _count_flows(flows: Reader, now_s: int, timers: Timers) -> dict[int, _Use]:
    """The one pass. Written out, because it runs a million times: see flow_view.expired for what it says."""
    uses: dict[int, _Use] = {}
    lifetimes: dict[tuple[int, int, int], int | None] = {}
    unpack = CLAIM_PARTS.unpack
    for key, value in flows.items():
        word, kind, slice_index = unpack(value)
        proto, state = key[PROTO], word >> STATE_SHIFT & 0xFF
        if state == LOCKED:
            continue
        use = uses.get(slice_index)
        if use is None:
            use = uses[slice_index] = _Use()
        what = kind, state, proto
        if what not in lifetimes:
            lifetimes[what] = lifetime_s(kind, state, proto, timers)
        lifetime = lifetimes[what]
        if lifetime is not None and now_s - (word & SEEN_MASK) >= lifetime:
            use.expired += 1
            continue
        use.kinds[what] += 1
        use.destinations[key[REMOTE_FIRST : REMOTE_LAST + 1] + key[REMOTE_PORT : PROTO + 1]] += 1
    return uses


def _destination(key: CrowdKey) -> bytes:
    flow = Flow(NO_ADDRESS, key.remote, 0, key.remote_port, key.proto).pack()
    return flow[REMOTE_FIRST : REMOTE_LAST + 1] + flow[REMOTE_PORT : PROTO + 1]


def _count_refused(crowds: Reader) -> dict[int, Tally[bytes]]:
    refused: dict[int, Tally[bytes]] = {}
    for raw_key, value in crowds.items():
        key = CrowdKey.unpack(raw_key)
        count = Crowd.unpack(value).refused
        if count:
            refused.setdefault(key.slice, Tally())[_destination(key)] += count
    return refused


def _crowd_view(held: Slice, destination: bytes, used: int, refused: int) -> CrowdView:
    remote = destination[:16]
    port, proto = int.from_bytes(destination[16:18], "big"), destination[18]
    wildcard = proto == UDP and remote == NO_ADDRESS and port == 0
    size = held.last - held.first + 1
    if proto == UDP and held.udp_exact_first > held.first:
        exact = held.last - held.udp_exact_first + 1
        size = size - exact if wildcard else exact
    return CrowdView(
        proto=PROTOCOLS.get(proto, str(proto)),
        remote=None if wildcard else addr_ip(remote),
        remote_port=None if wildcard else port,
        used=used,
        size=size,
        refused=refused,
        full=used >= size,
    )


def _most_crowded(held: Slice, use: _Use, refused: Tally[bytes]) -> CrowdView | None:
    """The destination nearest to full; among equals the one refused most. None: no claim and no refusal."""
    candidates = {key for key, _ in use.destinations.most_common(8)} | set(refused)
    # Wildcard claims have fewer ports than the others and may be fuller with fewer claims.
    wildcard = NO_ADDRESS + b"\0\0" + bytes([UDP])
    if wildcard in use.destinations:
        candidates.add(wildcard)
    udp = [(count, key) for key, count in use.destinations.items() if key[18] == UDP]
    if udp:
        candidates.add(max(udp)[1])
    views = [_crowd_view(held, key, use.destinations[key], refused[key]) for key in sorted(candidates)]
    return max(views, key=lambda view: (view.used / max(view.size, 1), view.refused), default=None)


def _slice_state(held: Slice, now_ns: int) -> str:
    if held.flags & SliceFlag.DRAIN:
        return "drain"
    if not held.flags & SliceFlag.LIVE:
        return "off"
    return "lease-over" if held.claim_until_ns < now_ns else "live"


def read_slices(
    slices: Reader, flows: Reader, crowds: Reader, names: Names, now_ns: int, timers: Timers
) -> list[SliceView]:
    """Every slice that this node holds, by address and port. `now_ns`: the boot clock."""
    uses = _count_flows(flows, now_ns // NS, timers)
    refusals = _count_refused(crowds)
    views = []
    for key, value in slices.items():
        held = Slice.unpack(value)
        if held.addr == NO_ADDRESS:
            continue
        index = int.from_bytes(key, "little")
        use, refused = uses.get(index, _Use()), refusals.get(index, Tally())
        claims: dict[str, dict[str, int]] = {}
        for (kind, _, proto), count in sorted(use.kinds.items(), key=lambda item: (item[0][2], item[0])):
            of_proto = claims.setdefault(PROTOCOLS.get(proto, str(proto)), {})
            of_proto[name_of(Kind, kind)] = of_proto.get(name_of(Kind, kind), 0) + count
        views.append(
            SliceView(
                index=index,
                address=addr_ip(held.addr),
                first=held.first,
                last=held.last,
                wildcard_ports=max(0, held.udp_exact_first - held.first),
                pool=names.of_pool(held.pool),
                epoch=held.epoch,
                state=_slice_state(held, now_ns),
                claim_for_s=max(0, held.claim_until_ns - now_ns) // NS,
                claims=claims,
                lingering=use.lingering,
                expired=use.expired,
                crowded=_most_crowded(held, use, refused),
                refused=sum(refused.values()),
            )
        )
    return sorted(views, key=lambda view: (view.address.version, int(view.address), view.first))


@dataclass(frozen=True, slots=True)
class CounterView:
    """A counter: its name in docs/counters.md, its sum over the CPUs, its meaning."""

    name: str
    count: int
    meaning: str

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "count": self.count, "meaning": self.meaning}


@dataclass(frozen=True, slots=True)
class DropView:
    """A drop reason. The last packet that met it: `flow` (None: never, or its ports were unknown), `ago_s`."""

    name: str
    count: int
    meaning: str
    flow: Flow | None
    ago_s: float | None

    def as_json(self) -> dict[str, Any]:
        last: dict[str, Any] | None = None
        if self.ago_s is not None:
            last = {"ago_s": round(self.ago_s, 3)}
            if self.flow is not None:
                last |= {
                    "proto": PROTOCOLS.get(self.flow.proto, str(self.flow.proto)),
                    "local": str(addr_ip(self.flow.local)),
                    "local_port": self.flow.local_port,
                    "remote": str(addr_ip(self.flow.remote)),
                    "remote_port": self.flow.remote_port,
                }
        return {"name": self.name, "count": self.count, "meaning": self.meaning, "last": last}


def _sum(columns: Iterable[Sequence[int]]) -> list[int]:
    return [sum(values) for values in zip(*columns, strict=True)]


def read_counters(stats: PerCpuReader) -> list[CounterView]:
    """Every counter, in the order of abi.h, zeros too."""
    sums = _sum(Stats.unpack(copy).counters for copy in stats.lookup_percpu(bytes(4)))
    return [CounterView(c.name.lower(), sums[c] if sums else 0, COUNTER_MEANINGS[c]) for c in Counter]


def read_drops(stats: PerCpuReader, last_drops: Reader, now_ns: int) -> list[DropView]:
    """Every drop reason, in the order of abi.h, zeros too. `now_ns`: the boot clock."""
    sums = _sum(Stats.unpack(copy).drops for copy in stats.lookup_percpu(bytes(4)))
    views = []
    for reason in Drop:
        if reason is Drop.NONE:
            continue
        raw = last_drops.lookup(int(reason).to_bytes(4, "little"))
        last = LastDrop.unpack(raw) if raw is not None else LastDrop()
        met = last.boot_ns != 0
        views.append(
            DropView(
                name=reason.name.lower(),
                count=sums[reason] if sums else 0,
                meaning=DROP_MEANINGS[reason],
                flow=last.flow if met and last.flow.local != NO_ADDRESS else None,
                ago_s=max(0, now_ns - last.boot_ns) / NS if met else None,
            )
        )
    return views
