# SPDX-License-Identifier: Apache-2.0
"""Packets made by another library are read as it meant them; damaged ones are told apart and never crash the reader."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror, TCPerror, fragment
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
)
from scapy.packet import Raw

from softunicast.wire import craft
from softunicast.wire.packet import ACK, RST, SYN, Malformed, checksum_errors, parse

SLICE, SERVER = "198.51.100.10", "203.0.113.1"
SLICE6, SERVER6 = "2001:db8::10", "2001:db8:ffff::1"


def test_tcp_with_options() -> None:
    data = bytes(IP(src=SLICE, dst=SERVER) / TCP(sport=9001, dport=443, flags="SA", options=[("MSS", 1460)]) / b"hi")
    packet = parse(data)
    assert (str(packet.source), packet.source_port) == (SLICE, 9001)
    assert (str(packet.destination), packet.destination_port) == (SERVER, 443)
    assert packet.tcp_flags == SYN | ACK
    assert data[packet.payload :] == b"hi"
    assert checksum_errors(data) == ()


def test_ip_options_and_ethernet_padding() -> None:
    whole = bytes(IP(src=SLICE, dst=SERVER, options=b"\x94\x04\x00\x00") / UDP(sport=1, dport=2) / b"odd")
    packet = parse(whole + bytes(10))
    assert packet.transport == 24
    assert packet.length == len(whole)
    assert (packet.source_port, packet.destination_port) == (1, 2)
    assert checksum_errors(whole + bytes(10)) == ()


def test_echo_has_an_id_and_no_ports() -> None:
    packet = parse(bytes(IP(src=SLICE, dst=SERVER) / ICMP(type=8, id=9005) / b"x"))
    assert packet.is_echo_request and not packet.is_echo_reply and not packet.is_error
    assert packet.icmp_id == 9005
    assert packet.source_port is None


def test_an_error_quotes() -> None:
    inner = IP(src=SERVER, dst=SLICE) / UDP(sport=53, dport=9001) / b"answer"
    data = bytes(IP(src=SLICE, dst=SERVER) / ICMP(type=3, code=3) / bytes(inner)[:28])
    packet = parse(data)
    assert packet.is_error and packet.quoted is not None
    assert (str(packet.quoted.destination), packet.quoted.destination_port) == (SLICE, 9001)
    assert checksum_errors(data) == ()


def test_an_error_may_quote_eight_bytes_of_tcp() -> None:
    data = bytes(
        IP(src="192.0.2.1", dst=SLICE)
        / ICMP(type=3, code=4, nexthopmtu=1400)
        / IPerror(src=SLICE, dst=SERVER, len=1500)
        / TCPerror(sport=9001, dport=443)
    )[: 20 + 8 + 20 + 8]
    data = data[:2] + len(data).to_bytes(2, "big") + data[4:]
    quoted = parse(data).quoted
    assert quoted is not None and quoted.source_port == 9001


def test_a_quotation_that_cannot_be_read_is_none() -> None:
    assert parse(craft.icmp_error(SLICE, SERVER, 3, 3, b"\x45\0\0")).quoted is None


def test_fragments() -> None:
    whole = IP(src=SERVER, dst=SLICE, id=77) / UDP(sport=53, dport=9001) / Raw(bytes(3000))
    first, second, last = (parse(bytes(piece)) for piece in fragment(whole, 1400))
    assert first.is_fragment and first.source_port == 53
    assert second.is_fragment and second.source_port is None and second.more_fragments
    assert last.fragment_offset > second.fragment_offset > 0 and not last.more_fragments
    assert all(checksum_errors(bytes(piece)) == () for piece in fragment(whole, 1400))


def test_ipv6_with_extension_headers() -> None:
    data = bytes(IPv6(src=SLICE6, dst=SERVER6) / IPv6ExtHdrDestOpt() / UDP(sport=9001, dport=53) / b"q")
    packet = parse(data)
    assert (packet.version, packet.source_port, packet.destination_port) == (6, 9001, 53)
    assert checksum_errors(data) == ()


def test_ipv6_fragment_echo_and_error() -> None:
    later = parse(bytes(IPv6(src=SLICE6, dst=SERVER6) / IPv6ExtHdrFragment(nh=17, offset=5, m=1, id=9) / bytes(16)))
    assert (later.fragment_offset, later.more_fragments, later.ident, later.source_port) == (40, True, 9, None)
    ping = bytes(IPv6(src=SLICE6, dst=SERVER6) / ICMPv6EchoRequest(id=9003))
    assert parse(ping).icmp_id == 9003 and checksum_errors(ping) == ()
    inner = bytes(IPv6(src=SERVER6, dst=SLICE6) / TCP(sport=443, dport=9001))
    big = parse(bytes(IPv6(src="2001:db8:1::1", dst=SERVER6) / ICMPv6PacketTooBig() / inner))
    assert big.is_error and big.quoted is not None and big.quoted.destination_port == 9001


@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
@pytest.mark.parametrize(("source", "destination"), [(SLICE, SERVER), (SLICE6, SERVER6)])
@pytest.mark.parametrize("size", [0, 1, 8, 1001])
def test_what_craft_makes_another_library_would_make(proto: str, source: str, destination: str, size: int) -> None:
    payload = bytes(number % 251 for number in range(size))
    data = {
        "tcp": lambda: craft.tcp(source, 9001, destination, 443, payload, flags=RST),
        "udp": lambda: craft.udp(source, 9001, destination, 443, payload),
        "echo": lambda: craft.echo(source, destination, 9001, 3, payload),
    }[proto]()
    again = (IPv6 if ":" in source else IP)(data)
    assert bytes(again) == data
    for layer in (IP, TCP, UDP, ICMP, ICMPv6EchoRequest):
        if layer in again and hasattr(again[layer], "chksum"):
            del again[layer].chksum
        if layer in again and hasattr(again[layer], "cksum"):
            del again[layer].cksum
    assert bytes(again) == data, "the checksums are those it computes itself"
    assert checksum_errors(data) == ()


@pytest.mark.parametrize(
    ("place", "names"), [(8, {"ip"}), (13, {"ip", "udp"}), (21, {"udp"}), (30, {"udp"}), (10, {"ip"})]
)
def test_each_damage_has_its_name(place: int, names: set[str]) -> None:
    data = bytearray(craft.udp(SLICE, 9001, SERVER, 53, b"question"))
    data[place] ^= 0x11
    assert set(checksum_errors(bytes(data))) == names


def test_udp_over_ipv4_may_go_without_checksum_and_over_ipv6_not() -> None:
    plain = bytearray(craft.udp(SLICE, 9001, SERVER, 53, b"q"))
    plain[26:28] = b"\0\0"
    assert checksum_errors(bytes(plain)) == ()
    six = bytearray(craft.udp(SLICE6, 9001, SERVER6, 53, b"q"))
    six[46:48] = b"\0\0"
    assert checksum_errors(bytes(six)) == ("udp",)


@given(st.binary(max_size=120))
def test_any_bytes_are_a_packet_or_malformed(data: bytes) -> None:
    for whole in (data, b"\x45" + data, b"\x60" + data):
        try:
            str(parse(whole))
            checksum_errors(whole)
        except Malformed:
            continue


@given(st.integers(0, 60), st.binary(max_size=60))
def test_a_cut_packet_is_malformed(length: int, payload: bytes) -> None:
    whole = craft.tcp(SLICE, 1, SERVER, 2, payload)
    if length < len(whole):
        with pytest.raises(Malformed):
            parse(whole[:length])
