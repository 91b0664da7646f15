# SPDX-License-Identifier: Apache-2.0
"""UDP sockets in slices: connected, connected again, and with a wildcard claim."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator

import pytest

from softunicast.kernel.abi import Counter, Kind, State
from tests.support.sock_node import (
    ADDRESS,
    IP_BIND_ADDRESS_NO_PORT,
    WORLD,
    WORLD2,
    SockNode,
    cookie_of,
    disconnect,
    ip,
    refused,
)

PORTS = set(range(9000, 9010))


@pytest.fixture
def node() -> Iterator[SockNode]:
    with SockNode() as made:
        yield made


@pytest.fixture
def wild() -> Iterator[SockNode]:
    """64 ports, of which 9000-9015 are for wildcard claims."""
    with SockNode(slices=((ADDRESS, 9000, 9063),), wildcard=16) as made:
        yield made


def udp(node: SockNode) -> socket.socket:
    return node.tagged(kind=socket.SOCK_DGRAM)


def connected(node: SockNode, port: int = 53, address: str = WORLD) -> socket.socket:
    made = udp(node)
    made.connect((address, port))
    return made


def test_ten_ports_are_ten_sockets(node: SockNode) -> None:
    server = node.server(53, kind=socket.SOCK_DGRAM)
    held = [connected(node) for _ in range(10)]
    assert {made.getsockname() for made in held} == {(ADDRESS, port) for port in PORTS}
    for made in held:
        made.send(b"ask")
        name = server.recvfrom(10)[1]
        assert name == made.getsockname()
        server.sendto(b"answer", name)
        assert made.recv(10) == b"answer"
    with refused(errno.EADDRNOTAVAIL):
        connected(node)
    assert {connected(node, 54).getsockname()[1]} <= PORTS
    held.pop().close()
    assert connected(node).getsockname()[1] in PORTS
    for made in held:
        made.close()
    assert node.claims() == []
    assert node.counter(Counter.LINGER) == 0


def test_connecting_twice_moves_the_claim(node: SockNode) -> None:
    made = connected(node, 53)
    name = made.getsockname()
    before = node.claims()
    made.connect((WORLD, 53))
    assert node.claims() == before, "the same remote again"
    made.connect((WORLD2, 123))
    assert made.getsockname() == name
    assert [(claim.local, claim.remote) for claim in node.claims()] == [(name, (WORLD2, 123))]
    disconnect(made)
    made.connect((WORLD, 54))
    assert [(claim.local, claim.remote) for claim in node.claims()] == [(name, (WORLD, 54))]
    made.close()
    assert node.claims() == []


def test_connecting_twice_to_a_remote_that_is_full_is_refused_and_changes_nothing(node: SockNode) -> None:
    held = [connected(node, 53) for _ in range(10)]
    made = connected(node, 54)
    server = node.server(54, kind=socket.SOCK_DGRAM)
    with refused(errno.EADDRNOTAVAIL):
        made.connect((WORLD, 53))
    made.send(b"still")
    assert server.recvfrom(10) == (b"still", made.getsockname())
    made.close()
    assert len(node.claims()) == len(held)


def test_no_route_leaves_no_claim(node: SockNode) -> None:
    ip("route", "del", "default", ns=node.name)
    made = udp(node)
    with refused(errno.ENETUNREACH):
        made.connect((WORLD, 53))
    made.close()
    assert node.claims() == []


def test_a_bound_socket_claims_what_it_connects_to(node: SockNode) -> None:
    made = udp(node)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((ADDRESS, 9003))
    made.connect((WORLD, 53))
    twin = udp(node)
    twin.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    twin.bind((ADDRESS, 9003))
    with refused(errno.EADDRNOTAVAIL):  # the kernel alone would let both have it
        twin.connect((WORLD, 53))
    twin.connect((WORLD, 54))
    assert {(claim.owner, claim.remote[1]) for claim in node.claims()} == {
        (cookie_of(made), 53),
        (cookie_of(twin), 54),
    }


def test_an_older_socket_keeps_its_flow() -> None:
    with SockNode(hooks=False) as node:
        old = node.plain_socket(kind=socket.SOCK_DGRAM)
        old.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        old.bind((ADDRESS, 9003))
        old.connect((WORLD, 53))
        node.attach()
        held = [connected(node) for _ in range(9)]
        assert {made.getsockname()[1] for made in held} == PORTS - {9003}
        with refused(errno.EADDRNOTAVAIL):
            connected(node)
        node.adopt()
        assert len(node.claims()) == 10
        assert cookie_of(old) in {claim.owner for claim in node.claims()}
        old.close()
        assert len(node.claims()) == 9


def test_a_wildcard_claim(wild: SockNode) -> None:
    first, second = wild.server(53, kind=socket.SOCK_DGRAM), wild.server(54, WORLD2, socket.SOCK_DGRAM)
    made = udp(wild)
    made.bind((ADDRESS, 9003))
    assert [(claim.local, claim.remote, claim.kind) for claim in wild.claims()] == [
        ((ADDRESS, 9003), ("::", 0), Kind.SOCKET)
    ]
    for server, remote in ((first, (WORLD, 53)), (second, (WORLD2, 54))):
        made.sendto(b"x", remote)
        assert server.recvfrom(1)[1] == (ADDRESS, 9003)
    before = wild.claims()
    made.connect((WORLD, 53))
    assert wild.claims() == before, "it covers every remote"
    twin = udp(wild)
    for each in (made, twin):
        each.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    with refused(errno.EADDRINUSE):
        twin.bind((ADDRESS, 9003))
    made.close()
    assert wild.claims() == []
    twin.bind((ADDRESS, 9003))
    twin.close()
    assert wild.claims() == []


def test_wildcard_ports_and_exact_ones_are_apart(wild: SockNode) -> None:
    chosen = [udp(wild) for _ in range(16)]
    for made in chosen:
        made.bind((ADDRESS, 0))
    assert {made.getsockname()[1] for made in chosen} == set(range(9000, 9016))
    with udp(wild) as late, refused(errno.EADDRNOTAVAIL):
        late.bind((ADDRESS, 0))
    exact = [connected(wild) for _ in range(48)]
    assert {made.getsockname()[1] for made in exact} == set(range(9016, 9064))
    with refused(errno.EADDRNOTAVAIL):
        connected(wild)
    for made in (*chosen, *exact):
        made.close()
    assert wild.claims() == []


def test_bind_with_no_port_chooses_when_it_connects(wild: SockNode) -> None:
    made = udp(wild)
    made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    made.bind((ADDRESS, 0))
    assert (made.getsockname()[1], wild.claims()) == (0, [])
    made.connect((WORLD, 53))
    assert made.getsockname()[1] in range(9016, 9064)


def test_an_older_wildcard_is_adopted() -> None:
    with SockNode(hooks=False, slices=((ADDRESS, 9000, 9063),), wildcard=16) as node:
        old = node.plain_socket(kind=socket.SOCK_DGRAM)
        old.bind((ADDRESS, 9003))
        node.attach()
        node.adopt()
        assert [(claim.local, claim.remote, claim.state) for claim in node.claims()] == [
            ((ADDRESS, 9003), ("::", 0), State.NEW)
        ]
        old.close()
        assert node.claims() == []


def test_v4_mapped(node: SockNode) -> None:
    server = node.server(53, kind=socket.SOCK_DGRAM)
    made = node.tagged(socket.AF_INET6, socket.SOCK_DGRAM)
    made.connect((f"::ffff:{WORLD}", 53))
    made.send(b"x")
    name = server.recvfrom(1)[1]
    assert [claim.local for claim in node.claims()] == [name] == [(ADDRESS, made.getsockname()[1])]


def test_sendto_refuses_what_must_not_leave(node: SockNode) -> None:
    made = udp(node)
    with refused(errno.EACCES):
        made.sendto(b"x", (ADDRESS, 9003))
    made.sendto(b"x", ("10.9.0.1", 53))
    assert node.claims() == []
