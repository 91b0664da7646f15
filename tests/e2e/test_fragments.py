# SPDX-License-Identifier: Apache-2.0
"""Datagrams too big for the road, in fragments both ways, and the answers come to the wrong site.

Whole or not at all: sockets, ping and clients get their answers put together; what comes in the wrong order is counted.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator

import pytest

from softunicast.kernel.abi import Counter, Drop
from softunicast.lab import topology as facts
from softunicast.lab.inject import send_frame
from softunicast.lab.topology import NODES
from softunicast.wire.craft import ethernet, udp
from tests.support.fleet_lab import FleetLab, fleet_lab
from tests.support.packets import fragments
from tests.support.wait import wait_until

BYTES = 4000
ASKERS = ("lhr1", "c1", "t1")
ECHO = {4: facts.ECHO, 6: facts.ECHO6}
PROGRAM = """
import errno, os, socket, sys
connected, size, *remotes = sys.argv[1:]
def ask(sock, remote, data):
    if connected == "connected":
        sock.send(data)
    else:
        sock.sendto(data, (remote, 7))
    return sock.recvfrom(65536)
for remote in remotes:
    with socket.socket(socket.AF_INET6 if ":" in remote else socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.settimeout(10)
        data = os.urandom(int(size))
        if connected == "connected":
            sock.connect((remote, 7))
        try:
            answer, peer = ask(sock, remote, data)
        except OSError as error:  # IPv6: the rack takes 1,600 bytes, the internet 1,500, and a router said so
            if error.errno != errno.EMSGSIZE:
                raise
            answer, peer = ask(sock, remote, data)
        place, _, back = answer.partition(b" ")
        assert back == data and peer[0] == remote, (len(back), peer)
        print(place.decode())
"""


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with fleet_lab("frag") as lab:
        yield lab


def under_run(where: str, command: list[str]) -> list[str]:
    return ["softunicast", "run", "--pool", "gb", "--", *command] if where in NODES else command


def totals(lab: FleetLab) -> tuple[dict[Drop, int], dict[Counter, int]]:
    """Of all nodes. Packet-too-bigs that quote a later fragment, which has no ports, are counted as unknown errors."""
    each = [lab.stats(node) for node in NODES]
    drops = {drop: sum(one[0][drop] for one in each) for drop in Drop if drop is not Drop.ERROR_UNKNOWN}
    return drops, {counter: sum(one[1][counter] for one in each) for counter in Counter}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("where", ASKERS)
def test_echo_of_large_datagrams(lab: FleetLab, where: str, version: int) -> None:
    if (where, version) == ("lhr1", 6):
        # Of a datagram that earns packet-too-bigs, the last fragment passes the router alone.
        learn = [sys.executable, "-c", PROGRAM, "connected", str(BYTES), *ECHO[version]]
        lab.node(where).run(under_run(where, learn), check=True)
    before = totals(lab)
    with lab.capture() as capture:
        for connected in ("connected", "unconnected"):
            command = [sys.executable, "-c", PROGRAM, connected, str(BYTES), *ECHO[version] * 4]
            done = lab.node(where).run(under_run(where, command))
            assert done.returncode == 0, done.stderr
            places = done.stdout.split()
            assert len(places) == 12
            address = "198.51.100.1" if version == 4 else "[2001:db8:100::10]"
            assert all(place.startswith(address) for place in places), places
    report = capture.report()
    assert report.ok, report.problems()
    assert report.fragments >= 24 * 6
    after = totals(lab)
    assert after[0] == before[0], "nothing was dropped"
    carried = after[1][Counter.CARRIED_OUT] - before[1][Counter.CARRIED_OUT]
    assert carried >= 24 * 3, "the answers came to the wrong site"


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("where", ASKERS)
def test_ping_with_large_payloads(lab: FleetLab, where: str, version: int) -> None:
    before = totals(lab)
    with lab.capture() as capture:
        remote = (facts.WEB if version == 4 else facts.WEB6)[0]
        command = ["ping", "-c", "5", "-i", "0.1", "-W", "5", "-s", "3000", remote]
        done = lab.node(where).run(under_run(where, command))
        assert " 0% packet loss" in done.stdout, done.stdout + done.stderr
    report = capture.report()
    assert report.ok, report.problems()
    assert totals(lab)[0] == before[0]


def test_a_slice_s_address_answers_a_fragmented_ping(lab: FleetLab) -> None:
    for address in ("198.51.100.10", "2001:db8:100::10"):
        source = facts.WEB[0] if "." in address else facts.WEB6[0]
        done = lab.node("inet").run(["ping", "-c", "3", "-i", "0.1", "-W", "5", "-s", "3000", "-I", source, address])
        assert " 0% packet loss" in done.stdout, done.stdout + done.stderr


def test_the_wrong_order_is_counted_not_delivered_by_half(lab: FleetLab) -> None:
    remote, client = lab.fresh(), lab.node("c1")
    with client.enter():
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sock:
        sock.settimeout(5)
        sock.connect((remote, 7))
        sock.send(b"hello")
        address, _, port = sock.recv(100).split(b" ")[0].decode().rpartition(":")
        macs = facts.mac("r2", "inet0"), facts.mac("inet", "r2")

        def answer(text: bytes, ident: int, *, backwards: bool) -> None:
            pieces = fragments(udp(remote, 7, address, int(port), text * 600), 1400, ident)
            for piece in reversed(pieces) if backwards else pieces:
                send_frame(lab.node("inet"), "r2", ethernet(*macs, piece))

        before = totals(lab)[0]
        for number in range(10):
            answer(b"wrong", 100 + number, backwards=True)
        answer(b"right", 99, backwards=False)
        assert sock.recv(65536) == b"right" * 600
        after = totals(lab)[0]
        assert after[Drop.FRAGMENT_EARLY] - before[Drop.FRAGMENT_EARLY] == 20
        sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            sock.recv(65536)

        # The same on the way out.
        at = client.run(["ip", "-j", "route", "get", remote], check=True).stdout
        assert "10.64.1.1" in at
        own = sock.getsockname()[1]
        pieces = fragments(udp("10.64.1.2", own, remote, 7, b"out" * 1000), 1400, 77)
        before = lab.stats("lhr1")[0]
        for piece in reversed(pieces):
            send_frame(client, "eth0", ethernet(facts.mac("lhr1", "c1"), facts.mac("c1", "eth0"), piece))

        def early() -> int:
            return lab.stats("lhr1")[0][Drop.FRAGMENT_EARLY] - before[Drop.FRAGMENT_EARLY]

        wait_until(lambda: early() >= len(pieces) - 1, 10, "those before the first are counted")
        assert early() == len(pieces) - 1
        for piece in pieces:
            send_frame(client, "eth0", ethernet(facts.mac("lhr1", "c1"), facts.mac("c1", "eth0"), piece))
        sock.setblocking(True)
        sock.settimeout(20)
        assert sock.recv(65536).endswith(b"out" * 1000)
