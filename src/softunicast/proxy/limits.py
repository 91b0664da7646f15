# SPDX-License-Identifier: Apache-2.0
"""How much a user may have at once and begin in a second, over all workers.

Each worker counts its own in a row of shared memory (an anonymous mmap made before the workers are forked) and reads
all rows, so nobody waits for anybody; between two workers' looks a limit may be passed by one connection a worker. The
rate is a bucket of one second, a worker's share each.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field

from softunicast.proxy.policy import User

_WIDTH = 8


class Counts:
    """Connections by worker and user, in shared memory."""

    def __init__(self, workers: int, users: int) -> None:
        self.workers = workers
        self._users = max(users, 1)
        self._area = mmap.mmap(-1, workers * self._users * _WIDTH)
        self.cells = memoryview(self._area).cast("q")

    def clear(self, worker: int) -> None:
        """A worker died: what it held is gone."""
        for user in range(self._users):
            self.cells[worker * self._users + user] = 0

    def add(self, worker: int, user: int, change: int) -> None:
        self.cells[worker * self._users + user] += change

    def total(self, user: int) -> int:
        return sum(self.cells[worker * self._users + user] for worker in range(self.workers))


@dataclass(slots=True)
class Limits:
    """One worker's view."""

    counts: Counts
    worker: int
    _buckets: dict[int, tuple[float, float]] = field(default_factory=dict)

    def begin(self, user: User, now: float) -> str | None:
        """Count a connection; or why not, as text, and then it is not counted."""
        if user.connections is not None and self.counts.total(user.index) >= user.connections:
            return f"user {user.name} has {user.connections} connections already"
        if user.connects_per_s is not None:
            share = max(1.0, user.connects_per_s / self.counts.workers)
            left, at = self._buckets.get(user.index, (share, now))
            left = min(share, left + (now - at) * share)
            if left < 1:
                return f"user {user.name} begins more than {user.connects_per_s} connections a second"
            self._buckets[user.index] = (left - 1, now)
        self.adopt(user)
        return None

    def adopt(self, user: User) -> None:
        """A connection that another process began. Where there is no limit, nobody asks how many there are."""
        if user.connections is not None:
            self.counts.add(self.worker, user.index, 1)

    def end(self, user: User) -> None:
        if user.connections is not None:
            self.counts.add(self.worker, user.index, -1)
