# SPDX-License-Identifier: Apache-2.0
"""What people type."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from softunicast.cli.arguments import Endpoint, Place, Remote, parse_endpoint, parse_place, parse_remote


@pytest.mark.parametrize(
    ("text", "address", "port"),
    [
        ("198.51.100.20:9001", "198.51.100.20", 9001),
        ("198.51.100.20:0", "198.51.100.20", 0),
        ("[2001:db8::1]:65535", "2001:db8::1", 65535),
    ],
)
def test_endpoints(text: str, address: str, port: int) -> None:
    found = parse_endpoint(text)
    assert found == Endpoint(ip_address(address), port)
    assert str(found) == text


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("198.51.100.20", Place(ip_address("198.51.100.20"))),
        ("198.51.100.20:9000-9009", Place(ip_address("198.51.100.20"), 9000, 9009)),
        ("198.51.100.20:9000", Place(ip_address("198.51.100.20"), 9000, 9000)),
        ("2001:db8::1", Place(ip_address("2001:db8::1"))),
        ("[2001:db8::1]:1-2", Place(ip_address("2001:db8::1"), 1, 2)),
    ],
)
def test_places(text: str, wanted: Place) -> None:
    assert parse_place(text) == wanted


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("203.0.113.1", Remote(ip_network("203.0.113.1"))),
        ("203.0.113.1:443", Remote(ip_network("203.0.113.1"), 443)),
        ("203.0.113.0/24", Remote(ip_network("203.0.113.0/24"))),
        ("2001:db8::/32", Remote(ip_network("2001:db8::/32"))),
        ("[2001:db8::1]:53", Remote(ip_network("2001:db8::1"), 53)),
    ],
)
def test_remotes(text: str, wanted: Remote) -> None:
    assert parse_remote(text) == wanted


def test_what_they_hold() -> None:
    place = parse_place("198.51.100.20:9000-9009")
    assert place.holds(ip_address("198.51.100.20"), 9009)
    assert not place.holds(ip_address("198.51.100.20"), 9010)
    assert not place.holds(ip_address("198.51.100.21"), 9009)
    assert parse_remote("203.0.113.0/24").holds(ip_address("203.0.113.9"), 1)
    assert not parse_remote("203.0.113.1:443").holds(ip_address("203.0.113.1"), 80)
    assert not parse_remote("0.0.0.0/0").holds(ip_address("2001:db8::1"), 80)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "not an IP address"),
        ("198.51.100.20", "has no port"),
        ("198.51.100.20:", "has no port"),
        ("198.51.100.20:x", "not a number"),
        ("198.51.100.20:-1", "not a number"),
        ("198.51.100.20:٣", "not a number"),
        ("198.51.100.20:65536", "not within 0-65535"),
        ("198.51.100.256:80", "not an IP address"),
        ("example.com:80", "not an IP address"),
        ("[2001:db8::1:80", "bracket"),
        ("2001:db8::1", "has no port"),
    ],
)
def test_bad_endpoints(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_endpoint(text)


def test_bad_places_and_remotes() -> None:
    with pytest.raises(ValueError, match="above last"):
        parse_place("198.51.100.20:9-3")
    with pytest.raises(ValueError, match="not a network"):
        parse_remote("203.0.113.1/24")
