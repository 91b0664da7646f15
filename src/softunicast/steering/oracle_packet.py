# SPDX-License-Identifier: Apache-2.0
"""Packets as the oracle of steering reads and writes them; no line of it is the data plane's (parse.h, frag.h).

`parse()` reads headers as far as steering wants them, `Fragments` remembers what first fragments said, `with_*` write.
Ports are host order, addresses 16 bytes (IPv4 mapped), packets bytes as they are on the wire.

Sources: RFC 791, 8200, 792, 4443 (headers), RFC 3128 (fragments of TCP), RFC 1624 (checksums).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from softunicast.kernel.abi import FRAG_INTERNET, FRAG_NS, Drop
from softunicast.kernel.abi_util import MAPPED
from softunicast.wire.extension import EXTENSIONS, CutOff, follow

ETHERNET: Final = 14
IP4_HEADER: Final = 20
IP6_HEADER: Final = 40
TCP_HEADER: Final = 20
ETH_IP4: Final = 0x0800
ETH_IP6: Final = 0x86DD
ICMP, IPIP, TCP, UDP, IP6_IN_IP, ICMP6 = 1, 4, 6, 17, 41, 58

ICMP_ERRORS: Final = {ICMP: (3, 11, 12), ICMP6: (1, 2, 3, 4)}
ECHO_REQUEST: Final = {ICMP: 8, ICMP6: 128}
ECHO_REPLY: Final = {ICMP: 0, ICMP6: 129}


@dataclass(slots=True)
class Packet:
    """Headers of the IP packet at `offset` of `frame`, as parse.h reads them. Ports are host order."""

    frame: bytes
    offset: int
    ip6: bool = False
    source: bytes = b""
    target: bytes = b""
    proto: int = 0
    ttl: int = 0
    tos: int = 0
    total: int = 0
    layer4: int = 0
    """Offset in the frame, 0: unknown."""
    options: bool = False
    fragment: bool = False
    """Until it was followed."""
    fragment_at: int = 0
    """Where in its datagram it belongs, in bytes."""
    ident: int = 0
    ports: tuple[int, int] | None = None
    error: bool = False
    echo_request: bool = False
    echo_reply: bool = False
    quoted: tuple[bytes, int, int] | None = None
    """Source address, port and protocol of the packet that an ICMP error quotes."""
    malformed: bool = False


class FirstOf(NamedTuple):
    """Whose first fragment it is: where it came in (FRAG_INTERNET, FRAG_STACK, an on-ramp's id), source, destination,
    id, protocol of IPv4."""

    entry: int
    source: bytes
    target: bytes
    ident: int
    proto: int


class Said(NamedTuple):
    """What it said. `learned_ns`: boot clock."""

    learned_ns: int
    proto: int
    ports: tuple[int, int]
    echo_request: bool
    echo_reply: bool


@dataclass(slots=True)
class Fragments:
    """What first fragments said, frag.h."""

    said: dict[FirstOf, Said] = field(default_factory=dict)
    followed: int = 0
    """How many."""

    def follow(self, packet: Packet, now_ns: int, entry: int = FRAG_INTERNET) -> Drop | None:
        """Learn from a first fragment, or tell a later one what its first one said."""
        key = FirstOf(entry, packet.source, packet.target, packet.ident, 0 if packet.ip6 else packet.proto)
        if not packet.fragment_at:
            if packet.ports is None:
                return Drop.FRAGMENT
            self.said[key] = Said(now_ns, packet.proto, packet.ports, packet.echo_request, packet.echo_reply)
        elif key not in self.said or now_ns - self.said[key].learned_ns >= FRAG_NS:
            return Drop.FRAGMENT_EARLY
        else:
            _, packet.proto, packet.ports, packet.echo_request, packet.echo_reply = self.said[key]
            if packet.proto == TCP and packet.fragment_at < TCP_HEADER:
                return Drop.MALFORMED
        packet.fragment = False
        self.followed += 1
        return None

    def age(self, nanoseconds: int) -> None:
        """As if the clock moved on by so much."""
        self.said = {key: said._replace(learned_ns=said.learned_ns - nanoseconds) for key, said in self.said.items()}

    def copy(self) -> Fragments:
        return Fragments(dict(self.said), self.followed)


class _ShortError(Exception):
    """The frame ends within a header that must be whole."""


def _take(frame: bytes, offset: int, size: int) -> bytes:
    if offset + size > len(frame):
        raise _ShortError
    return frame[offset : offset + size]


def parse(frame: bytes, offset: int, ether_type: int) -> Packet | None:
    """The packet at `offset`, None when it is not IP. A malformed one is filled as far as parsing went."""
    packet = Packet(frame, offset)
    if ether_type not in (ETH_IP4, ETH_IP6):
        return None
    try:
        l4 = _parse_ip4(packet) if ether_type == ETH_IP4 else _parse_ip6(packet)
        if l4 is not None:
            packet.layer4 = l4
            _parse_l4(packet, l4)
    except _ShortError:
        packet.malformed = True
    return packet


def _parse_ip4(packet: Packet) -> int | None:
    """Offset of layer 4, None when it is not to be read."""
    header = _take(packet.frame, packet.offset, IP4_HEADER)
    length = (header[0] & 15) * 4
    if header[0] >> 4 != 4 or length < IP4_HEADER:
        raise _ShortError
    packet.options = length > IP4_HEADER
    packet.tos, packet.ttl, packet.proto = header[1], header[8], header[9]
    packet.total, ident, fragment = struct.unpack_from("!HHH", header, 2)
    if packet.total and packet.total < length:
        raise _ShortError
    packet.source, packet.target = MAPPED + header[12:16], MAPPED + header[16:20]
    packet.fragment = bool(fragment & 0x3FFF)
    if packet.fragment:
        packet.ident, packet.fragment_at = ident, (fragment & 0x1FFF) * 8
    packet.layer4 = packet.offset + length
    return None if fragment & 0x1FFF else packet.offset + length


def _parse_ip6(packet: Packet) -> int | None:
    header = _take(packet.frame, packet.offset, IP6_HEADER)
    if header[0] >> 4 != 6:
        raise _ShortError
    first, payload, packet.proto, packet.ttl = struct.unpack_from("!IHBB", header)
    packet.ip6, packet.tos = True, first >> 20 & 0xFF
    packet.total = payload + IP6_HEADER if 0 < payload <= 65535 - IP6_HEADER else 0
    packet.source, packet.target = header[8:24], header[24:40]
    try:
        chain = follow(packet.frame, packet.offset + IP6_HEADER, packet.proto)
    except CutOff:
        raise _ShortError from None
    packet.proto, packet.fragment = chain.proto, chain.is_fragment
    if packet.fragment:
        packet.ident, packet.fragment_at = chain.ident, chain.fragment_offset
    packet.options = header[6] in EXTENSIONS
    packet.layer4 = chain.offset
    return None if chain.fragment_offset else chain.offset


def _parse_l4(packet: Packet, l4: int) -> None:
    if packet.proto == TCP:
        header = _take(packet.frame, l4, 20)
        if header[12] >> 4 < 5:
            raise _ShortError
        packet.ports = struct.unpack_from("!HH", header)
    elif packet.proto == UDP:
        packet.ports = struct.unpack_from("!HH", _take(packet.frame, l4, 8))
    elif packet.proto == (ICMP6 if packet.ip6 else ICMP):
        kind, identity = struct.unpack_from("!B3xH", _take(packet.frame, l4, 8))
        if kind == ECHO_REQUEST[packet.proto]:
            packet.echo_request, packet.ports = True, (identity, 0)
        elif kind == ECHO_REPLY[packet.proto]:
            packet.echo_reply, packet.ports = True, (0, identity)
        elif kind in ICMP_ERRORS[packet.proto]:
            packet.error = True
            if not packet.fragment:
                packet.quoted = _parse_quote(packet.frame, l4 + 8, packet.ip6)


def _parse_quote(frame: bytes, offset: int, ip6: bool) -> tuple[bytes, int, int] | None:
    """Source, source port and protocol of a quoted packet of which 8 bytes behind its IP header are there."""
    header = frame[offset : offset + (IP6_HEADER if ip6 else IP4_HEADER)]
    if len(header) < (IP6_HEADER if ip6 else IP4_HEADER) or header[0] >> 4 != (6 if ip6 else 4):
        return None
    if ip6:
        try:
            chain = follow(frame, offset + IP6_HEADER, header[6])
        except CutOff:
            return None
        if chain.fragment_offset:
            return None
        proto, source, size = chain.proto, header[8:24], chain.offset - offset
    else:
        proto, source, size = header[9], MAPPED + header[12:16], (header[0] & 15) * 4
        if size < IP4_HEADER or struct.unpack_from("!H", header, 6)[0] & 0x1FFF:
            return None
    l4 = frame[offset + size : offset + size + 8]
    if len(l4) < 8:
        return None
    if proto in (TCP, UDP):
        return source, int.from_bytes(l4[:2], "big"), proto
    echo = ICMP6 if ip6 else ICMP
    if proto == echo and l4[0] == ECHO_REQUEST[echo]:
        return source, int.from_bytes(l4[4:6], "big"), proto
    if proto == echo and l4[0] == ECHO_REPLY[echo]:
        return source, 0, proto
    return None


def checksum(data: bytes) -> int:
    """RFC 1071, complemented."""
    total = int(sum(struct.unpack(f"!{len(data) // 2}H", data)))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def update_checksum(check: int, old: int, new: int) -> int:
    """RFC 1624 equation 3, for 16 bits that changed."""
    total = (check ^ 0xFFFF) + (old ^ 0xFFFF) + new
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def with_word(frame: bytes, offset: int, word: int, new: int) -> bytes:
    """An IPv4 packet at `offset` with the 16-bit word number `word` of its header changed, checksum along."""
    header = list(struct.unpack_from("!10H", frame, offset))
    header[5], header[word] = update_checksum(header[5], header[word], new), new
    return frame[:offset] + struct.pack("!10H", *header) + frame[offset + IP4_HEADER :]


def with_ttl_less(packet: bytes, ip6: bool) -> bytes:
    """A bare packet with one hop less to live."""
    if ip6:
        return packet[:7] + bytes([packet[7] - 1]) + packet[8:]
    return with_word(packet, 0, 4, struct.unpack_from("!H", packet, 8)[0] - 0x100)


def with_ecn(packet: bytes, ip6: bool, ecn: int) -> bytes:
    """A bare packet with this ECN field."""
    first = struct.unpack_from("!H", packet)[0]
    if ip6:
        return struct.pack("!H", first & ~0x30 | ecn << 4) + packet[2:]
    return with_word(packet, 0, 0, first & ~3 | ecn) if first & 3 != ecn else packet
