# SPDX-License-Identifier: Apache-2.0
"""Addresses and networks as people write them.

Everything here raises ValueError with a text of the form "problem" or "problem; remedy", which the plan's
reader puts behind file, line and path. IPv4-mapped IPv6 (::ffff:a.b.c.d, RFC 4291 section 2.5.5.2) is refused
everywhere: the kernel's maps use that form for IPv4, and one address must have one name. Zone ids
(fe80::1%eth0) are refused too.
"""

from __future__ import annotations

import ipaddress
from bisect import bisect_right
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

MAX_RANGE: Final = 65536
"""How many addresses one range or prefix of a pool may name."""

_MAPPED: Final = IPv6Network("::ffff:0:0/96")


def parse_address(text: str) -> IPAddress:
    """An IPv4 or IPv6 address; ValueError says what is wrong."""
    text = _one_line(text)
    if "/" in text:
        raise ValueError(f"{text} is a prefix, an address is wanted; leave out the /")
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise ValueError(f"{_shown(text)} is no IPv4 or IPv6 address; write one such as 198.51.100.10") from None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            raise ValueError(f"{text} has a zone; leave out the %{address.scope_id}")
        if address.ipv4_mapped is not None:
            raise ValueError(f"{text} is IPv4 in IPv6's clothes; write {address.ipv4_mapped}")
    return address


def parse_network(text: str) -> IPNetwork:
    """A prefix; an address alone is a prefix of its full length. Host bits must be zero."""
    text = _one_line(text)
    try:
        network = ipaddress.ip_network(text, strict=False)
        address = ipaddress.ip_address(text.split("/")[0])
    except ValueError:
        raise ValueError(f"{_shown(text)} is no prefix; write one such as 198.51.100.0/24") from None
    if isinstance(network, IPv6Network):
        if network.network_address.scope_id is not None:
            raise ValueError(f"{text} has a zone; leave out the %{network.network_address.scope_id}")
        if network.subnet_of(_MAPPED):
            raise ValueError(f"{text} is IPv4 in IPv6's clothes; write it as IPv4")
    if address != network.network_address:
        raise ValueError(f"{text} has bits set behind its length; write {network}")
    return network


def parse_addresses(text: str) -> tuple[IPAddress, ...]:
    """One address, a range `first-last` (inclusive) or a prefix (every address of it), expanded in order."""
    text = _one_line(text)
    if "/" in text:
        network = parse_network(text)
        if network.num_addresses > MAX_RANGE:
            raise ValueError(f"{text} holds more than {MAX_RANGE} addresses; write a range or `prefix` and `count`")
        first, last = network.network_address, network.broadcast_address
    elif "-" in text:
        head, _, tail = text.partition("-")
        first, last = parse_address(head), parse_address(tail)
        if first.version != last.version:
            raise ValueError(f"{text} mixes IPv4 and IPv6; both ends must be of one family")
        if int(last) < int(first):
            raise ValueError(f"{text} ends before it begins; swap the two addresses")
        if int(last) - int(first) >= MAX_RANGE:
            raise ValueError(f"{text} holds more than {MAX_RANGE} addresses; split it over pools")
    else:
        return (parse_address(text),)
    return tuple(type(first)(number) for number in range(int(first), int(last) + 1))


def contains(network: IPNetwork, address: IPAddress) -> bool:
    """Membership that is False, not an error, across families."""
    return network.version == address.version and address in network


class Networks:
    """A set of networks. Whether an address is in one of them costs a binary search, however many there are."""

    __slots__ = ("_ranges",)

    def __init__(self, networks: Iterable[IPNetwork] = ()) -> None:
        self._ranges: dict[int, tuple[list[int], list[int]]] = {4: ([], []), 6: ([], [])}
        for one in sorted(networks, key=lambda one: (int(one.network_address), one.prefixlen)):
            firsts, lasts = self._ranges[one.version]
            if not lasts or int(one.broadcast_address) > lasts[-1]:  # networks are apart, or one within the other
                firsts.append(int(one.network_address))
                lasts.append(int(one.broadcast_address))

    def __contains__(self, address: IPAddress) -> bool:
        firsts, lasts = self._ranges[4 if isinstance(address, IPv4Address) else 6]
        number = int(address)
        at = bisect_right(firsts, number) - 1
        return at >= 0 and number <= lasts[at]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Networks) and self._ranges == other._ranges

    def __hash__(self) -> int:
        return hash(tuple(tuple(map(tuple, self._ranges[version])) for version in (4, 6)))

    def __bool__(self) -> bool:
        return bool(self._ranges[4][0] or self._ranges[6][0])


def overlaps(one: IPNetwork, other: IPNetwork) -> bool:
    """Overlap that is False, not an error, across families."""
    return one.version == other.version and one.overlaps(other)


def sort_key(address: IPAddress) -> tuple[int, int]:
    """Order of addresses everywhere: IPv4 first, then by number."""
    return address.version, int(address)


def network_key(network: IPNetwork) -> tuple[int, int, int]:
    """Order of prefixes everywhere: IPv4 first, then by address, then the wider first."""
    return network.version, int(network.network_address), network.prefixlen


def _one_line(text: str) -> str:
    """Without space around, and fit to be quoted in a message."""
    text = text.strip()
    if len(text) > 100 or not text.isprintable():
        raise ValueError(f"{_shown(text)} is no address or prefix; write one such as 198.51.100.10")
    return text


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else f"{text[:37]}...")
