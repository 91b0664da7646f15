# SPDX-License-Identifier: Apache-2.0
"""The first layer of a client's connection: a PROXY header if the listener wants one, then SOCKS5 or HTTP, which the
first byte tells apart (5 is no character that a method begins with)."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from typing import Final

from softunicast.proxy.core.http1 import Http1
from softunicast.proxy.core.messages import Accounts, Close, Command, Ended, Event, Layer, Reason, Received
from softunicast.proxy.core.proxy_header import BadHeader, read_header
from softunicast.proxy.core.socks5 import VERSION, Socks5

SOCKS5: Final = "socks5"
HTTP: Final = "http"


class Front:
    """Hands on to the protocol's own layer, `inner`, as soon as it is known."""

    def __init__(
        self, accounts: Accounts, protocols: Collection[str] = (SOCKS5, HTTP), *, header: bool = False
    ) -> None:
        """`header`: a PROXY header must come first."""
        self._accounts = accounts
        self._protocols = protocols
        self._header = header
        self._data = b""
        self.inner: Layer | None = None

    def handle(self, event: Event) -> Iterable[Command]:
        if self.inner is not None:
            return self.inner.handle(event)
        return self._begin(event.data) if isinstance(event, Received) else ()

    def _begin(self, data: bytes) -> Iterator[Command]:
        self._data += data
        if self._header and self._data:
            try:
                read = read_header(self._data)
            except BadHeader as error:
                yield self._close(str(error))
                return
            if read is None:
                return
            claim, end = read
            self._data, self._header = self._data[end:], False
            yield claim
        if not self._data:
            return
        protocol = SOCKS5 if self._data[0] == VERSION else HTTP
        if protocol not in self._protocols:
            yield self._close(f"this listener does not speak {protocol}")
            return
        layer: Layer = Socks5(self._accounts) if protocol == SOCKS5 else Http1(self._accounts)
        self.inner, data, self._data = layer, self._data, b""
        yield from layer.handle(Received(data))

    def _close(self, detail: str) -> Close:
        self.inner, self._data = Ended(), b""
        return Close(Reason.BAD_REQUEST, detail)
