# SPDX-License-Identifier: Apache-2.0
"""su_guard and su_guard_other: nothing leaves a slice's address without a claim. Packets here have no socket."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from softunicast.kernel.abi import Counter, Drop, Flow, Kind, State
from softunicast.kernel.abi_util import word_state
from softunicast.wire.craft import echo, icmp_error, tcp, udp
from tests.bpf.egress_bench import OK, REDIRECT, SHOT, UNSPEC, Bench, bench
from tests.bpf.test_egress_uplink import flow, put_claim
from tests.support.dataplane import CLIENT, MARK, SERVER, SLICE, UNDERLAY, packed, u32
from tests.support.packets import ACK, RST, SYN, frame, gre, header4


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    return loaded


def test_marked_packets_lose_the_mark_and_go(b: Bench) -> None:
    ran = b.guard(udp(SLICE, 9000, SERVER, 53), mark=MARK | 5)
    assert (ran.verdict, ran.mark) == (OK, 5)
    assert b.plane.flows() == {}


PASS = {
    "own TCP": frame(tcp(UNDERLAY, 1, SERVER, 443, flags=SYN)),
    "forwarded": frame(udp(CLIENT, 1, SERVER, 53)),
    "IPv6": frame(udp("2001:db8:f::1", 1, "2001:db8::99", 9000)),
    "arp": frame(b"\0\1\x08\0\6\4\0\1" + b"\0" * 20, ethertype=0x0806),
}


@pytest.mark.parametrize("name", PASS)
@pytest.mark.parametrize("program", ["su_guard", "su_guard_other"])
def test_other_traffic_passes(b: Bench, program: str, name: str) -> None:
    ran = b.run(program, PASS[name], raw=True)
    assert (ran.verdict, ran.data) == (UNSPEC, PASS[name])
    assert b.plane.drops() == {}


@pytest.mark.parametrize("kind", [Kind.SOCKET, Kind.LOCAL])
@pytest.mark.parametrize("state", [State.NEW, State.OPEN, State.LINGER])
def test_claimed_by_the_stack_passes(b: Bench, kind: Kind, state: State) -> None:
    put_claim(b, flow(6, 9005, 443), kind, state=state)
    packet = tcp(SLICE, 9005, SERVER, 443, flags=RST)
    ran = b.guard(packet)
    assert (ran.verdict, ran.data[14:]) == (OK, packet)
    assert b.plane.count(Counter.GUARD_PASSED) == 1
    assert b.the_claim()[1].word & 0xFFFFFFFF > 0


def test_socket_s_claim_opens_with_its_first_ack(b: Bench) -> None:
    put_claim(b, flow(6, 9005, 443), Kind.SOCKET, state=State.NEW)
    b.guard(tcp(SLICE, 9005, SERVER, 443, flags=SYN))
    assert word_state(b.the_claim()[1].word) == State.NEW
    b.guard(tcp(SLICE, 9005, SERVER, 443, flags=ACK))
    assert word_state(b.the_claim()[1].word) == State.OPEN


def test_wildcard_passes(b: Bench) -> None:
    put_claim(b, Flow(packed(SLICE), bytes(16), 9001, 0, 17), Kind.SOCKET)
    assert b.guard(udp(SLICE, 9001, SERVER, 53)).verdict == OK


def test_our_error_about_a_claimed_flow_passes(b: Bench) -> None:
    put_claim(b, flow(17, 9005, 53), Kind.SOCKET)
    error = icmp_error(SLICE, SERVER, 3, 3, udp(SERVER, 53, SLICE, 9005))
    assert b.guard(error).verdict == OK
    assert b.guard(icmp_error(SLICE, SERVER, 3, 3, udp(SERVER, 53, SLICE, 9006))).verdict == SHOT
    assert b.plane.drops() == {Drop.GUARD_NO_CLAIM: 1}


@pytest.mark.parametrize("kind", [Kind.PACKET, Kind.PEER])
def test_somebody_else_s_flow(b: Bench, kind: Kind) -> None:
    put_claim(b, flow(6, 9005, 443), kind, inner=CLIENT, inner_port=40000)
    assert b.guard(tcp(SLICE, 9005, SERVER, 443, flags=SYN)).verdict == SHOT
    assert b.plane.drops() == {Drop.GUARD_FOREIGN: 1}


def test_flow_of_a_rewritten_local_packet_is_not_that_port_s(b: Bench) -> None:
    put_claim(b, flow(17, 9005, 53), Kind.LOCAL, inner=UNDERLAY, inner_port=33333)
    assert b.guard(udp(SLICE, 9005, SERVER, 53)).verdict == SHOT
    assert b.plane.drops() == {Drop.GUARD_FOREIGN: 1}


def test_claim_being_made_is_not_to_be_had(b: Bench) -> None:
    put_claim(b, flow(6, 9005, 443), Kind.SOCKET, state=State.LOCKED)
    assert b.guard(tcp(SLICE, 9005, SERVER, 443, flags=SYN)).verdict == SHOT
    assert b.plane.drops() == {Drop.GUARD_FOREIGN: 1}


@pytest.mark.parametrize(
    "packet",
    [tcp(SLICE, 9003, SERVER, 443, flags=SYN), udp(SLICE, 9003, SERVER, 53), echo(SLICE, SERVER, 9003)],
    ids=["tcp", "udp", "echo"],
)
def test_unclaimed_packet_inside_a_slice_claims_as_it_stands(b: Bench, packet: bytes) -> None:
    for _ in range(2):
        ran = b.guard(packet)
        assert (ran.verdict, ran.data[14:]) == (OK, packet)
    key, claim = b.the_claim()
    assert (key.local_port, claim.kind, claim.inner, claim.inner_port) == (9003, Kind.LOCAL, packed(SLICE), 9003)
    assert b.plane.count(Counter.CLAIM_LOCAL) == 1
    assert b.plane.count(Counter.GUARD_PASSED) == 2


DROPPED = {
    "tcp without a claim": tcp(SLICE, 9003, SERVER, 443, flags=ACK),
    "reset without a claim": tcp(SLICE, 9003, SERVER, 443, flags=RST | ACK),
    "tcp outside": tcp(SLICE, 8080, SERVER, 443, flags=SYN),
    "udp outside": udp(SLICE, 8080, SERVER, 53),
    "other node's port": udp(SLICE, 9012, SERVER, 53),
    "gre": gre(SLICE, SERVER),
    "echo reply": echo(SLICE, SERVER, 9003, reply=True),
}


@pytest.mark.parametrize("name", DROPPED)
def test_dropped(b: Bench, name: str) -> None:
    assert b.guard(DROPPED[name]).verdict == SHOT
    assert b.plane.drops() == {Drop.GUARD_NO_CLAIM: 1}
    assert b.plane.flows() == {}


def test_fragments_without_ports_are_dropped(b: Bench) -> None:
    assert b.guard(header4(gre(SLICE, SERVER), flags=0x2000)).verdict == SHOT
    assert b.guard(header4(gre(SLICE, SERVER), flags=0x0010)).verdict == SHOT
    assert b.plane.drops() == {Drop.FRAGMENT: 1, Drop.FRAGMENT_EARLY: 1}


def test_wildcard_ports_are_not_claimed_exactly(b: Bench) -> None:
    b.plane.clear()
    b.plane.fill(b.uplink)
    b.plane.add_slice(SLICE, 9040, 9049, udp_exact_first=9045)
    assert b.guard(udp(SLICE, 9044, SERVER, 53)).verdict == SHOT
    assert b.guard(udp(SLICE, 9045, SERVER, 53)).verdict == OK
    assert b.guard(tcp(SLICE, 9044, SERVER, 53)).verdict == OK
    assert b.plane.drops() == {Drop.GUARD_NO_CLAIM: 1}


def test_ping_from_a_slice_gets_an_id_of_it(b: Bench) -> None:
    for _ in range(2):
        ran = b.guard(echo(SLICE, SERVER, 4711, payload=b"x" * 30, ttl=9))
        assert ran.verdict == OK
        key, claim = b.the_claim()
        assert 9000 <= key.local_port <= 9009
        assert ran.data[14:] == echo(SLICE, SERVER, key.local_port, payload=b"x" * 30, ttl=9)
        assert (claim.kind, claim.inner_port) == (Kind.LOCAL, 4711)
    back = b.back(echo(SERVER, SLICE, key.local_port, payload=b"x" * 30, reply=True))
    assert back.verdict == OK
    assert back.data[14:] == echo(SERVER, SLICE, 4711, payload=b"x" * 30, reply=True)
    assert b.plane.count(Counter.LOCAL_OUT) == 2


@pytest.mark.parametrize("mark", [0, MARK])
def test_slices_leave_by_uplinks_only(b: Bench, mark: int) -> None:
    put_claim(b, flow(6, 9005, 443), Kind.SOCKET)
    b.plane.object.maps["onramp_devices"].delete(u32(b.fish))  # one that has no part in anything
    assert b.run("su_guard_other", tcp(SLICE, 9005, SERVER, 443, flags=ACK), mark=mark).verdict == SHOT
    assert b.plane.drops() == {Drop.GUARD_DEVICE: 1}


def test_fish_and_the_stack_share_a_slice(b: Bench) -> None:
    """Five by the guard, five by fish: the eleventh of either kind finds nothing."""
    for port in range(9000, 9005):
        assert b.guard(tcp(SLICE, port, SERVER, 443, flags=SYN)).verdict == OK
    assert [b.out(tcp(CLIENT, 40000 + n, SERVER, 443, flags=SYN)).verdict for n in range(5)] == [REDIRECT] * 5
    assert len(b.plane.flows()) == 10
    assert b.out(tcp(CLIENT, 40005, SERVER, 443, flags=SYN)).packet.tcp_flags == RST | ACK
    assert b.guard(tcp(SLICE, 9007, SERVER, 443, flags=SYN)).verdict == SHOT
    assert b.plane.drops() == {Drop.SLICE_FULL: 1, Drop.GUARD_FOREIGN: 1}
