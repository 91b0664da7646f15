# SPDX-License-Identifier: Apache-2.0
"""The arbiter's promises, said a second time: a judge of bpf/include/arbiter.h.

It does not choose ports. It is told what was asked and what the data plane answered, says whether that answer keeps
the promises, and remembers what follows. Nothing here is taken from the C: a claim is an entry in a dictionary,
and the promises are those of docs/architecture.md and the glossary:

1. A flow that is held is given to nobody: a claim may be made where there is none, where it expired, or where
   a TCP socket ended more than `sock_reuse_s` ago and a socket asks. The latter only when nothing else is left.
2. "Slice full" is said only when every port that may be used towards that destination is held - or within `full_ns`
   of saying so, unless a port was freed there since.
3. "No slice" is said only when no slice of the pool may claim (live, not drained, lease not over).
4. "Table full" is said only when as many claims as the table has room for are held and have not expired - or, where
   the clock hand cannot look at all of them at once (`hand_finds_all` false), are held.
5. A port lies in the slice, in the part for its kind of UDP claim, and in the asker's own range.
6. Every new holder of a flow has another generation than the last; an operation with an old one changes nothing.
7. One client keeps one address while that has a port left and may claim.
8. What vanishes without being asked for had expired.

Times are nanoseconds of an arbitrary clock that only grows; the data plane counts whole seconds of it, so a
claim's age is the difference of the seconds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from copy import copy
from dataclasses import dataclass, replace
from enum import Enum
from typing import NamedTuple

from softunicast.egress.flow_view import TCP, UDP, Timers

NS = 1_000_000_000
GENERATIONS = 1 << 24


class Broken(AssertionError):
    """A promise was not kept; the message says which and by what."""


class Holder(Enum):
    SOCKET = 1
    PACKET = 2
    LOCAL = 3
    PEER = 4


class Phase(Enum):
    NEW = 1
    OPEN = 2
    LINGER = 3


class Answer(Enum):
    """What the arbiter says."""

    CLAIMED = "claimed"
    SLICE_FULL = "slice full"
    TABLE_FULL = "table full"
    NO_SLICE = "no slice"
    HELD = "held by somebody else"


class Key(NamedTuple):
    """A flow. `local_port` and `remote_port` are numbers, addresses 16 bytes. remote 0:0 is a wildcard."""

    proto: int
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int

    @property
    def destination(self) -> tuple[int, bytes, int]:
        return self.proto, self.remote, self.remote_port


@dataclass(frozen=True, slots=True)
class Held:
    """A claim as the oracle believes it to be. `seen_s`: whole seconds."""

    holder: Holder
    owner: int
    phase: Phase
    seen_s: int
    generation: int
    slice: int


@dataclass(frozen=True, slots=True)
class OracleSlice:
    """A slice. `udp_exact_first` == `first`: no port is set apart for wildcard claims."""

    address: bytes
    first: int
    last: int
    udp_exact_first: int
    live: bool = True
    drain: bool = False
    claim_until_ns: int = 1 << 62

    def may_claim(self, now_ns: int) -> bool:
        return self.live and not self.drain and now_ns <= self.claim_until_ns

    def ports(self, proto: int, low: int = 0, high: int = 65535, *, wildcard: bool = False) -> range:
        """The ports for exact (or wildcard) claims of that protocol within low-high."""
        first, last = self.first, self.last
        if proto == UDP and self.udp_exact_first > self.first:
            if wildcard:
                last = self.udp_exact_first - 1
            else:
                first = self.udp_exact_first
        return range(max(first, low), min(last, high) + 1)


@dataclass(frozen=True, slots=True)
class Ask:
    """What is asked of su_choose. `slices`: those of the pool, or the one of a range policy."""

    proto: int
    remote: bytes
    remote_port: int
    holder: Holder
    owner: int
    client: int
    slices: tuple[int, ...]
    low: int = 0
    high: int = 65535

    @property
    def wildcard(self) -> bool:
        """For every remote at once."""
        return self.proto == UDP and not any(self.remote) and self.remote_port == 0


@dataclass(frozen=True, slots=True)
class Given:
    """What came back of a claim that was made."""

    key: Key
    slice: int
    generation: int
    stolen_from_socket: bool


class Oracle:
    """The set of claims that follows from what was asked and answered, and the judge of each answer."""

    def __init__(
        self,
        slices: Mapping[int, OracleSlice],
        timers: Timers,
        *,
        sock_reuse_s: int,
        full_ns: int,
        table_size: int,
        hand_finds_all: bool = True,
    ) -> None:
        self.slices = dict(slices)
        self.claims: dict[Key, Held] = {}
        self._timers = timers
        self._sock_reuse_s = sock_reuse_s
        self._full_ns = full_ns
        self.full_slack_ns = 0
        """How much later than `now_ns` the data plane may have read its clock."""
        self._table_size = table_size
        self._hand_finds_all = hand_finds_all
        self._full_until: dict[tuple[int, tuple[int, bytes, int], bool], int] = {}
        self._homes: dict[tuple[int, tuple[int, ...]], frozenset[int]] = {}

    def lifetime_s(self, held: Held, proto: int) -> int | None:
        """How long that claim lives without a packet; None: as long as its socket."""
        timers = self._timers
        if held.holder is Holder.SOCKET:
            return timers.sock_linger_s if held.phase is Phase.LINGER else None
        if proto != TCP:
            return timers.udp_s if proto == UDP else timers.icmp_s
        by_phase = {
            Phase.NEW: timers.tcp_transitory_s,
            Phase.OPEN: timers.tcp_established_s,
            Phase.LINGER: timers.tcp_linger_s,
        }
        return by_phase[held.phase]

    def expired(self, key: Key, now_ns: int) -> bool:
        held = self.claims[key]
        lifetime = self.lifetime_s(held, key.proto)
        return lifetime is not None and now_ns // NS - held.seen_s >= lifetime

    def reusable(self, key: Key, holder: Holder, now_ns: int) -> bool:
        """Whether a socket may take that port over from a socket that ended."""
        held = self.claims[key]
        return (
            holder is Holder.SOCKET
            and held.holder is Holder.SOCKET
            and held.phase is Phase.LINGER
            and key.proto == TCP
            and now_ns // NS - held.seen_s > self._sock_reuse_s
        )

    def free(self, key: Key, now_ns: int) -> bool:
        return key not in self.claims or self.expired(key, now_ns)

    def ports(self, ask: Ask, index: int) -> range:
        """The ports of that slice that a choice for `ask` may fall on."""
        held = self.slices[index]
        if ask.wildcard and held.udp_exact_first <= held.first:
            return range(0)
        return held.ports(ask.proto, ask.low, ask.high, wildcard=ask.wildcard)

    def _keys(self, ask: Ask, index: int) -> Iterator[Key]:
        held = self.slices[index]
        for port in self.ports(ask, index):
            yield Key(ask.proto, held.address, port, ask.remote, ask.remote_port)

    def ports_left(self, ask: Ask, index: int, now_ns: int) -> int:
        """How many ports of that slice `ask` could have."""
        keys = self._keys(ask, index)
        return sum(self.free(key, now_ns) or self.reusable(key, ask.holder, now_ns) for key in keys)

    # Judging ------------------------------------------------------------------------------------------

    def choose(self, ask: Ask, answer: Answer, given: Given | None, now_ns: int) -> None:
        """Judges an answer of su_choose and remembers what follows. Broken says what is wrong."""
        candidates = [index for index in ask.slices if self.slices[index].may_claim(now_ns)]
        if answer is Answer.CLAIMED:
            if given is None:
                raise Broken("claimed, but what?")
            self._judge_choice(ask, given, candidates, now_ns)
            self._claim(given, ask.holder, ask.owner, now_ns)
        elif answer is Answer.NO_SLICE:
            if candidates:
                raise Broken(f"no slice, but {candidates} may claim")
        elif answer is Answer.SLICE_FULL:
            self._judge_full(ask, candidates, now_ns)
        elif answer is Answer.TABLE_FULL:
            self._judge_table_full(now_ns)
        else:
            raise Broken(f"{answer.value!r} is no answer to a choice")

    def _judge_choice(self, ask: Ask, given: Given, candidates: list[int], now_ns: int) -> None:
        key, index = given.key, given.slice
        if index not in candidates:
            raise Broken(f"port {key.local_port} of slice {index}, which may not claim; {candidates} may")
        if key not in set(self._keys(ask, index)):
            raise Broken(f"{key} lies outside of slice {index} or of what was asked for")
        if not self.free(key, now_ns):
            if not self.reusable(key, ask.holder, now_ns):
                raise Broken(f"{key} is held: {self.claims[key]}")
            better = [other.local_port for other in self._keys(ask, index) if self.free(other, now_ns)]
            if better:
                raise Broken(f"reused {key} of an ended socket while ports {better[:5]} are free")
        self._judge_home(ask, index, candidates, now_ns)

    def _judge_home(self, ask: Ask, index: int, candidates: list[int], now_ns: int) -> None:
        """The home is not known, but each slice passed over while it had ports left cannot be it."""
        passed_over = {
            other
            for other in candidates
            if other != index and self.ports_left(ask, other, now_ns) and not self._remembered_full(ask, other, now_ns)
        }
        where = (ask.client, ask.slices)
        homes = self._homes.get(where, frozenset(ask.slices)) - passed_over
        if not homes:
            raise Broken(f"client {ask.client} went to slice {index} and has no home while ports were left")
        self._homes[where] = homes

    def _remembered_full(self, ask: Ask, index: int, now_ns: int) -> bool:
        key = (index, (ask.proto, ask.remote, ask.remote_port), ask.holder is Holder.SOCKET)
        return now_ns < self._full_until.get(key, 0)

    def _judge_full(self, ask: Ask, candidates: list[int], now_ns: int) -> None:
        if not candidates:
            raise Broken("slice full, but none may claim")
        for index in candidates:
            if self._remembered_full(ask, index, now_ns):
                continue
            left = self.ports_left(ask, index, now_ns)
            if left:
                raise Broken(f"slice {index} full towards {ask.remote_port}, but {left} ports are left")
            every_port = self.ports(replace(ask, low=0, high=65535), index)
            if ask.low <= every_port.start and ask.high >= every_port.stop - 1:
                destination = (ask.proto, ask.remote, ask.remote_port)
                self._full_until[index, destination, ask.holder is Holder.SOCKET] = (
                    now_ns + self._full_ns + self.full_slack_ns
                )

    def _judge_table_full(self, now_ns: int) -> None:
        alive = sum(not (self._hand_finds_all and self.expired(key, now_ns)) for key in self.claims)
        if alive < self._table_size:
            raise Broken(f"table full with {alive} living claims of {len(self.claims)}, room for {self._table_size}")

    def exact(
        self, key: Key, index: int, holder: Holder, owner: int, answer: Answer, given: Given | None, now_ns: int
    ) -> None:
        """Judges an answer of su_claim_exact."""
        if answer is Answer.NO_SLICE:
            if self.slices[index].may_claim(now_ns):
                raise Broken(f"slice {index} may claim")
            return
        if not self.slices[index].may_claim(now_ns):
            raise Broken(f"slice {index} may not claim, and the answer was {answer.value}")
        if answer is Answer.TABLE_FULL:
            self._judge_table_full(now_ns)
        elif answer is Answer.HELD:
            if self.free(key, now_ns) or self.reusable(key, holder, now_ns):
                raise Broken(f"{key} is to be had")
        elif answer is Answer.CLAIMED and given is not None:
            if given.key != key:
                raise Broken(f"{given.key} instead of {key}")
            if not (self.free(key, now_ns) or self.reusable(key, holder, now_ns)):
                raise Broken(f"{key} is held: {self.claims[key]}")
            self._claim(given, holder, owner, now_ns)
        else:
            raise Broken(f"{answer.value!r} is no answer to an exact claim")

    def _claim(self, given: Given, holder: Holder, owner: int, now_ns: int) -> None:
        last = self.claims.get(given.key)
        if last is not None and self.expired(given.key, now_ns) and not given.stolen_from_socket:
            # Taken over, or removed by the clock hand just before and claimed anew: then any generation but the old.
            if given.generation == last.generation:
                raise Broken(f"{given.key} kept generation {last.generation}")
            if given.generation != (last.generation + 1) % GENERATIONS:
                self.forget([given.key])
                last = None
        if last is not None and given.generation != (last.generation + 1) % GENERATIONS:
            raise Broken(f"{given.key} went from generation {last.generation} to {given.generation}")
        stolen = last is not None and last.holder is Holder.SOCKET
        if stolen != given.stolen_from_socket:
            raise Broken(f"{given.key}: taken over from a socket: {stolen}, said: {given.stolen_from_socket}")
        self.claims[given.key] = Held(holder, owner, Phase.NEW, now_ns // NS, given.generation, given.slice)

    def busy(self, given: Given, now_ns: int) -> None:
        """su_busy after a claim: it is gone, or lingers again when it was taken over from a socket."""
        held = self.claims[given.key]
        if held.generation != given.generation:
            return
        if given.stolen_from_socket:
            next_generation = (held.generation + 1) % GENERATIONS
            self.claims[given.key] = Held(Holder.SOCKET, 0, Phase.LINGER, now_ns // NS, next_generation, given.slice)
        else:
            self.forget([given.key])

    def release(self, key: Key, generation: int, *, done: bool) -> None:
        """Judges su_claim_release: it ends the claim of that generation and no other."""
        held = self.claims.get(key)
        if done != (held is not None and held.generation == generation):
            raise Broken(f"release of generation {generation} of {key}: {done}, held: {held}")
        if done:
            self.forget([key])

    def linger(self, key: Key, generation: int, now_ns: int, *, done: bool) -> None:
        """Judges su_claim_linger."""
        held = self.claims.get(key)
        ours = held is not None and held.generation == generation
        if done != ours:
            raise Broken(f"linger of generation {generation} of {key}: {done}, held: {held}")
        if held is not None and ours:
            self.claims[key] = replace(held, phase=Phase.LINGER, seen_s=now_ns // NS)

    def refresh(self, key: Key, phase: Phase, now_ns: int) -> None:
        """A packet passed on a claim."""
        self.claims[key] = replace(self.claims[key], phase=phase, seen_s=now_ns // NS)

    def forget(self, keys: Iterable[Key]) -> None:
        """Claims that ended: their destinations are not full any more."""
        for key in keys:
            held = self.claims.pop(key)
            for sockets in (False, True):
                self._full_until.pop((held.slice, key.destination, sockets), None)

    def copy(self) -> Oracle:
        """Another with the same memory, apart from this one."""
        other = copy(self)
        other.slices, other.claims = dict(self.slices), dict(self.claims)
        other._full_until, other._homes = dict(self._full_until), dict(self._homes)
        return other

    def age(self, seconds: int) -> None:
        """All that is remembered happened so much earlier: a clock moved on, for who can only move the past."""
        self.claims = {key: replace(held, seen_s=held.seen_s - seconds) for key, held in self.claims.items()}
        self._full_until = {what: until_ns - seconds * NS for what, until_ns in self._full_until.items()}

    def compare(self, table: Mapping[Key, Held], now_ns: int) -> int:
        """Compares with what the table holds now. Claims that vanished must have expired; returns how many."""
        gone = [key for key in self.claims if key not in table]
        for key in gone:
            if not self.expired(key, now_ns):
                raise Broken(f"{key} vanished alive: {self.claims[key]}")
        self.forget(gone)
        for key, held in table.items():
            if key not in self.claims:
                raise Broken(f"{key} is in the table, and nobody asked for it: {held}")
            if self.claims[key] != held:
                raise Broken(f"{key} is {held} in the table, {self.claims[key]} was expected")
        return len(gone)
