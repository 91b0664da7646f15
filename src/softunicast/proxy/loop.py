# SPDX-License-Identifier: Apache-2.0
"""An event loop around epoll: a function for each descriptor, timers, and nothing else.

Level-triggered, so that a handler may stop early and is called again. Sockets are closed through `close()`, at the
end of a round: a number that is given again within a round would otherwise get events that were meant for its
predecessor. asyncio does the same work at three times the CPU a connection (docs/performance.md, relays).
"""

from __future__ import annotations

import heapq
import itertools
import os
import select
import time
from collections.abc import Callable
from socket import socket
from typing import Final

Handler = Callable[[int], None]
IN: Final = select.EPOLLIN
OUT: Final = select.EPOLLOUT
ERR: Final = select.EPOLLERR
HUP: Final = select.EPOLLHUP
RDHUP: Final = select.EPOLLRDHUP
EXCLUSIVE: Final = select.EPOLLEXCLUSIVE
EVENTS: Final = 512


class Timer:
    """A call to come; `cancel()` forgets it."""

    __slots__ = ("call",)

    def __init__(self, call: Callable[[], None]) -> None:
        self.call: Callable[[], None] | None = call

    def cancel(self) -> None:
        self.call = None


class Loop:
    """`run()` until `stop()`."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock()
        self._clock = clock
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._number = itertools.count()
        self._closing: list[socket | int] = []
        self._running = False
        self.on_error: Callable[[BaseException], None] | None = None

    def add(self, fd: int, mask: int, handler: Handler) -> None:
        """Call `handler` with the events of a descriptor; errors and hang-ups come whatever `mask` says."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def modify(self, fd: int, mask: int) -> None:
        self._epoll.modify(fd, mask)

    def handle(self, fd: int, mask: int, handler: Handler) -> None:
        """Another handler and mask for a descriptor that is here."""
        self._handlers[fd] = handler
        self._epoll.modify(fd, mask)

    def remove(self, fd: int) -> None:
        """No more events of it; may be called again."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def close(self, thing: socket | int) -> None:
        """Remove and, at the end of the round, close."""
        self.remove(thing if isinstance(thing, int) else thing.fileno())
        self._closing.append(thing)

    def later(self, delay_s: float, call: Callable[[], None]) -> Timer:
        timer = Timer(call)
        heapq.heappush(self._timers, (self.now + delay_s, next(self._number), timer))
        return timer

    def stop(self) -> None:
        self._running = False

    def run(self) -> None:
        """Until stop(). What a handler raises goes to `on_error`, or ends the loop when there is none."""
        self._running = True
        handlers = self._handlers
        poll = self._epoll.poll
        while self._running:
            timeout = -1.0
            while self._timers and self._timers[0][2].call is None:
                heapq.heappop(self._timers)
            if self._closing:
                self._close_all()
            if self._timers:
                timeout = max(0.0, self._timers[0][0] - self._clock())
            events = poll(timeout, EVENTS)
            self.now = self._clock()
            at = 0
            while at < len(events):
                try:
                    while at < len(events):
                        fd, mask = events[at]
                        at += 1
                        handler = handlers.get(fd)
                        if handler is not None:
                            handler(mask)
                except Exception as error:  # noqa: BLE001 - one connection's trouble must not become all the others'
                    self._failed(error)
            while self._timers and self._timers[0][0] <= self.now:
                call = heapq.heappop(self._timers)[2].call
                if call is not None:
                    try:
                        call()
                    except Exception as error:  # noqa: BLE001 - as above
                        self._failed(error)
        self._close_all()

    def _failed(self, error: Exception) -> None:
        if self.on_error is None:
            raise error
        self.on_error(error)

    def _close_all(self) -> None:
        while self._closing:
            thing = self._closing.pop()
            if isinstance(thing, int):
                os.close(thing)
            else:
                thing.close()
