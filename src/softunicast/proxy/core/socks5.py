# SPDX-License-Identifier: Apache-2.0
"""SOCKS5, the server's side: RFC 1928, user and password of RFC 1929.

    client                                   proxy
    05 n METHODS                        -->
                                        <--  05 METHOD        02: user and password, 00: none, FF: neither will do
    01 ulen USER plen PASSWORD          -->                   (method 02)
                                        <--  01 00            00: right, 01: wrong, then closed
    05 CMD 00 ATYP ADDRESS PORT         -->                   01: connect, 03: associate; 02 (bind) is refused
                                        <--  05 REPLY 00 ATYP ADDRESS PORT

A client that offers user and password is always asked for them, so that one without rights of its own cannot
hide behind the anonymous one by chance; a user name with an empty password is checked like any other. What a
client sends ahead of its answers is kept: it is the beginning of what is relayed. The longest message is 513
bytes, so a client's share of memory is bounded by what is read at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from enum import Enum, auto
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from softunicast.model.address import IPAddress
from softunicast.proxy.core.messages import (
    Accounts,
    Associate,
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

VERSION: Final = 5
NO_AUTHENTICATION, USER_PASSWORD, NO_METHOD = 0, 2, 0xFF
CONNECT, BIND, ASSOCIATE = 1, 2, 3
IPV4, NAME, IPV6 = 1, 3, 4
UNSPECIFIED: Final = Endpoint(IPv4Address(0), 0)
BAD_ADDRESS: Final = 8


class _Stage(Enum):
    GREETING = auto()
    CREDENTIALS = auto()
    REQUEST = auto()
    CONNECTING = auto()
    ASSOCIATING = auto()
    OVER = auto()


class BadAddress(ValueError):
    """An address that cannot be read; `str()` says why."""


def read_endpoint(data: bytes, at: int) -> tuple[Endpoint, int] | None:
    """ATYP, address and port at an offset, and where they end; None: there must come more. BadAddress."""
    if len(data) < at + 2:
        return None
    kind = data[at]
    if kind == NAME:
        first, last = at + 2, at + 2 + data[at + 1]
    elif kind in (IPV4, IPV6):
        first, last = at + 1, at + (5 if kind == IPV4 else 17)
    else:
        raise BadAddress(f"address type {kind}")
    if len(data) < last + 2:
        return None
    raw = data[first:last]
    host: IPAddress | str
    if kind == IPV4:
        host = IPv4Address(raw)
    elif kind == IPV6:
        host = IPv6Address(raw)
    else:
        host = read_name(raw)
    return Endpoint(host, int.from_bytes(data[last : last + 2], "big")), last + 2


def read_name(raw: bytes) -> IPAddress | str:
    """A host's name in ASCII, or the address it spells. BadAddress."""
    try:
        name = raw.decode("ascii")
    except UnicodeDecodeError as error:
        raise BadAddress("a name that is not ASCII") from error
    if not name or len(name) > 253 or not all(33 <= ord(letter) < 127 for letter in name):
        raise BadAddress("an empty name" if not name else "a name with blanks or control characters")
    try:
        return IPv6Address(name) if ":" in name else IPv4Address(name)
    except ValueError:
        if ":" in name:
            raise BadAddress(f"{name!r} is no address") from None
        return name.lower()


def write_endpoint(endpoint: Endpoint) -> bytes:
    """ATYP, address and port."""
    host = endpoint.host
    if isinstance(host, str):
        raw = host.encode("ascii")
        return bytes((NAME, len(raw))) + raw + endpoint.port.to_bytes(2, "big")
    return bytes((IPV4 if host.version == 4 else IPV6,)) + host.packed + endpoint.port.to_bytes(2, "big")


def reply(code: int, local: Endpoint = UNSPECIFIED) -> Send:
    """The answer to a request: 0 is success, `local` our end of the connection then."""
    return Send(bytes((VERSION, code, 0)) + write_endpoint(local))


class Socks5:
    """One client's conversation."""

    def __init__(self, accounts: Accounts, *, associate: bool = True) -> None:
        """`associate`: is UDP ASSOCIATE served here?"""
        self._accounts = accounts
        self._associate = associate
        self._user = ""
        self._stage = _Stage.GREETING
        self._data = b""

    def handle(self, event: Event) -> Iterable[Command]:
        if isinstance(event, Received):
            if self._stage is _Stage.OVER:
                return ()
            self._data += event.data
            return self._read()
        if self._stage not in (_Stage.CONNECTING, _Stage.ASSOCIATING):
            return ()
        connecting = self._stage is _Stage.CONNECTING
        self._stage = _Stage.OVER
        if isinstance(event, Failed):
            return reply(event.reason.socks), Close(event.reason, event.detail)
        assert isinstance(event, Opened)
        early, self._data = self._data, b""
        return (reply(0, event.local), Relay(early)) if connecting else (reply(0, event.local), Relay())

    def _read(self) -> Iterator[Command]:
        before = None
        while before is not self._stage:
            before = self._stage
            if self._stage is _Stage.GREETING:
                yield from self._greeting()
            elif self._stage is _Stage.CREDENTIALS:
                yield from self._credentials()
            elif self._stage is _Stage.REQUEST:
                yield from self._request()

    def _close(self, reason: Reason, detail: str) -> Close:
        self._stage, self._data = _Stage.OVER, b""
        return Close(reason, detail)

    def _greeting(self) -> Iterator[Command]:
        data = self._data
        if data[:1] not in (b"", b"\x05"):
            yield self._close(Reason.BAD_REQUEST, f"SOCKS version {data[0]}, not 5")
            return
        if len(data) < 2 or len(data) < 2 + data[1]:
            return
        methods, self._data = data[2 : 2 + data[1]], data[2 + data[1] :]
        if USER_PASSWORD in methods:
            self._stage = _Stage.CREDENTIALS
            yield Send(bytes((VERSION, USER_PASSWORD)))
        elif NO_AUTHENTICATION in methods and self._accounts.anonymous is not None:
            self._user, self._stage = self._accounts.anonymous, _Stage.REQUEST
            yield Send(bytes((VERSION, NO_AUTHENTICATION)))
        else:
            yield Send(bytes((VERSION, NO_METHOD)))
            yield self._close(Reason.DENIED, "no credentials")

    def _credentials(self) -> Iterator[Command]:
        data = self._data
        if data[:1] not in (b"", b"\x01"):
            yield Send(b"\x01\x01")
            yield self._close(Reason.BAD_REQUEST, f"version {data[0]} of user and password, not 1")
            return
        if len(data) < 2 or len(data) < 3 + data[1] or len(data) < 3 + data[1] + data[2 + data[1]]:
            return
        user_end = 2 + data[1]
        end = user_end + 1 + data[user_end]
        user = data[2:user_end].decode("utf-8", "replace")
        password = data[user_end + 1 : end].decode("utf-8", "replace")
        self._data = data[end:]
        if self._accounts.check(user, password):
            self._user, self._stage = user, _Stage.REQUEST
            yield Send(b"\x01\x00")
        else:
            yield Send(b"\x01\x01")
            yield self._close(Reason.DENIED, f"user {user[:64]!r}: unknown, or a wrong password")

    def _request(self) -> Iterator[Command]:
        data = self._data
        if len(data) < 5:
            if data[:1] not in (b"", b"\x05"):
                yield self._close(Reason.BAD_REQUEST, f"a request of version {data[0]}")
            return
        if data[0] != VERSION:
            yield self._close(Reason.BAD_REQUEST, f"a request of version {data[0]}")
            return
        try:
            read = read_endpoint(data, 3)
        except BadAddress as error:
            yield reply(BAD_ADDRESS)
            yield self._close(Reason.BAD_REQUEST, str(error))
            return
        if read is None:
            return
        target, end = read
        self._data = data[end:]
        if data[1] == CONNECT:
            self._stage = _Stage.CONNECTING
            yield Connect(self._user, target, "socks5")
        elif data[1] == ASSOCIATE and self._associate:
            self._stage = _Stage.ASSOCIATING
            yield Associate(self._user, target)
        else:
            yield reply(Reason.UNSUPPORTED.socks)
            yield self._close(Reason.UNSUPPORTED, f"SOCKS command {data[1]}")


def read_datagram(data: bytes) -> tuple[Endpoint, int] | None:
    """Where a client's datagram is to go, and where its payload begins (RFC 1928 section 7: RSV RSV FRAG ATYP ...).

    None: not one, or a fragment, which this proxy does not put together (a server need not, ibid.).
    """
    if len(data) < 10 or data[:3] != b"\0\0\0":
        return None
    try:
        return read_endpoint(data, 3)
    except BadAddress:
        return None


def datagram_head(source: Endpoint) -> bytes:
    """What stands before the payload on its way to the client."""
    return b"\0\0\0" + write_endpoint(source)
