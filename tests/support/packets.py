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


def fragments(packet: bytes, size: int, ident: int = 7) -> list[bytes]:
    """An IPv4 or IPv6 packet without options in fragments of `size` bytes (a multiple of eight), in their order."""
    start = 40 if packet[0] >> 4 == 6 else 20
    body = packet[start:]
    pieces = []
    for at in range(0, len(body), size):
        more, piece = at + size < len(body), body[at : at + size]
        if start == 40:
            whole = packet[:4] + struct.pack("!H", len(piece)) + packet[6:40] + piece
            pieces.append(header6(whole, fragment6(ident, at, more=more)))
        else:
            head = packet[:4] + struct.pack("!H", ident) + packet[6:20]
            pieces.append(header4(head + piece, flags=at // 8 | more << 13))
    return pieces


def whole(pieces: list[bytes]) -> bytes:
    """What a receiver makes of fragments that came in order; ValueError: they are not all of one datagram."""
    first = pieces[0]
    same, body, end = set(), b"", False
    for piece in pieces:
        seen = parse(piece)
        if end or seen.fragment_offset != len(body):
            raise ValueError(f"a fragment at {seen.fragment_offset}, {len(body)} bytes are there")
        same.add((seen.source, seen.destination, seen.ident))
        start = 48 if seen.version == 6 else 20
        body += piece[start:]
        end = not seen.more_fragments
    if len(same) != 1 or not end:
        raise ValueError(f"not one whole datagram: {same}")
    if first[0] >> 4 == 6:
        return first[:4] + struct.pack("!HB", len(body), first[40]) + first[7:40] + body
    return header4(first[:20] + body, flags=0)
