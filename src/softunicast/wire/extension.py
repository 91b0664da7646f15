# SPDX-License-Identifier: Apache-2.0
"""Follow the extension headers between an IPv6 header and what it carries (RFC 8200 section 4).

    | next header | length | ...            |     hop-by-hop, routing, destination options: 8 + 8 * length bytes
    | next header | 0      | offset, M | id |     fragment: 8 bytes

As bpf/include/parse.h does, and with its limits: a longer chain ends there, and so does one whose routing header
has way still to go (the destination is then not the one that checksums count, section 8.1).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
EXTENSIONS: Final = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION})
MOST_HEADERS: Final = 6
MOST_BYTES: Final = 128


class CutOff(ValueError):
    """The data ends within the chain."""


@dataclass(frozen=True, slots=True)
class Chain:
    """Where it led. `proto` is an extension header's number when the chain goes on beyond what is followed."""

    offset: int
    """Of what comes behind it."""
    proto: int
    fragment_header: int = 0
    """Offset of the (last) fragment header, 0: none."""
    ident: int = 0
    fragment_offset: int = 0
    """In bytes."""
    more_fragments: bool = False

    @property
    def is_fragment(self) -> bool:
        """A fragment header alone makes none: RFC 6946."""
        return self.more_fragments or self.fragment_offset > 0


def follow(data: bytes, offset: int, proto: int) -> Chain:
    """The chain that begins at data[offset] with header `proto`; empty when that is none. Raises CutOff."""
    start, header, ident, place = offset, 0, 0, 0
    for _ in range(MOST_HEADERS):
        if proto not in EXTENSIONS:
            break
        if offset + 8 > len(data):
            raise CutOff("an IPv6 extension header that is cut off")
        following, units, middle, number = struct.unpack_from("!BBHI", data, offset)
        size = 8 if proto == FRAGMENT else 8 + units * 8
        if (proto == ROUTING and middle & 0xFF) or offset - start + size > MOST_BYTES:
            break
        if proto == FRAGMENT:
            header, place, ident = offset, middle, number
        proto, offset = following, offset + size
        if place & 0xFFF8:
            break
    return Chain(offset, proto, header, ident, place & 0xFFF8, bool(place & 1))
