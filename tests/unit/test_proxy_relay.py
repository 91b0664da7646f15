# SPDX-License-Identifier: Apache-2.0
"""The relay by splice between two socket pairs: what was sent ahead, limits, ends, and pipes that are given back."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from softunicast.proxy.loop import IN, Handler, Loop
from softunicast.proxy.relay import Pipe, Pipes, Relay
from softunicast.proxy.session import Session


@dataclass
class Between:
    """client <-> [near, relay, far] <-> origin. `run` until the relay is over; what both ends got by then."""

    only: int | None = None
    loop: Loop = field(default_factory=Loop)
    pipes: Pipes = field(default_factory=Pipes)

    def __post_init__(self) -> None:
        self.client, near = tcp_pair()
        self.origin, far = tcp_pair()
        self.over: list[str] = []
        self.got = {"client": b"", "origin": b""}
        for name, sock in (("client", self.client), ("origin", self.origin)):
            self.loop.add(sock.fileno(), IN, self._reader(name, sock))
        self.relay = Relay(self.loop, self.pipes, near, far, self._done, self.only)

    def _reader(self, name: str, sock: socket.socket) -> Handler:
        def read(events: int) -> None:
            try:
                data = sock.recv(65536)
            except OSError as error:
                data = b""
                self.over.append(f"{name}: {error.strerror}")
            self.got[name] += data
            if not data:
                self.loop.remove(sock.fileno())
                self._look()

        return read

    def _done(self, relay: Relay) -> None:
        self.over.append(relay.why)
        relay.close()
        self._look()

    def _look(self) -> None:
        if self.relay.over:
            self.loop.later(0.05, self.loop.stop)

    def run(self) -> None:
        self.loop.later(20, self.loop.stop)
        self.loop.run()

    def close(self) -> None:
        self.relay.close()
        self.loop.stop()
        self.client.close()
        self.origin.close()


def tcp_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        here = socket.socket()
        here.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        here.connect(server.getsockname())
        there, _ = server.accept()
    there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    for one in (here, there):
        one.setblocking(False)
    return here, there


@pytest.fixture
def between() -> Iterator[Between]:
    made = Between()
    yield made
    made.close()


def test_sent_ahead_through_the_pipe(between: Between) -> None:
    data = bytes(range(256)) * 400
    assert Session._send_first(between.relay, data)
    assert between.relay.up.held > 0, "the socket took all of it; nothing is tested"
    between.client.send(b"tail")
    between.client.shutdown(socket.SHUT_WR)
    between.origin.shutdown(socket.SHUT_WR)
    between.relay.start()
    between.run()
    assert between.got["origin"] == data + b"tail"
    assert between.over == ["closed"]
    assert between.relay.up.moved + len(data) == len(data) + 4


class NoPipes(Pipes):
    def take(self) -> Pipe:
        raise OSError


def test_sent_ahead_without_a_pipe_is_said() -> None:
    made = Between(pipes=NoPipes())
    assert not Session._send_first(made.relay, bytes(500000))
    made.close()


def test_no_more_than_was_allowed() -> None:
    """A plain request's body ends by its length; the answer goes on, and ends both."""
    made = Between(only=5)
    made.client.send(b"helloGET http://another/")
    made.relay.start()
    made.origin.send(b"answer")
    made.origin.shutdown(socket.SHUT_WR)
    made.run()
    assert made.got == {"client": b"answer", "origin": b"hello"}
    assert made.over[0] == "closed"
    made.close()


def test_a_reset_is_passed_on(between: Between) -> None:
    between.relay.start()
    between.origin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    between.loop.close(between.origin)
    between.run()
    assert between.over == ["upstream reset", "client: Connection reset by peer"]
