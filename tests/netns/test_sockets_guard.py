# SPDX-License-Identifier: Apache-2.0
"""Hooks and guard together: what must leave still leaves after the end, and what hooks cannot serve is rewritten."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.kernel import netns
from softunicast.kernel.abi import Kind, State
from softunicast.wire.craft import tcp
from tests.support.sock_node import (
    ADDRESS,
    WORLD,
    WORLD2,
    SockNode,
    boot_s,
    disconnect,
    refused,
    reset_close,
)
from tests.support.wait import wait_until

PORTS = set(range(9000, 9010))
IP_RECVERR = 11
SYN, ACK = 0x02, 0x10


@pytest.fixture
def node() -> Iterator[SockNode]:
    with SockNode() as made:
        made.attach_guard()
        yield made


def udp(node: SockNode) -> socket.socket:
    return node.tagged(kind=socket.SOCK_DGRAM)


def half_closed(node: SockNode) -> str:
    """Sockets of the world whose end nobody acknowledged."""
    with netns.enter(node.world):
        command = ["ss", "-Htan", "state", "last-ack", "state", "closing", "state", "fin-wait-1"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_last_ack_of_a_time_wait_leaves(node: SockNode) -> None:
    server = node.server()
    made = node.tagged()
    made.connect((WORLD, 443))
    peer, _ = server.accept()
    made.close()
    wait_until(lambda: node.claims() and not node.alive(), 5, "the claim to linger")
    peer.close()  # its FIN meets a TIME_WAIT, which answers
    wait_until(lambda: not half_closed(node), 5, "the server's FIN to be acknowledged")
    assert node.drops() == {}


@pytest.mark.parametrize("end", ["linger 0", "unread data", "kill -9 with unread data"])
def test_the_final_reset_leaves(node: SockNode, end: str) -> None:
    server = node.server()
    if end.startswith("kill"):
        script = f"import socket; s = socket.create_connection(('{WORLD}', 443)); s.recv(1); input()"
        program = node.run(sys.executable, "-c", script, stdin=subprocess.PIPE)
        peer, _ = server.accept()
        peer.sendall(b"x" * 1000)
        assert node.alive()
        os.kill(program.pid, signal.SIGKILL)
        program.wait()
        assert program.stdin
        program.stdin.close()
    else:
        made = node.tagged()
        made.connect((WORLD, 443))
        peer, _ = server.accept()
        peer.sendall(b"x" * 1000)
        wait_until(lambda: made.recv(1, socket.MSG_PEEK), 5, "data")
        if end == "linger 0":
            reset_close(made)
        else:
            made.close()
    with refused(errno.ECONNRESET):
        peer.recv(1)
    wait_until(lambda: node.claims() and not node.alive(), 5, "the claim to linger")
    assert node.drops() == {}


def test_unconnected_udp_to_three_remotes(node: SockNode) -> None:
    servers = [
        node.server(port, address, socket.SOCK_DGRAM) for port, address in ((53, WORLD), (54, WORLD), (53, WORLD2))
    ]
    made = udp(node)
    for server in servers:
        made.sendto(b"ask", server.getsockname())
        name = server.recvfrom(3)[1]
        assert name[0] == ADDRESS
        assert name[1] in PORTS
        server.sendto(b"answer", name)
        assert made.recvfrom(6) == (b"answer", server.getsockname())
    assert [claim.kind for claim in node.claims()] == [Kind.LOCAL] * 3


def test_unconnected_udp_when_the_slice_is_full(node: SockNode) -> None:
    server = node.server(53, kind=socket.SOCK_DGRAM)
    held = [udp(node) for _ in range(10)]
    for made in held:
        made.connect((WORLD, 53))
    held[0].send(b"x")  # the neighbour is known afterwards: what waits for it gets no error
    assert server.recvfrom(1)[1] == held[0].getsockname()
    late = udp(node)
    late.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
    with refused(errno.ENOBUFS):
        late.sendto(b"x", (WORLD, 53))
    assert "SLICE_FULL" in node.drops()


def test_a_socket_that_sent_before_it_connects_keeps_its_flow(node: SockNode) -> None:
    server = node.server(53, kind=socket.SOCK_DGRAM)
    made = udp(node)
    made.connect((WORLD2, 53))
    disconnect(made)
    made.sendto(b"x", (WORLD, 53))
    name = server.recvfrom(1)[1]
    assert name == made.getsockname()
    assert Kind.LOCAL in {claim.kind for claim in node.claims()}
    made.connect((WORLD, 53))
    assert [(claim.kind, claim.local, claim.remote) for claim in node.claims()] == [(Kind.SOCKET, name, (WORLD, 53))]
    server.sendto(b"y", name)
    assert made.recv(1) == b"y"
    made.close()
    assert node.claims() == []


def test_a_socket_that_is_connected_past_the_slices_cannot_leak(node: SockNode) -> None:
    server = node.server(53, kind=socket.SOCK_DGRAM)
    made = udp(node)
    made.connect(("10.9.0.1", 53))
    made.sendto(b"x", (WORLD, 53))
    assert server.recvfrom(1)[1][0] == ADDRESS


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_RAW], ids=["ping socket", "raw"])
def test_ping(node: SockNode, kind: socket.SocketKind) -> None:
    with netns.enter(node.name):
        Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 0")
    made = node.tagged(kind=kind, proto=socket.IPPROTO_ICMP)
    echo = struct.pack("!BBHHH", 8, 0, 0, 77, 1)
    checksum = 0xFFFF - sum(struct.unpack("!4H", echo)) % 0xFFFF
    made.sendto(struct.pack("!BBHHH", 8, 0, checksum, 77, 1), (WORLD, 0))
    while True:
        answer = made.recv(100)
        header = answer[20:] if kind == socket.SOCK_RAW else answer
        if header[0] == 0:
            break
    assert [(claim.kind, claim.local[0]) for claim in node.claims()] == [(Kind.LOCAL, ADDRESS)]
    assert node.claims()[0].local[1] in PORTS


def test_tcp_of_a_raw_socket(node: SockNode) -> None:
    """traceroute -T: its SYN leaves from the slice, it sees the SYN-ACK, and the RST with which the kernel answers that
    (no socket waits for it) goes the same way: the server's half-open connection ends.
    """
    server = node.server()
    made = node.tagged(kind=socket.SOCK_RAW, proto=socket.IPPROTO_TCP)
    made.connect((WORLD, 0))
    own = made.getsockname()[0]
    made.sendall(tcp(own, 4007, WORLD, 443, flags=SYN)[20:])
    answer = made.recv(100)
    assert answer[20 + 13] == SYN | ACK
    assert struct.unpack_from("!HH", answer, 20) == (443, 4007)
    ((kind, local),) = [(claim.kind, claim.local) for claim in node.claims()]
    assert (kind, local[0]) == (Kind.LOCAL, ADDRESS)
    assert local[1] in PORTS
    wait_until(lambda: [claim.state for claim in node.claims()] == [State.LINGER], 5, "the reset to leave")
    with netns.enter(node.world):
        done = subprocess.run(["ss", "-Htan", "state", "syn-recv"], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    server.settimeout(0)
    with refused(errno.EAGAIN):
        server.accept()
    assert node.drops() == {}


def test_a_raw_segment_that_no_syn_began_is_a_leak(node: SockNode) -> None:
    made = node.tagged(kind=socket.SOCK_RAW, proto=socket.IPPROTO_TCP)
    made.connect((WORLD, 0))
    made.sendall(tcp(made.getsockname()[0], 4007, WORLD, 443, flags=ACK)[20:])
    wait_until(lambda: node.drops() == {"GUARD_LEAK": 1}, 5, "it to be dropped")
    assert node.claims() == []


def test_an_older_socket_goes_on_under_the_guard() -> None:
    with SockNode(hooks=False) as node:
        server = node.server()
        old = node.plain_socket()
        old.bind((ADDRESS, 9003))
        old.connect((WORLD, 443))
        peer, _ = server.accept()
        node.attach()
        node.adopt()
        node.attach_guard()
        peer.sendall(b"still")
        assert old.recv(5) == b"still"
        old.sendall(b"there")
        assert peer.recv(5) == b"there"
        old.close()
        peer.close()
        wait_until(lambda: node.claims() and not node.alive(), 5, "the claim to linger")
        assert node.drops() == {}


def test_many_ends_at_random_leave_no_claim_and_no_drop(node: SockNode) -> None:
    """Sockets come and go on ten ports; nothing but EADDRNOTAVAIL, no answer to another, and all is free in the end."""
    seed = random.randrange(1 << 32)
    rng = random.Random(seed)
    print(f"seed {seed}")
    server = node.server()
    open_: list[tuple[socket.socket, socket.socket]] = []
    served = refusals = 0
    for _ in range(400):
        if open_ and (len(open_) == 10 or rng.random() < 0.5):
            made, peer = open_.pop(rng.randrange(len(open_)))
            token = rng.randbytes(8)
            peer.sendall(token)
            assert made.recv(8) == token
            if rng.random() < 0.7:
                reset_close(made)
                peer.close()
            else:
                made.close()
                peer.close()
            continue
        made = node.tagged()
        try:
            made.connect((WORLD, 443))
        except OSError as error:
            assert error.errno == errno.EADDRNOTAVAIL
            refusals += 1
            made.close()
            continue
        peer, name = server.accept()
        assert name == made.getsockname()
        served += 1
        open_.append((made, peer))
    assert len(node.alive()) == len(open_)
    for made, peer in open_:
        reset_close(made)
        peer.close()
    wait_until(lambda: not node.alive(), 5, "no living claim")
    assert served >= 10
    assert set(node.drops()) <= {"SLICE_FULL", "NO_CLAIM"}
    assert boot_s() and {claim.state for claim in node.claims()} <= {State.LINGER}
