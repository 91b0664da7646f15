# SPDX-License-Identifier: Apache-2.0
"""Read capture files (pcap, draft-ietf-opsawg-pcap): micro- and nanosecond times, either byte order.

|magic|major|minor|0|0|snaplen|link type|  |seconds|fraction|captured|on the wire|bytes|  |...
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

ETHERNET: Final = 1
MAGIC: Final = {
    b"\xd4\xc3\xb2\xa1": ("<", 1000),
    b"\xa1\xb2\xc3\xd4": (">", 1000),
    b"\x4d\x3c\xb2\xa1": ("<", 1),
    b"\xa1\xb2\x3c\x4d": (">", 1),
}


class NotPcap(ValueError):
    """The file is not a pcap file of Ethernet frames."""


@dataclass(frozen=True, slots=True)
class Pcap:
    """A capture whose bytes are `data`."""

    data: bytes
    order: str
    unit_ns: int

    def frames(self) -> Iterator[tuple[int, bytes, int]]:
        """(time in ns since 1970, bytes captured, length on the wire). A record that is cut off ends it
        silently: a capture may be read while it grows.
        """
        data, unit_ns = self.data, self.unit_ns
        record = struct.Struct(f"{self.order}IIII")
        unpack, size, at, end = record.unpack_from, record.size, 24, len(data)
        while at + size <= end:
            seconds, fraction, captured, wire = unpack(data, at)
            at += size
            if at + captured > end:
                return
            yield seconds * 1_000_000_000 + fraction * unit_ns, data[at : at + captured], wire
            at += captured


def read_pcap(data: bytes) -> Pcap:
    """Check the file's header. NotPcap when it is another format or another link type."""
    if len(data) < 24 or data[:4] not in MAGIC:
        raise NotPcap("no pcap header")
    order, unit_ns = MAGIC[data[:4]]
    link = struct.unpack_from(f"{order}I", data, 20)[0] & 0xFFFF
    if link != ETHERNET:
        raise NotPcap(f"link type {link}, only Ethernet (1) is read")
    return Pcap(data, order, unit_ns)


def write_pcap(frames: list[tuple[int, bytes]]) -> bytes:
    """A capture of (time in ns, frame): for tests and examples."""
    head = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, ETHERNET)
    parts = [
        struct.pack("<IIII", time // 1_000_000_000, time % 1_000_000_000, len(frame), len(frame)) + frame
        for time, frame in frames
    ]
    return head + b"".join(parts)


def merge_pcaps(captures: list[bytes]) -> bytes:
    """Several captures as one, by time; a single one as it is. NotPcap."""
    if len(captures) == 1:
        return captures[0]
    records = [(time, frame, wire) for capture in captures for time, frame, wire in read_pcap(capture).frames()]
    records.sort(key=lambda record: record[0])
    head = struct.pack("<IHHiIII", 0xA1B23C4D, 2, 4, 0, 0, 262144, ETHERNET)
    parts = [
        struct.pack("<IIII", time // 1_000_000_000, time % 1_000_000_000, len(frame), wire) + frame
        for time, frame, wire in records
    ]
    return head + b"".join(parts)
