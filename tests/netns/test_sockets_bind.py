# SPDX-License-Identifier: Apache-2.0
"""Programs that choose addresses and ports themselves: honoured inside a slice of the node, refused elsewhere."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator

import pytest

from softunicast.kernel import abi
from softunicast.kernel.abi import Counter, Drop, Kind, State
from tests.support.sock_node import (
    ADDRESS,
    ADDRESS2,
    FOREIGN_PORT,
    IP_BIND_ADDRESS_NO_PORT,
    IP_LOCAL_PORT_RANGE,
    U32,
    WORLD,
    WORLD2,
    WORLD6,
    SockNode,
    cookie_of,
    refused,
    reset_close,
)
from tests.support.wait import wait_until

PORTS = set(range(9000, 9010))
SIX = "2001:db8:51::1"


@pytest.fixture
def node() -> Iterator[SockNode]:
    with SockNode(slices=((ADDRESS, 9000, 9009), (ADDRESS2, 7000, 7009))) as made:
        yield made


def connected(node: SockNode, port: int = 443) -> socket.socket:
    made = node.tagged()
    made.connect((WORLD, port))
    return made


def limit(made: socket.socket, first: int, last: int) -> None:
    made.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, last << 16 | first)


@pytest.mark.parametrize("policy", [True, False], ids=["policy", "no policy"])
def test_a_port_in_a_slice_is_honoured(node: SockNode, policy: bool) -> None:
    server = node.server()
    made = node.tagged() if policy else node.plain_socket()
    made.bind((ADDRESS, 9003))
    assert node.claims() == []
    made.connect((WORLD, 443))
    assert server.accept()[1] == (ADDRESS, 9003)
    assert [(claim.local[1], claim.owner) for claim in node.claims()] == [(9003, cookie_of(made))]
    others = [connected(node) for _ in range(9)]
    assert {other.getsockname()[1] for other in others} == PORTS - {9003}
    with refused(errno.EADDRNOTAVAIL):
        connected(node)
    reset_close(made)
    assert len(node.alive()) == 9


def test_a_port_that_another_socket_has_towards_that_remote_is_refused(node: SockNode) -> None:
    node.server()
    node.server(444)
    held = connected(node)
    made = node.plain_socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind(held.getsockname())
    with refused(errno.EADDRNOTAVAIL):
        made.connect((WORLD, 443))
    made.connect((WORLD, 444))
    assert len(node.alive()) == 2
    blocked = node.plain_socket()
    with refused(errno.EADDRINUSE):  # the kernel's own: without SO_REUSEADDR
        blocked.bind(held.getsockname())


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
@pytest.mark.parametrize("policy", [True, False], ids=["policy", "no policy"])
@pytest.mark.parametrize("port", [FOREIGN_PORT, 9100, 80], ids=["another node's", "nobody's", "low"])
def test_a_port_of_somebody_else_is_refused(node: SockNode, kind: socket.SocketKind, policy: bool, port: int) -> None:
    made = node.tagged(kind=kind) if policy else node.plain_socket(kind=kind)
    with refused(errno.EADDRNOTAVAIL):
        made.bind((ADDRESS, port))
    assert node.counter(Counter.REFUSED_SOCKET) == 1


def test_a_slice_of_another_pool_is_refused_under_a_policy(node: SockNode) -> None:
    with node.tagged() as made, refused(errno.EADDRNOTAVAIL):
        made.bind((ADDRESS2, 7003))
    with node.plain_socket() as made:
        made.bind((ADDRESS2, 7003))


def test_a_policy_with_a_range_stays_within(node: SockNode) -> None:
    node.server()
    folder = type(node.cgroup)(node.cgroup.path / "range")
    folder.create()
    flags = abi.PolicyFlag.SET | abi.PolicyFlag.RANGE
    node.policy(folder, abi.Policy(flags=flags, pool=1, slice=0, first=9004, last=9005))
    held = [node.tagged(folder=folder) for _ in range(3)]
    for made in held[:2]:
        made.connect((WORLD, 443))
    assert {made.getsockname()[1] for made in held[:2]} == {9004, 9005}
    with refused(errno.EADDRNOTAVAIL):
        held[2].connect((WORLD, 443))
    with refused(errno.EADDRNOTAVAIL):
        held[2].bind((ADDRESS, 9003))
    # A folder below has the policy of the one above.
    below = type(node.cgroup)(folder.path / "below")
    below.create()
    with node.tagged(folder=below) as made, refused(errno.EADDRNOTAVAIL):
        made.connect((WORLD, 443))


def test_no_port_with_a_range(node: SockNode) -> None:
    node.server()
    held = []
    for _ in range(3):
        made = node.tagged()
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        limit(made, 9002, 9003)
        made.bind((ADDRESS, 0))
        assert made.getsockname()[1] == 0
        held.append(made)
    for made in held[:2]:
        made.connect((WORLD, 443))
    assert {made.getsockname() for made in held[:2]} == {(ADDRESS, 9002), (ADDRESS, 9003)}
    with refused(errno.EADDRNOTAVAIL):
        held[2].connect((WORLD, 443))
    assert len(node.claims()) == 2


def test_no_port_without_a_policy_stays_in_the_slices_of_its_address(node: SockNode) -> None:
    node.server()
    held = []
    for _ in range(10):
        made = node.plain_socket()
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind((ADDRESS2, 0))
        made.connect((WORLD, 443))
        held.append(made)
    assert {made.getsockname() for made in held} == {(ADDRESS2, port) for port in range(7000, 7010)}


def test_no_port_with_a_range_outside_the_slices(node: SockNode) -> None:
    node.server()
    made = node.tagged()
    made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    limit(made, 9005, 20000)
    made.bind((ADDRESS, 0))
    made.connect((WORLD, 443))
    assert made.getsockname()[1] in range(9005, 9010)
    outside = node.tagged()
    limit(outside, 10000, 20000)
    with refused(errno.EADDRNOTAVAIL):
        outside.connect((WORLD, 443))


def test_bind_to_port_0_gives_a_port_in_the_slice(node: SockNode) -> None:
    server = node.server()
    held = [node.plain_socket() for _ in range(30)]
    for made in held:
        made.bind((ADDRESS, 0))
        assert made.getsockname()[1] in PORTS
    held[0].connect((WORLD, 443))
    assert server.accept()[1] == held[0].getsockname()


def test_the_nodes_own_address_is_refused_under_a_policy(node: SockNode) -> None:
    node.server()
    with node.tagged() as made:
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind(("10.9.0.2", 0))
        with refused(errno.EADDRNOTAVAIL):
            made.connect((WORLD, 443))
    for address in ("10.9.0.2", "0.0.0.0"):
        made = node.tagged()
        made.bind((address, 0))
        with refused(errno.EADDRNOTAVAIL):
            made.connect((WORLD, 443))
    assert node.claims() == []


def test_destinations_that_are_never_sliced(node: SockNode) -> None:
    with node.plain_socket() as server, node.tagged() as made:
        server.bind(("127.0.0.1", 0))
        server.listen()
        made.connect(server.getsockname())
        assert made.getsockname()[0] == "127.0.0.1"
        with node.tagged() as made:
            made.connect(("0.0.0.0", server.getsockname()[1]))
            assert made.getsockname()[0] == "127.0.0.1"
    node.server(address="10.9.0.1")
    with node.tagged() as made:
        made.connect(("10.9.0.1", 443))
        assert made.getsockname()[0] == "10.9.0.2"
    assert node.claims() == []


def test_a_policys_bypass_list(node: SockNode) -> None:
    from ipaddress import ip_network

    from softunicast.kernel.abi_util import prefix_key

    node.server(address=WORLD2)
    node.server()
    node.object.maps["prefixes"].update(prefix_key(16, ip_network(f"{WORLD2}/32")), U32.pack(1))
    node.policy(node.cgroup, abi.Policy(flags=abi.PolicyFlag.SET, pool=1, bypass=16))
    with node.tagged() as made:
        made.connect((WORLD2, 443))
        assert made.getsockname()[0] == "10.9.0.2"
    assert connected(node).getsockname()[0] == ADDRESS


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_destinations_of_the_fleet_are_refused(node: SockNode, kind: socket.SocketKind) -> None:
    with node.tagged(kind=kind) as made, refused(errno.EACCES):
        made.connect((ADDRESS2, 7000))


@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM], ids=["tcp", "udp"])
def test_ipv6_is_unreachable_for_a_pool_without_it(node: SockNode, kind: socket.SocketKind) -> None:
    with node.tagged(socket.AF_INET6, kind) as made, refused(errno.ENETUNREACH):
        made.connect((WORLD6, 443))
    with node.tagged(socket.AF_INET6, socket.SOCK_DGRAM) as made, refused(errno.ENETUNREACH):
        made.sendto(b"x", (WORLD6, 443))
    assert node.claims() == []


def test_ipv6_in_a_slice() -> None:
    with SockNode(slices=((ADDRESS, 9000, 9009), (SIX, 2000, 2009))) as node:
        server = node.server(address=WORLD6)
        held = []
        for _ in range(10):
            made = node.tagged(socket.AF_INET6)
            made.connect((WORLD6, 443))
            held.append(made)
        assert {server.accept()[1][:2] for _ in held} == {(SIX, port) for port in range(2000, 2010)}
        with node.tagged(socket.AF_INET6) as late, refused(errno.EADDRNOTAVAIL):
            late.connect((WORLD6, 443))
        for made in held:
            reset_close(made)
        wait_until(lambda: node.claims() and not node.alive(), 5, "the claims to linger")


def test_a_socket_older_than_the_hooks_is_adopted() -> None:
    with SockNode(hooks=False) as node:
        server = node.server()
        old = node.plain_socket()
        old.bind((ADDRESS, 9003))
        old.connect((WORLD, 443))
        gone = node.plain_socket()
        gone.bind((ADDRESS, 9004))
        gone.connect((WORLD, 443))
        peers = {name[1]: peer for peer, name in (server.accept(), server.accept())}
        gone.close()
        peers[9004].close()
        node.attach()
        node.adopt()
        assert [(claim.local[1], claim.kind, claim.state) for claim in node.claims()] == [
            (9003, Kind.SOCKET, State.OPEN),
            (9004, Kind.SOCKET, State.LINGER),
        ]
        assert node.claims()[0].owner == cookie_of(old)
        assert node.counter(Counter.ADOPTED) == 2
        before = node.claims()
        node.adopt()
        assert node.claims() == before
        held = [connected(node) for _ in range(8)]
        assert {made.getsockname()[1] for made in held} == PORTS - {9003, 9004}
        peers[9003].sendall(b"still")
        assert old.recv(5) == b"still"
        reset_close(old)
        assert len(node.alive()) == 8


def test_without_adoption_the_kernels_tables_keep_sockets_apart() -> None:
    with SockNode(hooks=False) as node:
        node.server()
        old = []
        for port in range(9000, 9007):
            made = node.plain_socket()
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind((ADDRESS, port))
            made.connect((WORLD, 443))
            old.append(made)
        node.attach()
        held = [connected(node) for _ in range(3)]
        assert {made.getsockname()[1] for made in held} == {9007, 9008, 9009}
        with refused(errno.EADDRNOTAVAIL):
            connected(node)
        assert node.counter(Counter.KERNEL_BUSY) > 0
        assert len(node.claims()) == 3


def test_an_unclaimed_port_without_reuseaddr_is_passed_over() -> None:
    with SockNode(hooks=False) as node:
        node.server()
        old = node.plain_socket()
        old.bind((ADDRESS, 9005))  # no SO_REUSEADDR: nobody else can bind it
        node.attach()
        held = [connected(node) for _ in range(9)]
        assert {made.getsockname()[1] for made in held} == PORTS - {9005}
        with refused(errno.EADDRNOTAVAIL):
            connected(node)
        assert len(node.claims()) == 9


def test_a_refusal_names_slice_and_destination(node: SockNode) -> None:
    node.server()
    held = [connected(node) for _ in range(10)]
    with refused(errno.EADDRNOTAVAIL):
        connected(node)
    raw = node.object.maps["last_drops"].lookup(struct.pack("=I", Drop.SLICE_FULL))
    assert raw is not None
    assert abi.LastDrop.unpack(raw).flow.remote_port == 443
    assert len(held) == 10
