# SPDX-License-Identifier: Apache-2.0
"""su_onramp_in: each class and each reason to drop."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest

from softunicast.kernel.abi import Counter, Drop, Flow, Kind, Onramp, Origin, OriginKey, SliceFlag, State
from softunicast.kernel.abi_util import addr_ip, word_state
from softunicast.wire.craft import echo, icmp_error, tcp, udp
from tests.bpf.egress_bench import OK, REDIRECT, SHOT, Bench, bench
from tests.support.dataplane import BYPASS, CLIENT, GATEWAY, MARK, POLICY, SERVER, SLICE, VETH_ONRAMP, packed, u32
from tests.support.packets import ACK, FIN, RST, SYN, frame, gre, header4

SYN_OUT = tcp(CLIENT, 40000, SERVER, 443, flags=SYN, sequence=1000)
UDP_OUT = udp(CLIENT, 40000, SERVER, 53, b"question")
PING_OUT = echo(CLIENT, SERVER, 77, payload=b"x" * 32)


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    return loaded


@pytest.mark.parametrize("packet", [SYN_OUT, UDP_OUT, PING_OUT], ids=["tcp", "udp", "echo"])
def test_first_packet_is_claimed_and_rewritten(b: Bench, packet: bytes) -> None:
    for _ in range(2):
        ran = b.out(packet)
        assert ran.verdict == REDIRECT
        assert ran.mark == MARK
        flow, claim = b.the_claim()
        seen = ran.packet
        assert str(seen.source) == SLICE
        assert str(seen.destination) == SERVER
        assert seen.ttl == 63
        assert (seen.source_port or seen.icmp_id) == flow.local_port
        assert 9000 <= flow.local_port <= 9009
        assert (claim.kind, claim.owner, claim.tenant) == (Kind.PACKET, VETH_ONRAMP << 32 | 5, 7)
        assert (claim.inner, claim.inner_port) == (packed(CLIENT), 77 if packet is PING_OUT else 40000)
        assert word_state(claim.word) == State.NEW
    assert b.plane.drops() == {}
    assert b.plane.count(Counter.OUT_PACKETS) == 2
    assert b.plane.count(Counter.OUT_BYTES) == 2 * len(packet)
    assert b.plane.count(Counter.CLAIM_PACKET) == 1


def test_zero_udp_checksum_stays_zero(b: Bench) -> None:
    ran = b.out(UDP_OUT[:26] + b"\0\0" + UDP_OUT[28:])
    assert ran.verdict == REDIRECT
    assert ran.data[14 + 26 : 14 + 28] == b"\0\0"


@dataclass(frozen=True)
class Refused:
    name: str
    packet: bytes
    drop: Drop
    answer: tuple[int, int] | None = None  # ICMP type and code


REFUSED = [
    Refused("spoofed", tcp("10.9.0.2", 1, SERVER, 443, flags=SYN), Drop.SPOOFED),
    Refused("spoofed to the gateway", udp("10.9.0.2", 1, GATEWAY, 53), Drop.SPOOFED),
    Refused("fleet address", tcp(CLIENT, 1, SLICE, 9000, flags=SYN), Drop.TO_FLEET),
    Refused("gre", gre(CLIENT, SERVER), Drop.PROTOCOL, (3, 2)),
    Refused("icmp timestamp", icmp_error(CLIENT, SERVER, 13, 0, b"\0" * 12), Drop.PROTOCOL),
    Refused("first fragment without ports", header4(gre(CLIENT, SERVER), flags=0x2000), Drop.FRAGMENT),
    Refused("later fragment", header4(UDP_OUT, flags=0x0010), Drop.FRAGMENT_EARLY),
    Refused("data without a flow", tcp(CLIENT, 1, SERVER, 443, b"x", flags=ACK), Drop.NOT_INITIAL),
    Refused("SYN-ACK", tcp(CLIENT, 1, SERVER, 443, flags=SYN | ACK), Drop.NOT_INITIAL),
    Refused("echo reply", echo(CLIENT, SERVER, 77, reply=True), Drop.NOT_INITIAL),
    Refused("last hop", udp(CLIENT, 1, SERVER, 53, ttl=1), Drop.HOPS, (11, 0)),
    Refused("last hop of a SYN", tcp(CLIENT, 1, SERVER, 443, flags=SYN, ttl=1), Drop.HOPS, (11, 0)),
    Refused("error without a flow", icmp_error(CLIENT, SERVER, 3, 3, udp(SERVER, 53, CLIENT, 1)), Drop.ERROR_UNKNOWN),
    Refused("error without a quote", icmp_error(CLIENT, SERVER, 3, 3, b"\x45" + b"\0" * 6), Drop.ERROR_UNKNOWN),
    Refused("cut off", SYN_OUT[:30], Drop.MALFORMED),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda case: case.name)
def test_refused(b: Bench, case: Refused) -> None:
    ran = b.out(case.packet)
    assert b.plane.drops() == {case.drop: 1}
    assert b.plane.flows() == {}
    if case.answer is None:
        assert ran.verdict == SHOT
        return
    assert ran.verdict == REDIRECT
    seen = ran.packet
    assert (seen.icmp_type, seen.icmp_code) == case.answer
    assert (str(seen.source), str(seen.destination)) == (GATEWAY, CLIENT)
    assert ran.data[14 + 28 :] == case.packet[: len(ran.data) - 42]
    assert b.plane.count(Counter.ICMP_SENT) == 1


STACK = {
    "arp": frame(b"\0\1\x08\0\6\4\0\1" + b"\0" * 20, ethertype=0x0806),
    "dhcp": frame(udp("0.0.0.0", 68, "255.255.255.255", 67), to="ff:ff:ff:ff:ff:ff"),
    "dhcp renewal": frame(udp(CLIENT, 68, GATEWAY, 67)),
    "multicast": frame(udp(CLIENT, 5353, "224.0.0.251", 5353), to="01:00:5e:00:00:fb"),
    "link-local": frame(udp("169.254.1.1", 1, GATEWAY, 2)),
    "gateway": frame(echo(CLIENT, GATEWAY, 1)),
    "never sliced": frame(tcp(CLIENT, 1, "192.0.2.1", 22, flags=SYN)),
    "neighbour solicitation": frame(icmp_error("fe80::2", "ff02::1:ff00:1", 135, 0, packed("fe80::1"))),
    "neighbour solicitation, global": frame(icmp_error("2001:db8:8::2", "2001:db8:8::1", 135, 0, packed("fe80::1"))),
    "for another host": frame(SYN_OUT, to="02:00:00:00:00:99"),
}


@pytest.mark.parametrize("name", STACK)
def test_to_the_stack(b: Bench, name: str) -> None:
    ran = b.run("su_onramp_in", STACK[name], raw=True, mark=MARK if "arp" not in name else 0)
    assert ran.verdict == OK
    assert ran.data == STACK[name]
    assert ran.mark == 0
    assert b.plane.drops() == {}
    assert b.plane.flows() == {}


def test_bypass_list_goes_to_the_stack(b: Bench) -> None:
    b.plane.add_prefix(BYPASS, "203.0.113.0/30")
    b.plane.add_onramp(VETH_ONRAMP, b.fish, l2=True, gateway=GATEWAY, policy=replace(POLICY, bypass=BYPASS))
    assert b.out(SYN_OUT).verdict == OK
    assert b.out(tcp(CLIENT, 1, "203.0.113.9", 443, flags=SYN)).verdict == REDIRECT


def test_no_onramp(b: Bench) -> None:
    """Gone, or its id given to another device: a remembered id is worth what the on-ramp itself says."""
    assert b.out(SYN_OUT).verdict == REDIRECT
    b.plane.object.maps["onramp_devices"].delete(u32(b.fish))
    b.plane.add_onramp(VETH_ONRAMP, b.fish + 64, l2=True, gateway=GATEWAY)
    assert b.out(SYN_OUT).verdict == SHOT
    b.plane.object.maps["onramps"].update(u32(VETH_ONRAMP), Onramp().pack())
    assert b.out(SYN_OUT).verdict == SHOT
    assert b.plane.drops() == {Drop.ONRAMP: 2}


def test_not_ready(b: Bench) -> None:
    b.plane.set_ready(False)
    assert b.out(SYN_OUT).verdict == SHOT
    assert b.plane.drops() == {Drop.NOT_READY: 1}


@pytest.mark.parametrize("flags", [0, SliceFlag.LIVE | SliceFlag.DRAIN], ids=["not live", "drained"])
def test_no_slice_is_refused_but_flows_go_on(b: Bench, flags: int) -> None:
    assert b.out(UDP_OUT).verdict == REDIRECT
    b.plane.slices[0] = replace(b.plane.slices[0], flags=flags)
    b.plane.write_slices()
    assert b.out(UDP_OUT).verdict == REDIRECT
    assert b.plane.drops() == {}
    assert b.out(SYN_OUT).packet.tcp_flags == RST | ACK
    assert b.plane.drops() == {Drop.NO_SLICE: 1}


@pytest.mark.parametrize("first", [SYN_OUT, UDP_OUT, PING_OUT], ids=["tcp", "udp", "echo"])
def test_eleventh_is_refused(b: Bench, first: bytes) -> None:
    def nth(n: int) -> bytes:
        if first is SYN_OUT:
            return tcp(CLIENT, 40000 + n, SERVER, 443, flags=SYN, sequence=0xFFFFFFFF)
        return udp(CLIENT, 40000 + n, SERVER, 53, b"question") if first is UDP_OUT else echo(CLIENT, SERVER, n)

    assert [b.out(nth(n)).verdict for n in range(10)] == [REDIRECT] * 10
    assert {flow.local_port for flow in b.plane.flows()} == set(range(9000, 9010))
    ran = b.out(nth(10))
    assert ran.verdict == REDIRECT
    assert ran.mark == 0
    assert b.plane.drops() == {Drop.SLICE_FULL: 1}
    assert b.plane.count(Counter.REFUSED_PACKET) == 1
    seen = ran.packet
    if first is SYN_OUT:
        assert (seen.tcp_flags, str(seen.source), seen.source_port) == (RST | ACK, SERVER, 443)
        assert (str(seen.destination), seen.destination_port) == (CLIENT, 40010)
        assert ran.data[14 + 24 : 14 + 32] == b"\0" * 8  # sequence 0, acknowledgement 0xffffffff + 1
        assert len(ran.data) == 14 + 40
    else:
        assert (seen.icmp_type, seen.icmp_code) == ((3, 3) if first is UDP_OUT else (3, 1))
        assert seen.quoted is not None
        assert str(seen.quoted.destination) == SERVER
    last = b.plane.object.maps["last_drops"].lookup(u32(Drop.SLICE_FULL))
    assert last is not None
    assert addr_ip(Flow.unpack(last[8:]).remote) == ip_address(SERVER)
    if first is not PING_OUT:
        other = tcp if first is SYN_OUT else udp
        assert b.out(other(CLIENT, 50000, "203.0.113.2", 443)).verdict == REDIRECT


def test_refused_syn_with_data_is_acknowledged_whole(b: Bench) -> None:
    for n in range(10):
        b.out(tcp(CLIENT, 40000 + n, SERVER, 443, flags=SYN))
    ran = b.out(tcp(CLIENT, 50000, SERVER, 443, b"x" * 100, flags=SYN, sequence=5))
    assert int.from_bytes(ran.data[14 + 28 : 14 + 32], "big") == 5 + 1 + 100
    assert ran.packet.length == 40


def test_options_are_kept_on_the_way_and_quoted(b: Bench) -> None:
    ran = b.out(header4(SYN_OUT, options=b"\x01" * 4))
    assert ran.verdict == REDIRECT
    assert ran.packet.source_port == b.the_claim()[0].local_port
    refused = header4(gre(CLIENT, SERVER), options=b"\x01" * 4)
    ran = b.out(refused)
    assert (ran.packet.icmp_type, ran.packet.icmp_code) == (3, 2)
    assert ran.data[14 + 28 :] == refused[:32]


def test_stale_origin_is_replaced(b: Bench) -> None:
    b.out(UDP_OUT)
    flow, _ = b.the_claim()
    b.plane.object.maps["flows"].delete(flow.pack())
    # Nobody of ours deletes so. Within the second the hint is believed; then it is looked at again.
    assert b.out(UDP_OUT).packet.source_port == flow.local_port
    ((key, value),) = b.plane.object.maps["origin"].items()
    b.plane.object.maps["origin"].update(key, replace(Origin.unpack(value), checked_s=0).pack())
    assert b.out(UDP_OUT).verdict == REDIRECT
    assert b.plane.count(Counter.STALE_ORIGIN) >= 1
    again, _ = b.the_claim()
    assert b.out(UDP_OUT).packet.source_port == again.local_port
    assert len(b.plane.flows()) == 1


def test_flow_of_another_generation_of_the_onramp_is_nobodys(b: Bench) -> None:
    b.out(UDP_OUT)
    b.plane.add_onramp(VETH_ONRAMP, b.fish, l2=True, gateway=GATEWAY, generation=6)
    assert b.out(UDP_OUT).verdict == REDIRECT
    assert sorted(claim.owner & 0xFFFFFFFF for claim in b.plane.flows().values()) == [5, 6]


def state(b: Bench) -> State:
    return word_state(b.the_claim()[1].word)


def test_tcp_states(b: Bench) -> None:
    b.out(SYN_OUT)
    port = b.the_claim()[0].local_port
    assert state(b) == State.NEW
    b.back(tcp(SERVER, 443, SLICE, port, flags=SYN | ACK))
    assert state(b) == State.OPEN
    b.out(tcp(CLIENT, 40000, SERVER, 443, flags=FIN | ACK))
    assert state(b) == State.OPEN
    b.back(tcp(SERVER, 443, SLICE, port, flags=FIN | ACK))
    assert state(b) == State.LINGER
    assert b.out(tcp(CLIENT, 40000, SERVER, 443, flags=ACK)).verdict == REDIRECT
    assert state(b) == State.LINGER
    b.out(SYN_OUT)
    assert state(b) == State.NEW
    assert b.the_claim()[0].local_port == port
    assert b.the_claim()[1].tcp_seen == 0


def test_forged_reset_ends_nothing(b: Bench) -> None:
    b.out(SYN_OUT)
    port = b.the_claim()[0].local_port
    b.back(tcp(SERVER, 443, SLICE, port, flags=SYN | ACK))
    b.back(tcp(SERVER, 443, SLICE, port, flags=RST))
    assert state(b) == State.LINGER
    b.out(tcp(CLIENT, 40000, SERVER, 443, b"data", flags=ACK))
    assert state(b) == State.OPEN


@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
def test_icmp_error_from_a_client(b: Bench, proto: str) -> None:
    first = {"tcp": SYN_OUT, "udp": UDP_OUT, "echo": PING_OUT}[proto]
    b.out(first)
    port = b.the_claim()[0].local_port
    answer = {
        "tcp": tcp(SERVER, 443, CLIENT, 40000, flags=ACK),
        "udp": udp(SERVER, 53, CLIENT, 40000, b"answer"),
        "echo": echo(SERVER, CLIENT, 77, reply=True),
    }[proto]
    ran = b.out(icmp_error(CLIENT, SERVER, 3, 4, answer, rest=1400))
    assert ran.verdict == REDIRECT
    seen = ran.packet
    assert (str(seen.source), seen.ttl) == (SLICE, 63)
    assert seen.quoted is not None
    assert str(seen.quoted.destination) == SLICE
    assert (seen.quoted.destination_port or seen.quoted.icmp_id) == port
    assert b.plane.drops() == {}
    key = next(iter(b.plane.object.maps["origin"].keys()))
    assert OriginKey.unpack(key).onramp == VETH_ONRAMP


def test_too_big_for_the_uplink(b: Bench) -> None:
    assert b.out(udp(CLIENT, 40000, SERVER, 53, b"x" * 1572)).verdict == REDIRECT
    ran = b.out(udp(CLIENT, 40000, SERVER, 53, b"x" * 1573))
    assert ran.verdict == REDIRECT
    seen = ran.packet
    assert (seen.icmp_type, seen.icmp_code, str(seen.destination)) == (3, 4, CLIENT)
    assert ran.data[14 + 26 : 14 + 28] == (1600).to_bytes(2, "big")
    assert b.plane.drops() == {Drop.TOO_BIG: 1}
