# SPDX-License-Identifier: Apache-2.0
"""Events that layers take, commands that they give, and why an upstream connection may not come about.

They are values, and nobody changes one; not `frozen`, which makes making them three times as dear, at ten a connection.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from softunicast.model.address import IPAddress


@dataclass(slots=True, unsafe_hash=True)
class Endpoint:
    """An address or a name, and a port."""

    host: IPAddress | str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in str(self.host) else f"{self.host}:{self.port}"


class Reason(Enum):
    """Why a request was not served: error token (RFC 9209 section 2.3), SOCKS5 reply (RFC 1928 section 6), HTTP status.

    SOCKS has no word for "timed out": 6, "TTL expired", is what Tor says too.
    """

    REFUSED = ("connection_refused", 5, 502)
    RESET = ("connection_terminated", 5, 502)
    TIMEOUT = ("connection_timeout", 6, 504)
    NETWORK_UNREACHABLE = ("destination_ip_unroutable", 3, 502)
    HOST_UNREACHABLE = ("destination_unavailable", 4, 502)
    NAME_UNKNOWN = ("dns_error", 4, 502)
    NAME_TIMEOUT = ("dns_timeout", 4, 504)
    POOL_FULL = ("connection_limit_reached", 1, 503)
    POOL_MISSING = ("proxy_configuration_error", 1, 503)
    FORBIDDEN = ("destination_ip_prohibited", 2, 403)
    USER_LIMIT = ("connection_limit_reached", 2, 429)
    EXHAUSTED = ("proxy_internal_error", 1, 503)
    BAD_REQUEST = ("http_request_error", 1, 400)
    DENIED = ("http_request_denied", 2, 407)
    UNSUPPORTED = ("proxy_configuration_error", 7, 501)

    def __init__(self, token: str, socks: int, http: int) -> None:
        self.token = token
        self.socks = socks
        self.http = http


# POOL_FULL and USER_LIMIT have the same token and differ in the rest, as do the configuration errors: an Enum tells
# members apart by the whole tuple.


@dataclass(slots=True)
class Received:
    """Bytes from the client."""

    data: bytes


@dataclass(slots=True)
class Opened:
    """The upstream connection stands (or the association's UDP socket waits): `local` is our end of it."""

    local: Endpoint


@dataclass(slots=True)
class Failed:
    """There will be no upstream connection. `detail` is one line for people."""

    reason: Reason
    detail: str = ""


Event = Received | Opened | Failed


@dataclass(slots=True)
class Send:
    """Bytes for the client."""

    data: bytes


@dataclass(slots=True)
class Claim:
    """Who the client says it is on behalf of another proxy (PROXY protocol). None: that proxy asks for itself."""

    source: Endpoint | None
    destination: Endpoint | None = None


@dataclass(slots=True)
class Connect:
    """Open a TCP connection for `user`; answer with Opened or Failed. The client is not read from meanwhile."""

    user: str
    target: Endpoint
    protocol: str


@dataclass(slots=True)
class Associate:
    """Open UDP sockets for `user` (RFC 1928 section 7); answer with Opened or Failed. `client`: where its datagrams
    will come from, as far as it said."""

    user: str
    client: Endpoint


@dataclass(slots=True)
class Relay:
    """Bytes pass both ways from now on. `first` goes upstream before them (what the client sent ahead, or a request's
    head); of the client's further bytes `only` are passed, then none (None: no limit)."""

    first: bytes = b""
    only: int | None = None


@dataclass(slots=True)
class Close:
    """Close the client's connection once everything is sent; `why` is for the log."""

    why: Reason
    detail: str = ""


Command = Send | Claim | Connect | Associate | Relay | Close


class Accounts(Protocol):
    """Who may pass."""

    @property
    def anonymous(self) -> str | None:
        """The user whose policy those without credentials follow; None: they are refused."""

    def check(self, user: str, password: str) -> bool:
        """Are these a user's name and password? Takes as long for an unknown user as for a wrong password."""


class Layer(Protocol):
    """A protocol's state."""

    def handle(self, event: Event) -> Iterable[Command]:
        """What to do about an event. Never raises for anything a client can send."""


class Ended:
    """The layer behind a Close: deaf."""

    def handle(self, event: Event) -> Iterable[Command]:
        return ()
