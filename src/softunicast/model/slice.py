# SPDX-License-Identifier: Apache-2.0
"""A slice: an address and a range of source ports. What a node holds, and what no two nodes hold in part.

    port    0         1023 1024                              65535
            |---- never ---|-- 2^shift --|-- 2^shift --| ... |      allocated: owner = f(port >> shift)
                                  |-9000-9009-|                     static: any range, shift 0

RFC 7597 section 5.1 calls the part's number a PSID; with its offset `a` = 0 the PSID is the top bits of the
port, `port >> shift`, so a slice is one contiguous run. The part, or parts, that hold ports 0-1023 are never
given out. A part of all 65,536 ports (an IPv6 address of one node) is given as 1024-65535.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from softunicast.model.address import IPAddress, parse_address, sort_key

LOWEST_PORT: Final = 1024
"""The first port that is ever given out (RFC 6335 section 6: below are the system ports)."""
HIGHEST_PORT: Final = 65535

_TEXT: Final = re.compile(
    r"(?:\[(?P<six>[^\]]*)\]|(?P<four>[^:\[\]]*)):(?P<first>[0-9]{1,9})(?:-(?P<last>[0-9]{1,9}))?"
)


@dataclass(frozen=True, slots=True)
class Slice:
    """`address` and ports `first`..`last`, both inclusive, host order. ValueError when the range is none."""

    address: IPAddress
    first: int
    last: int

    def __post_init__(self) -> None:
        if not 0 <= self.first <= HIGHEST_PORT or not 0 <= self.last <= HIGHEST_PORT:
            raise ValueError(f"ports {self.first}-{self.last} are not within 0-65535; mend the range")
        if self.last < self.first:
            raise ValueError(f"ports {self.first}-{self.last} end before they begin; swap them")

    @classmethod
    def parse(cls, text: str) -> Slice:
        """`198.51.100.20:9000-9009`, `[2001:db8::1]:1024-65535`, or one port. ValueError: "problem; remedy"."""
        text = text.strip()
        match = _TEXT.fullmatch(text)
        if match is None:
            shown = text if len(text) <= 60 else f"{text[:57]}..."
            raise ValueError(
                f"{shown!r} is no slice; write address:first-last, such as 198.51.100.20:9000-9009"
                " or [2001:db8::1]:1024-65535"
            )
        address = parse_address(match["six"] if match["six"] is not None else match["four"])
        if (address.version == 6) != (match["six"] is not None):
            raise ValueError(f"{text} has brackets around IPv4; leave them out")
        first = int(match["first"])
        return cls(address, first, first if match["last"] is None else int(match["last"]))

    def __str__(self) -> str:
        host = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{host}:{self.first}-{self.last}"

    def __contains__(self, port: object) -> bool:
        """Whether a port number is within the range."""
        return isinstance(port, int) and self.first <= port <= self.last

    @property
    def size(self) -> int:
        """Number of ports."""
        return self.last - self.first + 1

    @property
    def sort_key(self) -> tuple[int, int, int, int]:
        """Order of slices everywhere: by family, address, first port."""
        return (*sort_key(self.address), self.first, self.last)

    def overlaps(self, other: Slice) -> bool:
        """Whether some port of the same address is in both."""
        return self.address == other.address and self.first <= other.last and other.first <= self.last

    def covers(self, other: Slice) -> bool:
        """Whether every port of `other` is in this one."""
        return self.address == other.address and self.first <= other.first and other.last <= self.last


def shift_of(slice_ports: int) -> int:
    """log2 of a power of two from 1 to 65536; ValueError otherwise."""
    if slice_ports < 1 or slice_ports > 65536 or slice_ports & (slice_ports - 1):
        raise ValueError(f"{slice_ports} is no power of two from 1 to 65536")
    return slice_ports.bit_length() - 1


def parts_of(address: IPAddress, shift: int) -> tuple[Slice, ...]:
    """The allocatable slices of an address, by port: parts of 2^shift ports without those of 0-1023."""
    if shift == 16:
        return (Slice(address, LOWEST_PORT, HIGHEST_PORT),)
    size = 1 << shift
    start = -(-LOWEST_PORT // size)
    return tuple(Slice(address, part << shift, (part << shift) + size - 1) for part in range(start, 65536 >> shift))


def is_part(slice_: Slice, shift: int) -> bool:
    """Whether parts_of(slice_.address, shift) has it."""
    if shift == 16:
        return slice_.first == LOWEST_PORT and slice_.last == HIGHEST_PORT
    size = 1 << shift
    return slice_.first >= LOWEST_PORT and slice_.size == size and slice_.first % size == 0
