# SPDX-License-Identifier: Apache-2.0
"""Packet in, verdict and bytes out: each rule of steering by itself, without the oracle, for both entries."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from socket import if_nametoindex

import pytest

from softunicast.kernel import netns
from softunicast.kernel.abi import Counter, Drop, LastDrop, Stats, Uplink, UplinkFlag
from softunicast.kernel.bpf import BpfObject
from softunicast.steering.oracle_packet import checksum
from tests.bpf import steer_support as support
from tests.bpf.steer_support import frame, gue, icmp, ip4, ip6, tcp, udp
from tests.support.packets import fragments
from tests.support.wait import wait_until

PASS, CARRY, DROP = "pass", "carry", "drop"
VERDICTS = {
    "su_steer_tc": {0xFFFFFFFF: PASS, 7: CARRY, 2: DROP},
    "su_steer": {2: PASS, 3: CARRY, 4: CARRY, 1: DROP},
}
REMOTE = "203.0.113.1"
PEER6 = "fd00:1::14"  # node 4, which has no other; 198.51.100.10:14336-16383 and 2001:db8::10:3072-4095 are its
STATIC = "198.51.100.20"  # 9000-9009 this node's, 9010-9019 of 10.0.1.12


@dataclass(frozen=True)
class Result:
    verdict: str
    data: bytes
    drops: dict[Drop, int]
    counters: dict[Counter, int]


class Entry:
    """One of the two programs, in the namespace where the neighbours are known."""

    def __init__(self, loaded: BpfObject, name: str, namespace: str) -> None:
        self.loaded, self.name, self.namespace = loaded, name, namespace

    def counts(self) -> tuple[dict[Drop, int], dict[Counter, int]]:
        each = [Stats.unpack(value) for value in self.loaded.maps["stats"].lookup_percpu(support.u32(0))]
        drops = {drop: sum(stats.drops[drop] for stats in each) for drop in Drop}
        return drops, {counter: sum(stats.counters[counter] for stats in each) for counter in Counter}

    def __call__(self, packet: bytes) -> Result:
        drops, counters = self.counts()
        with netns.enter(self.namespace):
            run = self.loaded.programs[self.name].test_run(packet)
        drops_after, counters_after = self.counts()
        return Result(
            VERDICTS[self.name].get(run.retval, f"unknown {run.retval}"),
            run.data,
            {drop: n - drops[drop] for drop, n in drops_after.items() if n != drops[drop]},
            {counter: n - counters[counter] for counter, n in counters_after.items() if n != counters[counter]},
        )


@pytest.fixture(scope="module")
def loaded() -> Iterator[tuple[BpfObject, str]]:
    with support.neighbourhood() as (namespace, ifindex), netns.enter(namespace):
        uplinks = (Uplink(ifindex, support.MTU, UplinkFlag.XMIT),)
        with support.load(support.map_contents(uplinks)) as found:
            yield found, namespace


@pytest.fixture(autouse=True)
def one_cpu() -> Iterator[None]:
    """What XDP remembers it remembers by CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(params=["su_steer_tc", "su_steer"])
def steer(loaded: tuple[BpfObject, str], request: pytest.FixtureRequest) -> Entry:
    return Entry(loaded[0], request.param, loaded[1])


def test_an_answer_for_another_node_goes_out_in_gue(steer: Entry) -> None:
    inner = ip4(REMOTE, STATIC, 6, tcp(443, 9012, b"hello"), ttl=57, tos=0xBA)
    result = steer(frame(inner))
    assert (result.verdict, result.drops) == (CARRY, {})
    assert result.counters == {Counter.CARRIED_OUT: 1}

    assert result.data[12:14] == b"\x08\x00"
    ip, datagram, header = result.data[14:34], result.data[34:42], result.data[42:46]
    version, tos, length, identity, flags, ttl, proto = struct.unpack_from("!BBHHHBB", ip)
    assert (version, tos, identity, flags, ttl, proto) == (0x45, 0xBA, 0, 0x4000, 64, 17)
    assert length == len(inner) + 32
    assert ip[12:20] == ip_address("10.0.1.11").packed + ip_address("10.0.1.12").packed
    assert checksum(ip) == 0
    source, target, size, check = struct.unpack("!HHHH", datagram)
    assert source >= 49152
    assert (target, size, check) == (6080, len(inner) + 12, 0)
    assert header == bytes([0, 4, 0, 0])
    assert result.data[46:] == ip4(REMOTE, STATIC, 6, tcp(443, 9012, b"hello"), ttl=56, tos=0xBA)


def test_ethernet_padding_is_not_part_of_the_packet(steer: Entry) -> None:
    inner = ip4(REMOTE, STATIC, 17, udp(53, 9012, b""))
    result = steer(frame(inner) + bytes(18))
    assert result.verdict == CARRY
    assert struct.unpack_from("!H", result.data, 16)[0] == len(inner) + 32


def test_the_source_port_follows_the_flow(steer: Entry) -> None:
    def port(remote_port: int) -> int:
        data = steer(frame(ip4(REMOTE, STATIC, 6, tcp(remote_port, 9012)))).data
        return int(struct.unpack_from("!H", data, 34)[0])

    assert port(443) == port(443)
    assert len({port(1000 + i) for i in range(64)}) > 56


def test_mine_and_strangers_destinations_pass_untouched(steer: Entry) -> None:
    for packet in (
        ip4(REMOTE, STATIC, 6, tcp(443, 9001)),
        ip4(REMOTE, "203.0.113.99", 6, tcp(443, 9012)),
        ip4(REMOTE, STATIC, 1, icmp(8, 0, b"ping", 9012)),
        ip6("2001:db8:ffff::1", "2001:db8:f::1", 6, tcp(443, 9012)),
    ):
        result = steer(frame(packet))
        assert (result.verdict, result.data, result.drops, result.counters) == (PASS, frame(packet), {}, {})
    arp = support.MACS + b"\x08\x06" + bytes(46)
    assert steer(arp).verdict == PASS


def test_what_a_client_sends_to_another_one_comes_out_too(steer: Entry) -> None:
    """Hairpinned: of UDP, or an error about it, from an address of the fleet."""
    hello = ip4("198.51.100.10", STATIC, 17, udp(4100, 9001, b"hello"))
    about = ip4("198.51.100.10", STATIC, 1, icmp(3, 3, ip4(STATIC, "198.51.100.10", 17, udp(9001, 4100))))
    for inner in (hello, about):
        result = steer(frame(gue(inner)))
        assert (result.verdict, result.data[14:], result.drops) == (PASS, inner, {})
    assert steer(frame(gue(ip4("198.51.100.99", STATIC, 17, udp(1, 9001))))).drops == {Drop.INNER_INTERNAL: 1}


def test_a_packet_for_this_node_comes_out_of_its_tunnel(steer: Entry) -> None:
    inner = ip4(REMOTE, STATIC, 6, tcp(443, 9001, b"answer"))
    for final in (0, 2):
        result = steer(frame(gue(inner, flags=final)))
        assert (result.verdict, result.data[12:], result.drops) == (PASS, b"\x08\x00" + inner, {})
        assert result.counters == {Counter.CARRIED_IN: 1}


def test_ipv6_inside_ipv4(steer: Entry) -> None:
    mine, others = 2 << 10 | 5, 1 << 10 | 5
    inner = ip6("2001:db8:ffff::1", "2001:db8::10", 6, tcp(443, mine, b"answer"), tos=2)
    result = steer(frame(gue(inner, tos=3)))
    assert (result.verdict, result.data[12:14]) == (PASS, b"\x86\xdd")
    assert result.data[14:] == ip6("2001:db8:ffff::1", "2001:db8::10", 6, tcp(443, mine, b"answer"), tos=3)
    result = steer(frame(ip6("2001:db8:ffff::1", "2001:db8::10", 6, tcp(443, others), ttl=9)))
    assert (result.verdict, result.data[12:14], result.data[43]) == (CARRY, b"\x08\x00", 41)
    assert result.data[46:] == ip6("2001:db8:ffff::1", "2001:db8::10", 6, tcp(443, others), ttl=8)


def check_outer6(data: bytes, inner: bytes, proto: int, tos: int, final: int = 0) -> None:
    """The 52 bytes from this node to node 4, and `inner` behind them."""
    assert data[12:14] == b"\x86\xdd"
    first, payload, next_header, hops = struct.unpack_from("!IHBB", data, 14)
    assert (first >> 28, first >> 20 & 0xFF, next_header, hops) == (6, tos, 17, 64)
    assert first & 0xFFFFF, "a flow label"
    assert data[22:54] == ip_address("fd00:1::11").packed + ip_address(PEER6).packed
    source, target, size, check = struct.unpack_from("!HHHH", data, 54)
    assert source >= 49152
    assert (target, size, check) == (6080, len(inner) + 12, 0)
    assert payload == size
    assert data[62:] == bytes([0, proto, 0, final]) + inner


def test_an_answer_for_a_node_with_an_ipv6_underlay(steer: Entry) -> None:
    sent, wanted = (ip4(REMOTE, "198.51.100.10", 6, tcp(443, 14336, b"hi"), ttl=ttl, tos=0xBA) for ttl in (57, 56))
    result = steer(frame(sent))
    assert (result.verdict, result.counters, result.drops) == (CARRY, {Counter.CARRIED_OUT: 1}, {})
    check_outer6(result.data, wanted, 4, 0xBA)
    sent, wanted = (ip6("2001:db8:f::1", "2001:db8::10", 17, udp(53, 3072), ttl=ttl, tos=1) for ttl in (9, 8))
    check_outer6(steer(frame(sent)).data, wanted, 41, 1)


def test_the_flow_label_follows_the_flow(steer: Entry) -> None:
    def label(remote_port: int) -> int:
        data = steer(frame(ip4(REMOTE, "198.51.100.10", 6, tcp(remote_port, 14336)))).data
        return int.from_bytes(data[14:18], "big") & 0xFFFFF

    assert label(443) == label(443)
    assert len({label(1000 + i) for i in range(64)}) > 60


@pytest.mark.parametrize("source", ["10.0.1.12", PEER6])
def test_out_of_either_tunnel_and_on_in_either(steer: Entry, source: str) -> None:
    mine, outside = 2 << 10 | 5, "2001:db8:f::1"
    for inner, marked in (
        (ip4(REMOTE, STATIC, 6, tcp(443, 9001), tos=2), ip4(REMOTE, STATIC, 6, tcp(443, 9001), tos=3)),
        (
            ip6(outside, "2001:db8::10", 6, tcp(443, mine), tos=2),
            ip6(outside, "2001:db8::10", 6, tcp(443, mine), tos=3),
        ),
    ):
        result = steer(frame(gue(inner, source=source, tos=3)))
        assert (result.verdict, result.data, result.counters) == (PASS, frame(marked), {Counter.CARRIED_IN: 1})
    both = {Counter.CARRIED_IN: 1, Counter.CARRIED_OUT: 1}
    sent, wanted = (ip4(REMOTE, "198.51.100.10", 6, tcp(443, 14336), ttl=ttl) for ttl in (57, 56))
    result = steer(frame(gue(sent, source=source)))
    assert (result.verdict, result.counters) == (CARRY, both)
    check_outer6(result.data, wanted, 4, 0, final=2)
    sent, wanted = (ip6(outside, "2001:db8::10", 6, tcp(443, 1024), ttl=ttl) for ttl in (57, 56))
    result = steer(frame(gue(sent, source=source)))
    assert (result.verdict, result.data[12:14], result.counters) == (CARRY, b"\x08\x00", both)
    assert result.data[26:34] == ip_address("10.0.1.11").packed + ip_address("10.0.1.12").packed
    assert result.data[42:] == bytes([0, 41, 0, 2]) + wanted


@pytest.mark.parametrize("name", VERDICTS)
def test_a_node_without_an_address_of_that_family_cannot_carry(loaded: tuple[BpfObject, str], name: str) -> None:
    to4, to6 = (ip4(REMOTE, "198.51.100.10", 6, tcp(443, part * 2048)) for part in (2, 7))
    uplinks = (Uplink(uplink_of(loaded[1]), support.MTU, UplinkFlag.XMIT),)
    for own, carried, refused in (("10.0.1.11", to4, to6), ("fd00:1::11", to6, to4)):
        with netns.enter(loaded[1]), support.load(support.map_contents(uplinks), own) as alone:
            steer = Entry(alone, name, loaded[1])
            assert steer(frame(carried)).verdict == CARRY
            result = steer(frame(refused))
            assert (result.verdict, result.drops) == (DROP, {Drop.ENCAP: 1})


def uplink_of(namespace: str) -> int:
    with netns.enter(namespace):
        return if_nametoindex("up0")


def test_what_is_not_mine_is_carried_on_once_and_final(steer: Entry) -> None:
    inner = ip4(REMOTE, STATIC, 6, tcp(443, 9012), ttl=57)
    result = steer(frame(gue(inner, source="10.0.1.13")))
    assert (result.verdict, result.counters) == (CARRY, {Counter.CARRIED_IN: 1, Counter.CARRIED_OUT: 1})
    assert result.data[26:34] == ip_address("10.0.1.11").packed + ip_address("10.0.1.12").packed
    assert result.data[42:46] == bytes([0, 4, 0, 2])
    assert result.data[46:] == ip4(REMOTE, STATIC, 6, tcp(443, 9012), ttl=56)
    again = steer(frame(gue(inner, flags=2)))
    assert (again.verdict, again.drops) == (DROP, {Drop.FINAL_NOT_MINE: 1})


# RFC 6040 section 4.2, figure 4: (inner, outer) -> inner afterwards, None: drop.
# 0 Not-ECT, 1 ECT(1), 2 ECT(0), 3 CE.
ECN = {
    (0, 0): 0,
    (0, 1): 0,
    (0, 2): 0,
    (0, 3): None,
    (2, 0): 2,
    (2, 1): 1,
    (2, 2): 2,
    (2, 3): 3,
    (1, 0): 1,
    (1, 1): 1,
    (1, 2): 1,
    (1, 3): 3,
    (3, 0): 3,
    (3, 1): 3,
    (3, 2): 3,
    (3, 3): 3,
}


def test_congestion_marks_come_out_of_the_tunnel(steer: Entry) -> None:
    for (inner_ecn, outer_ecn), expected in ECN.items():
        inner = ip4(REMOTE, STATIC, 6, tcp(443, 9001), tos=0x48 | inner_ecn)
        result = steer(frame(gue(inner, tos=outer_ecn)))
        if expected is None:
            assert (result.verdict, result.drops) == (DROP, {Drop.ECN: 1})
        else:
            assert result.verdict == PASS
            assert result.data[14:] == ip4(REMOTE, STATIC, 6, tcp(443, 9001), tos=0x48 | expected)


def quote(source: str = STATIC, port: int = 9012) -> bytes:
    return ip4(source, REMOTE, 6, tcp(port, 443)[:8])


def test_an_icmp_error_goes_where_the_flow_is_that_it_quotes(steer: Entry) -> None:
    assert steer(frame(ip4(REMOTE, STATIC, 1, icmp(3, 4, quote())))).verdict == CARRY
    assert steer(frame(ip4(REMOTE, STATIC, 1, icmp(3, 4, quote(port=9001))))).verdict == PASS
    reply = steer(frame(ip4(REMOTE, STATIC, 1, icmp(0, 0, b"pong", 9012))))
    assert reply.verdict == CARRY


OK = ip4(REMOTE, STATIC, 6, tcp(443, 9001))
DROPS = {
    "no owner": (ip4(REMOTE, STATIC, 6, tcp(443, 9020)), Drop.NO_OWNER),
    "no owner, the part below 1024": (ip4(REMOTE, "198.51.100.10", 17, udp(53, 1000)), Drop.NO_OWNER),
    "stranger": (gue(OK, source="10.0.1.99"), Drop.STRANGER),
    "version": (gue(OK, version=0x40), Drop.GUE_MALFORMED),
    "control": (gue(OK, version=0x21), Drop.GUE_MALFORMED),
    "optional fields": (gue(OK, version=0x01), Drop.GUE_MALFORMED),
    "unknown flag": (gue(OK, flags=0x8000), Drop.GUE_MALFORMED),
    "unknown protocol": (gue(OK, proto=47), Drop.GUE_MALFORMED),
    "checksum": (gue(OK, check=0x1234), Drop.GUE_MALFORMED),
    "datagram length": (gue(OK, length=len(OK)), Drop.GUE_MALFORMED),
    "longer than the frame": (gue(OK, total=1000, length=980), Drop.GUE_MALFORMED),
    "outer options": (gue(OK, options=1), Drop.GUE_MALFORMED),
    "outer fragment": (gue(OK, frag=0x2000), Drop.GUE_MALFORMED),
    "inner longer than the tunnel": (gue(ip4(REMOTE, STATIC, 6, tcp(443, 9001), total=99)), Drop.MALFORMED),
    "inner cut": (gue(OK[:30]), Drop.MALFORMED),
    "GUE in GUE": (gue(gue(OK)), Drop.INNER_NOT_SLICE),
    "inner to the underlay": (gue(ip4(REMOTE, "10.0.1.11", 6, tcp(443, 22))), Drop.INNER_NOT_SLICE),
    "inner from the underlay": (gue(ip4("10.0.1.50", STATIC, 6, tcp(443, 9001))), Drop.INNER_INTERNAL),
    "inner from a slice": (gue(ip4("198.51.100.10", STATIC, 6, tcp(443, 9001))), Drop.INNER_INTERNAL),
    "ttl": (ip4(REMOTE, STATIC, 6, tcp(443, 9012), ttl=1), Drop.TTL),
    "fragment for a site that is down": (ip4(REMOTE, "198.51.101.11", 17, b"x" * 8, frag=0x0010), Drop.SITE_DOWN),
    "protocol": (ip4(REMOTE, STATIC, 47, b"gre....."), Drop.PROTOCOL),
    "error of another address": (
        ip4(REMOTE, STATIC, 1, icmp(3, 4, quote("198.51.100.10"))),
        Drop.ERROR_UNKNOWN,
    ),
    "error without a quote": (ip4(REMOTE, STATIC, 1, icmp(11, 0, b"")), Drop.ERROR_UNKNOWN),
    "malformed": (ip4(REMOTE, STATIC, 6, tcp(443, 9012, doff=4)), Drop.MALFORMED),
    "length": (ip4(REMOTE, STATIC, 6, tcp(443, 9012), total=400), Drop.MALFORMED),
    "stranger, IPv6": (gue(OK, source="fd00:1::99"), Drop.STRANGER),
    "version, IPv6": (gue(OK, source=PEER6, version=0x40), Drop.GUE_MALFORMED),
    "unknown flag, IPv6": (gue(OK, source=PEER6, flags=4), Drop.GUE_MALFORMED),
    "checksum, IPv6": (gue(OK, source=PEER6, check=0x1234), Drop.GUE_MALFORMED),
    "datagram length, IPv6": (gue(OK, source=PEER6, length=len(OK)), Drop.GUE_MALFORMED),
    "longer than the frame, IPv6": (gue(OK, source=PEER6, total=1000, length=1000), Drop.GUE_MALFORMED),
    "no length, IPv6": (gue(OK, source=PEER6, total=0, length=0), Drop.GUE_MALFORMED),
    "outer extension header": (gue(OK, source=PEER6, options=1), Drop.GUE_MALFORMED),
    "inner cut, IPv6": (gue(OK[:30], source=PEER6), Drop.MALFORMED),
    "GUE in GUE, IPv6": (gue(gue(OK, source=PEER6), source=PEER6), Drop.INNER_NOT_SLICE),
    "inner from the underlay, IPv6": (
        gue(ip6("fd00:1::50", "2001:db8::10", 6, tcp(443, 2 << 10)), source=PEER6),
        Drop.INNER_INTERNAL,
    ),
    "a node not in use": (ip4(REMOTE, "198.51.100.10", 6, tcp(443, 8 * 2048)), Drop.NO_OWNER),
    "a node not in the table": (ip4(REMOTE, "198.51.100.10", 6, tcp(443, 9 * 2048)), Drop.NO_OWNER),
}


@pytest.mark.parametrize("case", DROPS)
def test_drops_are_counted_by_name(steer: Entry, case: str) -> None:
    packet, reason = DROPS[case]
    result = steer(frame(packet))
    assert (result.verdict, result.drops, result.counters.get(Counter.CARRIED_OUT)) == (
        DROP,
        {reason: 1},
        None,
    )
    last = LastDrop.unpack(steer.loaded.maps["last_drops"].lookup(support.u32(reason)) or b"")
    assert last.boot_ns > 0


@pytest.mark.parametrize("tags", [b"\x81\0\0\x64", b"\x88\xa8\0\7\x81\0\0\x64"], ids=["802.1Q", "802.1ad"])
def test_a_frame_with_a_tag_is_a_vlan_device_s(steer: Entry, tags: bytes) -> None:
    """Another's answer, and one in the tunnel: without the tag they would be carried, and taken out."""
    for packet in (ip4(REMOTE, STATIC, 6, tcp(443, 9012)), gue(ip4(REMOTE, STATIC, 6, tcp(443, 9001)))):
        tagged = support.MACS + tags + b"\x08\0" + packet
        result = steer(tagged)
        assert (result.verdict, result.data, result.drops, result.counters) == (PASS, tagged, {}, {})


def home_of(ident: int) -> bytes:
    """By hand: flow_hash over both addresses, the id and UDP, modulo five nodes; down and unfit ones are asked past."""
    source, target = (int.from_bytes(ip_address(text).packed, "big") ^ 0xFFFF for text in (REMOTE, STATIC))
    number = (source * 0x9E3779B1 ^ target * 0x85EBCA6B ^ ident * 0xC2B2AE35 ^ 17) & 0xFFFFFFFF
    number = (number ^ number >> 16) * 0x7FEB352D & 0xFFFFFFFF
    number ^= number >> 15
    homes = [b"here", ip_address("10.0.1.12").packed, b"here", None, None]
    while (home := homes[number % 5]) is None:
        number = (number * 0x85EBCA6B + 0x9E3779B1) & 0xFFFFFFFF
    return home


def test_fragments_meet_at_their_home(steer: Entry) -> None:
    """Whoever owns the port: 9001 is this node's, 9012 another's. What is at home is tc's to know."""
    homes = set()
    for ident in range(40, 60):
        for port in (9001, 9012):
            first, *later = fragments(ip4(REMOTE, STATIC, 17, udp(443, port, bytes(100))), 48, ident + port)
            home = home_of(ident + port)
            homes.add(home)
            for piece in (first, *later):
                result = steer(frame(piece))
                if home != b"here":
                    assert (result.verdict, result.data[30:34], result.data[44:46]) == (CARRY, home, b"\0\0")
                    assert result.counters == {Counter.CARRIED_OUT: 1}
                elif steer.name == "su_steer":
                    assert (result.verdict, result.data, result.counters) == (PASS, frame(piece), {})
                elif port == 9001:
                    assert (result.verdict, result.data, result.counters) == (
                        PASS,
                        frame(piece),
                        {Counter.FRAGMENTS: 1},
                    )
                else:
                    assert (result.verdict, result.data[30:34]) == (CARRY, ip_address("10.0.1.12").packed)
    assert len(homes) == 2


def test_a_fragment_in_the_tunnel_is_at_home(steer: Entry) -> None:
    for ident in range(80, 100):  # whatever its hash
        first, *later = fragments(ip4(REMOTE, STATIC, 17, udp(443, 9001, bytes(100))), 48, ident)
        for final in (0, 2):
            for piece in (first, *later):
                whole = frame(gue(piece, flags=final))
                result = steer(whole)
                if steer.name == "su_steer":
                    assert (result.verdict, result.data, result.counters) == (PASS, whole, {})
                else:
                    assert (result.verdict, result.data[12:]) == (PASS, b"\x08\0" + piece)
                    assert result.counters == {Counter.FRAGMENTS: 1, Counter.CARRIED_IN: 1}


def test_the_largest_packet_that_fits_the_tunnel(steer: Entry) -> None:
    def sized(length: int, target: str, port: int) -> bytes:
        return frame(ip4(REMOTE, target, 6, tcp(443, port, bytes(length - 40))))

    # XDP gives what is larger to tc behind, as it came, which tells the sender.
    wanted = (PASS, {}) if steer.name == "su_steer" else (DROP, {Drop.TOO_BIG: 1})
    for target, port, outer in ((STATIC, 9012, 32), ("198.51.100.10", 14336, 52)):
        assert steer(sized(support.MTU - outer, target, port)).verdict == CARRY
        result = steer(sized(support.MTU - outer + 1, target, port))
        assert (result.verdict, result.drops) == wanted


@pytest.mark.parametrize(
    ("neighbour", "lladdr", "target", "port"),
    [("10.0.1.12", "02:00:00:00:00:12", STATIC, 9012), (PEER6, "02:00:00:00:00:14", "198.51.100.10", 14336)],
)
def test_xdp_leaves_to_tc_what_has_no_neighbour_yet(
    loaded: tuple[BpfObject, str], neighbour: str, lladdr: str, target: str, port: int
) -> None:
    """The packet goes up as it came, plain or encapsulated: su_uplink_in behind decides the same and asks. What XDP was
    told before the neighbour went it believes for 10 ms."""
    steer = Entry(loaded[0], "su_steer", loaded[1])
    plain = frame(ip4(REMOTE, target, 6, tcp(443, port)))
    inside = frame(gue(ip4(REMOTE, target, 6, tcp(443, port))))
    with netns.enter(loaded[1]):
        support.run(f"ip neigh del {neighbour} dev up0")
    try:
        wait_until(lambda: steer(plain).verdict == PASS, 5, "XDP to ask for the neighbour again")
        for packet in (plain, inside):
            result = steer(packet)
            assert (result.verdict, result.data, result.counters, result.drops) == (PASS, packet, {}, {})
    finally:
        with netns.enter(loaded[1]):
            support.run(f"ip neigh replace {neighbour} lladdr {lladdr} dev up0 nud permanent")
    assert steer(plain).verdict == CARRY


def test_xdp_follows_a_neighbour_that_changed_within_10_ms(loaded: tuple[BpfObject, str]) -> None:
    steer = Entry(loaded[0], "su_steer", loaded[1])
    plain = frame(ip4(REMOTE, STATIC, 6, tcp(443, 9012)))
    assert steer(plain).data[:6] == bytes.fromhex("020000000012")
    with netns.enter(loaded[1]):
        support.run("ip neigh replace 10.0.1.12 lladdr 02:00:00:00:77:12 dev up0 nud permanent")
    try:
        wait_until(lambda: steer(plain).data[:6] == bytes.fromhex("020000007712"), 5, "XDP to send to the new address")
    finally:
        with netns.enter(loaded[1]):
            support.run("ip neigh replace 10.0.1.12 lladdr 02:00:00:00:00:12 dev up0 nud permanent")
        wait_until(lambda: steer(plain).data[:6] == bytes.fromhex("020000000012"), 5, "XDP to send to the old one")
