# SPDX-License-Identifier: Apache-2.0
"""Fragments, packet in, packet out: the first one of a datagram says where the others go. What is let through is put
together again and must be the datagram, rewritten as a whole packet is, with every checksum right."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from softunicast.kernel.abi import FRAG_NS, GUE_FINAL, Counter, Drop, Flow, Frag, Kind, Node, ProbeFlag
from softunicast.wire.craft import carried, echo, icmp_error, ip, tcp, udp
from softunicast.wire.packet import checksum_errors, parse
from tests.bpf.egress_bench import OK, REDIRECT, SHOT, Bench, Ran, bench
from tests.bpf.test_egress_uplink import put_claim
from tests.support.dataplane import (
    CLIENT,
    CLIENT6,
    ME,
    OTHER,
    SERVER,
    SERVER6,
    SLICE,
    SLICE6,
    UNDERLAY,
    packed,
    u32,
)
from tests.support.packets import ACK, SYN, fragments, gre, header4, whole

PEER = "192.0.2.12"
THIRD, PEER3 = 3, "192.0.2.13"
DATA = bytes(range(256)) * 12  # 3,072 bytes: three fragments of 1,400
ENDS = {4: (CLIENT, SERVER, SLICE), 6: (CLIENT6, SERVER6, SLICE6)}
FINAL_AT = 14 + 30
"""Of the flags of GUE in a frame."""


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    loaded.plane.add_slice(SLICE6, 9000, 9009)
    loaded.plane.add_slice(SLICE6, 9010, 9019, node=OTHER)
    for key in list(loaded.plane.object.maps["frags"].keys()):
        loaded.plane.object.maps["frags"].delete(key)
    return loaded


def question(version: int, kind: str, payload: bytes) -> bytes:
    """From the client."""
    client, server, _ = ENDS[version]
    if kind == "udp":
        return udp(client, 40000, server, 7, payload)
    return echo(client, server, 77, payload=payload)


def answer(version: int, kind: str, port: int) -> bytes:
    """From the server, to the slice."""
    _, server, address = ENDS[version]
    if kind == "udp":
        return udp(server, 7, address, port, DATA)
    return echo(server, address, port, payload=DATA, reply=True)


def datagram(runs: list[Ran]) -> bytes:
    """What the receiver puts together."""
    made = whole([ran.data[14:] for ran in runs])
    assert checksum_errors(made) == ()
    return made


KINDS = [(version, kind) for version in (4, 6) for kind in ("udp", "echo")]


@pytest.mark.parametrize(("version", "kind"), KINDS)
def test_a_client_s_datagram_goes_out_and_its_answer_comes_back(b: Bench, version: int, kind: str) -> None:
    client, server, address = ENDS[version]
    asked = question(version, kind, DATA)
    runs = [b.out(piece) for piece in fragments(asked, 1400)]
    assert [ran.verdict for ran in runs] == [REDIRECT] * 3
    key, claim = b.the_claim()
    assert (claim.kind, claim.inner) == (Kind.PACKET, packed(client))
    made = parse(datagram(runs))
    assert (str(made.source), str(made.destination), made.ttl) == (address, server, 63)
    assert (made.source_port or made.icmp_id) == key.local_port

    runs = [b.back(piece) for piece in fragments(answer(version, kind, key.local_port), 1400)]
    assert [ran.verdict for ran in runs] == [REDIRECT] * 3
    back = datagram(runs)
    made = parse(back)
    assert (str(made.source), str(made.destination), made.ttl) == (server, client, 63)
    assert (made.destination_port or made.icmp_id) == (77 if kind == "echo" else 40000)
    assert back.endswith(DATA)
    assert b.plane.drops() == {}
    assert b.plane.count(Counter.FRAGMENTS) == 6
    assert (b.plane.count(Counter.OUT_PACKETS), b.plane.count(Counter.IN_PACKETS)) == (3, 3)


@pytest.mark.parametrize(("version", "kind"), KINDS)
def test_what_comes_before_its_first_one_is_counted(b: Bench, version: int, kind: str) -> None:
    runs = [b.out(piece) for piece in reversed(fragments(question(version, kind, DATA), 1400))]
    assert [ran.verdict for ran in runs] == [SHOT, SHOT, REDIRECT]
    key, _ = b.the_claim()
    runs = [b.back(piece) for piece in reversed(fragments(answer(version, kind, key.local_port), 1400))]
    assert [ran.verdict for ran in runs] == [SHOT, SHOT, REDIRECT]
    assert b.plane.drops() == {Drop.FRAGMENT_EARLY: 4}


@pytest.mark.parametrize("version", [4, 6])
def test_for_a_socket_they_are_the_stack_s_as_they_are(b: Bench, version: int) -> None:
    _, server, address = ENDS[version]
    put_claim(b, Flow(packed(address), packed(server), 9005, 7, 17), Kind.SOCKET)
    for piece in fragments(answer(version, "udp", 9005), 1400):
        ran = b.back(piece)
        assert (ran.verdict, ran.data[14:]) == (OK, piece)
    assert b.plane.count(Counter.SOCKET_IN) == 3


@pytest.mark.parametrize(("version", "kind"), KINDS)
def test_local_ones_are_rewritten_both_ways(b: Bench, version: int, kind: str) -> None:
    """From the slice's address, but with a port or id that is none of it: what ping and the guard make of it."""
    _, server, address = ENDS[version]
    if kind == "udp":
        mine = UNDERLAY if version == 4 else "2001:db8:2::11"
        key = Flow(packed(address), packed(server), 9004, 7, 17)
        put_claim(b, key, Kind.LOCAL, inner=mine, inner_port=33333)
    else:
        mine = address
        runs = [b.guard(piece) for piece in fragments(echo(mine, server, 4711, payload=DATA), 1400)]
        assert [ran.verdict for ran in runs] == [OK] * 3
        key, claim = b.the_claim()
        assert (claim.kind, claim.inner_port) == (Kind.LOCAL, 4711)
        assert datagram(runs)[-len(DATA) :] == DATA
        assert parse(datagram(runs)).icmp_id == key.local_port
    runs = [b.back(piece) for piece in fragments(answer(version, kind, key.local_port), 1400)]
    assert [ran.verdict for ran in runs] == [OK] * 3
    made = parse(datagram(runs))
    assert (str(made.destination), made.destination_port or made.icmp_id) == (mine, 33333 if kind == "udp" else 4711)
    assert b.plane.drops() == {}


@pytest.mark.parametrize("version", [4, 6])
def test_the_guard_lets_out_what_its_first_one_claimed(b: Bench, version: int) -> None:
    _, server, address = ENDS[version]
    pieces = fragments(udp(address, 9003, server, 7, DATA), 1400)
    assert b.guard(pieces[1]).verdict == SHOT
    assert b.plane.drops() == {Drop.FRAGMENT_EARLY: 1}
    for piece in pieces:
        ran = b.guard(piece)
        assert (ran.verdict, ran.data[14:]) == (OK, piece)
    key, claim = b.the_claim()
    assert (key.local_port, claim.kind) == (9003, Kind.LOCAL)
    assert b.plane.count(Counter.GUARD_PASSED) == 3


def test_nothing_of_a_refused_datagram_leaves(b: Bench) -> None:
    """Another's flow, a port that is no slice's, and a slice that is full."""
    put_claim(b, Flow(packed(SLICE), packed(SERVER), 9005, 7, 17), Kind.PACKET, inner=CLIENT, inner_port=40000)
    for number, port in enumerate((9005, 8080)):
        runs = [b.guard(piece) for piece in fragments(udp(SLICE, port, SERVER, 7, DATA), 1400, number)]
        assert [ran.verdict for ran in runs] == [SHOT] * 3
    assert b.plane.drops() == {Drop.GUARD_FOREIGN: 3, Drop.GUARD_NO_CLAIM: 3}
    for port in range(9000, 9010):
        put_claim(b, Flow(packed(SLICE), packed("203.0.113.9"), port, 7, 17), Kind.SOCKET)
    runs = [b.out(piece) for piece in fragments(udp(CLIENT, 40009, "203.0.113.9", 7, DATA), 1400)]
    assert [ran.verdict for ran in runs] == [REDIRECT, SHOT, SHOT]
    assert runs[0].packet.icmp_type == 3  # the client is told
    drops = b.plane.drops()
    assert (drops[Drop.SLICE_FULL], drops[Drop.FRAGMENT]) == (1, 2)


def test_without_ports(b: Bench) -> None:
    """An ICMP error and GRE, in fragments."""
    error = icmp_error(SERVER, SLICE, 3, 3, udp(SLICE, 9003, SERVER, 7, DATA))
    for number, packet in enumerate((error, gre(SERVER, SLICE))):
        first, *later = fragments(packet, 16 if number else 1400, number)
        assert b.back(first).verdict == SHOT
        assert [b.back(piece).verdict for piece in later] == [SHOT] * len(later)
    drops = b.plane.drops()
    assert (drops[Drop.FRAGMENT], set(drops)) == (2, {Drop.FRAGMENT, Drop.FRAGMENT_EARLY})


def test_a_fragment_cannot_write_over_the_header_that_was_judged(b: Bench) -> None:
    """RFC 3128: TCP's flags are within reach of a second fragment, ports are not."""
    segment = tcp(CLIENT, 40000, SERVER, 443, bytes(2800), flags=SYN)
    first, second, _ = fragments(segment, 1400)
    assert b.out(first).verdict == REDIRECT
    assert b.out(header4(second, flags=0x2002)).verdict == SHOT
    assert b.plane.drops() == {Drop.MALFORMED: 1}
    assert b.out(second).verdict == REDIRECT


def test_a_first_one_is_believed_for_seconds_only(b: Bench) -> None:
    put_claim(b, Flow(packed(SLICE), packed(SERVER), 9005, 7, 17), Kind.SOCKET)
    first, second, third = fragments(answer(4, "udp", 9005), 1400)
    assert [b.back(first).verdict, b.back(second).verdict] == [OK, OK]
    frags = b.plane.object.maps["frags"]
    ((key, value),) = frags.items()
    said = Frag.unpack(value)
    assert (said.sport, said.dport, said.proto) == (7, 9005, 17)
    assert 0 <= time.clock_gettime_ns(time.CLOCK_BOOTTIME) - said.learned_ns < FRAG_NS
    frags.update(key, replace(said, learned_ns=said.learned_ns - FRAG_NS).pack())
    assert b.back(third).verdict == SHOT
    assert b.plane.drops() == {Drop.FRAGMENT_EARLY: 1}


def test_what_came_elsewhere_or_is_another_datagram_s_teaches_nothing(b: Bench) -> None:
    put_claim(b, Flow(packed(SLICE), packed(SERVER), 9005, 7, 17), Kind.SOCKET)
    first, second, _ = fragments(answer(4, "udp", 9005), 1400, 7)
    assert b.back(first).verdict == OK
    assert b.back(fragments(answer(4, "udp", 9005), 1400, 8)[1]).verdict == SHOT
    # A client that forges the server's address and guesses the id.
    assert b.out(second).verdict == SHOT
    assert b.back(second).verdict == OK


@pytest.mark.parametrize("version", [4, 6])
def test_a_fragmented_ping_is_answered(b: Bench, version: int) -> None:
    _, server, address = ENDS[version]
    runs = [b.back(piece) for piece in fragments(echo(server, address, 5, payload=DATA), 1400)]
    assert [ran.verdict for ran in runs] == [REDIRECT] * 3
    assert datagram(runs) == whole(fragments(echo(address, server, 5, payload=DATA, reply=True), 1400))
    assert b.plane.count(Counter.ECHO_ANSWERED) == 3


def fleet(b: Bench, *site: int) -> None:
    """This site's nodes, all of them fit."""
    b.plane.put("nodes", u32(THIRD), Node(packed(PEER3), 1).pack())
    b.plane.put("peers", packed(PEER3), u32(THIRD))
    b.plane.set_site(*site)


def tunnelled(piece: bytes, peer: str, *, final: bool = False) -> bytes:
    """As another node carries it here."""
    return carried(peer, 50000, UNDERLAY, 6080, piece, flags=GUE_FINAL if final else 0)


def inner(ran: Ran) -> tuple[str, int, int, bytes]:
    """Where an encapsulated frame goes, its outer source port, its GUE flags, and what is in it."""
    outer = ran.packet
    assert outer.source_port is not None
    start = FINAL_AT + 2
    return str(outer.destination), outer.source_port, ran.data[FINAL_AT + 1], ran.data[start:]


@pytest.mark.parametrize("version", [4, 6])
def test_plain_ones_go_to_their_home_whoever_owns_them(b: Bench, version: int) -> None:
    fleet(b, OTHER)
    runs = [b.back(piece) for piece in fragments(answer(version, "udp", 9005), 1400)]
    assert [ran.verdict for ran in runs] == [REDIRECT] * 3
    seen = [inner(ran) for ran in runs]
    assert {(to, final) for to, _, final, _ in seen} == {(PEER, 0)}
    assert len({port for _, port, _, _ in seen}) == 1, "they keep their order"
    assert whole([data for *_, data in seen]).endswith(DATA)
    assert b.plane.count(Counter.FRAGMENTS) == 0, "nothing is learned on the way"


def test_homes_spread_over_the_site(b: Bench) -> None:
    fleet(b, ME, OTHER, THIRD)
    control = b.plane.object.maps["control"]
    value = bytearray(control.lookup(u32(0)) or b"")
    value[16:20] = u32(ProbeFlag.FIT)
    control.update(u32(0), bytes(value))
    put_claim(b, Flow(packed(SLICE), packed(SERVER), 9005, 7, 17), Kind.SOCKET)
    homes = []
    for ident in range(120):
        runs = [b.back(piece) for piece in fragments(answer(4, "udp", 9005), 1400, ident)]
        went = {inner(ran)[0] if ran.verdict == REDIRECT else "here" for ran in runs}
        assert len(went) == 1, "all of one datagram"
        homes += went
    assert {homes.count(home) > 20 for home in ("here", PEER, PEER3)} == {True}
    # One that tells the others that it is not fit is nobody's home, its own neither.
    b.plane.set_ready()
    for ident in range(20):
        assert b.back(fragments(answer(4, "udp", 9005), 1400, ident)[0]).verdict == REDIRECT


@pytest.mark.parametrize("version", [4, 6])
def test_at_home_they_go_on_to_their_owner_final(b: Bench, version: int) -> None:
    fleet(b, OTHER)  # even where this node's own tables say that their home is another: it is not sent to and fro
    pieces = fragments(answer(version, "udp", 9012), 1400)
    runs = [b.back(tunnelled(piece, PEER3)) for piece in pieces]
    assert [ran.verdict for ran in runs] == [REDIRECT] * 3
    seen = [inner(ran) for ran in runs]
    assert {(to, final) for to, _, final, _ in seen} == {(PEER, 2)}
    assert len({port for _, port, _, _ in seen}) == 1
    assert whole([data for *_, data in seen]).endswith(DATA)
    assert b.plane.count(Counter.FRAGMENTS) == 3
    early = fragments(answer(version, "udp", 9012), 1400, 99)[1]
    assert b.back(tunnelled(early, PEER3)).verdict == SHOT
    assert b.plane.drops() == {Drop.FRAGMENT_EARLY: 1}


@pytest.mark.parametrize("final", [False, True])
def test_out_of_the_tunnel_to_whoever_claimed(b: Bench, final: bool) -> None:
    fleet(b, OTHER)
    assert b.out(udp(CLIENT, 40000, SERVER, 7)).verdict == REDIRECT
    key, _ = b.the_claim()
    pieces = fragments(answer(4, "udp", key.local_port), 1400)
    runs = [b.back(tunnelled(piece, PEER, final=final)) for piece in pieces]
    assert [ran.verdict for ran in runs] == [REDIRECT] * 3
    made = parse(datagram(runs))
    assert (str(made.destination), made.destination_port) == (CLIENT, 40000)
    other = fragments(answer(4, "udp", 9012), 1400, 9)[0]
    assert b.back(tunnelled(other, PEER, final=final)).verdict == (SHOT if final else REDIRECT)
    assert b.plane.drops() == ({Drop.FINAL_NOT_MINE: 1} if final else {})


def test_a_forwarded_tcp_segment_in_fragments(b: Bench) -> None:
    assert b.out(tcp(CLIENT, 40000, SERVER, 443, flags=SYN)).verdict == REDIRECT
    key, _ = b.the_claim()
    segment = tcp(SERVER, 443, SLICE, key.local_port, DATA, flags=ACK)
    runs = [b.back(piece) for piece in fragments(segment, 1400)]
    assert [ran.verdict for ran in runs] == [REDIRECT] * 3
    assert parse(datagram(runs)).destination_port == 40000
    odd = ip(SERVER, SLICE, 6, bytes(3000))  # data offset 0
    assert b.back(fragments(odd, 1400, 8)[0]).verdict == SHOT
    assert b.plane.drops() == {Drop.MALFORMED: 1}
