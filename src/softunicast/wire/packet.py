# SPDX-License-Identifier: Apache-2.0
"""Read IPv4 and IPv6 packets: addresses, ports, ICMP ids, fragments, and what an ICMP error quotes.

    |version..ttl|proto|source|destination|     IPv4 (RFC 791), IPv6 (RFC 8200) with its extension headers
                      |source port|destination port|...             TCP (RFC 9293), UDP (RFC 768)
                      |type|code|checksum|id|sequence|...            ICMP echo (RFC 792, RFC 4443)
                      |type|code|checksum|4 bytes|quoted packet...   ICMP errors: 8 bytes and more behind its
                      IP header

Pure and without opinion: it says what stands there. `checksum_errors` judges checksums, the callers the rest.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from .checksum import ICMP, ICMPV6, TCP, UDP, ones_sum, pseudo_sum
from .extension import CutOff, follow

NAMES: Final = {
    TCP: "tcp",
    UDP: "udp",
    ICMP: "icmp",
    ICMPV6: "icmp6",
    2: "igmp",
    47: "gre",
    4: "ipip",
    41: "ip6",
}
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16

ECHO_REPLY, ECHO_REQUEST = 0, 8
ERRORS: Final = frozenset({3, 4, 5, 11, 12})
ECHO_REQUEST6, ECHO_REPLY6 = 128, 129


class Malformed(ValueError):
    """Not an IP packet, or one whose headers contradict its length."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One packet. Ports and ids are numbers in host meaning; None where the packet has none (later fragments
    too).

    `length` is the IP length (what the header says), `payload` the offset of what is behind the transport's
    fixed header (TCP: behind its options); -1 when it is cut off. `fragment_offset` counts bytes.
    """

    version: int
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    proto: int
    ttl: int
    length: int
    transport: int
    ident: int = 0
    fragment_offset: int = 0
    more_fragments: bool = False
    source_port: int | None = None
    destination_port: int | None = None
    tcp_flags: int = 0
    icmp_type: int | None = None
    icmp_code: int | None = None
    icmp_id: int | None = None
    quoted: Packet | None = None
    payload: int = -1

    @property
    def is_fragment(self) -> bool:
        """Part of a larger packet, the first part included."""
        return self.more_fragments or self.fragment_offset > 0

    @property
    def is_echo_request(self) -> bool:
        """An ICMP or ICMPv6 echo request."""
        return (self.proto, self.icmp_type) in ((ICMP, ECHO_REQUEST), (ICMPV6, ECHO_REQUEST6))

    @property
    def is_echo_reply(self) -> bool:
        """An ICMP or ICMPv6 echo reply."""
        return (self.proto, self.icmp_type) in ((ICMP, ECHO_REPLY), (ICMPV6, ECHO_REPLY6))

    @property
    def is_error(self) -> bool:
        """An ICMP error: its claim is that of the packet it quotes."""
        if self.icmp_type is None:
            return False
        return self.icmp_type in ERRORS if self.proto == ICMP else self.icmp_type < 128

    def __str__(self) -> str:
        name = NAMES.get(self.proto, f"proto {self.proto}")
        source = _place(self.source, self.source_port)
        text = f"{name} {source} > {_place(self.destination, self.destination_port)}"
        if self.icmp_type is not None:
            text += f" type {self.icmp_type} code {self.icmp_code}"
        if self.icmp_id is not None:
            text += f" id {self.icmp_id}"
        if self.proto == TCP and self.tcp_flags:
            marks = "".join(
                mark for bit, mark in ((SYN, "S"), (FIN, "F"), (RST, "R"), (ACK, ".")) if self.tcp_flags & bit
            )
            text += f" [{marks}]"
        if self.is_fragment:
            text += f" fragment {self.ident} at {self.fragment_offset}"
        text += f", {self.length} bytes"
        return f"{text}, quoting ({self.quoted})" if self.quoted is not None else text


def _place(address: IPv4Address | IPv6Address, port: int | None) -> str:
    if port is None:
        return str(address)
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def parse(data: bytes, *, quoted: bool = False) -> Packet:
    """Read a packet that begins at data[0]; bytes behind its end (Ethernet padding) are ignored.

    `quoted`: it comes from inside an ICMP error, so it may be cut off anywhere behind 8 bytes of its
    transport. Raises Malformed.
    """
    if not data:
        raise Malformed("empty")
    version = data[0] >> 4
    if version == 4:
        return _parse4(data, quoted)
    if version == 6:
        return _parse6(data, quoted)
    raise Malformed(f"IP version {version}")


def _parse4(data: bytes, quoted: bool) -> Packet:
    if len(data) < 20:
        raise Malformed(f"an IPv4 header of {len(data)} bytes")
    first, _, length, ident, fragment, ttl, proto, _, source, destination = struct.unpack_from("!BBHHHBBH4s4s", data)
    transport = (first & 15) * 4
    if transport < 20 or length < transport or (not quoted and length > len(data)) or len(data) < transport:
        raise Malformed(f"IPv4 header length {transport}, total length {length}, {len(data)} bytes here")
    head = Packet(
        4, IPv4Address(source), IPv4Address(destination), proto, ttl, length, transport,
        ident, (fragment & 0x1FFF) * 8, bool(fragment & 0x2000),
    )  # fmt: skip
    return _transport(head, data[: min(length, len(data))], quoted)


def _parse6(data: bytes, quoted: bool) -> Packet:
    if len(data) < 40:
        raise Malformed(f"an IPv6 header of {len(data)} bytes")
    _, size, proto, ttl, source, destination = struct.unpack_from("!IHBB16s16s", data)
    length = 40 + size
    if not quoted and length > len(data):
        raise Malformed(f"IPv6 length {length}, {len(data)} bytes here")
    data = data[: min(length, len(data))]
    try:
        chain = follow(data, 40, proto)
    except CutOff as error:
        raise Malformed(str(error)) from error
    head = Packet(
        6, IPv6Address(source), IPv6Address(destination), chain.proto, ttl, length, chain.offset,
        chain.ident, chain.fragment_offset, chain.more_fragments,
    )  # fmt: skip
    return _transport(head, data, quoted)


def _transport(head: Packet, data: bytes, quoted: bool) -> Packet:
    if head.fragment_offset or head.proto not in (TCP, UDP, ICMP, ICMPV6):
        return head
    at, left = head.transport, len(data) - head.transport
    least = 8 if quoted or head.proto != TCP or head.more_fragments else 20
    if left < least:
        raise Malformed(f"{NAMES[head.proto]} of {left} bytes")
    changes: dict[str, int | Packet | None]
    if head.proto in (TCP, UDP):
        source_port, destination_port = struct.unpack_from("!HH", data, at)
        changes = {"source_port": source_port, "destination_port": destination_port}
        if head.proto == UDP:
            changes["payload"] = at + 8
        elif left >= 20:
            changes |= {"tcp_flags": data[at + 13], "payload": at + (data[at + 12] >> 4) * 4}
    else:
        kind, code, _, number = struct.unpack_from("!BBHH", data, at)
        changes = {"icmp_type": kind, "icmp_code": code, "payload": at + 8}
        if kind in ((ECHO_REPLY, ECHO_REQUEST) if head.proto == ICMP else (ECHO_REQUEST6, ECHO_REPLY6)):
            changes["icmp_id"] = number
        elif not quoted and (kind in ERRORS if head.proto == ICMP else kind < 128):
            changes["quoted"] = _quoted(data[at + 8 :])
    return _with(head, changes)


def _quoted(data: bytes) -> Packet | None:
    try:
        return parse(data, quoted=True)
    except Malformed:
        return None


def _with(head: Packet, changes: dict[str, int | Packet | None]) -> Packet:
    values = {name: getattr(head, name) for name in Packet.__slots__}
    return Packet(**(values | changes))


def checksum_errors(data: bytes) -> tuple[str, ...]:
    """Which checksums of a whole packet are wrong: "ip", "tcp", "udp", "icmp", "icmp6"; empty: all are right.

    A UDP checksum of zero over IPv4 means there is none (RFC 768). Of a fragment only the header is judged.
    Raises Malformed.
    """
    packet = parse(data)
    wrong = []
    if packet.version == 4 and ones_sum(data[: (data[0] & 15) * 4]):
        wrong.append("ip")
    if packet.is_fragment or packet.proto not in (TCP, UDP, ICMP, ICMPV6):
        return tuple(wrong)
    segment = data[packet.transport : packet.length]
    if packet.proto == UDP and segment[6:8] == b"\0\0" and packet.version == 4:
        return tuple(wrong)
    total = ones_sum(segment)
    if packet.proto != ICMP:
        total += pseudo_sum(packet.source.packed, packet.destination.packed, packet.proto, len(segment))
    if total % 65535:
        wrong.append(NAMES[packet.proto])
    return tuple(wrong)
