# SPDX-License-Identifier: Apache-2.0
"""Fish end to end: real clients behind a veth and a TUN, a real server, no agent."""

from __future__ import annotations

import select
import socket
from collections.abc import Iterator

import pytest

from softunicast.kernel import netns
from softunicast.kernel.abi import Counter, Drop, Kind
from softunicast.kernel.abi_util import word_state
from tests.support.dataplane import CLIENT, SERVER, SLICE, TUN_CLIENT, Dataplane, Place, place, run, running
from tests.support.wait import wait_until


@pytest.fixture(scope="module")
def where() -> Iterator[Place]:
    with place() as made:
        yield made


@pytest.fixture
def plane(where: Place) -> Iterator[Dataplane]:
    with running(where) as made:
        yield made


def tcp_socket(namespace: str, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    with netns.enter(namespace):
        made = socket.socket(family, socket.SOCK_STREAM)
    made.settimeout(5)
    return made


def udp_socket(namespace: str) -> socket.socket:
    with netns.enter(namespace):
        made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.settimeout(3)
    return made


@pytest.fixture
def listener(where: Place) -> Iterator[socket.socket]:
    with tcp_socket(where.world) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((SERVER, 443))
        made.listen(64)
        yield made


@pytest.mark.parametrize("who", ["client", "tun"])
def test_tcp_both_ways(where: Place, plane: Dataplane, listener: socket.socket, who: str) -> None:
    with tcp_socket(where.of(who)) as client:
        client.connect((SERVER, 443))
        server, (address, port) = listener.accept()
        with server:
            assert address == SLICE
            assert 9000 <= port <= 9009
            payload = bytes(range(256)) * 4000
            for source, target in ((client, server), (server, client)):
                echo(source, target, payload)
            (flow,) = plane.flows()
            claim = plane.flows()[flow]
            assert claim.kind == Kind.PACKET
            assert claim.inner_port == client.getsockname()[1]
            assert word_state(claim.word).name == "OPEN"
    wait_until(lambda: [word_state(c.word).name for c in plane.flows().values()] == ["LINGER"], 5, "both FINs seen")
    assert plane.drops() == {}


def echo(source: socket.socket, target: socket.socket, payload: bytes) -> None:
    """All of it arrives, whatever the buffers hold."""
    source.setblocking(False)
    target.setblocking(False)
    sent, got = 0, bytearray()
    while len(got) < len(payload):
        readable, writable, _ = select.select([target], [source] if sent < len(payload) else [], [], 5)
        assert readable or writable
        if writable:
            sent += source.send(payload[sent:])
        if readable:
            got += target.recv(1 << 20)
    assert bytes(got) == payload


@pytest.mark.parametrize("who", ["client", "tun"])
def test_udp_both_ways(where: Place, plane: Dataplane, who: str) -> None:
    with udp_socket(where.world) as server, udp_socket(where.of(who)) as client:
        server.bind((SERVER, 53))
        client.connect((SERVER, 53))
        client.send(b"question")
        question, (address, port) = server.recvfrom(100)
        assert (question, address, 9000 <= port <= 9009) == (b"question", SLICE, True)
        server.sendto(b"answer", (address, port))
        assert client.recv(100) == b"answer"
    assert plane.drops() == {}


@pytest.mark.parametrize("who", ["client", "tun"])
def test_ping(where: Place, plane: Dataplane, who: str) -> None:
    with netns.enter(where.of(who)):
        assert "1 received" in run(f"ping -c 1 -W 2 {SERVER}")
    (flow,) = plane.flows()
    assert 9000 <= flow.local_port <= 9009
    assert plane.drops() == {}


@pytest.mark.parametrize(("who", "inner"), [("client", CLIENT), ("tun", TUN_CLIENT)])
def test_full_refuses_at_once(where: Place, plane: Dataplane, listener: socket.socket, who: str, inner: str) -> None:
    clients = [tcp_socket(where.of(who)) for _ in range(11)]
    try:
        for client in clients[:10]:
            client.connect((SERVER, 443))
        with pytest.raises(ConnectionRefusedError):
            clients[10].connect((SERVER, 443))
        assert plane.drops() == {Drop.SLICE_FULL: 1}
        assert plane.count(Counter.RST_SENT) == 1
        assert {c.inner_port for c in plane.flows().values()} == {c.getsockname()[1] for c in clients[:10]}
        with udp_socket(where.world) as server:
            server.bind((SERVER, 53))
            datagrams = [udp_socket(where.of(who)) for _ in range(11)]
            for one in datagrams:
                one.connect((SERVER, 53))
                one.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                datagrams[10].recv(10)
            for one in datagrams:
                one.close()
        assert plane.count(Counter.ICMP_SENT) == 1
    finally:
        for client in clients:
            client.close()
