# SPDX-License-Identifier: Apache-2.0
"""An event loop around epoll: a function for each descriptor, timers, and nothing else.

Level-triggered, so that a handler may stop early and is called again. Descriptors and their handlers are kept by
`_relay.Poller` (C), which sees to it that events meant for a closed descriptor do not reach the next one of the same
number, and for which a Relay is a handler that needs no Python. Sockets are closed through `close()`.
"""

from __future__ import annotations

import os
import select
import time
from collections import OrderedDict
from collections.abc import Callable
from socket import SocketType
from typing import Final

from softunicast.proxy._relay import Poller

Handler = Callable[[int], None]
IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
ERR: Final = select.EPOLLERR
HUP: Final = select.EPOLLHUP
RDHUP: Final = select.EPOLLRDHUP
EXCLUSIVE: Final = select.EPOLLEXCLUSIVE


class Timer:
    """A call to come, unless `cancel()` comes first."""

    __slots__ = ("call", "due_s", "queue")

    def __init__(self, due_s: float, call: Callable[[], None], queue: OrderedDict[Timer, None]) -> None:
        self.due_s = due_s
        self.call = call
        self.queue = queue

    def cancel(self) -> None:
        """Forgets what it was to call, too: that is often what holds this timer."""
        self.queue.pop(self, None)
        self.call = _nothing


def _nothing() -> None:
    """What a cancelled timer calls."""


class Loop(Poller):
    """`add`, `modify`, `handle` and `remove` descriptors; `run()` until `stop()`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock()
        self._clock = clock
        # Most timers are of some few delays and never come to pass: those of one delay are due in the order in which
        # they were made, and one that is cancelled is gone.
        self._timers: dict[float, OrderedDict[Timer, None]] = {}
        self._running = False
        self.on_error: Callable[[BaseException], None] | None = None

    def close(self, thing: SocketType | int) -> None:
        """Remove and close what nobody else holds open (it would still be watched)."""
        if isinstance(thing, int):
            self.forget(thing)
            os.close(thing)
        else:
            self.forget(thing.fileno())
            thing.close()

    def later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        queue = self._timers.get(delay_s)
        if queue is None:
            queue = self._timers[delay_s] = OrderedDict()
        timer = Timer(self.now + delay_s, call, queue)
        queue[timer] = None
        return timer

    def _next(self) -> Timer | None:
        """The timer that is due first."""
        first, empty = None, None
        for delay_s, queue in self._timers.items():
            timer = next(iter(queue), None)
            if timer is None:
                empty = delay_s
            elif first is None or timer.due_s < first.due_s:
                first = timer
        if empty is not None:  # one at a time will do
            del self._timers[empty]
        return first

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Until stop(). What a handler raises goes to `on_error`, or ends the loop when there is none."""
        self._running = True
        while self._running:
            first = self._next()
            self.wait(-1.0 if first is None else max(0.0, first.due_s - self._clock()))
            self.now = self._clock()
            while True:
                try:
                    self.dispatch()
                    break
                except Exception as error:  # noqa: BLE001 - one connection's trouble must not become all the others'
                    self._failed(error)
            while first is not None and first.due_s <= self.now:
                call = first.call
                first.cancel()
                try:
                    call()
                except Exception as error:  # noqa: BLE001 - as above
                    self._failed(error)
                first = self._next()

    def _failed(self, error: Exception) -> None:
        if self.on_error is None:
            raise error
        self.on_error(error)
