# SPDX-License-Identifier: Apache-2.0
"""su_uplink_in: what comes back is delivered, carried, answered, or dropped under its name."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import pytest

from softunicast.kernel.abi import NONE, Claim, Counter, Drop, Flow, Kind, Node, State, Uplink
from softunicast.kernel.abi_util import Word, word_state
from softunicast.wire.craft import carried, echo, icmp_error, tcp, udp
from softunicast.wire.packet import parse
from tests.bpf.egress_bench import OK, REDIRECT, SHOT, UNSPEC, Bench, bench
from tests.support.claims import flow_check
from tests.support.dataplane import CLIENT, GATEWAY, MARK, OTHER, SERVER, SLICE, UNDERLAY, VETH_ONRAMP, packed, u32
from tests.support.packets import ACK, RST, SYN, frame, gre, header4

PEER = "192.0.2.12"


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    return loaded


def begin(b: Bench, proto: str) -> int:
    """A client's flow; its port outside."""
    first = {
        "tcp": tcp(CLIENT, 40000, SERVER, 443, flags=SYN),
        "udp": udp(CLIENT, 40000, SERVER, 53, b"question"),
        "echo": echo(CLIENT, SERVER, 77),
    }[proto]
    assert b.out(first).verdict == REDIRECT
    return b.the_claim()[0].local_port


def answer(proto: str, port: int, ttl: int = 60) -> bytes:
    if proto == "tcp":
        return tcp(SERVER, 443, SLICE, port, flags=SYN | ACK, ttl=ttl)
    if proto == "udp":
        return udp(SERVER, 53, SLICE, port, b"answer", ttl=ttl)
    return echo(SERVER, SLICE, port, reply=True, ttl=ttl)


def flow(proto: int, port: int, remote_port: int, remote: str = SERVER) -> Flow:
    return Flow(packed(SLICE), packed(remote), port, remote_port, proto)


def put_claim(
    b: Bench,
    key: Flow,
    kind: Kind,
    *,
    state: State = State.OPEN,
    owner: int = 0,
    inner: str = SLICE,
    inner_port: int = 0,
) -> None:
    claim = Claim(
        Word(3, state, 1000).pack(),
        owner,
        packed(inner),
        inner_port or key.local_port,
        kind,
        0,
        flow_check(key),
        NONE,
        0,
    )
    b.plane.put("flows", key.pack(), claim.pack())


@pytest.mark.parametrize(("underlay", "outer"), [(PEER, 32), ("fd00:1::12", 52)])
def test_what_does_not_fit_the_tunnel_is_told_what_would(b: Bench, underlay: str, outer: int) -> None:
    b.plane.put("nodes", u32(OTHER), Node(packed(underlay), 1).pack())
    mtu = Uplink.unpack(b.plane.object.maps["uplinks"].lookup(u32(0)) or b"").mtu
    fits = udp(SERVER, 53, SLICE, 9012, bytes(mtu - outer - 28))
    ran = b.back(fits)
    assert (ran.verdict, len(ran.data)) == (REDIRECT, 14 + outer + len(fits))
    assert b.plane.count(Counter.CARRIED_OUT) == 1
    ran = b.back(udp(SERVER, 53, SLICE, 9012, bytes(mtu - outer - 27)))
    assert ran.verdict == REDIRECT
    seen = ran.packet
    assert (str(seen.source), str(seen.destination), seen.icmp_type, seen.icmp_code) == (SLICE, SERVER, 3, 4)
    assert int.from_bytes(ran.data[14 + 20 + 6 : 14 + 20 + 8], "big") == mtu - outer
    assert b.plane.drops() == {Drop.TOO_BIG: 1}


@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
def test_answer_goes_to_its_client(b: Bench, proto: str) -> None:
    port = begin(b, proto)
    ran = b.back(answer(proto, port))
    assert ran.verdict == REDIRECT
    seen = ran.packet
    assert (str(seen.source), str(seen.destination), seen.ttl) == (SERVER, CLIENT, 59)
    assert (seen.destination_port or seen.icmp_id) == (77 if proto == "echo" else 40000)
    assert word_state(b.the_claim()[1].word) == State.OPEN
    assert b.plane.count(Counter.IN_PACKETS) == 1
    assert b.plane.count(Counter.IN_BYTES) == len(answer(proto, port))
    assert b.plane.drops() == {}


@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
@pytest.mark.parametrize("full_quote", [True, False])
def test_icmp_error_follows_what_it_quotes(b: Bench, proto: str, full_quote: bool) -> None:
    port = begin(b, proto)
    before = b.the_claim()[1].word
    quoted = {
        "tcp": tcp(SLICE, port, SERVER, 443, flags=SYN, ttl=2),
        "udp": udp(SLICE, port, SERVER, 53, b"question", ttl=2),
        "echo": echo(SLICE, SERVER, port, ttl=2),
    }[proto]
    ran = b.back(icmp_error("203.0.113.77", SLICE, 11, 0, quoted if full_quote else quoted[:28]))
    assert ran.verdict == REDIRECT
    seen = ran.packet
    assert (str(seen.source), str(seen.destination)) == ("203.0.113.77", CLIENT)
    assert seen.quoted is not None
    assert (str(seen.quoted.source), str(seen.quoted.destination)) == (CLIENT, SERVER)
    assert (seen.quoted.source_port or seen.quoted.icmp_id) == (77 if proto == "echo" else 40000)
    if full_quote:
        expected = {
            "tcp": tcp(CLIENT, 40000, SERVER, 443, flags=SYN, ttl=2),
            "udp": udp(CLIENT, 40000, SERVER, 53, b"question", ttl=2),
            "echo": echo(CLIENT, SERVER, 77, ttl=2),
        }[proto]
        assert ran.data[14 + 28 :] == expected
    assert b.the_claim()[1].word == before


DROPS = {
    "no claim": (udp(SERVER, 53, SLICE, 9003), Drop.NO_CLAIM),
    "syn to nobody": (tcp(SERVER, 443, SLICE, 9003, flags=SYN), Drop.NO_CLAIM),
    "nobody's port": (udp(SERVER, 53, SLICE, 8080), Drop.NO_OWNER),
    "later fragment": (header4(udp(SERVER, 53, SLICE, 9003), flags=0x0010), Drop.FRAGMENT_EARLY),
    "first fragment without ports": (header4(gre(SERVER, SLICE), flags=0x2000), Drop.FRAGMENT),
    "first fragment to nobody": (header4(udp(SERVER, 53, SLICE, 9003), flags=0x2000), Drop.NO_CLAIM),
    "gre": (gre(SERVER, SLICE), Drop.PROTOCOL),
    "error about a stranger": (
        icmp_error(SERVER, SLICE, 3, 3, udp("192.0.2.99", 9003, SERVER, 53)),
        Drop.ERROR_UNKNOWN,
    ),
    "error about nothing": (icmp_error(SERVER, SLICE, 3, 3, udp(SLICE, 9003, SERVER, 53)), Drop.NO_CLAIM),
    "carried by a stranger": (
        carried("192.0.2.99", 50000, UNDERLAY, 6080, udp(SERVER, 53, SLICE, 9003)),
        Drop.STRANGER,
    ),
    "carried, not a slice": (
        carried(PEER, 50000, UNDERLAY, 6080, udp(SERVER, 53, "192.0.2.50", 1)),
        Drop.INNER_NOT_SLICE,
    ),
    "carried, internal": (
        carried(PEER, 50000, UNDERLAY, 6080, udp("192.0.2.50", 53, SLICE, 9003)),
        Drop.INNER_INTERNAL,
    ),
    "carried final, not mine": (
        carried(PEER, 50000, UNDERLAY, 6080, udp(SERVER, 53, SLICE, 9012), flags=2),
        Drop.FINAL_NOT_MINE,
    ),
    "carried ping": (carried(PEER, 50000, UNDERLAY, 6080, echo(SERVER, SLICE, 1)), Drop.NO_CLAIM),
    "last hop to another node": (udp(SERVER, 53, SLICE, 9012, ttl=1), Drop.TTL),
}


@pytest.mark.parametrize("name", DROPS)
def test_dropped(b: Bench, name: str) -> None:
    packet, reason = DROPS[name]
    assert b.back(packet).verdict == SHOT
    assert b.plane.drops() == {reason: 1}


def test_client_s_last_hop(b: Bench) -> None:
    port = begin(b, "udp")
    assert b.back(answer("udp", port, ttl=1)).verdict == SHOT
    assert b.plane.drops() == {Drop.TTL: 1}


def test_onramp_gone(b: Bench) -> None:
    port = begin(b, "udp")
    b.plane.add_onramp(VETH_ONRAMP, b.fish, l2=True, gateway=GATEWAY, generation=6)
    assert b.back(answer("udp", port)).verdict == SHOT
    assert b.plane.drops() == {Drop.ONRAMP: 1}


def test_syn_to_a_client_only_while_it_calls(b: Bench) -> None:
    """Simultaneous open, RFC 9293 section 3.5: SYN, SYN, SYN-ACK, SYN-ACK, and each may be sent again."""
    port = begin(b, "tcp")
    syn, syn_ack = (tcp(SERVER, 443, SLICE, port, flags=flags) for flags in (SYN, SYN | ACK))
    for _ in range(2):
        assert b.back(syn).verdict == REDIRECT
        assert word_state(b.the_claim()[1].word) == State.NEW, "nothing was answered yet"
    assert b.out(tcp(CLIENT, 40000, SERVER, 443, flags=SYN | ACK)).packet.source_port == port
    assert word_state(b.the_claim()[1].word) == State.NEW
    assert b.back(syn_ack).verdict == REDIRECT
    assert word_state(b.the_claim()[1].word) == State.OPEN
    assert b.back(syn).verdict == SHOT
    assert b.plane.drops() == {Drop.INBOUND_NEW: 1}


def test_from_another_remote_or_port_is_not_an_answer(b: Bench) -> None:
    port = begin(b, "udp")
    b.back(udp("203.0.113.2", 53, SLICE, port))
    b.back(udp(SERVER, 54, SLICE, port))
    assert b.plane.drops() == {Drop.NO_CLAIM: 2}


OTHERS = {
    "arp": frame(b"\0\1\x08\0\6\4\0\1" + b"\0" * 20, ethertype=0x0806),
    "node's own": frame(tcp(SERVER, 1, UNDERLAY, 22, flags=SYN)),
    "other GUE port": frame(udp(PEER, 1, UNDERLAY, 6081)),
    "somebody else's": frame(udp(SERVER, 1, "198.51.100.99", 9000)),
    "IPv6": frame(udp("2001:db8:f::1", 1, "2001:db8::99", 9000)),
}


@pytest.mark.parametrize("name", OTHERS)
def test_not_ours(b: Bench, name: str) -> None:
    ran = b.run("su_uplink_in", OTHERS[name], raw=True)
    assert (ran.verdict, ran.data) == (UNSPEC, OTHERS[name])
    assert b.plane.drops() == {}


def test_ping_to_a_slice_is_answered_where_it_arrives(b: Bench) -> None:
    ran = b.back(echo(SERVER, SLICE, 4711, 3, b"payload", ttl=9))
    assert ran.verdict == REDIRECT
    assert ran.data[14:] == echo(SLICE, SERVER, 4711, 3, b"payload", reply=True)
    assert ran.mark == MARK  # the routes say to whom; the guard lets it go
    assert b.plane.count(Counter.ECHO_ANSWERED) == 1
    assert b.plane.flows() == {}


def test_ping_may_stay_unanswered() -> None:
    with bench(answer_ping=0) as b:
        b.reset()
        assert b.back(echo(SERVER, SLICE, 4711)).verdict == SHOT
        assert b.plane.drops() == {Drop.NO_CLAIM: 1}


@pytest.mark.parametrize(("arrived_carried", "final"), [(False, 0), (True, 2)])
def test_other_node_s_answer_is_carried(b: Bench, arrived_carried: bool, final: int) -> None:
    inner = udp(SERVER, 53, SLICE, 9012, b"answer", ttl=9)
    ran = b.back(carried(PEER, 50000, UNDERLAY, 6080, inner) if arrived_carried else inner)
    assert ran.verdict == REDIRECT
    outer = ran.packet
    assert (str(outer.source), str(outer.destination), outer.destination_port) == (UNDERLAY, PEER, 6080)
    assert ran.data[14 + 30 : 14 + 32] == final.to_bytes(2, "big")
    assert ran.data[14 + 32 :] == udp(SERVER, 53, SLICE, 9012, b"answer", ttl=8)
    assert b.plane.count(Counter.CARRIED_OUT) == 1
    assert b.plane.count(Counter.CARRIED_IN) == arrived_carried


@pytest.mark.parametrize("flags", [0, 2])
def test_carried_answer_reaches_its_client(b: Bench, flags: int) -> None:
    port = begin(b, "tcp")
    ran = b.back(carried(PEER, 50000, UNDERLAY, 6080, answer("tcp", port), flags=flags))
    assert ran.verdict == REDIRECT
    assert str(ran.packet.destination) == CLIENT
    assert b.plane.count(Counter.CARRIED_IN) == 1


def test_socket_s_answer_goes_to_the_stack_untouched(b: Bench) -> None:
    put_claim(b, flow(6, 9005, 443), Kind.SOCKET, owner=99)
    packet = tcp(SERVER, 443, SLICE, 9005, b"data", flags=ACK)
    ran = b.back(packet)
    assert (ran.verdict, ran.data[14:]) == (OK, packet)
    assert b.plane.count(Counter.SOCKET_IN) == 1


def test_ended_socket_gets_its_reset_but_no_new_connection(b: Bench) -> None:
    put_claim(b, flow(6, 9005, 443), Kind.SOCKET, owner=99, state=State.LINGER)
    assert b.back(tcp(SERVER, 443, SLICE, 9005, flags=RST)).verdict == OK
    assert b.back(tcp(SERVER, 443, SLICE, 9005, flags=SYN)).verdict == SHOT
    assert b.plane.drops() == {Drop.INBOUND_NEW: 1}


def test_wildcard_takes_datagrams_from_anywhere(b: Bench) -> None:
    key = Flow(packed(SLICE), bytes(16), 9001, 0, 17)
    put_claim(b, key, Kind.SOCKET, owner=99)
    assert b.back(udp(SERVER, 53, SLICE, 9001)).verdict == OK
    assert b.back(tcp(SERVER, 53, SLICE, 9001, flags=ACK)).verdict == SHOT


def test_local_is_undone(b: Bench) -> None:
    put_claim(b, flow(17, 9004, 53), Kind.LOCAL, inner=UNDERLAY, inner_port=33333)
    ran = b.back(udp(SERVER, 53, SLICE, 9004, b"answer", ttl=9))
    assert ran.verdict == OK
    assert ran.data[14:] == udp(SERVER, 53, UNDERLAY, 33333, b"answer", ttl=9)
    ran = b.back(icmp_error(SERVER, SLICE, 3, 3, udp(SLICE, 9004, SERVER, 53, b"q")))
    assert ran.verdict == OK
    assert ran.packet.quoted == parse(udp(UNDERLAY, 33333, SERVER, 53, b"q"), quoted=True)
    assert b.plane.count(Counter.LOCAL_IN) == 2


def test_locked_claim_is_no_claim(b: Bench) -> None:
    put_claim(b, flow(6, 9005, 443), Kind.SOCKET, state=State.LOCKED)
    assert b.back(tcp(SERVER, 443, SLICE, 9005, flags=ACK)).verdict == SHOT
    assert b.plane.drops() == {Drop.NO_CLAIM: 1}


def test_peer_s_flow_is_carried_on_as_final(b: Bench) -> None:
    put_claim(b, flow(6, 9005, 443), Kind.PEER, owner=2)
    ran = b.back(tcp(SERVER, 443, SLICE, 9005, b"x", flags=ACK))
    assert ran.verdict == REDIRECT
    assert str(ran.packet.destination) == PEER
    assert ran.data[14 + 30 : 14 + 32] == b"\0\2"


def test_no_nodes_entry_is_no_owner(b: Bench) -> None:
    b.plane.add_slice(SLICE, 9050, 9059, node=9)
    b.plane.object.maps["nodes"].update(u32(9), bytes(24))
    assert b.back(udp(SERVER, 53, SLICE, 9055)).verdict == SHOT
    assert b.plane.drops() == {Drop.NO_OWNER: 1}


def test_what_does_not_fit_the_tunnel_is_told_to_its_sender(b: Bench) -> None:
    fits, too_big = (udp(SERVER, 53, SLICE, 9012, b"x" * (1600 - 32 - 28 + more)) for more in (0, 1))
    assert b.back(fits).verdict == REDIRECT
    assert b.plane.count(Counter.CARRIED_OUT) == 1
    ran = b.back(too_big)
    assert (ran.verdict, ran.mark) == (REDIRECT, MARK)
    seen = ran.packet
    assert (str(seen.source), str(seen.destination)) == (SLICE, SERVER)
    assert (seen.icmp_type, seen.icmp_code) == (3, 4)
    assert ran.data[14 + 26 : 14 + 28] == (1568).to_bytes(2, "big")
    assert seen.quoted is not None
    assert (str(seen.quoted.source), seen.quoted.destination_port) == (SERVER, 9012)
    assert b.plane.drops() == {Drop.TOO_BIG: 1}
    # Errors are not answered, and a flood is answered by fifty at once and then one a millisecond.
    told = sum(b.back(too_big).verdict == REDIRECT for _ in range(2000))
    assert told < 1000
    assert b.plane.drops() == {Drop.TOO_BIG: 2001}


@pytest.mark.parametrize("proto", ["udp", "tcp"])
def test_what_does_not_fit_the_on_ramp_is_told_to_its_sender(b: Bench, proto: str) -> None:
    """PMTUD through an on-ramp that is smaller than the way to it (WireGuard): RFC 4787 REQ-13."""
    make = {"udp": udp, "tcp": partial(tcp, flags=ACK)}[proto]
    header = {"udp": 28, "tcp": 40}[proto]
    b.plane.add_onramp(VETH_ONRAMP, b.fish, l2=True, gateway=GATEWAY, mtu=1420)
    b.out(make(CLIENT, 7, SERVER, 443) if proto == "udp" else tcp(CLIENT, 7, SERVER, 443, flags=SYN))
    flow_, claim = b.the_claim()
    fits, too_big = (make(SERVER, 443, SLICE, flow_.local_port, b"x" * (1420 - header + more)) for more in (0, 1))
    ran = b.back(too_big)
    assert (ran.verdict, ran.mark) == (REDIRECT, MARK)
    seen = ran.packet
    assert (str(seen.source), str(seen.destination), seen.icmp_type, seen.icmp_code) == (SLICE, SERVER, 3, 4)
    assert ran.data[14 + 26 : 14 + 28] == (1420).to_bytes(2, "big")
    assert seen.quoted is not None
    assert (str(seen.quoted.destination), seen.quoted.destination_port) == (SLICE, flow_.local_port)
    assert b.the_claim() == (flow_, claim), "it changes nothing"
    assert str(b.back(fits).packet.destination) == CLIENT
    # Errors of that size are dropped and not answered.
    assert b.back(icmp_error(SERVER, SLICE, 3, 1, too_big[:60] + bytes(1400))).verdict == SHOT
    assert b.plane.drops() == {Drop.TOO_BIG: 1, Drop.ERROR_UNKNOWN: 1}
