# SPDX-License-Identifier: Apache-2.0
"""Living connections from one process to the next: descriptors by SCM_RIGHTS, with what is known of them.

    old worker: Giver  --{"kind": "relay", ...} + client, upstream, pipes-->  new worker: Taker
                       <--"ID"                     taken, and running already

One message a connection over a SOCK_SEQPACKET pair. A connection is paused before it is sent, so no byte is moved
twice; the bytes that were under way go along, in the very pipe they are in. The old worker closes its copies once the
new one has said that it has them. If the new one dies before, the old one goes on with what it still has: an upgrade
that fails costs nothing. Connections that were being set up stay where they are, and are sent when they are relayed;
those that are not within the handshake's and the dialing's time are gone by then. `done` is the last message.

Source: unix(7) (SCM_RIGHTS).
"""

from __future__ import annotations

import json
import os
import socket
from collections import deque
from collections.abc import Callable
from ipaddress import ip_address
from typing import Any, Final

from softunicast.proxy.core.messages import Endpoint
from softunicast.proxy.loop import IN, OUT
from softunicast.proxy.relay import Pipe, Relay, Way, bytes_in
from softunicast.proxy.service import Passage, Service
from softunicast.proxy.udp import Association

WINDOW: Final = 64
MAX_BYTES: Final = 65536
MAX_FDS: Final = 16
ENDPOINTS: Final = ("client", "target", "remote", "local")
TEXTS: Final = ("user", "protocol", "listener", "pool", "started_s", "first_bytes")


def pack_endpoint(endpoint: Endpoint) -> list[Any]:
    return [str(endpoint.host), endpoint.port]


def unpack_endpoint(packed: list[Any]) -> Endpoint:
    try:
        return Endpoint(ip_address(packed[0]), packed[1])
    except ValueError:
        return Endpoint(packed[0], packed[1])


def pack_passage(passage: Passage) -> tuple[dict[str, Any], list[int]]:
    """A paused connection as text and descriptors."""
    relay = passage.relay
    assert relay is not None
    fds = [relay.client.fd, relay.upstream.fd]
    said: dict[str, Any] = {"kind": "relay"}
    for name in ENDPOINTS:
        said[name] = pack_endpoint(getattr(passage, name))
    for name in TEXTS:
        said[name] = getattr(passage, name)
    for name, way in (("up", relay.up), ("down", relay.down)):
        said[name] = [way.moved, way.left, way.eof, way.shut, way.pipe is not None]
        if way.pipe is not None:
            fds += [way.pipe.read, way.pipe.write]
    return said, fds


def unpack_passage(said: dict[str, Any], fds: list[int], service: Service, done: Callable[[Relay], None]) -> Passage:
    """The connection again, in this process; not started yet."""
    client, upstream = socket.socket(fileno=fds[0]), socket.socket(fileno=fds[1])
    relay = Relay(service.loop, service.pipes, client, upstream, done)
    pipes = iter(fds[2:])
    for way, packed in ((relay.up, said["up"]), (relay.down, said["down"])):
        _unpack_way(way, packed, pipes)
    values = {name: said[name] for name in TEXTS}
    values.update({name: unpack_endpoint(said[name]) for name in ENDPOINTS})
    return Passage(**values, relay=relay)


def _unpack_way(way: Way, packed: list[Any], pipes: Any) -> None:
    way.moved, way.left, way.eof, way.shut, piped = packed
    if piped:
        way.pipe = Pipe(next(pipes), next(pipes))
        way.held = bytes_in(way.pipe)


def pack_association(one: Association) -> tuple[dict[str, Any], list[int]]:
    said = {
        "kind": "udp",
        "user": one.user.name,
        "client": str(one.client),
        "port": one.port,
        "started_s": one.started_s,
        "bytes": [one.up_bytes, one.down_bytes],
        "outer": list(one.outer),
    }
    return said, [one.control.fileno(), one.inner.fileno(), *(sock.fileno() for sock in one.outer.values())]


Thing = Passage | Association


class Giver:
    """The old worker's side. `released(thing)`: the other side has it, close ours. `over(done)`: the end; False: the
    new process left before it had all, go on."""

    def __init__(
        self, service: Service, sock: socket.socket, released: Callable[[Thing], None], over: Callable[[bool], None]
    ) -> None:
        self._service = service
        self._sock = sock
        self._released = released
        self._over = over
        self._queue: deque[Thing] = deque()
        self._sent: dict[int, Thing] = {}
        self._number = 0
        self._last = False
        self._blocked = False
        sock.setblocking(False)
        service.loop.add(sock.fileno(), IN, self._ready)

    def offer(self, thing: Thing) -> None:
        """This one is to go."""
        self._queue.append(thing)
        self._send()

    def forget(self, thing: Thing) -> None:
        """It ended before it was sent."""
        if thing in self._queue:
            self._queue.remove(thing)

    def finish(self) -> None:
        """There will be no more."""
        self._last = True
        self._send()

    @property
    def idle(self) -> bool:
        return not self._queue and not self._sent

    def _send(self) -> None:
        while self._queue and len(self._sent) < WINDOW and not self._blocked:
            thing = self._queue[0]
            if isinstance(thing, Passage):
                assert thing.relay is not None
                if thing.relay.over:
                    self._queue.popleft()
                    continue
                thing.relay.pause()
                said, fds = pack_passage(thing)
            else:
                thing.pause()
                said, fds = pack_association(thing)
            said["id"] = self._number
            try:
                socket.send_fds(self._sock, [json.dumps(said).encode()], fds)
            except BlockingIOError:
                resume(thing)
                self._block(True)
                return
            except OSError:
                resume(thing)
                self._fail()
                return
            self._queue.popleft()
            self._sent[self._number] = thing
            self._number += 1
        if self._last and self.idle:
            try:
                self._sock.send(b'{"kind": "done"}')
            except BlockingIOError:
                self._block(True)
                return
            except OSError:
                self._fail()
                return
            self._end(True)

    def _block(self, blocked: bool) -> None:
        self._blocked = blocked
        self._service.loop.modify(self._sock.fileno(), IN | OUT if blocked else IN)

    def _ready(self, events: int) -> None:
        if events & OUT and self._blocked:
            self._block(False)
        try:
            while True:
                data = self._sock.recv(MAX_BYTES)
                if not data:
                    self._fail()
                    return
                thing = self._sent.pop(int(data), None)
                if thing is not None:
                    self._released(thing)
        except BlockingIOError:
            pass
        except OSError:
            self._fail()
            return
        self._send()

    def _fail(self) -> None:
        for thing in self._sent.values():
            resume(thing)
        self._sent.clear()
        self._queue.clear()
        self._end(False)

    def _end(self, done: bool) -> None:
        self._service.loop.close(self._sock)
        self._over(done)


def resume(thing: Thing) -> None:
    """It stays here after all. What the other process did with it meanwhile, the pipes know."""
    if isinstance(thing, Association):
        thing.start()
        return
    assert thing.relay is not None
    for way in (thing.relay.up, thing.relay.down):
        if way.pipe is not None:
            way.held = bytes_in(way.pipe)
    thing.relay.start()


class Taker:
    """The new worker's side. `take(said, fds)` makes the thing run; then it is acknowledged. `over()`: the end."""

    def __init__(
        self,
        service: Service,
        sock: socket.socket,
        take: Callable[[dict[str, Any], list[int]], None],
        over: Callable[[], None],
    ) -> None:
        self._service = service
        self._sock = sock
        self._take = take
        self._over = over
        sock.setblocking(False)
        service.loop.add(sock.fileno(), IN, self._ready)

    def _ready(self, events: int) -> None:
        for _ in range(WINDOW):
            try:
                data, fds, _, _ = socket.recv_fds(self._sock, MAX_BYTES, MAX_FDS, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                return
            except OSError:
                data, fds = b"", []
            said = json.loads(data) if data else {"kind": "done"}
            if said["kind"] == "done":
                self._service.loop.close(self._sock)
                self._over()
                return
            try:
                self._take(said, list(fds))
            except (OSError, ValueError, KeyError, StopIteration):
                for fd in fds:  # unreadable: not acknowledged, so it stays with the old process
                    os.close(fd)
                raise
            self._sock.setblocking(True)
            try:
                self._sock.send(str(said["id"]).encode())
            finally:
                self._sock.setblocking(False)
