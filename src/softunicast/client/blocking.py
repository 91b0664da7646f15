# SPDX-License-Identifier: Apache-2.0
"""connect() and create_datagram() for programs with threads, or without."""

from __future__ import annotations

import contextlib
import socket
from typing import Any

from softunicast.client.making import kept
from softunicast.dial.dialer import Dialer
from softunicast.dial.tries import Remote


def resolve(remote: tuple[str, int], kind: socket.SocketKind) -> list[Remote]:
    """The addresses of a destination, best first (RFC 6724). socket.gaierror."""
    host, port = remote
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return [Remote(family, (host, port) if family == socket.AF_INET else (host, port, 0, 0))]
    found = socket.getaddrinfo(host, port, type=kind)
    return [Remote(family, sockaddr) for family, _, _, _, sockaddr in found]


def connect(
    remote: tuple[str, int], *, timeout: float | None = None, by: Dialer | None = None, **choice: Any
) -> socket.socket:
    """A TCP connection to (host, port) from a slice; `choice` as for `dialer`, or `by` one.

    `timeout`: seconds for all of it, names not counted. The socket has it, too, afterwards, as that of
    socket.create_connection has. SliceFull, FamilyMissing, DialTimeout; else the kernel's OSError for the last address.
    """
    return dial(by or kept(**choice), remote, socket.SOCK_STREAM, timeout)


def create_datagram(
    remote: tuple[str, int] | None = None,
    *,
    family: socket.AddressFamily = socket.AF_INET,
    by: Dialer | None = None,
    **choice: Any,
) -> socket.socket:
    """A UDP socket in a slice, connected to `remote`; without one it may send anywhere, by its `family`."""
    chosen = by or kept(**choice)
    return chosen.datagram(family) if remote is None else dial(chosen, remote, socket.SOCK_DGRAM, None)


def dial(by: Dialer, remote: tuple[str, int], kind: socket.SocketKind, timeout_s: float | None) -> socket.socket:
    """The tries, one after the other."""
    tries = by.tries(resolve(remote, kind), kind, timeout_s)
    for one in tries:
        made: socket.socket | None = None
        try:
            made = one.make()
            made.settimeout(one.timeout_s)
            made.connect(one.sockaddr)
            one.check(made)
            made.settimeout(timeout_s)
        except BaseException as error:
            if made is not None:
                made.close()
            if not isinstance(error, OSError):
                raise
            one.failed(error)
        else:
            return made
    raise tries.error()
