# SPDX-License-Identifier: Apache-2.0
"""anyio, so asyncio and trio: connect(), open_connection(), create_datagram(). Needs anyio 4.11 or newer."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from typing import Any

import anyio
from anyio.abc import ByteStream, ConnectedUDPSocket, SocketStream, UDPSocket
from anyio.streams.tls import TLSStream

from softunicast.client.making import kept
from softunicast.dial.dialer import Dialer
from softunicast.dial.tries import Remote

NOT_YET = (errno.EINPROGRESS, errno.EALREADY, errno.EWOULDBLOCK)


async def connect(
    remote: tuple[str, int],
    *,
    kind: socket.SocketKind = socket.SOCK_STREAM,
    timeout: float | None = None,
    by: Dialer | None = None,
    **choice: Any,
) -> socket.socket:
    """As softunicast.connect; the socket does not block."""
    chosen = by or kept(**choice)
    found = await anyio.getaddrinfo(*remote, type=kind)
    tries = chosen.tries([Remote(family, sockaddr) for family, _, _, _, sockaddr in found], kind, timeout)
    for one in tries:
        made: socket.socket | None = None
        try:
            made = await anyio.to_thread.run_sync(one.make) if one.blocking else one.make()
            made.setblocking(False)
            with anyio.fail_after(one.timeout_s):
                await _connected(made, one.sockaddr)
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


async def _connected(made: socket.socket, sockaddr: Any) -> None:
    """connect(2) of a socket that does not block: writable when it is over, SO_ERROR says how."""
    number = made.connect_ex(sockaddr)
    if number in NOT_YET:
        # UDP never comes here; there EAGAIN would mean that no port is left.
        if made.type != socket.SOCK_STREAM:
            raise OSError(number, os.strerror(number))
        await anyio.wait_writable(made)
        number = made.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if number:
        raise OSError(number, os.strerror(number))


async def open_connection(
    host: str,
    port: int,
    *,
    tls: ssl.SSLContext | bool = False,
    server_hostname: str | None = None,
    timeout: float | None = None,
    by: Dialer | None = None,
    **choice: Any,
) -> ByteStream:
    """A stream as anyio.connect_tcp gives it (a TLSStream with `tls`), from a slice. `timeout`: TLS counted."""
    with anyio.fail_after(timeout):
        made = await connect((host, port), timeout=timeout, by=by, **choice)
        stream = await _wrapped(made)
        if not tls:
            return stream
        try:
            context = None if tls is True else tls
            return await TLSStream.wrap(
                stream, hostname=server_hostname or host, ssl_context=context, standard_compatible=False
            )
        except BaseException:
            await anyio.aclose_forcefully(stream)
            raise


async def _wrapped(made: socket.socket) -> SocketStream:
    try:
        return await SocketStream.from_socket(made)
    except BaseException:
        made.close()
        raise


async def create_datagram(
    remote: tuple[str, int] | None = None,
    *,
    family: socket.AddressFamily = socket.AF_INET,
    by: Dialer | None = None,
    **choice: Any,
) -> ConnectedUDPSocket | UDPSocket:
    """As anyio.create_connected_udp_socket, or without `remote` anyio.create_udp_socket, from a slice."""
    chosen = by or kept(**choice)
    if remote is not None:
        made = await connect(remote, kind=socket.SOCK_DGRAM, by=chosen)
        return await ConnectedUDPSocket.from_socket(made)
    made = await anyio.to_thread.run_sync(chosen.datagram, family)
    if made.getsockname()[1] == 0:
        # anyio wants a bound one. Its address is none of a slice: the policy, which the socket has, rewrites it.
        made.bind(("", 0))
    return await UDPSocket.from_socket(made)
