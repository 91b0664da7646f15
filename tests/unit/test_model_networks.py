# SPDX-License-Identifier: Apache-2.0
"""A set of networks says what asking each of them says."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from hypothesis import given
from hypothesis import strategies as st

from softunicast.model.address import IPAddress, IPNetwork, Networks, contains


def networks(version: int) -> st.SearchStrategy[IPNetwork]:
    """Few first bits, so that they are often within each other, and side by side."""
    bits = 32 if version == 4 else 128
    make = IPv4Network if version == 4 else IPv6Network

    def made(prefix: int, top: int) -> IPNetwork:
        number = (top << (bits - 8)) >> (bits - prefix) << (bits - prefix) if prefix else 0
        return make((number, prefix))

    return st.builds(made, st.sampled_from((0, 1, 2, 4, 7, 8, bits)), st.integers(0, 255))


addresses: st.SearchStrategy[IPAddress] = st.one_of(
    st.builds(lambda top, low: IPv4Address(top << 24 | low), st.integers(0, 255), st.sampled_from((0, 1, 2**24 - 1))),
    st.builds(lambda top, low: IPv6Address(top << 120 | low), st.integers(0, 255), st.sampled_from((0, 1, 2**120 - 1))),
)


@given(st.lists(st.one_of(networks(4), networks(6)), max_size=8), st.lists(addresses, min_size=1, max_size=20))
def test_membership(some: list[IPNetwork], asked: list[IPAddress]) -> None:
    made = Networks(some)
    assert bool(made) == bool(some)
    for address in asked:
        assert (address in made) == any(contains(network, address) for network in some), address
