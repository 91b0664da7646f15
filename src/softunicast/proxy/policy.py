# SPDX-License-Identifier: Apache-2.0
"""The proxy's policy file: who may pass, from which listeners, out of which pools, how much.

    text --model.document--> data with lines --shapes below--> typed keys --read_policy--> ProxyConfig

Pure; whoever calls it reads the file. Every mistake is one PlanError with file and line. Reference: docs/proxy.md.
"""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Annotated, Final, Literal, TypeVar

from pydantic import Field

from softunicast.model.address import IPAddress, Networks, parse_address, parse_network
from softunicast.model.document import Document, Path, load_document
from softunicast.model.shape import Shape, Texts, checked
from softunicast.proxy.core.http1 import read_authority
from softunicast.proxy.core.messages import Endpoint
from softunicast.proxy.core.socks5 import BadAddress

EXAMPLE: Final = 'listeners: {main: {listen: "127.0.0.1:1080", anonymous: me}}\nusers: {me: {pool: gb}}'
PAGE: Final = "docs/proxy.md"
T = TypeVar("T")
_INSIDE4: Final = (
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
)
_INSIDE6: Final = (
    "::/127",
    "64:ff9b:1::/48",
    "fc00::/7",
    "fe80::/10",
    "fec0::/10",
    "ff00::/8",
)
INSIDE: Final = Networks((*map(IPv4Network, _INSIDE4), *map(IPv6Network, _INSIDE6)))
"""What a client may not reach through the proxy unless `allow` says so: this host, its neighbours, nobody."""

Seconds = Annotated[float, Field(gt=0, le=86400)]
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Protocols = Literal["socks5", "http"]


class ListenerShape(Shape):
    listen: str
    protocols: list[Protocols] = ["socks5", "http"]
    anonymous: str | None = None
    clients: Texts = []
    proxy_header: bool = False
    transparent: bool = False


class UserShape(Shape):
    pool: Texts = []
    tags: dict[str, str] = {}
    direct: bool = False
    password: str | None = None
    password_sha256: str | None = None
    address_by: Literal["user", "client", "connection"] = "user"
    connections: Count | None = None
    connects_per_s: Count | None = None
    allow: Texts = []
    send_proxy_header: Literal[1, 2] | None = None


class DnsShape(Shape):
    servers: Texts = []
    user: str | None = None
    timeout_s: Seconds = 5
    entries: Count = 10000


class ProxyShape(Shape):
    listeners: dict[str, ListenerShape]
    users: dict[str, UserShape]
    dns: DnsShape = DnsShape()
    workers: Annotated[int, Field(ge=1, le=256)] = 1
    handshake_s: Seconds = 10
    connect_s: Seconds = 20
    stop_s: Annotated[float, Field(ge=0, le=86400)] = 5
    access_log: str | None = None


@dataclass(frozen=True, slots=True)
class Listener:
    """Where clients come in. `clients` empty: from anywhere. `namespace`: the network namespace it listens in, empty:
    this one; `held`: SYNs wait there until the destination has answered (proxy.holds)."""

    name: str
    listen: Endpoint
    protocols: tuple[str, ...]
    anonymous: str | None
    clients: Networks
    proxy_header: bool
    transparent: bool
    namespace: str = ""
    held: bool = False


@dataclass(frozen=True, slots=True)
class User:
    """Whose egress is how. One of `pools`, `tags`, `direct` is set. `index`: its place in the file."""

    name: str
    index: int
    pools: tuple[str, ...]
    tags: Mapping[str, str]
    direct: bool
    digest: bytes | None
    address_by: str
    connections: int | None
    connects_per_s: int | None
    allow: Networks
    send_proxy_header: int | None

    def may_reach(self, address: IPAddress) -> bool:
        """Is a destination neither inside, nor excepted?"""
        if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return address not in INSIDE or address in self.allow


@dataclass(frozen=True, slots=True)
class ProxyConfig:
    """A policy file, checked."""

    file: str
    listeners: tuple[Listener, ...]
    users: Mapping[str, User]
    servers: tuple[IPAddress, ...] = ()
    dns_timeout_s: float = 5
    dns_entries: int = 10000
    dns_user: str | None = None
    workers: int = 1
    handshake_s: float = 10
    connect_s: float = 20
    stop_s: float = 5
    access_log: str | None = None
    _nobody: bytes = field(default=b"\0" * 32)

    def check(self, user: str, password: str) -> bool:
        """Are these a user's name and password? Constant time for what is secret."""
        known = self.users.get(user)
        digest = known.digest if known and known.digest else self._nobody
        given = hashlib.sha256(password.encode("utf-8", "surrogateescape")).digest()
        return hmac.compare_digest(digest, given) and known is not None and known.digest is not None


@dataclass(frozen=True, slots=True)
class ListenerAccounts:
    """`Accounts` of one listener."""

    config: ProxyConfig
    anonymous: str | None

    def check(self, user: str, password: str) -> bool:
        return self.config.check(user, password)


def shape_at(path: Path) -> type[Shape]:
    """The shape whose keys are wanted at a path."""
    match path:
        case ("listeners", _):
            return ListenerShape
        case ("users", _):
            return UserShape
        case ("dns",):
            return DnsShape
        case _:
            return ProxyShape


_EXAMPLES: Final = {
    "listeners": 'listeners: {main: {listen: "127.0.0.1:1080"}}',
    "users": "users: {alice: {password: secret, pool: gb}}",
    "listen": 'listen: "127.0.0.1:1080"',
}


def read_policy(text: str, file: str) -> ProxyConfig:
    """Parse and check a policy file. PlanError: the first mistake."""
    document = load_document(text, file, f"begin with the example in {PAGE}")
    shape = checked(document, ProxyShape, shape_at, _EXAMPLES, PAGE)
    users = {
        name: _user(document, ("users", name), name, index, one)
        for index, (name, one) in enumerate(shape.users.items())
    }
    if not shape.listeners:
        document.fail(("listeners",), "none", f"add `{_EXAMPLES['listeners']}`")
    listeners = tuple(
        _listener(document, ("listeners", name), name, one, users) for name, one in shape.listeners.items()
    )
    places: dict[str, str] = {}
    for one in listeners:
        before = places.setdefault(str(one.listen), one.name)
        if before != one.name:
            document.fail(("listeners", one.name, "listen"), f"{one.listen} is {before}'s already", "take another port")
    servers = tuple(
        _parsed(document, ("dns", "servers", index), parse_address, text)
        for index, text in enumerate(shape.dns.servers)
    )
    if shape.dns.user is not None and shape.dns.user not in users:
        document.fail(("dns", "user"), f"no user {shape.dns.user}", f"name one of: {', '.join(users) or 'none'}")
    return ProxyConfig(
        file,
        listeners,
        users,
        servers,
        shape.dns.timeout_s,
        shape.dns.entries,
        shape.dns.user,
        shape.workers,
        shape.handshake_s,
        shape.connect_s,
        shape.stop_s,
        shape.access_log,
    )


def _parsed(document: Document, path: Path, parse: Callable[[str], T], text: str) -> T:
    try:
        return parse(text)
    except ValueError as error:
        document.fail(path, str(error))


def _user(document: Document, path: Path, name: str, index: int, shape: UserShape) -> User:
    if len(name.encode()) > 255 or ":" in name or not name.isprintable() or not name:
        document.fail(path, "a name has 1 to 255 bytes, no colon and no control characters", "rename it", key=True)
    ways = [key for key, given in (("pool", shape.pool), ("tags", shape.tags), ("direct", shape.direct)) if given]
    if len(ways) != 1:
        said = " and ".join(ways) or "no pool"
        document.fail(
            path, f"{said}: one of pool, tags and direct is wanted", "write one, such as `pool: gb`", key=True
        )
    digest = None
    if shape.password is not None and shape.password_sha256 is not None:
        document.fail((*path, "password_sha256"), "there is a password too", "keep one of them", key=True)
    if shape.password is not None:
        if not shape.password:
            document.fail((*path, "password"), "is empty", "write one, or leave the key out")
        digest = hashlib.sha256(shape.password.encode()).digest()
    if shape.password_sha256 is not None:
        if not re.fullmatch(r"[0-9a-fA-F]{64}", shape.password_sha256):
            document.fail((*path, "password_sha256"), "not 64 hexadecimal digits", "printf %s PASSWORD | sha256sum")
        digest = bytes.fromhex(shape.password_sha256)
    allow = Networks(
        _parsed(document, (*path, "allow", at), parse_network, text) for at, text in enumerate(shape.allow)
    )
    return User(
        name,
        index,
        tuple(shape.pool),
        shape.tags,
        shape.direct,
        digest,
        shape.address_by,
        shape.connections,
        shape.connects_per_s,
        allow,
        shape.send_proxy_header,
    )


def _listener(document: Document, path: Path, name: str, shape: ListenerShape, users: Mapping[str, User]) -> Listener:
    try:
        listen = read_authority(shape.listen, None)
    except BadAddress as error:
        document.fail((*path, "listen"), str(error), 'write ADDRESS:PORT in quotes, like "127.0.0.1:1080"')
    if isinstance(listen.host, str):
        document.fail((*path, "listen"), f"{listen.host} is a name", "write an address")
    if not shape.protocols:
        document.fail((*path, "protocols"), "none", "write socks5, http, or leave the key out")
    if shape.anonymous is not None and shape.anonymous not in users:
        there = ", ".join(users) or "none"
        document.fail((*path, "anonymous"), f"no user {shape.anonymous}", f"name one of: {there}")
    if shape.transparent and shape.anonymous is None:
        document.fail((*path, "transparent"), "whose egress is it?", "name a user with `anonymous: NAME`", key=True)
    if shape.transparent and shape.proxy_header:
        document.fail((*path, "proxy_header"), "a transparent listener has none", "leave it out", key=True)
    if shape.anonymous is not None and not shape.clients and not ip_address(str(listen.host)).is_loopback:
        document.fail(
            (*path, "anonymous"),
            f"anybody who reaches {listen} could use it",
            "say who with `clients: [10.0.0.0/8]`, or listen on a loopback address",
        )
    clients = Networks(
        _parsed(document, (*path, "clients", at), parse_network, text) for at, text in enumerate(shape.clients)
    )
    protocols = tuple(shape.protocols)
    return Listener(name, listen, protocols, shape.anonymous, clients, shape.proxy_header, shape.transparent)
