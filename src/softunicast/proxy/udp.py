# SPDX-License-Identifier: Apache-2.0
"""UDP ASSOCIATE: datagrams of one client, with their SOCKS header off and on (RFC 1928 section 7).

    client  --[header | payload]-->  inner socket   Association   outer sockets (v4, v6)  --payload-->  remotes

The inner socket is bound where the client's TCP connection came in, and hears that client's address only; its port is
the one it named, or that of its first datagram. The outer sockets are tagged with the user's pool and never connect:
the uplink's guard gives each remote its own port of a slice (docs/sockets.md). A name in a header is looked up by the
node; datagrams wait for it, WAITING at most. The association lives as long as its TCP connection.

Datagrams pass through Python, because each has a header; only streams do not.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from typing import Any, Final

from softunicast.errors import SoftunicastError
from softunicast.model.address import IPAddress
from softunicast.proxy.core.messages import Endpoint, Reason
from softunicast.proxy.core.socks5 import datagram_head, read_datagram
from softunicast.proxy.loop import IN
from softunicast.proxy.policy import User
from softunicast.proxy.service import Service

TURNS: Final = 64
WAITING: Final = 16
MAX_BYTES: Final = 65535


class Association:
    """`done(association)` is called once, when its TCP connection ends; then `close()`."""

    @classmethod
    def open(
        cls, service: Service, user: User, control: socket.SocketType, here: str, client: IPAddress, said: Endpoint
    ) -> Association:
        """OSError when there is no socket to be had. `said`: where the client's datagrams come from, 0 for unknown."""
        inner = socket.socket(control.family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            inner.bind((here, 0))
        except OSError:
            inner.close()
            raise
        return cls(service, user, control, inner, client, said.port)

    def __init__(
        self,
        service: Service,
        user: User,
        control: socket.SocketType,
        inner: socket.SocketType,
        client: IPAddress,
        port: int,
    ) -> None:
        """`port` of the client, 0: that of its first datagram."""
        self._service = service
        self.user = user
        self.control = control
        self.client = client
        self.port = port
        self.started_s = time.time()
        self.up_bytes = self.down_bytes = self.dropped = 0
        self.done: Callable[[Association], None] = lambda _: None
        self._waiting: dict[str, list[tuple[int, bytes]]] = {}
        self._names: dict[str, IPAddress] = {}
        self.outer: dict[int, socket.SocketType] = {}
        self.inner = inner
        name = self.inner.getsockname()
        address = ip_address(name[0].partition("%")[0])
        self.local = Endpoint(getattr(address, "ipv4_mapped", None) or address, name[1])

    def start(self) -> None:
        """Hear all sockets."""
        self._service.loop.add(self.control.fileno(), IN, self._control)
        self._service.loop.add(self.inner.fileno(), IN, self._from_client)
        for sock in self.outer.values():
            self._listen(sock)

    def pause(self) -> None:
        """Hear nothing: another process takes over."""
        for sock in (self.control, self.inner, *self.outer.values()):
            self._service.loop.remove(sock.fileno())

    def _listen(self, sock: socket.SocketType) -> None:
        self._service.loop.add(sock.fileno(), IN, lambda _: self._from_remote(sock))

    def _control(self, events: int) -> None:
        try:
            if self.control.recv(4096):
                return
        except BlockingIOError:
            return
        except OSError:
            pass
        self.done(self)

    def _from_client(self, events: int) -> None:
        for _ in range(TURNS):
            try:
                data, source = self.inner.recvfrom(MAX_BYTES)
            except OSError:
                return
            address = ip_address(source[0].partition("%")[0])
            address = getattr(address, "ipv4_mapped", None) or address
            if address != self.client or (self.port and source[1] != self.port):
                self.dropped += 1
                continue
            self.port = source[1]
            read = read_datagram(data)
            if read is None or not read[0].port:
                self.dropped += 1
                continue
            target, at = read
            if isinstance(target.host, str):
                self._by_name(target.host, target.port, data[at:])
            else:
                self._to_remote(target.host, target.port, data[at:])

    def _by_name(self, name: str, port: int, payload: bytes) -> None:
        known = self._names.get(name)
        if known is not None:
            self._to_remote(known, port, payload)
            return
        waiting = self._waiting.get(name)
        if waiting is not None:
            if len(waiting) < WAITING:
                waiting.append((port, payload))
            return
        self._waiting[name] = [(port, payload)]
        found: list[IPAddress] = []

        def told(addresses: Sequence[IPAddress], _: Reason | None, last: bool) -> None:
            found.extend(addresses)
            if not last or self.control.fileno() < 0:
                return
            queue = self._waiting.pop(name, [])
            found.sort(key=lambda one: one.version)
            if found:
                if len(self._names) >= 256:
                    self._names.clear()
                self._names[name] = found[0]
                for each_port, each in queue:
                    self._to_remote(found[0], each_port, each)

        self._service.resolver.ask(name, told)

    def _to_remote(self, address: IPAddress, port: int, payload: bytes) -> None:
        """Errors of one datagram are its own: lost, as by a network."""
        if not self.user.may_reach(address):
            self.dropped += 1
            return
        sock = self.outer.get(address.version)
        if sock is None:
            sock = self._open(address.version)
        try:
            if sock is None:
                raise OSError
            sock.sendto(payload, (str(address), port))
        except OSError:
            self.dropped += 1
            return
        self.up_bytes += len(payload)
        self._service.counters.datagrams_up += 1

    def _open(self, version: int) -> socket.SocketType | None:
        egress = self._service.egress
        family = socket.AF_INET if version == 4 else socket.AF_INET6
        try:
            exits = egress.exits(self.user, self.client)
            if not exits:
                return None
            sock = egress.open(family, socket.SOCK_DGRAM, exits[0])
        except (OSError, SoftunicastError):
            return None
        self.outer[version] = sock
        self._listen(sock)
        return sock

    def _from_remote(self, sock: socket.SocketType) -> None:
        for _ in range(TURNS):
            try:
                data, source = sock.recvfrom(MAX_BYTES)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error of an earlier datagram
                continue
            if not self.port:
                continue
            head = datagram_head(Endpoint(ip_address(source[0].partition("%")[0]), source[1]))
            try:
                self.inner.sendto(head + data, self._client_address())
            except OSError:
                self.dropped += 1
                continue
            self.down_bytes += len(data)
            self._service.counters.datagrams_down += 1

    def _client_address(self) -> tuple[Any, ...]:
        if self.inner.family == socket.AF_INET6 and self.client.version == 4:
            return (f"::ffff:{self.client}", self.port)
        return (str(self.client), self.port)

    def entry(self) -> dict[str, Any]:
        """The log's line."""
        return {
            "user": self.user.name,
            "protocol": "udp",
            "client": str(Endpoint(self.client, self.port)),
            "duration_s": round(time.time() - self.started_s, 3),
            "bytes_up": self.up_bytes,
            "bytes_down": self.down_bytes,
            "dropped": self.dropped,
        }

    def close_sockets(self) -> None:
        """All but the TCP connection."""
        for sock in (self.inner, *self.outer.values()):
            self._service.loop.close(sock)

    def close(self) -> None:
        self.close_sockets()
        self._service.loop.close(self.control)
