# SPDX-License-Identifier: Apache-2.0
"""From a name or address to a connected upstream socket: resolver, happy eyeballs, pools, and what became of it.

    target --resolver--> addresses --Race--> attempts, each: a tagged socket, connect(), its outcome
                                                        full? the user's next pool, same address

The first connection that stands wins, the others are closed. When none does, the outcome that tells most is reported:
a refusal by the destination rather than a family that the pool does not have.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from ipaddress import IPv6Address, ip_address
from typing import Final

from softunicast.errors import SoftunicastError
from softunicast.model.address import IPAddress
from softunicast.proxy._relay import connect, tune
from softunicast.proxy.core.happy import Race
from softunicast.proxy.core.messages import Endpoint, Reason
from softunicast.proxy.dns import Resolver
from softunicast.proxy.egress import Egress, Exit
from softunicast.proxy.loop import ERR, HUP, OUT, Loop, Timer
from softunicast.proxy.policy import User

REASONS: Final = {
    errno.ECONNREFUSED: Reason.REFUSED,
    errno.ECONNRESET: Reason.RESET,
    errno.ETIMEDOUT: Reason.TIMEOUT,
    errno.ENETUNREACH: Reason.NETWORK_UNREACHABLE,
    errno.EHOSTUNREACH: Reason.HOST_UNREACHABLE,
    errno.EADDRNOTAVAIL: Reason.POOL_FULL,
    errno.ENOBUFS: Reason.POOL_FULL,
    errno.EACCES: Reason.FORBIDDEN,
    errno.EPERM: Reason.FORBIDDEN,
    errno.EMFILE: Reason.EXHAUSTED,
    errno.ENFILE: Reason.EXHAUSTED,
}
KEEPALIVE_S: Final = 60
"""A peer that vanished is noticed after some minutes, however long a connection idles."""
FULL: Final = frozenset({errno.EADDRNOTAVAIL, errno.ENOBUFS})
TELLING: Final = (
    Reason.REFUSED,
    Reason.RESET,
    Reason.TIMEOUT,
    Reason.HOST_UNREACHABLE,
    Reason.POOL_FULL,
    Reason.EXHAUSTED,
    Reason.POOL_MISSING,
    Reason.FORBIDDEN,
    Reason.NETWORK_UNREACHABLE,
    Reason.NAME_TIMEOUT,
    Reason.NAME_UNKNOWN,
)


def scope_of(address: IPv6Address) -> int:
    """The device that a link-local address is of; 0: none, or one that is not here."""
    if address.scope_id is None:
        return 0
    try:
        return socket.if_nametoindex(address.scope_id)
    except OSError:
        return 0


@lru_cache(4096)
def _own_address(text: str) -> IPAddress:
    """As getsockname() gives it: one of few."""
    return ip_address(text)


@dataclass(slots=True)
class Dialed:
    """A connection that stands, or (`sock` None) why there is none. The loop still watches `sock`: a Relay's `start`
    takes that over, as `handle` does; `Loop.close` and `remove` end it."""

    sock: socket.SocketType | None
    remote: Endpoint | None = None
    local: Endpoint | None = None
    pool: str = ""
    reason: Reason = Reason.EXHAUSTED
    detail: str = ""


class Dial:
    """One dialing. `done(Dialed)` is called once, unless it is cancelled; perhaps before `start` returns."""

    __slots__ = (
        "_attempts",
        "_client",
        "_done",
        "_egress",
        "_exits",
        "_failures",
        "_limit",
        "_loop",
        "_over",
        "_race",
        "_resolver",
        "_target",
        "_user",
        "_wake",
    )

    def __init__(
        self,
        loop: Loop,
        resolver: Resolver,
        egress: Egress,
        user: User,
        client: IPAddress,
        target: Endpoint,
        done: Callable[[Dialed], None],
    ) -> None:
        self._loop = loop
        self._resolver = resolver
        self._egress = egress
        self._user = user
        self._client = client
        self._target = target
        self._done = done
        self._race: Race | None = None
        self._exits: tuple[Exit, ...] = ()
        self._attempts: dict[int, socket.SocketType] = {}
        self._failures: list[tuple[Reason, str]] = []
        self._over = False
        self._limit: Timer | None = None
        self._wake: Timer | None = None

    def start(self, timeout_s: float) -> None:
        try:
            self._exits = self._egress.exits(self._user, self._client)
        except SoftunicastError as error:
            self._finish(Dialed(None, reason=Reason.POOL_MISSING, detail=str(error)))
            return
        if not self._exits:
            self._finish(Dialed(None, reason=Reason.POOL_MISSING, detail=f"this node has no pool of {self._user.name}"))
            return
        self._limit = self._loop.later(timeout_s, self._timed_out)
        if isinstance(self._target.host, str):
            self._race = Race()
            self._resolver.ask(self._target.host, self._resolved)
        else:
            self._try(self._target.host, 0)

    def cancel(self) -> None:
        """Nobody wants it any more."""
        self._end()

    def _resolved(self, addresses: Sequence[IPAddress], reason: Reason | None, last: bool) -> None:
        if self._over:
            return
        assert self._race is not None
        if reason is not None:
            what = "no answer" if reason is Reason.NAME_TIMEOUT else "no address"
            self._failures.append((reason, f"{self._target.host}: {what}"))
        self._race.add(addresses, self._loop.now, complete=last)
        self._go_on(self._race)

    def _go_on(self, race: Race) -> None:
        """Addresses of a name, as their turns come."""
        while not self._over:
            if self._wake is not None:
                self._wake.cancel()
                self._wake = None
            address = race.due(self._loop.now)
            if address is None:
                break
            self._try(address, 0)
        if self._over:
            return
        if race.wake_s is not None:
            self._wake = self._loop.later(max(0.0, race.wake_s - self._loop.now), partial(self._go_on, race))
        if race.lost:
            self._lost()

    def _try(self, address: IPAddress, at: int) -> None:
        """An attempt by the exit at `at`; when that pool is full towards it, by the next one."""
        port = self._target.port
        if not self._user.may_reach(address):
            self._failed(Reason.FORBIDDEN, f"{Endpoint(address, port)} is inside; the policy does not allow it")
            return
        family, scope = socket.AF_INET, 0
        if isinstance(address, IPv6Address):
            family, scope = socket.AF_INET6, scope_of(address)
        for exit_ in self._exits[at:]:
            at += 1
            try:
                sock = self._egress.open(family, socket.SOCK_STREAM, exit_)
            except (OSError, SoftunicastError) as error:
                self._failed(REASONS.get(getattr(error, "errno", 0) or 0, Reason.EXHAUSTED), str(error))
                return
            fd = sock.fileno()
            tune(fd, KEEPALIVE_S)
            number, host, here = connect(fd, address.packed, port, scope)
            if not number:
                if not self._egress.left_by(exit_, host):
                    sock.close()
                    self._failed(Reason.FORBIDDEN, f"{Endpoint(address, port)} is not reached by pool {exit_.name}")
                    return
                self._attempts[fd] = sock
                local = Endpoint(_own_address(host), here)
                self._loop.add(fd, OUT, partial(self._connected, sock, Endpoint(address, port), local, exit_.name))
                return
            sock.close()
            if number not in FULL or at == len(self._exits):
                self._failed(*self._why(number, address, exit_))
                return

    def _why(self, number: int, address: IPAddress, exit_: Exit) -> tuple[Reason, str]:
        remote = Endpoint(address, self._target.port)
        reason = REASONS.get(number, Reason.HOST_UNREACHABLE)
        if reason is Reason.POOL_FULL and exit_.record:
            return reason, f"pool {exit_.name} has no port left towards {remote}"
        if reason is Reason.FORBIDDEN:
            return reason, f"{remote} is an address of the fleet"
        if reason is Reason.NETWORK_UNREACHABLE and exit_.record:
            return reason, f"{remote}: no route, or pool {exit_.name} has no IPv{address.version} here"
        return reason, f"{remote}: {os.strerror(number)}"

    def _connected(self, sock: socket.SocketType, remote: Endpoint, local: Endpoint, pool: str, events: int) -> None:
        del self._attempts[sock.fileno()]
        number = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if events & (ERR | HUP) else 0
        if not number:
            self._finish(Dialed(sock, remote, local, pool))
            return
        self._loop.close(sock)
        self._failed(REASONS.get(number, Reason.HOST_UNREACHABLE), f"{remote}: {os.strerror(number)}")
        if self._race is not None:
            self._go_on(self._race)

    def _failed(self, reason: Reason, detail: str) -> None:
        self._failures.append((reason, detail))
        if self._race is not None:
            self._race.failed(self._loop.now)
        else:
            self._lost()

    def _lost(self) -> None:
        reason, detail = min(self._failures, key=lambda one: TELLING.index(one[0]))
        self._finish(Dialed(None, reason=reason, detail=detail))

    def _timed_out(self) -> None:
        self._finish(Dialed(None, reason=Reason.TIMEOUT, detail=f"{self._target}: no answer in time"))

    def _finish(self, dialed: Dialed) -> None:
        self._end()
        self._done(dialed)

    def _end(self) -> None:
        self._over = True
        for timer in (self._limit, self._wake):
            if timer is not None:
                timer.cancel()
        for sock in self._attempts.values():
            self._loop.close(sock)
        self._attempts.clear()
