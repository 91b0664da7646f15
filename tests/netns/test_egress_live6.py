# SPDX-License-Identifier: Apache-2.0
"""IPv6 fish end to end: clients behind a veth and a TUN, and what refusals of unfinished checksums do to them."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from softunicast.kernel import netns
from softunicast.kernel.abi import Counter, Drop
from tests.netns.test_egress_live import echo
from tests.support.dataplane import GATEWAY6, SERVER6, SLICE6, Dataplane, Place, place, run, running
from tests.support.wait import wait_until

IPV6_MTU_DISCOVER, IPV6_MTU, IPV6_RECVERR, PMTUDISC_DO = 23, 24, 25, 2


@pytest.fixture(scope="module")
def where() -> Iterator[Place]:
    with place() as made:
        yield made


@pytest.fixture
def plane(where: Place) -> Iterator[Dataplane]:
    with running(where) as made:
        made.add_slice(SLICE6, 9000, 9009)
        yield made


def open_socket(namespace: str, kind: socket.SocketKind) -> socket.socket:
    with netns.enter(namespace):
        made = socket.socket(socket.AF_INET6, kind)
    made.settimeout(5)
    return made


@pytest.fixture
def listener(where: Place) -> Iterator[socket.socket]:
    with open_socket(where.world, socket.SOCK_STREAM) as made:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((SERVER6, 443))
        made.listen(64)
        yield made


@pytest.mark.parametrize("who", ["client", "tun"])
def test_tcp_both_ways(where: Place, plane: Dataplane, listener: socket.socket, who: str) -> None:
    with open_socket(where.of(who), socket.SOCK_STREAM) as client:
        client.connect((SERVER6, 443))
        server, (address, port, *_) = listener.accept()
        with server:
            assert address == SLICE6
            assert 9000 <= port <= 9009
            payload = bytes(range(256)) * 4000
            for source, target in ((client, server), (server, client)):
                echo(source, target, payload)
    assert plane.drops() == {}


@pytest.mark.parametrize("who", ["client", "tun"])
def test_ping(where: Place, plane: Dataplane, who: str) -> None:
    with netns.enter(where.of(who)):
        assert "1 received" in run(f"ping -c 1 -W 2 -s 1300 {SERVER6}")
    assert plane.drops() == {}


@pytest.mark.parametrize("who", ["client", "tun"])
def test_full_refuses_at_once(where: Place, plane: Dataplane, listener: socket.socket, who: str) -> None:
    clients = [open_socket(where.of(who), socket.SOCK_STREAM) for _ in range(11)]
    clients += [open_socket(where.of(who), socket.SOCK_DGRAM) for _ in range(11)]
    try:
        for client in clients[:10]:
            client.connect((SERVER6, 443))
        with pytest.raises(ConnectionRefusedError):
            clients[10].connect((SERVER6, 443))
        assert plane.count(Counter.RST_SENT) == 1
        with open_socket(where.world, socket.SOCK_DGRAM) as server:
            server.bind((SERVER6, 53))
            for client in clients[11:]:
                client.connect((SERVER6, 53))
                client.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                clients[21].recv(10)
        assert plane.count(Counter.ICMP_SENT) == 1
        assert plane.drops() == {Drop.SLICE_FULL: 2}
    finally:
        for client in clients:
            client.close()


def test_last_hop_is_told(where: Place, plane: Dataplane) -> None:
    with netns.enter(where.client):
        out = run(f"sh -c 'ping -c 1 -t 1 -W 2 {SERVER6} || true'")
    assert f"From {GATEWAY6}" in out
    assert "Time exceeded" in out


def test_what_is_too_big_for_the_uplink_is_told(where: Place, plane: Dataplane, listener: socket.socket) -> None:
    with netns.enter(where.node):
        run("ip link set fish0 mtu 1800")
    with netns.enter(where.client):
        run("ip link set eth0 mtu 1800")
    try:
        with open_socket(where.client, socket.SOCK_DGRAM) as client:
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_MTU_DISCOVER, PMTUDISC_DO)
            client.setsockopt(socket.IPPROTO_IPV6, IPV6_RECVERR, 1)
            client.connect((SERVER6, 53))
            client.send(b"x" * 1700)

            def refused() -> bool:
                try:
                    client.send(b"x" * 1700)
                except OSError as error:
                    return error.errno == errno.EMSGSIZE
                return False

            wait_until(refused, 5, "EMSGSIZE")
            assert client.getsockopt(socket.IPPROTO_IPV6, IPV6_MTU) == 1600
        assert plane.drops()[Drop.TOO_BIG] >= 1
    finally:
        for namespace, device in ((where.node, "fish0"), (where.client, "eth0")):
            with netns.enter(namespace):
                run(f"ip link set {device} mtu 1500")
