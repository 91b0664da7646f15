# SPDX-License-Identifier: Apache-2.0
"""TCP sockets in a slice of ten ports: each gets a port nobody else has, and gives it back."""

from __future__ import annotations

import errno
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Iterator

import pytest

from softunicast.kernel.abi import Counter, Kind, State
from tests.support.sock_node import (
    ADDRESS,
    WORLD,
    WORLD2,
    SockNode,
    boot_s,
    cookie_of,
    disconnect,
    ip,
    refused,
    reset_close,
    sysctl,
)
from tests.support.wait import wait_until

MPTCP = 262
TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE = 30, 34
PORTS = set(range(9000, 9010))


@pytest.fixture
def node() -> Iterator[SockNode]:
    with SockNode() as made:
        yield made


def connected(node: SockNode, port: int = 443, address: str = WORLD) -> socket.socket:
    made = node.tagged()
    made.connect((address, port))
    return made


def lingering(node: SockNode) -> bool:
    return bool(node.claims()) and not node.alive()


def test_ten_ports_are_ten_connections_and_the_next_is_refused_at_once(node: SockNode) -> None:
    server = node.server()
    node.server(444)
    held = [connected(node) for _ in range(10)]
    seen = {server.accept()[0].getpeername() for _ in held}
    assert {made.getsockname() for made in held} == seen == {(ADDRESS, port) for port in PORTS}
    assert {claim.owner for claim in node.claims()} == {cookie_of(made) for made in held}
    assert {(claim.kind, claim.state) for claim in node.claims()} == {(Kind.SOCKET, State.OPEN)}
    late = node.tagged()
    took_s = []
    for _ in range(5):
        began = time.monotonic()
        with refused(errno.EADDRNOTAVAIL):
            late.connect((WORLD, 443))
        took_s.append(time.monotonic() - began)
    assert min(took_s) < 0.010, "nothing is waited for"
    assert node.counter(Counter.REFUSED_SOCKET) == 5
    # A second destination has its own ten ports, on the very same descriptor too.
    late.connect((WORLD, 444))
    assert late.getsockname()[1] in PORTS
    others = [connected(node, 444) for _ in range(9)]
    assert {made.getsockname()[1] for made in [late, *others]} == PORTS
    for made in [late, *others, *held]:
        reset_close(made)
    assert lingering(node)


def test_a_socket_without_a_policy_is_not_touched(node: SockNode) -> None:
    node.server()
    with node.plain_socket() as made:
        made.connect((WORLD, 443))
        assert made.getsockname()[0] == "10.9.0.2"
        assert node.claims() == []


def test_other_namespaces_are_not_touched(node: SockNode) -> None:
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
    assert node.claims() == []


def test_a_time_wait_keeps_its_port_for_a_while_and_is_then_taken_over() -> None:
    with SockNode(timers={"sock_reuse_s": 5}) as node:
        server = node.server()
        first = connected(node)
        port = first.getsockname()[1]
        there, _ = server.accept()
        first.close()
        there.close()
        wait_until(lambda: lingering(node), 20, "the claim to linger")
        ended_s = boot_s()
        others = [connected(node) for _ in range(9)]
        assert port not in {made.getsockname()[1] for made in others}
        with refused(errno.EADDRNOTAVAIL):
            connected(node)
        wait_until(lambda: boot_s() > ended_s + 6, 30, "sock_reuse_s to pass")
        last = connected(node)
        assert last.getsockname()[1] == port
        peer = None
        for _ in range(10):
            peer, name = server.accept()
            if name[1] == port:
                break
        assert peer is not None
        peer.sendall(b"mine")
        assert last.recv(4) == b"mine"
        assert [claim.owner for claim in node.claims() if claim.local[1] == port] == [cookie_of(last)]


def test_refused_by_the_server_leaves_no_claim_and_the_descriptor_may_try_again(node: SockNode) -> None:
    node.server()
    made = node.tagged()
    made.settimeout(None)
    with refused(errno.ECONNREFUSED):
        made.connect((WORLD, 81))
    assert node.claims() == []
    made.connect((WORLD, 443))
    assert [(claim.local, claim.remote[1]) for claim in node.claims()] == [(made.getsockname(), 443)]
    reset_close(made)
    assert lingering(node)


def test_a_port_that_is_fixed_and_taken_towards_the_new_remote_is_refused(node: SockNode) -> None:
    node.server()
    made = node.tagged()
    made.settimeout(None)
    with refused(errno.ECONNREFUSED):
        made.connect((WORLD, 81))
    held = [connected(node) for _ in range(10)]
    with refused(errno.EADDRNOTAVAIL):
        made.connect((WORLD, 443))
    made.close()
    assert len(node.claims()) == len(held)


def test_no_route_leaves_no_claim(node: SockNode) -> None:
    ip("route", "del", "default", ns=node.name)
    made = node.tagged()
    with refused(errno.ENETUNREACH):
        made.connect((WORLD, 443))
    with refused(errno.ENETUNREACH):
        made.connect((WORLD2, 443))
    assert len(node.claims()) == 1
    made.close()
    assert node.claims() == []


def test_closed_while_connecting_leaves_no_claim(node: SockNode) -> None:
    ip("route", "del", "198.51.100.0/24", ns=node.world)
    made = node.tagged()
    made.setblocking(False)
    assert made.connect_ex((WORLD, 443)) == errno.EINPROGRESS
    assert [claim.state for claim in node.claims()] == [State.NEW]
    made.close()
    assert node.claims() == []


def test_killed_with_9(node: SockNode) -> None:
    server = node.server()
    script = f"import socket; s = socket.create_connection(('{WORLD}', 443)); s.recv(1)"
    program = node.run(sys.executable, "-c", script)
    peer, name = server.accept()
    assert name[1] in PORTS
    os.kill(program.pid, signal.SIGKILL)
    program.wait()
    assert peer.recv(1) == b""
    peer.close()
    wait_until(lambda: lingering(node), 5, "the claim to linger")
    assert len(node.claims()) == 1


def test_linger_0_with_unread_data_sends_its_reset(node: SockNode) -> None:
    server = node.server()
    made = connected(node)
    peer, _ = server.accept()
    peer.sendall(b"x" * 1000)
    wait_until(lambda: made.recv(1, socket.MSG_PEEK), 5, "data")
    reset_close(made)
    assert lingering(node)
    with refused(errno.ECONNRESET):
        peer.recv(1)


def test_unread_data_alone_sends_its_reset(node: SockNode) -> None:
    server = node.server()
    made = connected(node)
    peer, _ = server.accept()
    peer.sendall(b"x" * 1000)
    wait_until(lambda: made.recv(1, socket.MSG_PEEK), 5, "data")
    made.close()
    assert lingering(node)
    with refused(errno.ECONNRESET):
        peer.recv(1)


def test_disconnected_and_connected_again(node: SockNode) -> None:
    node.server()
    node.server(444)
    made = connected(node)
    name = made.getsockname()
    disconnect(made)
    assert lingering(node)
    made.connect((WORLD, 444))
    assert made.getsockname() == name
    assert [claim.remote for claim in node.alive()] == [(WORLD, 444)]
    reset_close(made)
    assert lingering(node)


def test_shared_by_fork_it_ends_at_the_last_close(node: SockNode) -> None:
    server = node.server()
    made = connected(node)
    peer, _ = server.accept()
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(theirs)
        os.read(ours, 1)
        os._exit(0)
    made.close()
    assert [claim.state for claim in node.claims()] == [State.OPEN]
    assert select.select([peer], [], [], 0)[0] == []
    os.close(theirs)
    os.waitpid(child, 0)
    os.close(ours)
    assert peer.recv(1) == b""
    peer.close()
    wait_until(lambda: lingering(node), 5, "the claim to linger")


def test_v4_mapped(node: SockNode) -> None:
    server = node.server()
    made = node.tagged(socket.AF_INET6)
    made.connect((f"::ffff:{WORLD}", 443))
    _, name = server.accept()
    assert made.getsockname()[:2] == (f"::ffff:{ADDRESS}", name[1])
    assert [claim.local for claim in node.claims()] == [name]
    reset_close(made)
    assert lingering(node)


def test_mptcp(node: SockNode) -> None:
    server = node.server()
    held = []
    for _ in range(10):
        made = node.tagged(proto=MPTCP)
        made.connect((WORLD, 443))
        held.append(made)
    assert {server.accept()[1] for _ in held} == {(ADDRESS, port) for port in PORTS}
    late = node.tagged(proto=MPTCP)
    with refused(errno.EADDRNOTAVAIL):
        late.connect((WORLD, 443))
    late.close()
    assert len(node.claims()) == 10
    for made in held:
        reset_close(made)
    wait_until(lambda: lingering(node), 5, "the claims to linger")


def test_mptcp_without_a_route_leaves_no_claim(node: SockNode) -> None:
    ip("route", "del", "default", ns=node.name)
    made = node.tagged(proto=MPTCP)
    with refused(errno.ENETUNREACH):
        made.connect((WORLD, 443))
    assert len(node.claims()) == 1
    made.close()
    wait_until(lambda: node.claims() == [], 5, "no claim")


def test_mptcp_refused_leaves_no_claim(node: SockNode) -> None:
    made = node.tagged(proto=MPTCP)
    with refused(errno.ECONNREFUSED):
        made.connect((WORLD, 81))
    made.close()
    wait_until(lambda: node.claims() == [], 5, "no claim")


def deferred(node: SockNode) -> socket.socket:
    sysctl(node.name, "net.ipv4.tcp_fastopen", "1")
    made = node.tagged()
    made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
    made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
    made.connect((WORLD, 443))
    return made


def test_fast_open_that_never_sends_leaves_no_claim(node: SockNode) -> None:
    made = deferred(node)
    assert [claim.state for claim in node.claims()] == [State.NEW]
    made.close()
    assert node.claims() == []


def test_fast_open_that_sends(node: SockNode) -> None:
    server = node.server()
    sysctl(node.world, "net.ipv4.tcp_fastopen", "1027")
    made = deferred(node)
    made.sendall(b"early")
    peer, name = server.accept()
    assert (name, peer.recv(5)) == (made.getsockname(), b"early")
    assert [claim.state for claim in node.claims()] == [State.OPEN]
    reset_close(made)
    assert lingering(node)


def test_fast_open_by_sendto(node: SockNode) -> None:
    server = node.server()
    made = node.tagged()
    made.settimeout(None)
    made.sendto(b"early", socket.MSG_FASTOPEN, (WORLD, 443))
    peer, name = server.accept()
    assert (name, peer.recv(5)) == (made.getsockname(), b"early")
    assert [claim.local for claim in node.claims()] == [name]
    reset_close(made)
    assert lingering(node)
