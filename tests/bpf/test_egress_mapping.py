# SPDX-License-Identifier: Apache-2.0
"""Endpoint-independent mapping of UDP (RFC 4787): one outer port for all remotes, its filters, and hairpinning."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from softunicast.egress.permits import mapping_hash
from softunicast.kernel.abi import Counter, Drop, Flow, Kind, OnrampFlag, Permit, State
from softunicast.kernel.abi_util import word_seen_s, word_state
from softunicast.wire.craft import carried, echo, icmp_error, tcp, udp
from softunicast.wire.packet import checksum_errors, parse
from tests.bpf.egress_bench import OK, REDIRECT, SHOT, UNSPEC, Bench, bench
from tests.support.dataplane import (
    BYPASS,
    CLIENT,
    CLIENT6,
    GATEWAY,
    MARK,
    POLICY,
    SERVER,
    SERVER6,
    SLICE,
    UNDERLAY,
    VETH_ONRAMP,
    packed,
    u32,
)
from tests.support.packets import SYN, fragments, frame, header4, whole

MAPPED = "198.51.100.21"  # 9000-9015 for mappings, 9016-9063 for exact claims
MAPPED6 = "2001:db8:1::21"
SECOND = "10.8.0.3"
ELSEWHERE = "203.0.113.2"
PEER = "192.0.2.12"
WILD = range(9000, 9016)
EIM, ADF, APDF = OnrampFlag.EIM, OnrampFlag.ADF, OnrampFlag.APDF


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    for address in (MAPPED, MAPPED6):
        loaded.plane.add_slice(address, 9000, 9063, udp_exact_first=9016)
    onramp(loaded)
    return loaded


def onramp(b: Bench, udp_flags: int = EIM, **more: object) -> None:
    policy = replace(POLICY, **more)
    b.plane.add_onramp(VETH_ONRAMP, b.fish, l2=True, gateway=GATEWAY, udp=udp_flags, policy=policy)


def mapping(b: Bench, client: str = CLIENT, port: int = 40000, remote: str = SERVER) -> int:
    """A client's packet to a remote; the outer port of its mapping."""
    ran = b.out(udp(client, port, remote, 53, b"question"))
    assert ran.verdict == REDIRECT
    assert str(ran.packet.source) in (MAPPED, MAPPED6)
    assert ran.packet.source_port is not None
    return ran.packet.source_port


def test_one_port_for_all_remotes(b: Bench) -> None:
    port = mapping(b)
    assert port in WILD
    for remote in (SERVER, ELSEWHERE, "192.0.32.9"):
        for number in (53, 54):
            ran = b.out(udp(CLIENT, 40000, remote, number, b"x"))
            assert (ran.verdict, ran.mark, ran.packet.ttl) == (REDIRECT, MARK, 63)
            assert (str(ran.packet.source), ran.packet.source_port) == (MAPPED, port)
    flow, claim = b.the_claim()
    assert flow == Flow(packed(MAPPED), bytes(16), port, 0, 17)
    assert (claim.kind, claim.inner, claim.inner_port, claim.tenant) == (Kind.PACKET, packed(CLIENT), 40000, 7)
    assert b.plane.count(Counter.CLAIM_PACKET) == 1
    assert b.plane.drops() == {}


def test_ipv6_has_mappings_too(b: Bench) -> None:
    port = mapping(b, CLIENT6, remote=SERVER6)
    assert port in WILD
    assert mapping(b, CLIENT6, remote="2001:db8:f::2") == port
    flow, _ = b.the_claim()
    assert (flow.local, flow.remote) == (packed(MAPPED6), bytes(16))
    assert str(b.back(udp("2001:db8:f::9", 1, MAPPED6, port, b"x")).packet.destination) == CLIENT6


def test_other_ports_and_clients_have_other_mappings(b: Bench) -> None:
    ports = {mapping(b, client, number) for client in (CLIENT, SECOND) for number in (40000, 40001)}
    assert len(ports) == 4
    assert ports <= set(WILD)


def test_mappings_end_when_their_part_is_full(b: Bench) -> None:
    assert {mapping(b, CLIENT, 40000 + number) for number in WILD} >= set(WILD)
    ran = b.out(udp(CLIENT, 39999, SERVER, 53))
    assert (ran.packet.icmp_type, ran.packet.icmp_code) == (3, 3)
    assert b.plane.drops() == {Drop.SLICE_FULL: 1}
    assert mapping(b, CLIENT, 40000 + WILD[0], ELSEWHERE) in WILD


def test_tcp_and_echo_stay_as_they_are(b: Bench) -> None:
    for packet in (tcp(CLIENT, 40000, SERVER, 443, flags=SYN), echo(CLIENT, SERVER, 77)):
        assert b.out(packet).verdict == REDIRECT
    assert {flow.remote for flow in b.plane.flows()} == {packed(SERVER)}


def test_anybody_may_answer_by_default(b: Bench) -> None:
    port = mapping(b)
    for remote, number in ((SERVER, 53), (SERVER, 99), (ELSEWHERE, 53)):
        ran = b.back(udp(remote, number, MAPPED, port, b"answer"))
        assert ran.verdict == REDIRECT
        assert (str(ran.packet.source), ran.packet.source_port) == (remote, number)
        assert (str(ran.packet.destination), ran.packet.destination_port) == (CLIENT, 40000)
    assert word_state(b.the_claim()[1].word) == State.OPEN
    assert b.back(udp(SERVER, 53, MAPPED, port ^ 1, b"x")).verdict == SHOT
    assert b.plane.drops() == {Drop.NO_CLAIM: 1}


FILTERS = {
    # remote, port: who may answer when (SERVER, 53) was sent to
    "endpoint-independent": (EIM, [(SERVER, 53), (SERVER, 99), (ELSEWHERE, 53)]),
    "address-dependent": (EIM | ADF, [(SERVER, 53), (SERVER, 99)]),
    "address-and-port-dependent": (EIM | APDF, [(SERVER, 53)]),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters(b: Bench, name: str) -> None:
    flags, allowed = FILTERS[name]
    onramp(b, flags)
    port = mapping(b)
    everybody = [(SERVER, 53), (SERVER, 99), (ELSEWHERE, 53)]
    let_in = [(who, number) for who, number in everybody if b.back(udp(who, number, MAPPED, port)).verdict == REDIRECT]
    assert let_in == allowed
    assert b.plane.drops() == ({Drop.FILTERED: 3 - len(allowed)} if len(allowed) < 3 else {})
    # An ICMP error: by whom it quotes, whoever sends it (RFC 4787 REQ-12a).
    quoted = udp(MAPPED, port, SERVER, 53, b"question")
    assert b.back(icmp_error("203.0.113.77", MAPPED, 3, 3, quoted)).verdict == REDIRECT
    stranger = icmp_error("203.0.113.77", MAPPED, 3, 3, udp(MAPPED, port, ELSEWHERE, 53))
    assert (b.back(stranger).verdict == REDIRECT) == (name == "endpoint-independent")
    # Sent to, it may.
    b.out(udp(CLIENT, 40000, ELSEWHERE, 53))
    assert b.back(udp(ELSEWHERE, 53, MAPPED, port)).verdict == REDIRECT


def test_permits_end_with_silence_and_are_no_other_clients(b: Bench) -> None:
    onramp(b, EIM | APDF)
    port = mapping(b)
    permits = b.plane.object.maps["permits"]
    ((key, value),) = permits.items()
    assert Flow.unpack(key) == Flow(packed(MAPPED), packed(SERVER), port, 53, 17)
    permit = Permit.unpack(value)
    assert permit.who == mapping_hash(b.the_claim()[1])
    for changed in (replace(permit, sent_s=permit.sent_s - 300), replace(permit, who=permit.who ^ 1)):
        permits.update(key, changed.pack())
        assert b.back(udp(SERVER, 53, MAPPED, port)).verdict == SHOT
        mapping(b)
        assert b.back(udp(SERVER, 53, MAPPED, port)).verdict == REDIRECT
    permits.update(key, replace(permit, sent_s=permit.sent_s - 299).pack())
    assert b.back(udp(SERVER, 53, MAPPED, port)).verdict == REDIRECT


def test_only_what_goes_out_keeps_a_mapping_alive(b: Bench) -> None:
    port = mapping(b)
    flow, claim = b.the_claim()
    old = word_seen_s(claim.word) - 100
    age(b, flow, old)
    assert b.back(udp(SERVER, 53, MAPPED, port)).verdict == REDIRECT
    assert word_seen_s(b.the_claim()[1].word) == old
    assert mapping(b) == port
    assert word_seen_s(b.the_claim()[1].word) > old


def age(b: Bench, flow: Flow, seen_s: int) -> None:
    """The claim saw its last packet then, and its hint knows."""
    claim = b.plane.flows()[flow]
    b.plane.put("flows", flow.pack(), replace(claim, word=claim.word >> 32 << 32 | seen_s).pack())
    for key, value in b.plane.object.maps["origin"].items():
        # checked_s, behind local, local_port, pad and generation
        b.plane.put("origin", key, value[:24] + u32(seen_s) + value[28:])


def test_classes_are_judged_for_each_remote(b: Bench) -> None:
    """A mapping is no way around what its on-ramp's packets are sorted by."""
    b.plane.add_prefix(BYPASS, "203.0.113.128/25")
    onramp(b, bypass=BYPASS)
    port = mapping(b)
    for to_stack in (GATEWAY, "203.0.113.129", "192.0.2.1", "169.254.1.1", "224.0.0.251"):
        ran = b.run("su_onramp_in", frame(udp(CLIENT, 40000, to_stack, 53)), raw=True)
        assert (ran.verdict, ran.data[14:]) == (OK, udp(CLIENT, 40000, to_stack, 53))
    ran = b.out(udp(CLIENT, 40000, ELSEWHERE, 53, ttl=1))
    assert (ran.packet.icmp_type, b.plane.drops()) == (11, {Drop.HOPS: 1})
    assert mapping(b, remote=ELSEWHERE) == port


def test_fragments_follow_a_mapping(b: Bench) -> None:
    onramp(b, EIM | APDF)
    data = bytes(range(256)) * 12
    port = mapping(b)
    for remote in (SERVER, ELSEWHERE):
        pieces = [b.out(piece) for piece in fragments(udp(CLIENT, 40000, remote, 53, data), 1400)]
        assert [ran.verdict for ran in pieces] == [REDIRECT] * 3
        made = whole([ran.data[14:] for ran in pieces])
        assert checksum_errors(made) == ()
        assert (parse(made).source_port, made[28:]) == (port, data)
        pieces = [b.back(piece) for piece in fragments(udp(remote, 53, MAPPED, port, data), 1400)]
        assert [ran.verdict for ran in pieces] == [REDIRECT] * 3
        assert parse(whole([ran.data[14:] for ran in pieces])).destination_port == 40000
    assert b.plane.drops() == {}


# Hairpinning -------------------------------------------------------------------------------------------


def turned(b: Bench, packet: bytes) -> bytes:
    """A client's packet, turned round: what then comes in by the uplink."""
    ran = b.out(packet)
    assert (ran.verdict, ran.mark) == (REDIRECT, MARK)
    assert ran.data[12:14] == b"\x08\0"
    return ran.data


def test_hairpin_within_a_node(b: Bench) -> None:
    """RFC 4787 REQ-9: to the other's outer address, seen from one's own outer address (REQ-9a)."""
    first, second = mapping(b), mapping(b, SECOND)
    came = turned(b, udp(CLIENT, 40000, MAPPED, second, b"hello"))
    assert came[14:] == udp(MAPPED, first, MAPPED, second, b"hello", ttl=63)
    ran = b.run("su_uplink_in", b"\x06" * 12 + came[12:], raw=True, mark=MARK)
    assert (ran.verdict, ran.mark) == (REDIRECT, MARK)
    assert ran.data[14:] == udp(MAPPED, first, SECOND, 40000, b"hello", ttl=62)
    # On-ramps are no uplinks: only what is ours goes out there from a slice's address.
    ran = b.run("su_guard_other", ran.data, raw=True, mark=MARK)
    assert (ran.verdict, ran.mark) == (UNSPEC, 0)
    assert b.plane.count(Counter.HAIRPINNED) == 1
    assert b.plane.drops() == {}


def test_hairpin_is_filtered_as_anything(b: Bench) -> None:
    onramp(b, EIM | APDF)
    first, second = mapping(b), mapping(b, SECOND)
    hello = udp(CLIENT, 40000, MAPPED, second, b"hello")
    assert b.run("su_uplink_in", turned(b, hello), raw=True, mark=MARK).verdict == SHOT
    assert b.plane.drops() == {Drop.FILTERED: 1}
    turned(b, udp(SECOND, 40000, MAPPED, first, b"hello"))
    assert b.run("su_uplink_in", turned(b, hello), raw=True, mark=MARK).verdict == REDIRECT


def test_hairpinned_errors_come_back(b: Bench) -> None:
    """RFC 5508 REQ-7."""
    first, second = mapping(b), mapping(b, SECOND)
    turned(b, udp(CLIENT, 40000, MAPPED, second, b"hello"))
    received = udp(MAPPED, first, SECOND, 40000, b"hello", ttl=62)
    came = turned(b, icmp_error(SECOND, MAPPED, 3, 3, received))
    assert came[14:] == icmp_error(MAPPED, MAPPED, 3, 3, udp(MAPPED, first, MAPPED, second, b"hello", ttl=62), ttl=63)
    ran = b.run("su_uplink_in", came, raw=True, mark=MARK)
    assert ran.verdict == REDIRECT
    assert (str(ran.packet.source), str(ran.packet.destination)) == (MAPPED, CLIENT)
    assert ran.data[14 + 28 :] == udp(CLIENT, 40000, MAPPED, second, b"hello", ttl=62)


def test_hairpin_to_another_node_is_carried(b: Bench) -> None:
    port = mapping(b)
    came = turned(b, udp(CLIENT, 40000, SLICE, 9012, b"hello"))
    ran = b.run("su_uplink_in", came, raw=True, mark=MARK)
    assert (ran.verdict, ran.mark) == (REDIRECT, 0)
    assert str(ran.packet.destination) == PEER
    assert ran.data[14 + 32 :] == udp(MAPPED, port, SLICE, 9012, b"hello", ttl=62)


def test_hairpin_from_another_node_is_delivered(b: Bench) -> None:
    port = mapping(b)
    hello = udp(SLICE, 9012, MAPPED, port, b"hello")
    ran = b.back(carried(PEER, 50000, UNDERLAY, 6080, hello))
    assert ran.verdict == REDIRECT
    assert (str(ran.packet.source), str(ran.packet.destination)) == (SLICE, CLIENT)
    about = icmp_error(SLICE, MAPPED, 3, 3, udp(MAPPED, port, SLICE, 9012, b"hello"))
    assert b.back(carried(PEER, 50000, UNDERLAY, 6080, about)).verdict == REDIRECT
    # All else from the fleet's own addresses is forged.
    for forged in (tcp(SLICE, 9012, MAPPED, port), udp("198.51.100.99", 9012, MAPPED, port)):
        assert b.back(carried(PEER, 50000, UNDERLAY, 6080, forged)).verdict == SHOT
    assert b.plane.drops() == {Drop.INNER_INTERNAL: 2}


@pytest.mark.parametrize(
    "packet",
    [
        tcp(CLIENT, 40000, MAPPED, 9001, flags=SYN),
        echo(CLIENT, MAPPED, 77),
        icmp_error(CLIENT, MAPPED, 3, 3, tcp(MAPPED, 9001, CLIENT, 40000)),
    ],
    ids=["tcp", "echo", "error about tcp"],
)
def test_nothing_else_is_hairpinned(b: Bench, packet: bytes) -> None:
    assert b.out(packet).verdict == SHOT
    assert b.plane.drops() == {Drop.TO_FLEET: 1}


def test_without_the_mapping_nothing_is_hairpinned(b: Bench) -> None:
    onramp(b, 0)
    assert b.out(udp(CLIENT, 40000, MAPPED, 9001)).verdict == SHOT
    assert b.plane.drops() == {Drop.TO_FLEET: 1}


def test_a_frame_without_the_mark_is_judged_by_its_address(b: Bench) -> None:
    port = mapping(b)
    other = frame(udp(SERVER, 53, MAPPED, port), to="02:00:00:00:00:99")
    assert b.run("su_uplink_in", other, raw=True).data == other
    options = header4(udp(SERVER, 53, MAPPED, port), options=b"\x01" * 4)
    assert b.back(options).verdict == REDIRECT
