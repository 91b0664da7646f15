# SPDX-License-Identifier: Apache-2.0
"""asyncio: connect(), open_connection(), create_datagram_endpoint(). Nothing blocks the loop but system calls."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any, TypeVar

from softunicast.client.making import kept
from softunicast.dial.dialer import Dialer
from softunicast.dial.tries import Remote

P = TypeVar("P", bound=asyncio.BaseProtocol)


async def connect(
    remote: tuple[str, int],
    *,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    timeout: float | None = None,
    by: Dialer | None = None,
    **choice: Any,
) -> socket.socket:
    """As softunicast.connect; the socket does not block. `kind` SOCK_DGRAM: connected UDP."""
    loop = asyncio.get_running_loop()
    chosen = by or kept(**choice)
    found = await loop.getaddrinfo(*remote, type=kind)
    tries = chosen.tries([Remote(family, sockaddr) for family, _, _, _, sockaddr in found], kind, timeout)
    for one in tries:
        made: socket.socket | None = None
        try:
            made = await asyncio.to_thread(one.make) if one.blocking else one.make()
            made.setblocking(False)
            async with asyncio.timeout(one.timeout_s):
                await loop.sock_connect(made, one.sockaddr)
            one.check(made)
        except BaseException as error:
            if made is not None:
                made.close()
            if not isinstance(error, OSError):
                raise
            one.failed(error)
        else:
            return made
    raise tries.error()


async def open_connection(
    host: str,
    port: int,
    *,
    ssl: ssl.SSLContext | bool | None = None,
    server_hostname: str | None = None,
    limit: int = 2**16,
    timeout: float | None = None,
    by: Dialer | None = None,
    **choice: Any,
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """As asyncio.open_connection, from a slice. `timeout`: of connecting, TLS has its own."""
    made = await connect((host, port), timeout=timeout, by=by, **choice)
    try:
        name = server_hostname or (host if ssl else None)
        return await asyncio.open_connection(sock=made, ssl=ssl, server_hostname=name, limit=limit)
    except BaseException:
        made.close()
        raise


async def create_datagram_endpoint(
    protocol: Callable[[], P],
    remote: tuple[str, int] | None = None,
    *,
    family: socket.AddressFamily = socket.AF_INET,
    by: Dialer | None = None,
    **choice: Any,
) -> tuple[asyncio.DatagramTransport, P]:
    """As loop.create_datagram_endpoint, from a slice: connected to `remote`, or unconnected."""
    chosen = by or kept(**choice)
    if remote is None:
        made = await asyncio.to_thread(chosen.datagram, family)
        made.setblocking(False)
    else:
        made = await connect(remote, kind=socket.SOCK_DGRAM, by=chosen)
    try:
        return await asyncio.get_running_loop().create_datagram_endpoint(protocol, sock=made)
    except BaseException:
        made.close()
        raise
