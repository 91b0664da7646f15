# SPDX-License-Identifier: Apache-2.0
"""What bpf/include/quota.h promises of new flows, said another way: a bucket that is filled by time.

A bucket holds one second's worth of turns and is full in the beginning. It gains one turn each period, which is a
second divided by `new_per_s`, whole nanoseconds; a flow takes one whole turn or is refused. quota.h keeps the same as
one point in time, when the bucket will be full again. Tests hold one against the other.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

NS: Final = 1_000_000_000


@dataclass(slots=True)
class Bucket:
    """The turns of one on-ramp. Levels are in nanoseconds of time worth: a turn is `period_ns`."""

    new_per_s: int
    _level_ns: int = field(default=NS, init=False)
    _at_ns: int = field(default=0, init=False)

    @property
    def period_ns(self) -> int:
        return NS // self.new_per_s

    def turn(self, now_ns: int) -> bool:
        """Whether a flow may begin at `now_ns`; time never goes back."""
        self._level_ns = min(NS, self._level_ns + now_ns - self._at_ns)
        self._at_ns = now_ns
        if self._level_ns < self.period_ns:
            return False
        self._level_ns -= self.period_ns
        return True
