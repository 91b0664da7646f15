# SPDX-License-Identifier: Apache-2.0
"""Names to addresses, at the node that the connections leave from, without a wait for anybody else.

dnspython writes the questions and reads the answers; the sockets are the loop's. AAAA and A are asked at the same time,
each from a socket of its own (a port of the kernel's choice and a random id: RFC 5452), at the servers in turn until
one answers; a truncated answer is asked for again over TCP (RFC 7766). Answers, also "there is none", are kept as long
as their TTL says (RFC 2308 for the latter), within MIN_TTL_S and MAX_TTL_S. Who asks for what is asked already, waits
with the first.
"""

from __future__ import annotations

import contextlib
import socket
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.resolver

from softunicast.errors import SoftunicastError
from softunicast.model.address import IPAddress
from softunicast.proxy.core.messages import Reason
from softunicast.proxy.loop import ERR, HUP, IN, OUT, Loop, Timer

MIN_TTL_S: Final = 1
MAX_TTL_S: Final = 3600
FAILURE_TTL_S: Final = 1
TRY_S: Final = 1.5
TYPES: Final = (dns.rdatatype.AAAA, dns.rdatatype.A)

Told = Callable[[Sequence[IPAddress], Reason | None], None]
"""Addresses, or none and why."""


def system_servers(path: Path = Path("/etc/resolv.conf")) -> tuple[IPAddress, ...]:
    """The nameservers of resolv.conf(5)."""
    found: list[IPAddress] = []
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in path.read_text().splitlines():
            words = line.split()
            if len(words) > 1 and words[0] == "nameserver":
                with contextlib.suppress(ValueError):
                    found.append(ip_address(words[1]))
    return tuple(found) or (IPv4Address("127.0.0.1"),)


@dataclass(slots=True)
class _Kept:
    addresses: tuple[IPAddress, ...]
    reason: Reason | None
    until: float


@dataclass(slots=True)
class _Question:
    """One name and type, on its way."""

    name: str
    kind: dns.rdatatype.RdataType
    message: dns.message.QueryMessage
    waiting: list[Told] = field(default_factory=list)
    at: int = 0
    tries: int = 0
    sock: socket.SocketType | None = None
    timer: Timer | None = None
    buffer: bytes = b""


class Resolver:
    """Asks `servers` (port 53, or `port`)."""

    def __init__(
        self,
        loop: Loop,
        servers: Sequence[IPAddress],
        timeout_s: float = 5,
        entries: int = 10000,
        port: int = 53,
        opened: Callable[[int, int], socket.SocketType] = socket.socket,
    ) -> None:
        """`opened(family, kind)` makes a socket: one that leaves by a pool, for example."""
        self._loop = loop
        self._servers = servers
        self._timeout_s = timeout_s
        self._entries = entries
        self._port = port
        self._opened = opened
        self._kept: OrderedDict[tuple[str, int], _Kept] = OrderedDict()
        self._asked: dict[tuple[str, int], _Question] = {}

    def ask(self, name: str, told: Callable[[Sequence[IPAddress], Reason | None, bool], None]) -> None:
        """Look a name up. `told(addresses, reason, last)` is called for each family as it comes, at once for what is
        kept; twice, or once when the name is none."""
        remaining = len(TYPES)

        def one(addresses: Sequence[IPAddress], reason: Reason | None) -> None:
            nonlocal remaining
            remaining -= 1
            told(addresses, reason, remaining == 0)

        try:
            encoded = dns.name.from_text(name)
        except (dns.exception.DNSException, ValueError):
            told((), Reason.NAME_UNKNOWN, True)
            return
        for kind in TYPES:
            self._ask_one(name, encoded, kind, one)

    def _ask_one(self, name: str, encoded: dns.name.Name, kind: dns.rdatatype.RdataType, told: Told) -> None:
        key = (name, int(kind))
        kept = self._kept.get(key)
        if kept is not None:
            if kept.until > self._loop.now:
                self._kept.move_to_end(key)
                told(kept.addresses, kept.reason)
                return
            del self._kept[key]
        question = self._asked.get(key)
        if question is None:
            question = self._asked[key] = _Question(name, kind, dns.message.make_query(encoded, kind, use_edns=0))
            question.waiting.append(told)
            self._send(question)
        else:
            question.waiting.append(told)

    def _send(self, question: _Question) -> None:
        """To the next server by UDP; when none is left, that is the answer."""
        self._drop(question)
        if question.tries * TRY_S >= self._timeout_s:
            self._done(question, (), Reason.NAME_TIMEOUT, FAILURE_TTL_S)
            return
        server = self._servers[question.at % len(self._servers)]
        question.at += 1
        question.tries += 1
        question.timer = self._loop.later(min(TRY_S, self._timeout_s), lambda: self._send(question))
        try:
            sock = self._opened(_family(server), socket.SOCK_DGRAM)
        except (OSError, SoftunicastError):
            return
        sock.setblocking(False)
        try:
            sock.connect((str(server), self._port))
            sock.send(question.message.to_wire())
        except OSError:
            sock.close()
            return
        question.sock = sock
        self._loop.add(sock.fileno(), IN, lambda _: self._datagram(question))

    def _datagram(self, question: _Question) -> None:
        assert question.sock is not None
        try:
            data = question.sock.recv(65535)
        except BlockingIOError:
            return
        except OSError:  # refused: the next server
            self._send(question)
            return
        self._read(question, data, stream=False)

    def _stream(self, question: _Question) -> None:
        """The same question to the same server by TCP."""
        self._drop(question)
        server = self._servers[(question.at - 1) % len(self._servers)]
        question.timer = self._loop.later(self._timeout_s, lambda: self._send(question))
        try:
            sock = self._opened(_family(server), socket.SOCK_STREAM)
        except (OSError, SoftunicastError):
            return
        sock.setblocking(False)
        question.sock, question.buffer = sock, b""
        sock.connect_ex((str(server), self._port))
        wire = question.message.to_wire()

        def ready(events: int) -> None:
            try:
                if events & (ERR | HUP):
                    raise OSError
                if events & OUT:
                    sock.send(len(wire).to_bytes(2, "big") + wire)
                    self._loop.modify(sock.fileno(), IN)
                    return
                data = sock.recv(65535)
                if not data:
                    raise OSError
            except BlockingIOError:
                return
            except OSError:
                self._send(question)
                return
            question.buffer += data
            length = int.from_bytes(question.buffer[:2], "big")
            if len(question.buffer) >= 2 + length:
                self._read(question, question.buffer[2 : 2 + length], stream=True)

        self._loop.add(sock.fileno(), OUT, ready)

    def _read(self, question: _Question, data: bytes, *, stream: bool) -> None:
        try:
            answer = dns.message.from_wire(data, ignore_trailing=True)
            if not question.message.is_response(answer) or not isinstance(answer, dns.message.QueryMessage):
                return  # somebody else's
            if answer.flags & dns.flags.TC and not stream:
                self._stream(question)
                return
            code = answer.rcode()
            if code not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
                self._send(question)
                return
            chain = answer.resolve_chaining()
            ttl = min(max(chain.minimum_ttl, MIN_TTL_S), MAX_TTL_S)
            found = tuple(ip_address(str(one)) for one in chain.answer) if chain.answer is not None else ()
        except (dns.exception.DNSException, ValueError):
            self._send(question)
            return
        self._done(question, found, None if found else Reason.NAME_UNKNOWN, ttl)

    def _drop(self, question: _Question) -> None:
        if question.timer is not None:
            question.timer.cancel()
            question.timer = None
        if question.sock is not None:
            self._loop.close(question.sock)
            question.sock = None

    def _done(self, question: _Question, addresses: tuple[IPAddress, ...], reason: Reason | None, ttl_s: float) -> None:
        self._drop(question)
        key = (question.name, int(question.kind))
        self._asked.pop(key, None)
        self._kept[key] = _Kept(addresses, reason, self._loop.now + ttl_s)
        while len(self._kept) > self._entries:
            self._kept.popitem(last=False)
        for told in question.waiting:
            told(addresses, reason)


def _family(server: IPAddress) -> socket.AddressFamily:
    return socket.AF_INET6 if isinstance(server, IPv6Address) else socket.AF_INET
