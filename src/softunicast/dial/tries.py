# SPDX-License-Identifier: Apache-2.0
"""One connect() as a sequence of tries, without doing any I/O but making sockets: whoever drives it connects them.

    tries = dialer.tries(addresses, socket.SOCK_STREAM, timeout_s=5)
    for one in tries:
        try:
            made = one.make()                 # bound, or under a policy; not connected
        except OSError as error:
            one.failed(error)
            continue
        ... connect made to one.sockaddr within one.timeout_s; on OSError: close it, one.failed(error), continue
        one.check(made)
        return made
    raise tries.error()

For each address of the destination the lanes are tried one after the other while they are full; anything else that
goes wrong (refused, unreachable, no answer) is the destination's, and the next of its addresses is tried.
"""

from __future__ import annotations

import errno
import socket
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from softunicast.errors import DialError, DialTimeout, KernelError, SliceFull, endpoint

if TYPE_CHECKING:
    from softunicast.model.slice import Slice

FULL: Final = frozenset({errno.EADDRNOTAVAIL, errno.EADDRINUSE, errno.EAGAIN})
RESET: Final = struct.pack("=ii", 1, 0)
PROTOCOLS: Final = {socket.SOCK_STREAM: "tcp", socket.SOCK_DGRAM: "udp"}


@dataclass(frozen=True, slots=True)
class Remote:
    """An address of a destination as getaddrinfo gives it."""

    family: socket.AddressFamily
    sockaddr: Any

    @property
    def end(self) -> tuple[str, int]:
        return self.sockaddr[0], self.sockaddr[1]


@dataclass(frozen=True, slots=True)
class Route:
    """One way to try: `make` gives a socket that is ready to connect; `slices`: where its port must then be, () plain.

    `more`: another port of the same lane comes next, so that this one being taken says nothing yet. `blocking`: `make`
    waits for another process.
    """

    make: Callable[[], socket.socket]
    slices: tuple[Slice, ...] = ()
    more: bool = False
    blocking: bool = False


@dataclass(slots=True)
class Try:
    """One attempt."""

    remote: Remote
    kind: socket.SocketKind
    timeout_s: float | None
    route: Route
    started_s: float
    _tries: Tries
    over: bool = False

    @property
    def family(self) -> socket.AddressFamily:
        return self.remote.family

    @property
    def sockaddr(self) -> Any:
        return self.remote.sockaddr

    @property
    def slices(self) -> tuple[Slice, ...]:
        return self.route.slices

    @property
    def blocking(self) -> bool:
        return self.route.blocking

    def make(self) -> socket.socket:
        """A socket in the slice, blocking, without a timeout. OSError: tell failed(); other errors are final."""
        return self.route.make()

    def failed(self, error: OSError) -> None:
        """It did not work; the next try follows from why."""
        self._tries.note(self, error)

    def check(self, made: socket.socket) -> None:
        """Connected; from where it should? If not it is reset, and KernelError says so: no byte of ours leaves."""
        if not self.route.slices:
            return
        host, port = made.getsockname()[:2]
        if any(one.first <= port <= one.last and host == str(one.address) for one in self.route.slices):
            return
        if self.kind == socket.SOCK_STREAM:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        made.close()
        wanted = ", ".join(map(str, self.route.slices))
        raise KernelError(
            f"{endpoint((host, port))}: outside of {wanted}, and closed again; the node's hooks or the kernel's port "
            "range changed meanwhile: look at the agent's log"
        )


@dataclass(slots=True)
class Tries:
    """Iterate once; then `error()` is why none of them worked. `plan` gives the routes to an address, and may raise."""

    remotes: list[Remote]
    kind: socket.SocketKind
    plan: Callable[[Remote, socket.SocketKind], Iterator[Route]]
    timeout_s: float | None = None
    clock: Callable[[], float] = time.monotonic
    _errors: list[OSError] = field(default_factory=list)
    _full: dict[tuple[str, int], list[str]] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        return PROTOCOLS[self.kind]

    def __iter__(self) -> Iterator[Try]:
        begun = self.clock()
        for at, remote in enumerate(self.remotes):
            left = len(self.remotes) - at
            try:
                for route in self.plan(remote, self.kind):
                    now = self.clock()
                    share = None if self.timeout_s is None else (begun + self.timeout_s - now) / left
                    if share is not None and share <= 0:
                        self._errors.append(DialTimeout(remote.end, now - begun, (), self.protocol))
                        return
                    one = Try(remote, self.kind, share, route, now, self)
                    yield one
                    if one.over:
                        break
            except DialError as error:
                self._errors.append(error)
                continue
            if remote.end in self._full and not any(getattr(one, "remote", None) == remote.end for one in self._errors):
                self._errors.append(SliceFull(remote.end, tuple(dict.fromkeys(self._full[remote.end])), self.protocol))

    def note(self, one: Try, error: OSError) -> None:
        """What went wrong with a try. Full: the next lane. Else: the next address."""
        if one.route.slices and error.errno in FULL:
            if not one.route.more:
                self._full.setdefault(one.remote.end, []).extend(map(str, one.route.slices))
            return
        one.over = True
        if isinstance(error, TimeoutError) and not isinstance(error, DialTimeout):
            after = self.clock() - one.started_s
            timeout = DialTimeout(one.remote.end, after, tuple(map(str, one.route.slices)), self.protocol)
            timeout.__cause__ = error
            error = timeout
        elif not isinstance(error, DialError) and error.errno:
            # As the kernel's, but it says of whom.
            error = type(error)(error.errno, f"{error.strerror} ({endpoint(one.remote.end)})")
        self._errors.append(error)

    def error(self) -> OSError:
        """The most telling of what went wrong: what a destination said before what we could not do. Others are its
        notes."""
        if not self._errors:
            return OSError(errno.EADDRNOTAVAIL, "no address to connect to")
        told = [one for one in self._errors if not isinstance(one, SliceFull)]
        best = told[-1] if told else self._errors[0]
        for one in self._errors:
            if one is not best:
                best.add_note(f"before: {one}")
        return best
