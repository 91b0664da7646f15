# SPDX-License-Identifier: Apache-2.0
"""A client and its path: we are one hop of it, and what routers say of its MTU reaches the client's kernel."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator

import pytest

from softunicast.kernel import netns
from softunicast.kernel.abi import Drop, OnrampFlag
from softunicast.wire.craft import icmp_error, udp
from tests.netns.test_egress_live import tcp_socket, udp_socket
from tests.support.dataplane import (
    CLIENT,
    GATEWAY,
    GATEWAY6,
    SERVER,
    SERVER6,
    SLICE,
    SLICE6,
    TUN_GATEWAY,
    VETH_ONRAMP,
    Dataplane,
    Place,
    place,
    run,
    running,
)
from tests.support.wait import wait_until

IP_MTU_DISCOVER, IP_PMTUDISC_DO, IP_MTU = 10, 2, 14
TCP_MAXSEG = 2


@pytest.fixture(scope="module")
def where() -> Iterator[Place]:
    with place() as made:
        yield made


@pytest.fixture
def plane(where: Place) -> Iterator[Dataplane]:
    with running(where) as made:
        made.add_slice(SLICE6, 9000, 9009)
        yield made


def hops(where: Place, who: str, *arguments: str) -> list[str]:
    """Who answers at each distance, until the destination does."""
    with netns.enter(where.of(who)):
        text = run(f"traceroute -n -q 1 -w 2 -m 6 {' '.join(arguments)}")
    return re.findall(r"^ *\d+  (\S+)", text, re.MULTILINE)


@pytest.mark.parametrize("way", ["-U -p 33434", "-I", "-T -p 8080"], ids=["udp", "icmp", "tcp"])
@pytest.mark.parametrize(("who", "gateway"), [("client", GATEWAY), ("tun", TUN_GATEWAY)])
def test_traceroute_shows_us_once(where: Place, plane: Dataplane, who: str, gateway: str, way: str) -> None:
    assert hops(where, who, way, SERVER) == [gateway, SERVER]


@pytest.mark.parametrize("way", ["-U -p 33434", "-I"], ids=["udp", "icmp"])
def test_traceroute6_shows_us_once(where: Place, plane: Dataplane, way: str) -> None:
    assert hops(where, "client", "-6", way, SERVER6) == [GATEWAY6, SERVER6]


def test_traceroute_through_a_mapping(where: Place, plane: Dataplane) -> None:
    plane.add_slice("198.51.100.21", 9000, 9063, udp_exact_first=9016)
    plane.add_onramp(VETH_ONRAMP, where.veth, l2=True, gateway=GATEWAY, udp=OnrampFlag.EIM)
    assert hops(where, "client", "-U -p 33434", SERVER) == [GATEWAY, SERVER]


def test_a_smaller_mtu_on_the_way_is_learned(where: Place, plane: Dataplane) -> None:
    with udp_socket(where.world) as server, udp_socket(where.client) as client:
        server.bind((SERVER, 53))
        client.setsockopt(socket.IPPROTO_IP, IP_MTU_DISCOVER, IP_PMTUDISC_DO)
        client.connect((SERVER, 53))
        client.send(b"x" * 1400)
        data, (address, port) = server.recvfrom(2000)
        assert address == SLICE
        with netns.enter(where.world):
            router = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        with router:
            quoted = udp(SLICE, port, SERVER, 53, data)
            router.sendto(icmp_error("192.0.2.1", SLICE, 3, 4, quoted, rest=1300), (SLICE, 0))
        wait_until(lambda: client.getsockopt(socket.IPPROTO_IP, IP_MTU) == 1300, 5, "the client knows")
    with netns.enter(where.client):
        run("ip route flush cache")
    assert plane.drops() == {}


@pytest.mark.parametrize("server", [SERVER, SERVER6])
def test_senders_learn_the_mtu_of_an_on_ramp(where: Place, plane: Dataplane, server: str) -> None:
    """A download to a client whose device is smaller than the Internet's path, and whose MSS does not say so."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    plane.add_onramp(VETH_ONRAMP, where.veth, l2=True, gateway=GATEWAY, mtu=1300)
    with tcp_socket(where.world, family) as listener, tcp_socket(where.client, family) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((server, 8444))
        listener.listen()
        client.settimeout(20)
        client.connect((server, 8444))
        sender, _ = listener.accept()
        with sender:
            sender.sendall(b"x" * 100_000)
            got = 0
            while got < 100_000:
                got += len(client.recv(65536))
            headers = 52 if family == socket.AF_INET else 72
            assert sender.getsockopt(socket.IPPROTO_TCP, TCP_MAXSEG) == 1300 - headers
    with netns.enter(where.world):
        run("ip route flush cache")
        run("ip -6 route flush cache")
    drops = plane.drops()
    assert set(drops) == {Drop.TOO_BIG} and drops[Drop.TOO_BIG] < 60


def test_clamped_connections_use_the_smaller_mss_both_ways(where: Place, plane: Dataplane) -> None:
    plane.add_onramp(VETH_ONRAMP, where.veth, l2=True, gateway=GATEWAY, mss=1000)
    with tcp_socket(where.world) as listener, tcp_socket(where.client) as client:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((SERVER, 8443))
        listener.listen()
        client.connect((SERVER, 8443))
        server, (address, _) = listener.accept()
        with server:
            assert (address, client.getsockname()[0]) == (SLICE, CLIENT)
            server.sendall(b"x" * 50_000)
            got = 0
            while got < 50_000:
                got += len(client.recv(65536))
            # Twelve bytes of each segment are timestamps.
            for end in (client, server):
                assert end.getsockopt(socket.IPPROTO_TCP, TCP_MAXSEG) == 1000 - 12
