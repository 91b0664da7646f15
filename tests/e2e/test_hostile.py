# SPDX-License-Identifier: Apache-2.0
"""What strangers, clients and listeners try: each is dropped, and counted under its name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from softunicast.kernel.abi import Drop
from softunicast.lab import topology as facts
from softunicast.lab.inject import send_frame
from softunicast.model.bindings_file import load_bindings
from softunicast.model.owner import OwnerTable
from softunicast.model.plan import load_plan
from softunicast.wire.craft import carried, ethernet, ip, tcp, udp
from tests.support.fleet_lab import FleetLab, fleet_lab
from tests.support.wait import wait_until

WEB = "203.0.113.1"
MINE = ("198.51.100.20", 9005)  # lhr1's, nobody claims it here
FINAL = 0x0002
GUE_PORT = 6080


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with fleet_lab("hostile") as lab:
        yield lab


def counted(lab: FleetLab, node: str, reason: Drop, act: Callable[[], object]) -> int:
    """How many more drops of that name there are on the node after `act`; waits for the first."""
    before = lab.stats(node)[0][reason]
    act()
    wait_until(lambda: lab.stats(node)[0][reason] > before, 20, f"{node} counts {reason.name}")
    return lab.stats(node)[0][reason] - before


def to_node(lab: FleetLab, node: str, packet: bytes) -> None:
    """A packet that the router puts on the rack for that node."""
    send_frame(lab.node("r1"), "br0", ethernet(facts.mac(node, "eth0"), facts.mac("r1", "br0"), packet))


def test_an_answer_nobody_claims(lab: FleetLab) -> None:
    assert counted(lab, "lhr1", Drop.NO_CLAIM, lambda: to_node(lab, "lhr1", udp(WEB, 53, *MINE, b"late"))) == 1


def test_an_answer_nobody_claims_at_the_wrong_node(lab: FleetLab) -> None:
    """The wrong node cannot know: it carries the packet to its owner, who drops it."""
    assert counted(lab, "lhr1", Drop.NO_CLAIM, lambda: to_node(lab, "lhr2", udp(WEB, 53, *MINE, b"late"))) == 1


def test_a_port_nobody_holds(lab: FleetLab) -> None:
    packet = udp(WEB, 53, "198.51.100.20", 700, b"scan")
    assert counted(lab, "lhr1", Drop.NO_OWNER, lambda: to_node(lab, "lhr1", packet)) == 1


def test_encapsulated_by_a_stranger(lab: FleetLab) -> None:
    packet = carried("10.0.1.1", 50000, "10.0.1.11", GUE_PORT, udp(WEB, 53, *MINE, b"x"))
    assert counted(lab, "lhr1", Drop.STRANGER, lambda: to_node(lab, "lhr1", packet)) == 1


@pytest.mark.parametrize(
    ("reason", "inner", "flags"),
    [
        (Drop.INNER_NOT_SLICE, udp(WEB, 53, "192.0.2.9", 9005, b"x"), 0),
        (Drop.INNER_INTERNAL, udp("10.0.1.12", 53, *MINE, b"x"), 0),
        (Drop.FINAL_NOT_MINE, udp(WEB, 53, "198.51.100.20", 9015, b"x"), FINAL),
    ],
)
def test_encapsulated_in_a_peers_name(lab: FleetLab, reason: Drop, inner: bytes, flags: int) -> None:
    packet = carried("10.0.1.12", 50000, "10.0.1.11", GUE_PORT, inner, flags=flags)
    assert counted(lab, "lhr1", reason, lambda: to_node(lab, "lhr1", packet)) == 1


def from_client(lab: FleetLab, packet: bytes) -> None:
    send_frame(lab.node("c1"), "eth0", ethernet(facts.mac("lhr1", "c1"), facts.mac("c1", "eth0"), packet))


@pytest.mark.parametrize(
    ("reason", "packet"),
    [
        (Drop.SPOOFED, udp("10.99.0.1", 4000, WEB, 7, b"x")),
        (Drop.SPOOFED, udp("198.51.100.10", 4000, WEB, 7, b"x")),
        (Drop.TO_FLEET, udp("10.64.1.2", 4000, "198.51.100.20", 9005, b"x")),
        (Drop.PROTOCOL, ip("10.64.1.2", WEB, 47, b"\0" * 24)),
        (Drop.NOT_INITIAL, tcp("10.64.1.2", 4001, WEB, 443, flags=0x10)),
    ],
)
def test_a_client_that_may_not(lab: FleetLab, reason: Drop, packet: bytes) -> None:
    with lab.capture() as capture:
        assert counted(lab, "lhr1", reason, lambda: from_client(lab, packet)) == 1
    assert capture.report().sent == 0


def test_a_listener_is_not_exposed_by_a_slice(lab: FleetLab) -> None:
    """198.51.100.10:8080 belongs to one of the nodes; programs listen on 0.0.0.0:8080 on both; nobody gets in."""
    plan = load_plan(lab.plan_path.read_text(), str(lab.plan_path))
    bindings = load_bindings(lab.bindings_path.read_text(), str(lab.bindings_path))
    owner = OwnerTable.build(plan, bindings).owner(plan.pools["gb"].addresses[0], 8080)
    assert owner is not None
    node = next(name for name in facts.NODES if lab.node(name).plan_name == owner.node)
    listener = "import socket; s = socket.create_server(('', 8080)); print('ready', flush=True); s.accept()"
    listening = []
    for name in facts.NODES:
        child = lab.node(name).popen([sys.executable, "-c", listener], stdout=-1, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        listening.append(child)
    # Its own address works, the slice's does not.
    knock = ["curl", "-s", "-m", "1", "-o", "/dev/null"]
    assert counted(
        lab,
        node,
        Drop.NO_CLAIM,
        lambda: lab.node("inet").run([*knock, f"http://{plan.pools['gb'].addresses[0]}:8080/"]),
    )
    assert all(child.poll() is None for child in listening)
    assert lab.node("r1").run([*knock, "http://10.0.1.11:8080/"]).returncode != 7
    assert listening[0].wait(30) == 0


def test_the_positive_control(lab: FleetLab) -> None:
    """The checker must see one packet that somebody put behind the guard; otherwise its zeros mean nothing."""
    from softunicast.lab.inject import inject_behind_guard

    with lab.capture() as capture:
        inject_behind_guard(lab.node("lhr1"))
    assert len(capture.report().outside_slice) == 1


def test_the_guard_stops_a_packet_without_a_claim(lab: FleetLab) -> None:
    """The same packet, but by the ordinary way out."""
    frame = ethernet(
        facts.mac("r1", "br0"), facts.mac("lhr1", "eth0"), tcp("198.51.100.20", 9005, WEB, 443, flags=0x10)
    )

    def send() -> None:
        with pytest.raises(OSError, match="No buffer space"):
            send_frame(lab.node("lhr1"), "eth0", frame)

    with lab.capture() as capture:
        assert counted(lab, "lhr1", Drop.GUARD_NO_CLAIM, send) == 1
    assert capture.report().sent == 0
