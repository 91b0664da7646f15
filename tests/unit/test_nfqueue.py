# SPDX-License-Identifier: Apache-2.0
"""What a netfilter queue says, as bytes. The queue itself: tests/netns/test_terminate.py."""

from __future__ import annotations

import struct
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softunicast.kernel.nfqueue import HEADER_BYTES, Waiting, parse, tcp_ends
from softunicast.wire.craft import tcp, udp

SYN = 2
SYN4 = tcp("10.64.1.2", 40000, "203.0.113.1", 443, flags=SYN)
SYN6 = tcp("2001:db8:8::2", 40000, "2001:db8:f::1", 443, flags=SYN)


def attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def message(number: int, payload: bytes, kind: int = 3 << 8) -> bytes:
    body = struct.pack("!BBH", 2, 0, 0) + attribute(1, struct.pack("!IHB", number, 0x800, 0)) + attribute(10, payload)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


@pytest.mark.parametrize("packet", [SYN4, SYN6], ids=["ipv4", "ipv6"])
def test_both_ends_of_a_syn(packet: bytes) -> None:
    hosts = ("10.64.1.2", "203.0.113.1") if packet is SYN4 else ("2001:db8:8::2", "2001:db8:f::1")
    wanted = ((ip_address(hosts[0]), 40000), (ip_address(hosts[1]), 443))
    assert tcp_ends(packet[:HEADER_BYTES]) == wanted
    two = message(7, packet) + message(8, packet)
    assert list(parse(two)) == [Waiting(7, *wanted), Waiting(8, *wanted)]


def test_what_is_no_tcp_waits_without_ends() -> None:
    assert list(parse(message(7, udp("10.64.1.2", 1, "203.0.113.1", 2)))) == [Waiting(7, None, None)]
    assert list(parse(message(7, SYN4[:21]))) == [Waiting(7, None, None)]


def test_other_messages_are_passed_over() -> None:
    assert list(parse(message(7, SYN4, kind=2) + message(8, SYN4))) == list(parse(message(8, SYN4)))


@given(st.binary(max_size=200))
def test_whatever_comes_is_read_or_passed_over(data: bytes) -> None:
    list(parse(data))
    tcp_ends(data)
    for one in parse(message(7, data)):
        assert one.id == 7


@given(st.data())
def test_damage_is_read_or_passed_over(data: st.DataObject) -> None:
    good = bytearray(message(7, SYN4))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    list(parse(bytes(good)))
