# SPDX-License-Identifier: Apache-2.0
"""httpx: `httpx.Client(transport=Transport(pool="gb"))`, `httpx.AsyncClient(transport=AsyncTransport(pool="gb"))`.

httpx leaves connections to httpcore, which takes a network backend; these are backends whose connect_tcp is ours. The
async one is anyio's, so asyncio and trio.
"""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
from collections.abc import Iterable, Iterator
from typing import Any

import anyio
import httpcore
import httpx
from anyio.abc import ByteStream, SocketAttribute
from anyio.streams.tls import TLSAttribute, TLSStream

from softunicast.client import anyio as sliced
from softunicast.client.blocking import connect
from softunicast.client.making import dialer
from softunicast.dial.dialer import Dialer

Options = Iterable[tuple[Any, ...]] | None
Limits = httpx.Limits(max_connections=100, max_keepalive_connections=20)


@contextlib.contextmanager
def _as_httpcore(late: type[Exception], broken: type[Exception]) -> Iterator[None]:
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except (OSError, anyio.BrokenResourceError, anyio.ClosedResourceError) as error:
        raise broken(str(error)) from error


class _Stream(httpcore.NetworkStream):
    def __init__(self, made: socket.socket) -> None:
        self._socket = made

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _as_httpcore(httpcore.ReadTimeout, httpcore.ReadError):
            self._socket.settimeout(timeout)
            return self._socket.recv(max_bytes)

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        with _as_httpcore(httpcore.WriteTimeout, httpcore.WriteError):
            self._socket.settimeout(timeout)
            self._socket.sendall(buffer)

    def close(self) -> None:
        self._socket.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        try:
            with _as_httpcore(httpcore.ConnectTimeout, httpcore.ConnectError):
                self._socket.settimeout(timeout)
                return _Stream(ssl_context.wrap_socket(self._socket, server_hostname=server_hostname))
        except BaseException:
            self.close()
            raise

    def get_extra_info(self, info: str) -> Any:
        made = self._socket
        match info:
            case "ssl_object":
                return made if isinstance(made, ssl.SSLSocket) else None
            case "client_addr":
                return made.getsockname()
            case "server_addr":
                return made.getpeername()
            case "socket":
                return made
            case "is_readable":
                return _readable(made)
        return None


def _readable(made: socket.socket) -> bool:
    """Whether there is something to read, the end counted: an idle connection that has is not used again."""
    if made.fileno() < 0:
        return True
    asked = select.poll()
    asked.register(made, select.POLLIN)
    return bool(asked.poll(0))


class Backend(httpcore.NetworkBackend):
    """Connects from a slice."""

    def __init__(self, by: Dialer) -> None:
        self._by = by

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Options = None,
    ) -> httpcore.NetworkStream:
        with _as_httpcore(httpcore.ConnectTimeout, httpcore.ConnectError):
            made = connect((host, port), timeout=timeout, by=self._by)
            made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for option in socket_options or ():
                made.setsockopt(*option)
        return _Stream(made)


class _AsyncStream(httpcore.AsyncNetworkStream):
    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        with _as_httpcore(httpcore.ReadTimeout, httpcore.ReadError):
            with anyio.fail_after(timeout):
                try:
                    return await self._stream.receive(max_bytes)
                except anyio.EndOfStream:
                    return b""

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:
        if not buffer:
            return
        with _as_httpcore(httpcore.WriteTimeout, httpcore.WriteError):
            with anyio.fail_after(timeout):
                await self._stream.send(buffer)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.AsyncNetworkStream:
        try:
            with _as_httpcore(httpcore.ConnectTimeout, httpcore.ConnectError):
                with anyio.fail_after(timeout):
                    tls = await TLSStream.wrap(
                        self._stream,
                        ssl_context=ssl_context,
                        hostname=server_hostname,
                        standard_compatible=False,
                        server_side=False,
                    )
                    return _AsyncStream(tls)
        except BaseException:
            await self.aclose()
            raise

    def get_extra_info(self, info: str) -> Any:
        match info:
            case "ssl_object":
                return self._stream.extra(TLSAttribute.ssl_object, None)
            case "client_addr":
                return self._stream.extra(SocketAttribute.local_address, None)
            case "server_addr":
                return self._stream.extra(SocketAttribute.remote_address, None)
            case "socket":
                return self._stream.extra(SocketAttribute.raw_socket, None)
            case "is_readable":
                made = self._stream.extra(SocketAttribute.raw_socket, None)
                return made is None or _readable(made)
        return None


class AsyncBackend(httpcore.AsyncNetworkBackend):
    """The same without blocking."""

    def __init__(self, by: Dialer) -> None:
        self._by = by

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Options = None,
    ) -> httpcore.AsyncNetworkStream:
        with _as_httpcore(httpcore.ConnectTimeout, httpcore.ConnectError):
            stream = await sliced.open_connection(host, port, timeout=timeout, by=self._by)
            made = stream.extra(SocketAttribute.raw_socket)
            for option in socket_options or ():
                made.setsockopt(*option)
        return _AsyncStream(stream)

    async def sleep(self, seconds: float) -> None:
        await anyio.sleep(seconds)


class Transport(httpx.HTTPTransport):
    """Connections leave from a slice. The other arguments are those of httpx.HTTPTransport."""

    def __init__(
        self,
        by: Dialer | None = None,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = Limits,
        retries: int = 0,
        **choice: Any,
    ) -> None:
        super().__init__(verify=verify, http1=http1, http2=http2, limits=limits, retries=retries)
        self._pool = httpcore.ConnectionPool(
            **_pool_words(verify, http1, http2, limits, retries), network_backend=Backend(by or dialer(**choice))
        )


class AsyncTransport(httpx.AsyncHTTPTransport):
    """The same for httpx.AsyncClient."""

    def __init__(
        self,
        by: Dialer | None = None,
        *,
        verify: ssl.SSLContext | bool = True,
        http1: bool = True,
        http2: bool = False,
        limits: httpx.Limits = Limits,
        retries: int = 0,
        **choice: Any,
    ) -> None:
        super().__init__(verify=verify, http1=http1, http2=http2, limits=limits, retries=retries)
        self._pool = httpcore.AsyncConnectionPool(
            **_pool_words(verify, http1, http2, limits, retries), network_backend=AsyncBackend(by or dialer(**choice))
        )


def _pool_words(
    verify: ssl.SSLContext | bool, http1: bool, http2: bool, limits: httpx.Limits, retries: int
) -> dict[str, Any]:
    return {
        "ssl_context": httpx.create_ssl_context(verify=verify),
        "max_connections": limits.max_connections,
        "max_keepalive_connections": limits.max_keepalive_connections,
        "keepalive_expiry": limits.keepalive_expiry,
        "http1": http1,
        "http2": http2,
        "retries": retries,
    }
