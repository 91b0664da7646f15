# SPDX-License-Identifier: Apache-2.0
"""The judge at the router: what may leave, what may not, and that each breach is counted once under its own name."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, fragment
from scapy.packet import Raw

from softunicast.lab.checker import Owned, Report, check
from softunicast.wire import craft
from softunicast.wire.pcap import write_pcap

ROUTER, OUTSIDE, NODE1, NODE2 = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:11", "02:00:00:00:00:12"
FLEET = [IPv4Network("198.51.100.0/24"), IPv6Network("2001:db8::/48")]
OWN = [IPv4Network("192.0.2.0/30")]
UNDERLAY = [IPv4Network("10.0.1.0/24")]
SERVER, ADDRESS = "203.0.113.1", "198.51.100.20"
FIRST = Owned(IPv4Address(ADDRESS), 9000, 9009, "lhr1")
SECOND = Owned(IPv4Address(ADDRESS), 9010, 9019, "lhr2")
SIX = Owned(IPv6Address("2001:db8::20"), 1024, 65535, "lhr1")
OWNERS = [FIRST, SECOND, SIX]


def out(*packets: bytes) -> list[bytes]:
    return [craft.ethernet(OUTSIDE, ROUTER, packet) for packet in packets]


def back(*packets: bytes) -> list[bytes]:
    return [craft.ethernet(ROUTER, OUTSIDE, packet) for packet in packets]


def judge(frames: list[bytes], **options: bool) -> Report:
    capture = write_pcap([(number * 1000, frame) for number, frame in enumerate(frames, 1)])
    return check(capture, OWNERS, senders={ROUTER: None}, fleet=FLEET, own=OWN, **options)


def rack(frames: list[tuple[str, bytes]]) -> Report:
    capture = write_pcap([(1, craft.ethernet(ROUTER, mac, packet)) for mac, packet in frames])
    senders: dict[str, str | None] = {NODE1: "lhr1", NODE2: "lhr2"}
    return check(capture, OWNERS, senders=senders, fleet=FLEET, ignored_destinations=UNDERLAY, checksums=False)


def test_what_is_right_is_counted_and_not_blamed() -> None:
    report = judge(
        [
            *out(craft.tcp(ADDRESS, 9000, SERVER, 443), craft.tcp(ADDRESS, 9000, SERVER, 443, b"odd")),
            *back(craft.tcp(SERVER, 443, ADDRESS, 9000)),
            *out(craft.udp(ADDRESS, 9019, SERVER, 53, b"q"), craft.echo(ADDRESS, SERVER, 9009)),
            *out(craft.udp("2001:db8::20", 5000, "2001:db8:ffff::1", 53)),
        ]
    )
    assert report.problems() == [] and report.ok
    assert (report.packets, report.sent) == (6, 5)
    assert report.by_slice == {FIRST: 3, SECOND: 1, SIX: 1}
    assert report.by_node() == {"lhr1": 4, "lhr2": 1}
    assert report.by_proto == {"tcp": 3, "udp": 2, "icmp": 1}
    assert report.flows["tcp", ADDRESS, 9000, SERVER, 443] == 2
    assert report.flows["icmp", ADDRESS, 9009, SERVER, 0] == 1


@pytest.mark.parametrize("port", [0, 1, 8999, 9020, 65535])
@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
def test_one_packet_outside_its_slice_is_exactly_one(proto: str, port: int) -> None:
    packet = {
        "tcp": lambda: craft.tcp(ADDRESS, port, SERVER, 443),
        "udp": lambda: craft.udp(ADDRESS, port, SERVER, 443),
        "echo": lambda: craft.echo(ADDRESS, SERVER, port),
    }[proto]()
    good = [craft.tcp(ADDRESS, 9000 + number % 20, SERVER, 443) for number in range(50)]
    report = judge(out(*good[:20], packet, *good[20:]))
    assert len(report.outside_slice) == 1
    assert report.outside_slice[0].number == 21
    assert str(port) in report.outside_slice[0].why
    assert report.not_expected_source == [] and report.bad_checksums == []
    assert not report.ok


@given(st.integers(0, 65535), st.sampled_from(["198.51.100.20", "198.51.100.21"]))
def test_in_a_slice_or_not_for_every_port(port: int, address: str) -> None:
    report = judge(out(craft.udp(address, port, SERVER, 53)))
    assert (not report.outside_slice) == (address == ADDRESS and 9000 <= port <= 9019)


def test_a_fleet_address_without_slices_and_ipv6_below_its_slice() -> None:
    report = judge(
        out(craft.tcp("198.51.100.99", 9000, SERVER, 443), craft.tcp("2001:db8::20", 1023, "2001:db8:f::1", 1))
    )
    assert len(report.outside_slice) == 2


@pytest.mark.parametrize("source", ["10.64.1.2", "10.0.1.11", "203.0.113.9", "fd00::1"])
def test_an_inner_address_that_escaped(source: str) -> None:
    destination = "2001:db8:ffff::1" if ":" in source else SERVER
    report = judge(out(craft.udp(source, 9000, destination, 53)))
    assert len(report.not_expected_source) == 1
    assert report.outside_slice == []


def test_the_routers_own_packets_and_strange_frames_are_not_the_fleets() -> None:
    quoted = craft.tcp(SERVER, 443, ADDRESS, 9000)
    report = judge(
        [
            *out(craft.icmp_error("192.0.2.1", SERVER, 3, 1, quoted)),
            craft.ethernet(OUTSIDE, ROUTER, bytes(46), 0x0806),
            craft.ethernet(OUTSIDE, ROUTER, bytes(46), 0x88B5),
            *out(craft.udp("fe80::1", 5353, "ff02::fb", 5353)),
        ]
    )
    assert report.ok
    assert (report.packets, report.other_frames) == (1, 2)


def test_inbound_packets_may_come_for_any_port() -> None:
    assert judge(back(craft.tcp(SERVER, 443, ADDRESS, 1), craft.udp("8.8.8.8", 1, "198.51.100.99", 5))).ok


def test_an_echo_reply_needs_its_request() -> None:
    request = craft.echo(SERVER, ADDRESS, 7)
    reply = craft.echo(ADDRESS, SERVER, 7, reply=True)
    asked = judge([*back(request), *out(reply)])
    assert asked.ok and asked.echo_replies == 1
    assert len(judge(out(reply)).outside_slice) == 1
    assert len(judge([*back(request), *out(craft.echo(ADDRESS, SERVER, 8, reply=True))]).outside_slice) == 1


def test_an_icmp_error_follows_what_it_quotes() -> None:
    def refuse(quoted: bytes) -> Report:
        return judge(out(craft.icmp_error(ADDRESS, SERVER, 3, 3, quoted)))

    assert refuse(craft.udp(SERVER, 53, ADDRESS, 9001, b"late")).ok
    assert refuse(craft.udp(SERVER, 53, ADDRESS, 9001, b"late")).icmp_errors == 1
    assert len(refuse(craft.udp(SERVER, 53, ADDRESS, 5000)).outside_slice) == 1
    assert len(refuse(craft.udp(SERVER, 53, "198.51.100.99", 9001)).outside_slice) == 1
    assert len(refuse(b"").outside_slice) == 1


def test_a_protocol_without_ports_may_not_leave() -> None:
    assert "without ports" in judge(out(craft.ip(ADDRESS, SERVER, 47, bytes(20)))).outside_slice[0].why


def test_fragments_follow_their_first() -> None:
    good = fragment(IP(src=ADDRESS, dst=SERVER, id=5) / UDP(sport=9001, dport=7) / Raw(bytes(3000)), 1400)
    bad = fragment(IP(src=ADDRESS, dst=SERVER, id=6) / UDP(sport=5000, dport=7) / Raw(bytes(3000)), 1400)
    report = judge(out(*(bytes(piece) for piece in good)))
    assert report.ok and report.fragments == 3
    assert len(judge(out(*(bytes(piece) for piece in bad))).outside_slice) == 3
    assert len(judge(out(*(bytes(piece) for piece in good[1:]))).outside_slice) == 2


@pytest.mark.parametrize("direction", [out, back])
@pytest.mark.parametrize(("place", "name"), [(10, "ip"), (8, "ip"), (22, "tcp"), (36, "tcp"), (45, "tcp")])
def test_a_wrong_checksum_either_way(direction: object, place: int, name: str) -> None:
    source = (ADDRESS, 9000, SERVER, 443) if direction is out else (SERVER, 443, ADDRESS, 9000)
    data = bytearray(craft.tcp(*source, b"payload"))
    data[place] ^= 0x5A
    assert callable(direction)
    report = judge(direction(bytes(data), craft.tcp(*source, b"payload")))
    assert len(report.bad_checksums) == 1
    assert name in report.bad_checksums[0].why
    assert report.outside_slice == []


def test_checksums_need_not_be_final_where_offload_is_on() -> None:
    data = bytearray(craft.tcp(ADDRESS, 9000, SERVER, 443))
    data[36] ^= 1
    assert judge(out(bytes(data)), checksums=False).ok
    assert not judge(out(bytes(data))).ok


def test_udp_without_checksum_is_no_bad_one() -> None:
    data = bytearray(craft.udp(ADDRESS, 9000, SERVER, 53, b"q"))
    data[26:28] = b"\0\0"
    assert judge(out(bytes(data))).ok


def test_bad_icmp_and_options_take_the_slow_road_and_are_judged_too() -> None:
    ping = bytearray(craft.echo(ADDRESS, SERVER, 9000, payload=b"x"))
    ping[-1] ^= 1
    options = bytes(IP(src=ADDRESS, dst=SERVER, options=b"\x94\x04\0\0") / TCP(sport=4, dport=5))
    report = judge(out(bytes(ping), options))
    assert [finding.number for finding in report.bad_checksums] == [1]
    assert [finding.number for finding in report.outside_slice] == [2]


def test_a_malformed_packet_is_a_finding() -> None:
    assert len(judge([craft.ethernet(OUTSIDE, ROUTER, b"\x45" + bytes(50))]).bad_checksums) == 1
    assert (
        len(
            judge(
                [craft.ethernet(OUTSIDE, ROUTER, bytes(IP(src=ADDRESS, dst=SERVER) / ICMP())[:20], 0x0800)]
            ).bad_checksums
        )
        == 1
    )


def test_the_rack_tells_whose_slice_it_was() -> None:
    mine = craft.tcp(ADDRESS, 9000, SERVER, 443)
    others = craft.tcp(ADDRESS, 9010, SERVER, 443)
    assert rack([(NODE1, mine), (NODE2, others)]).ok
    report = rack([(NODE1, mine), (NODE1, others), (NODE2, craft.echo(ADDRESS, SERVER, 9003))])
    assert [finding.number for finding in report.outside_slice] == [2, 3]
    assert "sent by lhr1" in report.outside_slice[0].why and "lhr2's" in report.outside_slice[0].why
    carried = craft.carried("10.0.1.11", 50000, "10.0.1.12", 6080, mine)
    assert rack([(NODE1, mine), (NODE1, carried)]).ok, "what nodes carry to each other stays in the rack"


def test_a_capture_that_proves_nothing_is_a_problem() -> None:
    assert judge([]).problems() == ["no packet was seen"]
    frames = write_pcap([(1, frame) for frame in out(craft.tcp(ADDRESS, 9000, SERVER, 443))])
    lossy = check(frames, OWNERS, senders={ROUTER: None}, fleet=FLEET, kernel_dropped=3)
    assert lossy.problems() == ["the capture itself lost 3 packets"]
    whole = craft.tcp(ADDRESS, 9000, SERVER, 443, bytes(500))
    cut = write_pcap([(1, craft.ethernet(OUTSIDE, ROUTER, whole)[:200])])
    assert check(cut, OWNERS, senders={ROUTER: None}, fleet=FLEET).cut_off == 1
