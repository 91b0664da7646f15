# SPDX-License-Identifier: Apache-2.0
"""A client's connection from accept() to the relay: bytes to the protocol's layer, its commands carried out.

    accepted --Front--> Connect --Dial--> Opened | Failed --Front--> Send, Relay | Send, Close
                    '-> Associate (UDP)                                        lingering close

A client has `handshake_s` for all it says until it is served. While the upstream connection is made it is not read,
but its RST ends the attempt. A refusal is closed lingering (shutdown, then read what is still in flight, a moment):
closed at once, unread bytes would turn it into a RST, which may overtake the answer.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from ipaddress import ip_address
from typing import Final

from softunicast.model.address import IPAddress
from softunicast.proxy.core.front import Front
from softunicast.proxy.core.messages import (
    Associate,
    Claim,
    Close,
    Command,
    Connect,
    Endpoint,
    Event,
    Failed,
    Layer,
    Opened,
    Reason,
    Received,
    Relay,
    Send,
)
from softunicast.proxy.core.proxy_header import write_header
from softunicast.proxy.core.transparent import Transparent
from softunicast.proxy.dial import Dial, Dialed
from softunicast.proxy.loop import ERR, HUP, IN, Timer
from softunicast.proxy.policy import Listener, ListenerAccounts, User
from softunicast.proxy.relay import LINGER_RESET
from softunicast.proxy.relay import Relay as Splice
from softunicast.proxy.service import Passage, Service
from softunicast.proxy.udp import Association

READ_BYTES: Final = 4096
LINGER_S: Final = 2.0
ANYWHERE: Final = ("0.0.0.0", "::")


@lru_cache(4096)
def plain(text: str) -> IPAddress:
    """An address as accept() gives it; IPv4 in IPv6's clothes is IPv4."""
    address = ip_address(text.partition("%")[0])
    return getattr(address, "ipv4_mapped", None) or address


class Session:
    """`over(session, result)` is called once: a Passage or an Association that goes on, or None."""

    __slots__ = (
        "_client",
        "_dial",
        "_first",
        "_front",
        "_listener",
        "_over",
        "_request",
        "_service",
        "_sock",
        "_timer",
        "_upstream",
        "_user",
    )

    def __init__(
        self,
        service: Service,
        listener: Listener,
        accounts: ListenerAccounts,
        sock: socket.SocketType,
        peer: Endpoint,
        over: Callable[[Session, Passage | Association | None], None],
    ) -> None:
        self._service = service
        self._listener = listener
        self._sock = sock
        self._client = peer
        self._over = over
        self._front: Layer
        self._user: User | None = None
        self._request: Connect | None = None
        self._dial: Dial | None = None
        self._upstream: Dialed | Association | None = None
        self._first = b""
        self._timer: Timer | None = None
        if listener.transparent:
            self._front = Transparent()
            service.loop.add(sock.fileno(), 0, self._hung_up)
        else:
            self._front = Front(accounts, listener.protocols, header=listener.proxy_header)
            self._timer = service.loop.later(service.config.handshake_s, self._too_slow)
            service.loop.add(sock.fileno(), IN, self._readable)

    def start(self) -> None:
        """Hear the client, or, if it does not know of us, ask for it. `over` may be called from here."""
        listener = self._listener
        if not listener.transparent:
            return
        host, port, *_ = self._sock.getsockname()
        target = Endpoint(plain(host), port)
        holds = self._service.holds.get(listener.namespace)
        made = holds.take(self._client, target) if holds is not None else None
        if made is not None:
            self._go_on_with(target, *made)
        elif port == listener.listen.port and str(listener.listen.host) in (str(target.host), *ANYWHERE):
            self._refuse(Reason.BAD_REQUEST, "it asked for the proxy itself; TPROXY leads here from other places")
        else:
            self._carry_out((Connect(listener.anonymous or "", target, "transparent"),))

    def _go_on_with(self, target: Endpoint, user: User, dialed: Dialed) -> None:
        """Its SYN was held until this connection stood (proxy.holds)."""
        self._request = Connect(user.name, target, "transparent")
        self._user = user
        self._dialed(dialed)

    def abandon(self) -> None:
        """The worker ends."""
        self._drop()

    def _readable(self, events: int) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._refuse(Reason.BAD_REQUEST, "the client left before it asked")
            return
        self._carry_out(self._front.handle(Received(data)))

    def _hung_up(self, events: int) -> None:
        """While nothing is read: a reset ends all; bytes sent ahead are left where they are."""
        if events & (ERR | HUP):
            self._log_failure(Reason.RESET, "the client left before it was served")
            self._drop()
        else:
            self._service.loop.modify(self._sock.fileno(), 0)

    def _too_slow(self) -> None:
        self._refuse(Reason.TIMEOUT, "the client did not ask in time")

    def _tell(self, event: Event) -> None:
        self._carry_out(self._front.handle(event))

    def _carry_out(self, commands: Iterable[Command]) -> None:
        """A mistake of ours ends the client's connection rather than leave it waiting; the loop tells of it."""
        try:
            for command in commands:
                if self._over is _deaf:
                    return
                if isinstance(command, Send):
                    self._send(command.data)
                elif isinstance(command, Connect):
                    self._connect(command)
                elif isinstance(command, Relay):
                    self._join(command)
                elif isinstance(command, Claim):
                    if command.source is not None:
                        self._client = command.source
                elif isinstance(command, Associate):
                    self._associate(command)
                elif isinstance(command, Close):
                    self._close(command)
        except BaseException:
            self._drop()
            raise

    def _close(self, command: Close) -> None:
        self._log_failure(command.why, command.detail)
        if self._listener.transparent:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
            self._drop()
        else:
            self._close_lingering()

    def _send(self, data: bytes) -> None:
        """Answers are small, and the first bytes of a connection: they fit the socket's buffer, or nobody listens."""
        try:
            sent = self._sock.send(data)
        except OSError:
            sent = -1
        if sent != len(data):
            self._log_failure(Reason.RESET, "the client left before it was answered")
            self._drop()

    def _begin(self, name: str) -> bool:
        """Count the request for its user; False: refused."""
        if self._timer is not None:
            self._timer.cancel()
            self._service.loop.handle(self._sock.fileno(), IN, self._hung_up)
        user = self._service.user(name)
        said = f"no user {name}" if user is None else self._service.limits.begin(user, self._service.loop.now)
        if said is not None or user is None:
            self._tell(Failed(Reason.USER_LIMIT, said or ""))
            return False
        self._user = user
        return True

    def _connect(self, request: Connect) -> None:
        self._request = request
        if not self._begin(request.user):
            return
        assert self._user is not None
        assert not isinstance(self._client.host, str)
        service = self._service
        target = request.target
        self._dial = Dial(
            service.loop, service.resolver, service.egress, self._user, self._client.host, target, self._dialed
        )
        self._dial.start(service.config.connect_s)

    def _dialed(self, dialed: Dialed) -> None:
        self._dial = None
        if dialed.sock is None:
            self._tell(Failed(dialed.reason, dialed.detail))
            return
        assert dialed.local is not None
        self._upstream = dialed
        self._tell(Opened(dialed.local))

    def _associate(self, request: Associate) -> None:
        self._request = Connect(request.user, request.client, "udp")
        if not self._begin(request.user):
            return
        assert self._user is not None
        assert not isinstance(self._client.host, str)
        try:
            here = self._sock.getsockname()[0]
            association = Association.open(
                self._service, self._user, self._sock, here, self._client.host, request.client
            )
        except OSError as error:
            self._tell(Failed(Reason.EXHAUSTED, os.strerror(error.errno or 0)))
            return
        self._upstream = association
        self._tell(Opened(association.local))

    def _join(self, command: Relay) -> None:
        """From now on the relay, or the association, has the sockets."""
        upstream, service = self._upstream, self._service
        self._upstream = None
        if isinstance(upstream, Association):
            service.loop.remove(self._sock.fileno())
            self._leave(upstream)
            return
        assert upstream is not None
        assert upstream.sock is not None
        assert upstream.remote is not None
        assert upstream.local is not None
        assert self._request is not None
        assert self._user is not None
        first = command.first
        if self._user.send_proxy_header is not None:
            first = write_header(self._user.send_proxy_header, self._client, upstream.remote) + first
        passage = Passage(
            self._user.name,
            self._request.protocol,
            self._listener.name,
            self._client,
            self._request.target,
            upstream.remote,
            upstream.local,
            upstream.pool,
            time.time(),
            len(first),
        )
        relay = Splice(service.loop, service.pipes, self._sock, upstream.sock, _deaf, command.only)
        passage.relay = relay
        if first and not self._send_first(relay, first):
            self._log_failure(Reason.EXHAUSTED, "no pipe for what the client sent ahead")
            self._end_user()
            relay.close()
            self._leave(None)
            return
        self._leave(passage)

    @staticmethod
    def _send_first(relay: Splice, first: bytes) -> bool:
        """What the client sent ahead: to the socket, and what does not fit there to the way's pipe. False: it fits
        neither."""
        try:
            sent = relay.upstream.sock.send(first)
        except BlockingIOError:
            sent = 0
        except OSError:
            return True  # the relay will meet the same error
        if sent < len(first):
            try:
                pipe = relay.up.pipe = relay.pipes.take()
                relay.up.held = os.write(pipe.write, first[sent:])
            except OSError:
                return False
            relay.up.moved -= relay.up.held
        return sent + relay.up.held == len(first)

    def _leave(self, result: Passage | Association | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        over, self._over = self._over, _deaf
        over(self, result)

    def _refuse(self, reason: Reason, detail: str) -> None:
        self._log_failure(reason, detail)
        self._drop()

    def _log_failure(self, reason: Reason, detail: str) -> None:
        service, request = self._service, self._request
        service.counters.fail(reason)
        if service.log.wanted:
            service.log.write(
                {
                    "user": self._user.name if self._user else None,
                    "protocol": request.protocol if request else None,
                    "listener": self._listener.name,
                    "client": str(self._client),
                    "target": str(request.target) if request else None,
                    "failed": reason.name.lower(),
                    "detail": detail,
                }
            )

    def _end_user(self) -> None:
        if self._user is not None:
            self._service.limits.end(self._user)
            self._user = None

    def _drop(self) -> None:
        """Away with everything."""
        if self._over is _deaf:
            return
        if self._dial is not None:
            self._dial.cancel()
        if isinstance(self._upstream, Association):
            self._upstream.close_sockets()
        elif self._upstream is not None and self._upstream.sock is not None:
            self._service.loop.close(self._upstream.sock)
        self._end_user()
        self._service.loop.close(self._sock)
        self._leave(None)

    def _close_lingering(self) -> None:
        self._end_user()
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError:
            self._drop()
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._service.loop.later(LINGER_S, self._drop)
        self._service.loop.handle(self._sock.fileno(), IN, self._discard)

    def _discard(self, events: int) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop()


def _deaf(*_: object) -> None:
    """Called where everything is over."""
