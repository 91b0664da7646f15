# SPDX-License-Identifier: Apache-2.0
"""The proxy's other doors: datagrams out of a slice, PROXY headers in and out, clients that know nothing (TPROXY)."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.kernel import netns
from tests.support.proxy_node import BIG, Proxy, curl, origin
from tests.support.proxy_place import Place, sliced
from tests.support.proxy_users import iperf3
from tests.support.sock_node import ADDRESS, WORLD, WORLD2, SockNode

POLICY = """
listeners:
  main: {listen: "127.0.0.1:PORT", anonymous: me}
  behind: {listen: "127.0.0.1:1081", anonymous: me, proxy_header: true}
users:
  me: {pool: ten}
  v1: {pool: ten, password: x, send_proxy_header: 1}
  v2: {pool: ten, password: x, send_proxy_header: 2}
access_log: LOG
connect_s: 2
"""


@pytest.fixture
def node() -> Iterator[SockNode]:
    with SockNode(pinned=True) as made:
        yield made


@pytest.fixture
def proxy(node: SockNode, tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(POLICY, tmp_path, node.name, port=1080) as made:
        yield made


def test_datagrams_leave_from_the_slice_and_come_back(node: SockNode, proxy: Proxy) -> None:
    node.attach_guard()
    servers = [node.server(5353, address, socket.SOCK_DGRAM) for address in (WORLD, WORLD2)]
    with netns.enter(node.name):
        control = socket.create_connection(("127.0.0.1", 1080), 20)
        client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with control, client:
        client.settimeout(20)
        client.bind(("127.0.0.1", 0))
        control.sendall(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
        answer = b""
        while len(answer) < 12:
            answer += control.recv(12 - len(answer))
        relay = (socket.inet_ntoa(answer[6:10]), int.from_bytes(answer[10:], "big"))
        for server in servers:
            address = server.getsockname()[0]
            head = b"\0\0\0\1" + socket.inet_aton(address) + (5353).to_bytes(2, "big")
            client.sendto(head + b"question", relay)
            data, source = server.recvfrom(2048)
            assert data == b"question"
            assert source[0] == ADDRESS
            assert 9000 <= source[1] <= 9009
            server.sendto(b"answer", source)
            assert client.recv(2048) == head + b"answer"
        with netns.enter(node.name), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(head + b"mine", relay)
        client.sendto(head[:2] + b"\1" + head[3:] + b"a fragment", relay)
        client.sendto(b"\0\0\0\1" + socket.inet_aton("127.0.0.1") + b"\0\x35" + b"inside", relay)
        client.sendto(head + b"last", relay)
        assert servers[1].recv(2048) == b"last"
        control.shutdown(socket.SHUT_WR)
        entry = proxy.entries(1)[0]
    assert (entry["protocol"], entry["bytes_up"], entry["bytes_down"], entry["dropped"]) == ("udp", 20, 12, 3)


@pytest.mark.parametrize("version", [1, 2])
def test_whom_a_proxy_header_names_is_told_on(node: SockNode, proxy: Proxy, version: int) -> None:
    server = node.server(443)
    with netns.enter(node.name):
        client = socket.create_connection(("127.0.0.1", 1081), 20)
    with client:
        client.sendall(b"PROXY TCP4 192.0.2.7 192.0.2.8 4711 1081\r\n\x05\x01\x02\x01\x02v%d\x01x" % version)
        client.sendall(b"\x05\x01\x00\x01" + socket.inet_aton(WORLD) + b"\x01\xbb")
        there, peer = server.accept()
        with there:
            assert peer[0] == ADDRESS
            there.settimeout(20)
            client.sendall(b"hello")
            data = b""
            while not data.endswith(b"hello"):
                data += there.recv(2048)
    ports = (4711).to_bytes(2, "big") + (443).to_bytes(2, "big")
    packed = socket.inet_aton("192.0.2.7") + socket.inet_aton(WORLD) + ports
    second = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c" + packed
    assert data == {1: f"PROXY TCP4 192.0.2.7 {WORLD} 4711 443\r\n".encode(), 2: second}[version] + b"hello"
    assert proxy.entries(1)[0]["client"] == "192.0.2.7:4711"


def test_without_its_header_nobody_passes(node: SockNode, proxy: Proxy) -> None:
    done = curl("-x", "http://127.0.0.1:1081", f"http://{WORLD}/", ns=node.name)
    assert done.returncode != 0
    assert proxy.entries(1)[0]["failed"] == "bad_request"


# A client behind the node


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with sliced(tmp_path) as made:
        yield made


@pytest.fixture
def lan(place: Place) -> Iterator[str]:
    with place.lan() as name:
        yield name


def test_clients_that_know_of_no_proxy(place: Place, lan: str, tmp_path: Path) -> None:
    with origin(WORLD, 80, place.origin_ns):
        done = curl(f"http://{WORLD}/who", ns=lan)
        assert done.stdout.split()[0] == ADDRESS, done.stderr
        assert curl(f"http://{WORLD}/big", "-o", str(tmp_path / "big"), ns=lan).returncode == 0
        assert (tmp_path / "big").read_bytes() == BIG
    entry = place.proxy.entries(2)[0]
    assert (entry["protocol"], entry["target"], entry["client"].split(":")[0]) == (
        "transparent",
        f"{WORLD}:80",
        "10.77.0.2",
    )


def test_a_refusal_is_a_reset_to_them(place: Place, lan: str) -> None:
    """It comes after the handshake: curl learns of it as it connects, while it sends, or while it waits."""
    done = curl(f"http://{WORLD}:81/", ns=lan)
    assert done.returncode == 7 or (done.returncode in (55, 56) and "eset" in done.stderr), done.stderr
    assert place.proxy.entries(1)[0]["failed"] == "refused"


STREAMS = 4


def test_iperf3(place: Place, lan: str) -> None:
    """Several streams each way; what came is counted by who received it, and is in iperf3's report."""
    received = []
    for options in ((), ("-R",)):
        end = iperf3(place, lan, "-P", str(STREAMS), "-t", "3", *options)
        assert len(end["streams"]) == STREAMS
        for each in end["streams"]:
            assert each["receiver"]["bytes"] > 250_000, each
        received.append(end["sum_received"]["bytes"])
    entries = place.passed(5201, 2 * (STREAMS + 1))
    for entry in entries:
        place.ours(entry["local"])
        assert entry["protocol"] == "transparent"
    assert sum(entry["bytes_up"] for entry in entries) >= received[0]
    assert sum(entry["bytes_down"] for entry in entries) >= received[1]
