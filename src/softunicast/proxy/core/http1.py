# SPDX-License-Identifier: Apache-2.0
"""An HTTP/1.1 proxy's side of CONNECT (RFC 9110 section 9.3.6) and of plain requests (RFC 9112 section 3.2.2).

h11 reads and writes the heads; a body is never looked at. A plain request becomes one upstream connection: its head is
rewritten to origin-form, hop-by-hop fields and credentials are taken out (RFC 9110 section 7.6.1) and `Connection:
close` put in, then the bytes are relayed: of the request as many as its Content-Length says (the rest would be
another request, maybe for another origin), of the answer all. The origin's own `Connection: close` tells the client.
A request whose length is not known beforehand (Transfer-Encoding) is answered 411; through CONNECT it passes.

An answer of ours says why in `Proxy-Status` (RFC 9209), for programs, and in a line of text, for people.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable, Iterator
from http import HTTPStatus
from typing import Final
from urllib.parse import urlsplit

import h11

from softunicast.proxy.core.messages import (
    Accounts,
    Close,
    Command,
    Connect,
    Endpoint,
    Event,
    Failed,
    Opened,
    Reason,
    Received,
    Relay,
    Send,
)
from softunicast.proxy.core.socks5 import BadAddress, read_name

MAX_HEAD_BYTES: Final = 32768
NAME: Final = "softunicast"
HOP_BY_HOP: Final = frozenset(
    {b"connection", b"proxy-connection", b"keep-alive", b"te", b"trailer", b"upgrade", b"proxy-authorization"}
)
CHALLENGE: Final = (b"proxy-authenticate", b'Basic realm="softunicast", charset="UTF-8"')
Headers = list[tuple[bytes, bytes]]


def read_authority(text: str, port: int | None) -> Endpoint:
    """`host`, `host:port` or `[v6]:port`. BadAddress; also when there is no port and no default for it."""
    host, colon, digits = text.rpartition(":")
    if text.endswith("]") or not colon:
        host, digits = text, ""
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise BadAddress(f"{text[:80]!r} is no host and port")
    if digits:
        if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 0 < int(digits) < 65536):
            raise BadAddress(f"{digits[:20]!r} is no port")
        port = int(digits)
    if port is None:
        raise BadAddress(f"{text[:80]!r} names no port")
    return Endpoint(read_name(host.strip("[]").encode("utf-8", "replace")), port)


def credentials(headers: Iterable[tuple[bytes, bytes]]) -> tuple[str, str] | None:
    """User and password of Proxy-Authorization: Basic (RFC 7617); None: there are none that can be read."""
    for name, value in headers:
        if name == b"proxy-authorization":
            scheme, _, rest = value.partition(b" ")
            if scheme.lower() != b"basic":
                return None
            try:
                user, colon, password = base64.b64decode(rest.strip(), validate=True).decode().partition(":")
            except (binascii.Error, UnicodeDecodeError):
                return None
            return (user, password) if colon else None
    return None


def quoted(text: str) -> str:
    """A string of RFC 8941: printable ASCII, quotes and backslashes escaped."""
    plain = "".join(letter if 32 <= ord(letter) < 127 else "?" for letter in text)
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'


class Http1:
    """One client's conversation: one request."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts
        self._connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
        self._request: h11.Request | None = None
        self._head = b""
        self._length: int | None = None
        self._asked = False
        self._over = False

    def handle(self, event: Event) -> Iterable[Command]:
        if self._over:
            return ()
        if isinstance(event, Received):
            return self._received(event.data)
        if not self._asked:
            return ()
        self._over = True
        if isinstance(event, Failed):
            return self._answer(event.reason, event.detail)
        assert isinstance(event, Opened)
        early = self._connection.trailing_data[0]
        if self._request is not None and self._request.method != b"CONNECT":
            if self._length is None:
                return (Relay(self._head + early),)
            early = early[: self._length]
            return (Relay(self._head + early, self._length - len(early)),)
        done = self._connection.send(h11.Response(status_code=200, headers=[], reason=b"Connection established"))
        return Send(done or b""), Relay(early)

    def _received(self, data: bytes) -> Iterator[Command]:
        # h11 takes what belongs to a body too, until it is asked for it: it is not, and stays trailing_data.
        self._connection.receive_data(data)
        if self._request is not None:
            return
        try:
            event = self._connection.next_event()
        except h11.RemoteProtocolError as error:
            yield from self._refuse(Reason.BAD_REQUEST, str(error), error.error_status_hint)
            return
        if isinstance(event, h11.Request):
            self._request = event
            yield from self._requested(event)

    def _requested(self, request: h11.Request) -> Iterator[Command]:
        given = credentials(request.headers)
        user = self._accounts.anonymous
        if any(name == b"proxy-authorization" for name, _ in request.headers) or user is None:
            if given is None or not self._accounts.check(*given):
                who = f"user {given[0][:64]!r}: unknown, or a wrong password" if given else "no credentials"
                yield from self._refuse(Reason.DENIED, who)
                return
            user = given[0]
        try:
            if request.method == b"CONNECT":
                target, protocol = read_authority(request.target.decode("ascii", "replace"), None), "connect"
            else:
                target, protocol = self._plain(request), "http"
        except BadAddress as error:
            status = HTTPStatus.LENGTH_REQUIRED if isinstance(error, LengthRequired) else None
            yield from self._refuse(Reason.BAD_REQUEST, str(error), status)
            return
        self._asked = True
        yield Connect(user, target, protocol)

    def _plain(self, request: h11.Request) -> Endpoint:
        """Where a plain request goes; its head for there is kept. BadAddress."""
        try:
            url = urlsplit(request.target.decode("ascii"))
        except ValueError as error:
            raise BadAddress("a target that is no URL") from error
        if url.scheme.lower() != "http" or not url.netloc:
            raise BadAddress("this is a proxy: ask for http://HOST/PATH, or CONNECT HOST:PORT")
        authority = url.netloc.rpartition("@")[2]
        target = read_authority(authority, 80)
        named = set()
        upgrade = None
        fields: Headers = list(request.headers)
        for name, value in fields:
            if name == b"connection":
                named |= {word.strip().lower() for word in value.split(b",")}
            elif name == b"upgrade":
                upgrade = value
            elif name == b"transfer-encoding":
                raise LengthRequired("a body of unknown length: send Content-Length, or use CONNECT")
            elif name == b"content-length":
                self._length = int(value)
        if self._length is None:
            self._length = 0
        headers: Headers = [(b"Host", authority.encode("ascii"))]
        for (name, value), (as_written, _) in zip(fields, request.headers.raw_items(), strict=True):
            if name not in HOP_BY_HOP and name not in named and name != b"host":
                headers.append((as_written, value))
        headers.append((b"Via", f"{request.http_version.decode()} {NAME}".encode()))
        if upgrade is not None and b"upgrade" in named:
            headers += [(b"Connection", b"upgrade"), (b"Upgrade", upgrade)]
            self._length = None
        else:
            headers.append((b"Connection", b"close"))
        path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        if request.method == b"OPTIONS" and not url.path and not url.query:
            path = "*"
        try:
            writer = h11.Connection(h11.CLIENT)
            self._head = writer.send(h11.Request(method=request.method, target=path, headers=headers)) or b""
        except h11.LocalProtocolError as error:
            raise BadAddress(str(error)) from error
        return target

    def _refuse(self, reason: Reason, detail: str, status: int | None = None) -> Iterable[Command]:
        self._over = True
        return self._answer(reason, detail, status)

    def _answer(self, reason: Reason, detail: str, status: int | None = None) -> Iterable[Command]:
        code = status or reason.http
        body = f"{detail or reason.token}\n".encode("utf-8", "replace")
        status_line = f"{NAME}; error={reason.token}" + (f"; details={quoted(detail)}" if detail else "")
        headers: Headers = [
            (b"Content-Type", b"text/plain; charset=utf-8"),
            (b"Content-Length", str(len(body)).encode()),
            (b"Proxy-Status", status_line.encode("ascii")),
            (b"Connection", b"close"),
        ]
        if code == HTTPStatus.PROXY_AUTHENTICATION_REQUIRED:
            headers.append(CHALLENGE)
        # By a writer of its own: the reader's connection may be in an error, or in a body.
        phrase = HTTPStatus(code).phrase
        head = f"HTTP/1.1 {code} {phrase}\r\n".encode() + b"".join(b"%s: %s\r\n" % pair for pair in headers) + b"\r\n"
        with_body = self._request is None or self._request.method != b"HEAD"
        return Send(head + (body if with_body else b"")), Close(reason, detail)


class LengthRequired(BadAddress):
    """A plain request that does not say how long it is."""
