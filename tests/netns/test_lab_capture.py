# SPDX-License-Identifier: Apache-2.0
"""The capture at the router sees everything, and its checker reports one packet behind the guard as exactly one.

Nodes are bare here (no agent): their slices' address is put on them by hand.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from softunicast.errors import KernelError
from softunicast.lab.capture import Capture
from softunicast.lab.checker import Owned
from softunicast.lab.inject import inject_behind_guard, send_frame
from softunicast.lab.lab import Lab
from softunicast.lab.topology import mac
from softunicast.wire import craft

ADDRESS = "198.51.100.10"
OWNERS = [
    Owned(IPv4Address(ADDRESS), 2048, 4095, "lhr1"),
    Owned(IPv4Address(ADDRESS), 4096, 6143, "lhr2"),
]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(f"cap{os.getpid()}", agents=False) as made:
        made.node("lhr1").run(["ip", "address", "add", f"{ADDRESS}/32", "dev", "lo"], check=True)
        # A metric of their own: before BIRD's.
        made.node("inet").run(["ip", "route", "replace", "198.51.100.0/24", "via", "192.0.2.1"], check=True)
        made.node("r1").run(["ip", "route", "replace", "198.51.100.0/24", "via", "10.0.1.11"], check=True)
        yield made


def test_a_download_is_seen_whole_at_both_sides(lab: Lab) -> None:
    url = "http://203.0.113.1/bytes/3000000"
    with lab.capture() as internet, lab.capture("rack") as rack:
        shown = ["--interface", ADDRESS, "--local-port", "3000", "-o", "/dev/null", "-w", "%{size_download}"]
        done = lab.node("lhr1").run(["curl", "-sS", *shown, url], check=True)
    assert done.stdout == "3000000"
    report, at_rack = internet.report(OWNERS), rack.report(OWNERS)
    assert report.problems() == [] and at_rack.problems() == []
    assert report.bytes > 3000000
    assert report.packets - report.sent > 3000000 / 1460, "packets of wire size"
    assert set(report.flows) == {("tcp", ADDRESS, 3000, "203.0.113.1", 80)}
    assert report.by_node() == {"lhr1": report.sent}
    assert set(at_rack.by_slice) == {OWNERS[0]}


def test_one_packet_behind_the_guard_is_exactly_one(lab: Lab) -> None:
    with lab.capture() as internet, lab.capture("rack") as rack:
        inject_behind_guard(lab.node("lhr1"))
    for capture in (internet, rack):
        report = capture.report(OWNERS)
        assert len(report.outside_slice) == 1
        assert f"udp {ADDRESS}:1 > 203.0.113.1:9" in report.outside_slice[0].packet
        assert report.bad_checksums == [] and report.not_expected_source == []


def test_only_the_rack_knows_that_it_was_the_other_nodes_slice(lab: Lab) -> None:
    with lab.capture() as internet, lab.capture("rack") as rack:
        inject_behind_guard(lab.node("lhr1"), port=5000)
        inject_behind_guard(lab.node("lhr2"), port=5000)
    assert internet.report(OWNERS).ok
    found = rack.report(OWNERS).outside_slice
    assert len(found) == 1 and "sent by lhr1" in found[0].why


def test_an_inner_address_and_a_wrong_checksum_are_found(lab: Lab) -> None:
    frame = craft.ethernet(mac("r1", "br0"), mac("lhr1", "eth0"), craft.udp("10.64.1.2", 1, "203.0.113.1", 9, b"x"))
    damaged = craft.ethernet(mac("r1", "br0"), mac("lhr1", "eth0"), craft.udp(ADDRESS, 3000, "203.0.113.1", 9, b"xyz"))
    with Capture(lab) as capture:
        send_frame(lab.node("lhr1"), "eth0", frame, bypass=True)
        send_frame(lab.node("lhr1"), "eth0", damaged[:-1] + b"Z", bypass=True)
        early = capture.report(OWNERS)
    report = capture.report(OWNERS)
    assert len(report.not_expected_source) == len(early.not_expected_source) == 1
    assert [finding.why for finding in report.bad_checksums if ADDRESS in finding.packet] == ["wrong checksum: udp"]


FLOOD = """
import socket
sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sock.bind(("198.51.100.10", 3001))
for number in range(30000):
    sock.sendto(b"%d" % number, ("203.0.113.1", 9))
"""


def test_not_one_of_a_flood_is_missed(lab: Lab) -> None:
    with Capture(lab) as capture:
        lab.node("lhr1").run([sys.executable, "-c", FLOOD], check=True)
    report = capture.report(OWNERS)
    assert report.problems() == []
    assert report.flows["udp", ADDRESS, 3001, "203.0.113.1", 9] == 30000
    assert capture.captured > 30000 and capture.kernel_dropped == 0


def test_a_capture_that_cannot_begin_says_why(lab: Lab) -> None:
    with pytest.raises(KernelError, match="syntax error"), Capture(lab, filter_="no such filter"):
        pass
