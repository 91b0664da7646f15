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


def header6(packet: bytes, *chain: tuple[int, bytes]) -> bytes:
    """An IPv6 packet with extension headers in front: (number, the header but for its first byte)."""
    proto, headers = packet[6], b""
    for number, rest in reversed(chain):
        headers = bytes([proto]) + rest + headers
        proto = number
    size = len(packet) - 40 + len(headers)
    return packet[:4] + struct.pack("!HB", size, proto) + packet[7:40] + headers + packet[40:]


def extension(number: int, units: int = 0) -> tuple[int, bytes]:
    """Hop-by-hop (0) or destination options (60) of 8 + 8 * units bytes, filled with PadN; for header6."""
    size = 8 + 8 * units
    return number, bytes([units, 1, size - 4]) + bytes(size - 4)


def routing(left: int) -> tuple[int, bytes]:
    """A routing header (43) of an unknown type with `left` segments to go; for header6."""
    return 43, bytes([0, 253, left]) + bytes(4)


def fragment6(ident: int = 0, offset: int = 0, *, more: bool = False) -> tuple[int, bytes]:
    """A fragment header (44), offset in bytes; for header6."""
    return 44, struct.pack("!BHI", 0, offset | more, ident)


def gre(source: str, target: str) -> bytes:
    """A protocol without ports."""
    return ip(source, target, 47, b"\0\0\x08\0" + b"x" * 20)
