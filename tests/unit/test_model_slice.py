# SPDX-License-Identifier: Apache-2.0
"""Slices and addresses as text, and the parts of an address."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest

from softunicast.model.address import contains, overlaps, parse_address, parse_addresses, parse_network
from softunicast.model.slice import Slice, is_part, parts_of, shift_of

FOUR = IPv4Address("198.51.100.10")
SIX = IPv6Address("2001:db8::1")


@pytest.mark.parametrize("text", ["198.51.100.20:9000-9009", "[2001:db8::1]:1024-65535", "198.51.100.20:0-0"])
def test_text_round_trips(text: str) -> None:
    assert str(Slice.parse(text)) == text


def test_one_port_is_a_slice() -> None:
    assert Slice.parse(" 198.51.100.20:9003 ") == Slice(IPv4Address("198.51.100.20"), 9003, 9003)


@pytest.mark.parametrize(
    "text",
    ["", "198.51.100.20", "198.51.100.20:", ":1-2", "2001:db8::1:1-2", "[198.51.100.20]:1-2", "[2001:db8::1]", "a:1-2",
     "198.51.100.20:1-2-3", "198.51.100.20:2-1", "198.51.100.20:1-65536", "198.51.100.20:-1", "[::ffff:1.2.3.4]:1-2"],
)  # fmt: skip
def test_no_slice(text: str) -> None:
    with pytest.raises(ValueError, match=r"; "):
        Slice.parse(text)


def test_membership_size_overlap() -> None:
    ten = Slice(FOUR, 9000, 9009)
    assert ten.size == 10
    assert 9000 in ten
    assert 9009 in ten
    assert 9010 not in ten
    assert "9000" not in ten
    assert ten.overlaps(Slice(FOUR, 9009, 9010))
    assert not ten.overlaps(Slice(FOUR, 9010, 9010))
    assert not ten.overlaps(Slice(SIX, 9000, 9009))
    assert ten.covers(Slice(FOUR, 9001, 9009))
    assert not ten.covers(Slice(FOUR, 9001, 9010))


@pytest.mark.parametrize(
    ("ports", "count", "first", "last"),
    [(2048, 31, (2048, 4095), (63488, 65535)), (1024, 63, (1024, 2047), (64512, 65535)),
     (64, 1008, (1024, 1087), (65472, 65535)), (32768, 1, (32768, 65535), (32768, 65535)),
     (65536, 1, (1024, 65535), (1024, 65535)), (1, 64512, (1024, 1024), (65535, 65535))],
)  # fmt: skip
def test_parts_never_hold_system_ports(ports: int, count: int, first: tuple[int, int], last: tuple[int, int]) -> None:
    parts = parts_of(FOUR, shift_of(ports))
    assert len(parts) == count
    assert (parts[0].first, parts[0].last) == first
    assert (parts[-1].first, parts[-1].last) == last
    assert all(is_part(part, shift_of(ports)) for part in parts)


def test_what_is_no_part() -> None:
    for first, last in [(0, 2047), (2048, 4094), (2049, 4096), (2048, 6143)]:
        assert not is_part(Slice(FOUR, first, last), 11)
    assert not is_part(Slice(SIX, 0, 65535), 16)


@pytest.mark.parametrize("ports", [0, -1, 3, 2000, 65537, 131072])
def test_no_power_of_two(ports: int) -> None:
    with pytest.raises(ValueError, match="no power of two"):
        shift_of(ports)


def test_addresses_expand() -> None:
    assert [str(a) for a in parse_addresses("198.51.100.9-198.51.100.11")] == [
        "198.51.100.9",
        "198.51.100.10",
        "198.51.100.11",
    ]
    assert len(parse_addresses("198.51.100.0/30")) == 4
    assert parse_addresses("2001:db8::1") == (SIX,)
    assert len(parse_addresses("2001:db8::1-2001:db8::10")) == 16


def test_families_do_not_mix() -> None:
    assert not contains(ip_network("::/0"), FOUR)
    assert not overlaps(ip_network("::/0"), ip_network("0.0.0.0/0"))
    assert parse_network("198.51.100.10") == ip_network("198.51.100.10/32")
    assert parse_address(" 198.51.100.10 ") == FOUR
