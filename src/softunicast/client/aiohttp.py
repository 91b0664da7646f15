# SPDX-License-Identifier: Apache-2.0
"""aiohttp: `aiohttp.ClientSession(connector=connector(pool="gb"))`. Needs aiohttp 3.12 or newer (socket_factory).

aiohttp makes the addresses' race itself (RFC 8305) and connects the sockets that a factory gives it. Whether a lane is
full, connect() says at once, before any packet: so the socket given is one that goes on to the next lane by itself,
another socket taking its descriptor's place.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import aiohttp

from softunicast.client.making import dialer
from softunicast.dial.dialer import Dialer
from softunicast.dial.tries import Remote


class SlicedSocket(socket.socket):
    """A TCP socket whose connect() finds the lane. Not to be used twice."""

    by: Dialer

    def connect(self, address: Any, /) -> None:
        """As connect(2) of a socket that does not block: BlockingIOError, it is on its way. SliceFull."""
        tries = self.by.tries([Remote(socket.AddressFamily(self.family), address)], socket.SOCK_STREAM)
        for one in tries:
            try:
                with one.make() as made:
                    made.setblocking(False)
                    os.dup2(made.fileno(), self.fileno(), inheritable=False)
                super().connect(one.sockaddr)
            except BlockingIOError:
                one.check(self)
                raise
            except OSError as error:
                one.failed(error)
            else:
                one.check(self)
                return
        raise tries.error()


def connector(
    by: Dialer | None = None, *, connector: dict[str, Any] | None = None, **choice: Any
) -> aiohttp.TCPConnector:
    """A connector whose connections leave from a slice; `connector`: keyword arguments of aiohttp.TCPConnector."""
    chosen = by or dialer(**choice)

    def factory(info: Any) -> socket.socket:
        made = SlicedSocket(info[0], info[1], info[2])
        made.by = chosen
        return made

    return aiohttp.TCPConnector(socket_factory=factory, **(connector or {}))
