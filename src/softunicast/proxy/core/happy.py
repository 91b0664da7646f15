# SPDX-License-Identifier: Apache-2.0
"""Happy eyeballs: in which order, and when, the addresses of a name are tried (RFC 8305).

Addresses may come in two answers (AAAA and A); those of the two families alternate, IPv6 first. An attempt that has
not succeeded within `delay_s` gets company by the next address, one that failed at once is followed at once. When A
answers first, AAAA gets `RESOLUTION_DELAY_S` to come (section 3). Without a clock: `now` is an argument, and
`wake_s` says when to ask again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from softunicast.model.address import IPAddress

ATTEMPT_DELAY_S: Final = 0.25
RESOLUTION_DELAY_S: Final = 0.05


@dataclass(slots=True)
class Race:
    """`due()` gives the address to try now, if any."""

    delay_s: float = ATTEMPT_DELAY_S
    wake_s: float | None = None
    running: int = 0
    complete: bool = False
    _first: deque[IPAddress] = field(default_factory=deque)
    _second: deque[IPAddress] = field(default_factory=deque)
    _last_version: int = 4
    _not_before: float = 0

    def add(self, addresses: Iterable[IPAddress], now: float, *, complete: bool) -> None:
        """An answer came; `complete`: the last one."""
        for address in addresses:
            (self._first if address.version == 6 else self._second).append(address)
        if not complete and self._second and not self._first and not self.running:
            self._not_before = now + RESOLUTION_DELAY_S
        elif (self._first or complete) and not self.running:
            self._not_before = now
        self.complete = self.complete or complete

    def due(self, now: float) -> IPAddress | None:
        """The next address to try, if its time has come; else `wake_s` says when to ask again (None: when something
        happens)."""
        self.wake_s = None
        if not self._first and not self._second:
            return None
        if now < self._not_before:
            self.wake_s = self._not_before
            return None
        turn = self._first if (self._last_version == 4 and self._first) or not self._second else self._second
        address = turn.popleft()
        self._last_version = address.version
        self.running += 1
        self._not_before = now + self.delay_s
        if self._first or self._second:
            self.wake_s = self._not_before
        return address

    def failed(self, now: float) -> None:
        """An attempt failed: the next one need not wait."""
        self.running -= 1
        self._not_before = now

    @property
    def lost(self) -> bool:
        """Nothing runs, and nothing is left to try."""
        return self.complete and not self.running and not self._first and not self._second
