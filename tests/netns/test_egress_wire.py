# SPDX-License-Identifier: Apache-2.0
"""What is on the wire: checksums with and without offloads, ICMP both ways, and the stack's own packets (LOCAL)."""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from softunicast.kernel import netns
from softunicast.kernel.abi import Counter, Drop, Kind, Sock, SockFlag
from softunicast.wire.craft import echo
from softunicast.wire.packet import Packet, checksum_errors, parse
from tests.netns.test_egress_live import tcp_socket, udp_socket
from tests.support.dataplane import POLICY, SERVER, SLICE, UNDERLAY, Dataplane, Place, place, run, running
from tests.support.wait import wait_until

PACKET_OUTGOING = 4
IP_RECVERR = 11


@pytest.fixture(scope="module")
def where() -> Iterator[Place]:
    with place() as made:
        yield made


@pytest.fixture
def plane(where: Place) -> Iterator[Dataplane]:
    with running(where) as made:
        yield made


class Capture:
    """IPv4 packets that come in by a namespace's eth0."""

    def __init__(self, namespace: str) -> None:
        with netns.enter(namespace):
            self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            self.socket.bind(("eth0", 0x0800))
        self.socket.setblocking(False)
        self.packets: list[bytes] = []

    def more(self) -> list[bytes]:
        """All so far."""
        while True:
            try:
                data, address = self.socket.recvfrom(70000)
            except BlockingIOError:
                return self.packets
            if address[2] != PACKET_OUTGOING:
                self.packets.append(data[14:])

    def wait(self, count: int) -> list[Packet]:
        """At least so many, their checksums judged."""
        wait_until(lambda: len(self.more()) >= count, 5, f"{count} packets")
        assert [(str(parse(one)), bad) for one in self.packets if (bad := checksum_errors(one))] == []
        return [parse(one) for one in self.packets]


@contextmanager
def captured(namespace: str) -> Iterator[Capture]:
    made = Capture(namespace)
    with made.socket:
        yield made


@contextmanager
def filled_in(where: Place, *, client: bool) -> Iterator[None]:
    """The node's devices fill checksums in and cut segments, so that a capture behind them sees what a wire would.

    `client`: the client's own device does already, so that what comes to the node is whole.
    """
    devices = [(where.node, "up0"), (where.node, "fish0")] + ([(where.client, "eth0")] if client else [])
    try:
        for namespace, device in devices:
            with netns.enter(namespace):
                run(f"ethtool -K {device} tx off")
        yield
    finally:
        for namespace, device in devices:
            with netns.enter(namespace):
                run(f"ethtool -K {device} tx on")


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "partial"])
def test_checksums_on_the_wire(where: Place, plane: Dataplane, whole: bool) -> None:
    """Forwarded, RST and ICMP refusals, from clients that leave checksums to the device and clients that do not."""
    with filled_in(where, client=whole), captured(where.world) as out, captured(where.client) as back:
        with tcp_socket(where.world) as listener, tcp_socket(where.client) as client:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((SERVER, 8443))
            listener.listen()
            client.connect((SERVER, 8443))
            server, _ = listener.accept()
            with server:
                client.sendall(b"z" * 100_000)
                got = 0
                while got < 100_000:
                    got += len(server.recv(100_000))
                server.sendall(b"y" * 10_000)
                got = 0
                while got < 10_000:
                    got += len(client.recv(100_000))
        udps = [udp_socket(where.client) for _ in range(11)]
        for number, one in enumerate(udps):
            one.connect((SERVER, 5353))
            one.send(b"odd length" + b"!" * (number + 1))
        with pytest.raises(ConnectionRefusedError):
            udps[10].recv(10)
        tcps = [tcp_socket(where.client) for _ in range(11)]
        for one in tcps:
            with pytest.raises(ConnectionRefusedError):
                one.connect((SERVER, 5353))  # ten by the server, the last by us
        for one in udps + tcps:
            one.close()
        assert plane.drops() == {Drop.SLICE_FULL: 2}
        sent = out.wait(30)
        assert {str(p.source) for p in sent if p.proto in (6, 17)} == {SLICE}
        answers = back.wait(20)
        assert [p for p in answers if p.is_error and p.icmp_code == 3 and str(p.source) != SERVER]
        assert len([p for p in answers if p.proto == 6 and p.tcp_flags & 4]) == 11


@pytest.mark.parametrize("who", ["client", "tun"])
def test_icmp_errors_from_outside(where: Place, plane: Dataplane, who: str) -> None:
    with udp_socket(where.of(who)) as client:
        client.connect((SERVER, 54))
        client.send(b"nobody listens")
        with pytest.raises(ConnectionRefusedError):
            client.recv(10)
    assert plane.drops() == {}


@pytest.mark.parametrize("who", ["client", "tun"])
def test_icmp_errors_from_inside(where: Place, plane: Dataplane, who: str) -> None:
    with udp_socket(where.world) as server:
        server.bind((SERVER, 53))
        with udp_socket(where.of(who)) as client:
            client.sendto(b"question", (SERVER, 53))
            _, address = server.recvfrom(100)
        server.connect(address)
        server.send(b"too late")
        with pytest.raises(ConnectionRefusedError):
            server.recv(10)
    assert plane.drops() == {}


@pytest.mark.parametrize("who", ["client", "tun"])
def test_last_hop_is_told(where: Place, plane: Dataplane, who: str) -> None:
    with udp_socket(where.of(who)) as client:
        client.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        client.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, 1)
        client.connect((SERVER, 53))
        client.send(b"x")
        with pytest.raises(OSError) as caught:
            client.recv(10)
        assert caught.value.errno == errno.EHOSTUNREACH
    assert plane.drops() == {Drop.HOPS: 1}


@pytest.mark.parametrize("who", ["client", "tun"])
def test_protocol_without_ports_is_refused(where: Place, plane: Dataplane, who: str) -> None:
    with netns.enter(where.of(who)):
        raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, 132)
    with raw:
        raw.settimeout(3)
        raw.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        raw.connect((SERVER, 0))
        raw.send(b"x" * 12)
        with pytest.raises(OSError) as caught:
            raw.recv(10)
        assert caught.value.errno == errno.ENOPROTOOPT
    assert plane.drops() == {Drop.PROTOCOL: 1}


def with_policy(plane: Dataplane, made: socket.socket, flags: int = 0) -> socket.socket:
    """As the hook at its creation tags it."""
    plane.put("socks", struct.pack("=i", made.fileno()), Sock(policy=POLICY, flags=flags).pack())
    return made


def test_unconnected_datagrams_leave_from_the_slice(where: Place, plane: Dataplane) -> None:
    with udp_socket(where.world) as one, udp_socket(where.world) as two:
        one.bind((SERVER, 53))
        two.bind(("203.0.113.2", 53))
        with with_policy(plane, udp_socket(where.node)) as local:
            for server in (one, two):
                local.sendto(b"question", server.getsockname())
                _, (address, port) = server.recvfrom(100)
                assert (address, 9000 <= port <= 9009) == (SLICE, True)
                server.sendto(b"answer", (address, port))
                assert local.recvfrom(100) == (b"answer", server.getsockname())
            assert [c.kind for c in plane.flows().values()] == [Kind.LOCAL] * 2
            assert {c.inner_port for c in plane.flows().values()} == {local.getsockname()[1]}
    assert plane.count(Counter.LOCAL_OUT) == 2
    assert plane.count(Counter.LOCAL_IN) == 2
    assert plane.drops() == {}


def test_ping_of_a_policy_leaves_from_the_slice(where: Place, plane: Dataplane) -> None:
    with netns.enter(where.node):
        raw = with_policy(plane, socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    with raw, captured(where.world) as out:
        raw.settimeout(3)
        raw.sendto(echo(UNDERLAY, SERVER, 4711, payload=b"x" * 40)[20:], (SERVER, 0))
        answer = parse(raw.recv(200))
        assert (answer.is_echo_reply, answer.icmp_id, str(answer.source)) == (True, 4711, SERVER)
        assert [str(p.source) for p in out.wait(1) if p.is_echo_request] == [SLICE]


def test_full_is_an_error_to_the_sender(where: Place, plane: Dataplane) -> None:
    with netns.enter(where.node):
        raw = with_policy(plane, socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP))
    with raw:
        raw.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        for ident in range(10):
            raw.sendto(echo(UNDERLAY, SERVER, ident)[20:], (SERVER, 0))
        with pytest.raises(OSError) as caught:
            raw.sendto(echo(UNDERLAY, SERVER, 10)[20:], (SERVER, 0))
        assert caught.value.errno == errno.ENOBUFS
    assert plane.drops() == {Drop.SLICE_FULL: 1}


def test_syn_that_no_hook_claimed_does_not_leak(where: Place, plane: Dataplane) -> None:
    with with_policy(plane, tcp_socket(where.node)) as local:
        local.setblocking(False)
        assert local.connect_ex((SERVER, 443)) == errno.EINPROGRESS
        wait_until(lambda: plane.drops() == {Drop.GUARD_LEAK: 1}, 3, "the SYN is dropped")


def test_bypassed_sockets_and_destinations_go_as_they_are(where: Place, plane: Dataplane) -> None:
    with udp_socket(where.world) as server:
        server.bind(("0.0.0.0", 53))
        with with_policy(plane, udp_socket(where.node), SockFlag.BYPASS) as local:
            local.sendto(b"x", (SERVER, 53))
            assert server.recvfrom(10)[1][0] == UNDERLAY
        with with_policy(plane, udp_socket(where.node)) as local:
            local.sendto(b"x", ("192.0.2.1", 53))
            assert server.recvfrom(10)[1][0] == UNDERLAY
            local.sendto(b"x", ("198.51.100.20", 9001))
    assert plane.flows() == {}


def test_listener_is_not_exposed_by_the_slice(where: Place, plane: Dataplane) -> None:
    with tcp_socket(where.node) as listener, tcp_socket(where.world) as scanner:
        listener.bind(("0.0.0.0", 9003))
        listener.listen()
        scanner.settimeout(0.3)
        with pytest.raises(TimeoutError):
            scanner.connect((SLICE, 9003))
    assert plane.drops().keys() == {Drop.NO_CLAIM}


def test_ping_to_the_slice_is_answered(where: Place, plane: Dataplane) -> None:
    with netns.enter(where.world):
        assert "2 received" in run(f"ping -c 2 -i 0.1 -W 2 -s 1200 {SLICE}")
    assert plane.count(Counter.ECHO_ANSWERED) == 2
    assert plane.drops() == {}
