# SPDX-License-Identifier: Apache-2.0
"""Small conversions around the generated codec: addresses in keys, and the word of a claim.

An address in a map is 16 bytes; IPv4 is ::ffff:a.b.c.d (RFC 4291 section 2.5.5.2). The word of a claim
(bpf/include/abi.h) is

     63                 40 39     32 31                      0
    +---------------------+---------+-------------------------+
    |     generation      |  state  |   last seen, seconds    |
    +---------------------+---------+-------------------------+

and its seconds are those of the boot clock (CLOCK_BOOTTIME).
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from softunicast.kernel.abi import WORD_GEN_SHIFT, WORD_STATE_SHIFT, Prefix, State

MAPPED: Final = b"\0" * 10 + b"\xff\xff"
GENERATION_MASK: Final = (1 << (64 - WORD_GEN_SHIFT)) - 1
STATE_MASK: Final = (1 << (WORD_GEN_SHIFT - WORD_STATE_SHIFT)) - 1
SEEN_MASK: Final = (1 << WORD_STATE_SHIFT) - 1


@dataclass(frozen=True, slots=True)
class Word:
    """The word of a claim, taken apart. `seen_s` is in seconds of the boot clock."""

    generation: int
    state: State
    seen_s: int

    def pack(self) -> int:
        """The 64-bit number."""
        return self.generation << WORD_GEN_SHIFT | self.state << WORD_STATE_SHIFT | self.seen_s

    @classmethod
    def unpack(cls, word: int) -> Word:
        """ValueError when the state is none that this version knows."""
        return cls(word_generation(word), State(word >> WORD_STATE_SHIFT & STATE_MASK), word & SEEN_MASK)


def mix(word: int) -> int:
    """su_mix of bpf/include/word.h, on 32 bits."""
    word ^= word >> 16
    word = word * 0x85EBCA6B & 0xFFFFFFFF
    word ^= word >> 13
    word = word * 0xC2B2AE35 & 0xFFFFFFFF
    return word ^ word >> 16


def word_generation(word: int) -> int:
    """The generation (24 bits) in a claim's word."""
    return word >> WORD_GEN_SHIFT & GENERATION_MASK


def word_state(word: int) -> State:
    """The state in a claim's word. ValueError when it is none that this version knows."""
    return State(word >> WORD_STATE_SHIFT & STATE_MASK)


def word_seen_s(word: int) -> int:
    """When a claim's flow was last seen, in seconds of the boot clock."""
    return word & SEEN_MASK


def addr_bytes(address: IPv4Address | IPv6Address) -> bytes:
    """The 16 bytes of an address in a map, IPv4 mapped."""
    return MAPPED + address.packed if isinstance(address, IPv4Address) else address.packed


def addr_ip(data: bytes) -> IPv4Address | IPv6Address:
    """The address of 16 bytes from a map. ValueError for another length."""
    if len(data) != 16:
        raise ValueError(f"an address is 16 bytes, not {len(data)}")
    return IPv4Address(data[12:]) if data[:12] == MAPPED else IPv6Address(data)


def prefix_key(list_number: int, network: IPv4Network | IPv6Network) -> bytes:
    """A key of the LPM map `prefixes`: its length counts the list's 32 bits and the mapped address."""
    mapped = 96 if isinstance(network, IPv4Network) else 0
    return Prefix(32 + mapped + network.prefixlen, list_number, addr_bytes(network.network_address)).pack()


def key_prefix(key: bytes) -> tuple[int, IPv4Network | IPv6Network]:
    """The list and network of a key of `prefixes`. The inverse of prefix_key."""
    prefix = Prefix.unpack(key)
    address, length = addr_ip(prefix.addr), prefix.prefix_len - 32
    if isinstance(address, IPv4Address) and length >= 96:
        return prefix.list, IPv4Network((address, length - 96))
    return prefix.list, IPv6Network((prefix.addr, length))
