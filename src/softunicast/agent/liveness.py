# SPDX-License-Identifier: Apache-2.0
"""Which nodes live, as far as this one can tell. Pure: clocks and replies are arguments.

    unknown --reply, fit----> up      --`lost` questions without an answer--> down
            --reply, not fit-> unfit   (down: other nodes of its site are asked; unfit: they are preferred)

A question is asked every `interval_s`; what counts as lost are questions that were really asked, so that an agent which
slept, or worked for seconds, blames nobody. What is unknown stays in the tables as it was: an agent that starts again
changes nothing until it knows better.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Final

MOST_A_SECOND: Final = 1000
"""Questions to all nodes together; with more nodes than that allows each is asked less often."""


class Life(Enum):
    """What is known of a node."""

    UNKNOWN = "unknown"
    UP = "up"
    UNFIT = "unfit"
    DOWN = "down"


@dataclass(slots=True)
class Peer:
    """Another node. Times are monotonic seconds; `index`: in the map `nodes`."""

    name: str
    site: str
    address: str
    index: int
    life: Life = Life.UNKNOWN
    sequence: int = 0
    unanswered: int = 0
    asked_s: float = 0.0
    answered_s: float | None = None
    rtt_ms: float | None = None


class Liveness:
    """The states of all other nodes. `lost`: questions in a row without an answer until one is down."""

    def __init__(self, interval_s: float, lost: int) -> None:
        self.interval_s = interval_s
        self.lost = lost
        self.peers: dict[str, Peer] = {}
        self._next_s = 0.0

    def follow(self, peers: Iterable[Peer], interval_s: float, lost: int) -> None:
        """The nodes there are now; those that are the same keep their state."""
        fresh = {}
        for peer in peers:
            known = self.peers.get(peer.address)
            same = known is not None and (known.name, known.site, known.index) == (peer.name, peer.site, peer.index)
            fresh[peer.address] = known if known is not None and same else peer
        self.peers, self.lost = fresh, lost
        self.interval_s = max(interval_s, len(fresh) / MOST_A_SECOND)

    def due_s(self) -> float:
        """When questions are to be asked next."""
        return self._next_s

    def ask(self, now_s: float) -> list[Peer]:
        """Whom to ask now (all, or nobody when it is too early); those that answered too little become down first."""
        if now_s < self._next_s:
            return []
        self._next_s = now_s + self.interval_s
        for peer in self.peers.values():
            if peer.unanswered >= self.lost:
                peer.life = Life.DOWN
            peer.sequence = (peer.sequence + 1) & 0xFFFFFFFF
            peer.unanswered += 1
            peer.asked_s = now_s
        return list(self.peers.values())

    def answered(self, address: str, sequence: int, fit: bool, now_s: float) -> None:
        """A reply came. Late ones count as life, but tell no round trip; those of others are ignored."""
        peer = self.peers.get(address)
        if peer is None or not 0 <= (peer.sequence - sequence) & 0xFFFFFFFF < max(self.lost, 1) * 4:
            return
        if sequence == peer.sequence:
            peer.rtt_ms = (now_s - peer.asked_s) * 1000
        peer.unanswered = 0
        peer.answered_s = now_s
        peer.life = Life.UP if fit else Life.UNFIT
