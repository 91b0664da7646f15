# SPDX-License-Identifier: Apache-2.0
"""What the oracle of fish remembers: claims, their inner sides and the hints that lead to them, what first fragments
said; how a flow gets a port, and what state it is in after a packet (RFC 5382 sections 5 and 7)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Network, IPv6Network
from typing import Final, NamedTuple, Self

from softunicast.egress.arbiter_oracle import NS, Answer, Ask, Broken, Given, Held, Holder, Key, Oracle, Phase
from softunicast.kernel.abi import Counter, Drop
from softunicast.kernel.abi_util import MAPPED
from softunicast.steering.oracle_packet import TCP, Fragments, Packet
from tests.support import fish_packets as packets
from tests.support.fish_packets import ACK, FIN, RST, SYN

NOBODY: Final = bytes(16)
FIN_OUT, FIN_IN, SEEN_RST = 1, 2, 4
NOT_FOUND: Final = {
    Drop.SLICE_FULL: Answer.SLICE_FULL,
    Drop.NO_SLICE: Answer.NO_SLICE,
    Drop.TABLE_FULL: Answer.TABLE_FULL,
}
Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Ramp:
    """An on-ramp. `slices4`, `slices6`: indices of its pool's slices, or the one of a range policy."""

    number: int
    generation: int
    gateway4: bytes
    gateway6: bytes
    slices4: tuple[int, ...]
    slices6: tuple[int, ...]
    sources: tuple[Network, ...]
    bypass: tuple[Network, ...]
    low: int = 0
    high: int = 65535
    tenant: int = 0
    mtu: int = 0

    @property
    def owner(self) -> int:
        return self.number << 32 | self.generation


@dataclass(frozen=True, slots=True)
class Inside:
    """What a claim says of its inner side."""

    inner: bytes = NOBODY
    inner_port: int = 0
    tcp_seen: int = 0
    tenant: int = 0


class InnerFlow(NamedTuple):
    """A key of `origin`."""

    onramp: int
    proto: int
    inner: bytes
    inner_port: int
    remote: bytes
    remote_port: int


@dataclass(frozen=True)
class Did:
    """What a program did with a packet. `table` reads all claims."""

    verdict: int
    data: bytes
    mark: int
    drops: Mapping[Drop, int]
    counts: Mapping[Counter, int]
    table: Callable[[], dict[Key, tuple[Held, Inside]]]


@dataclass
class Memory:
    """One node's. `arbiter` keeps the claims."""

    arbiter: Oracle
    inside: dict[Key, Inside] = field(default_factory=dict)
    origin: dict[InnerFlow, tuple[Key, int]] = field(default_factory=dict)
    fragments: Fragments = field(default_factory=Fragments)

    def copy(self) -> Self:
        """What is remembered, apart from this one; all else is shared."""
        return replace(
            self,
            arbiter=self.arbiter.copy(),
            inside=dict(self.inside),
            origin=dict(self.origin),
            fragments=self.fragments.copy(),
        )

    def compare(self, now_ns: int, table: Mapping[Key, tuple[Held, Inside]], origin: Mapping[InnerFlow, Key]) -> None:
        """All of both maps."""
        self._settle(table, now_ns)
        self.arbiter.compare({key: held for key, (held, _) in table.items()}, now_ns)
        for key, (_, inside) in table.items():
            if self.inside[key] != inside:
                raise Broken(f"{key} has {inside}, expected {self.inside[key]}")
        ours = {inner: key for inner, (key, _) in self.origin.items()}
        if dict(origin) != ours:
            wrong = [inner for inner in {**ours, **origin} if ours.get(inner) != origin.get(inner)][:3]
            raise Broken(f"origin: {[(inner, origin.get(inner), ours.get(inner)) for inner in wrong]}")

    def _settle(self, table: Mapping[Key, tuple[Held, Inside]], now_ns: int) -> None:
        """Claims that are not in the table any more must have expired; their hints went with them."""
        gone = self.arbiter.claims.keys() - table.keys()
        for key in gone:
            if not self.arbiter.expired(key, now_ns):
                raise Broken(f"{key} vanished alive: {self.arbiter.claims[key]}")
            self._forget_origin(key)
            self.inside.pop(key)
        self.arbiter.forget(gone)

    def _forget_origin(self, key: Key) -> None:
        """The claim of `key` ends: so does the hint that leads to it."""
        held, inside = self.arbiter.claims[key], self.inside[key]
        number = held.owner >> 32 if held.holder is Holder.PACKET else 0
        inner = InnerFlow(number, key.proto, inside.inner, inside.inner_port, key.remote, key.remote_port)
        if self.origin.get(inner) == (key, held.generation):
            del self.origin[inner]

    # What happens beside packets ------------------------------------------------------------------------

    def claim(self, key: Key, held: Held, inside: Inside) -> None:
        """Somebody else (a hook, the agent) claimed a free flow."""
        self.arbiter.claims[key], self.inside[key] = held, inside

    def release(self, key: Key) -> None:
        """The same one ended it."""
        self._forget_origin(key)
        self.arbiter.forget([key])
        self.inside.pop(key)

    def age(self, seconds: int) -> None:
        self.arbiter.age(seconds)
        self.fragments.age(seconds * NS)

    # Flows ----------------------------------------------------------------------------------------------

    def _inner(self, packet: Packet, number: int) -> InnerFlow | None:
        """The inner flow of a packet from inside."""
        if packet.ports is None:
            return None
        source, target = packet.ports
        return InnerFlow(number, packet.proto, packet.source, source, packet.target, target)

    def _known(self, packet: Packet, inner: InnerFlow, owner: int, holder: Holder) -> Key | None:
        """The outer flow that an inner flow has."""
        key, generation = self.origin.get(inner, (None, 0))
        if key is None or key not in self.arbiter.claims:
            return None
        held, inside = self.arbiter.claims[key], self.inside[key]
        ours = held.generation == generation and held.holder is holder and held.owner == owner
        return key if ours and (inside.inner, inside.inner_port) == (inner.inner, inner.inner_port) else None

    # Claiming -------------------------------------------------------------------------------------------

    def _begin(self, ramp: Ramp, inner: InnerFlow, now_ns: int, did: Did, holder: Holder = Holder.PACKET) -> Key | Drop:
        """The flow that was claimed for an inner one, or why not; judged by the arbiter's promises."""
        ip4 = inner.remote.startswith(MAPPED)
        owner = ramp.owner if holder is Holder.PACKET else 0
        client = int.from_bytes(inner.inner, "big") << 32 | ramp.number
        ask = Ask(
            inner.proto, inner.remote, inner.remote_port, holder, owner, client,
            ramp.slices4 if ip4 else ramp.slices6, ramp.low, ramp.high,
        )  # fmt: skip
        table = did.table()
        refusal = next((drop for drop in did.drops if drop in NOT_FOUND), None)
        if refusal is not None:
            self.arbiter.choose(ask, NOT_FOUND[refusal], None, now_ns)
            self._settle(table, now_ns)
            return refusal
        given = self._given(table)
        inside = Inside(inner.inner, inner.inner_port, 0, ramp.tenant)
        self._take(given, inside)
        self.arbiter.choose(ask, Answer.CLAIMED, given, now_ns)
        self._settle(table, now_ns)
        self.origin[inner] = given.key, given.generation
        return given.key

    def _given(self, table: Mapping[Key, tuple[Held, Inside]]) -> Given:
        """The one claim that is new."""
        ours = self.arbiter.claims
        new = [key for key, (held, _) in table.items() if key not in ours or ours[key].generation != held.generation]
        if len(new) != 1:
            raise Broken(f"a claim was asked for, new are {new}")
        held, last = table[new[0]][0], ours.get(new[0])
        stolen = last is not None and last.holder is Holder.SOCKET and held.generation == last.generation + 1
        return Given(new[0], held.slice, held.generation, stolen)

    def _take(self, given: Given, inside: Inside) -> None:
        if given.key in self.arbiter.claims:
            self._forget_origin(given.key)
        self.inside[given.key] = inside

    # States ---------------------------------------------------------------------------------------------

    def _track(self, key: Key, packet: Packet, now_ns: int, *, out: bool) -> None:
        """RFC 5382 sections 5 and 7: what the claim is after this packet."""
        phase, inside = self.arbiter.claims[key].phase, self.inside[key]
        flags, seen = packets.tcp_flags(packet), inside.tcp_seen
        both = FIN_OUT | FIN_IN
        after = phase
        if packet.proto == TCP and flags & (FIN | RST):
            seen |= (SEEN_RST if flags & RST else 0) | (0 if not flags & FIN else FIN_OUT if out else FIN_IN)
            if seen & SEEN_RST or seen & both == both:
                after = Phase.LINGER
            elif not out and phase is Phase.NEW:
                after = Phase.OPEN
        elif packet.proto == TCP and phase is Phase.LINGER:
            if not out:
                return
            if flags & (SYN | ACK) == SYN:
                seen, after = 0, Phase.NEW
            elif seen & both != both:
                seen, after = seen & ~SEEN_RST, Phase.OPEN
        elif not out and phase is Phase.NEW and not packets.is_bare_syn(packet):
            after = Phase.OPEN
        self.inside[key] = replace(inside, tcp_seen=seen)
        if not out and phase is Phase.LINGER and after is Phase.LINGER:
            return
        self.arbiter.refresh(key, after, now_ns)
