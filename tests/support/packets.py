# SPDX-License-Identifier: Apache-2.0
"""Packets that softunicast.wire.craft does not make, because nobody should send them, and frames around packets."""

from __future__ import annotations

import struct
from typing import Final

from softunicast.wire.checksum import checksum, ones_sum
from softunicast.wire.craft import ethernet, ip
from softunicast.wire.packet import Packet, checksum_errors, parse

DEVICE_MAC: Final = "02:00:00:00:00:01"  # of every device under test
PEER_MAC: Final = "02:00:00:00:00:02"
SYN, ACK, FIN, RST = 0x02, 0x10, 0x01, 0x04


def frame(packet: bytes, *, to: str = DEVICE_MAC, ethertype: int | None = None) -> bytes:
    """As it comes from the neighbour."""
    return ethernet(to, PEER_MAC, packet, ethertype)


def unframe(data: bytes) -> Packet:
    """What is in a frame, all its checksums right, quotations' headers too; AssertionError otherwise."""
    packet = data[14:]
    assert checksum_errors(packet) == ()
    seen = parse(packet)
    if seen.is_error and seen.version == 4 and seen.quoted is not None:
        quote = packet[seen.transport + 8 :]
        assert ones_sum(quote[: (quote[0] & 15) * 4]) % 65535 == 0, "the quoted header's checksum"
    return seen


def header4(packet: bytes, *, flags: int = 0x4000, options: bytes = b"") -> bytes:
    """An IPv4 packet with other fragment flags and offset, or with options (a multiple of four bytes)."""
    head = bytearray(packet[:20])
    head[0] = 0x45 + len(options) // 4
    head[2:4] = struct.pack("!H", len(packet) + len(options))
    head[6:8] = struct.pack("!H", flags)
    head[10:12] = b"\0\0"
    whole = bytes(head) + options
    return whole[:10] + struct.pack("!H", checksum(whole)) + whole[12:] + packet[20:]


def gre(source: str, target: str) -> bytes:
    """A protocol without ports."""
    return ip(source, target, 47, b"\0\0\x08\0" + b"x" * 20)
