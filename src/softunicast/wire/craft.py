# SPDX-License-Identifier: Apache-2.0
"""Make packets with right lengths and checksums: for injecting, for `explain`, for tests.

Addresses are text or `ipaddress` objects; IPv4 or IPv6 follows from them. Ports and ids are numbers in host
meaning.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address, ip_address

from .checksum import ICMP, ICMPV6, TCP, UDP, checksum, transport_checksum
from .gue import Gue
from .packet import ECHO_REPLY, ECHO_REPLY6, ECHO_REQUEST, ECHO_REQUEST6, SYN

Address = str | IPv4Address | IPv6Address


def ip(source: Address, destination: Address, proto: int, payload: bytes, *, ttl: int = 64, ident: int = 0) -> bytes:
    """An IP packet around a finished transport segment, not to be fragmented."""
    first, last = ip_address(source), ip_address(destination)
    if first.version == 6:
        return struct.pack("!IHBB", 6 << 28, len(payload), proto, ttl) + first.packed + last.packed + payload
    head = (
        struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(payload), ident, 0x4000, ttl, proto, 0) + first.packed + last.packed
    )
    return head[:10] + struct.pack("!H", checksum(head) % 65535) + head[12:] + payload


def _finish(source: Address, destination: Address, proto: int, segment: bytes, at: int, ttl: int) -> bytes:
    value = transport_checksum(ip_address(source), ip_address(destination), proto, segment)
    whole = segment[:at] + struct.pack("!H", value) + segment[at + 2 :]
    return ip(source, destination, proto, whole, ttl=ttl)


def udp(source: Address, sport: int, destination: Address, dport: int, payload: bytes = b"", *, ttl: int = 64) -> bytes:
    """A UDP datagram in an IP packet."""
    segment = struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload
    return _finish(source, destination, UDP, segment, 6, ttl)


def tcp(
    source: Address, sport: int, destination: Address, dport: int, payload: bytes = b"",
    *, flags: int = SYN, sequence: int = 0, acknowledgement: int = 0, window: int = 65535, ttl: int = 64,
) -> bytes:  # fmt: skip
    """A TCP segment without options in an IP packet."""
    head = struct.pack("!HHIIBBHHH", sport, dport, sequence, acknowledgement, 5 << 4, flags, window, 0, 0)
    return _finish(source, destination, TCP, head + payload, 16, ttl)


def echo(
    source: Address, destination: Address, ident: int, sequence: int = 1, payload: bytes = b"",
    *, reply: bool = False, ttl: int = 64,
) -> bytes:  # fmt: skip
    """An ICMP or ICMPv6 echo request, or its reply."""
    if ip_address(source).version == 6:
        kind, proto = (ECHO_REPLY6 if reply else ECHO_REQUEST6), ICMPV6
    else:
        kind, proto = (ECHO_REPLY if reply else ECHO_REQUEST), ICMP
    segment = struct.pack("!BBHHH", kind, 0, 0, ident, sequence) + payload
    return _finish(source, destination, proto, segment, 2, ttl)


def icmp_error(
    source: Address,
    destination: Address,
    kind: int,
    code: int,
    quoted: bytes,
    *,
    rest: int = 0,
    ttl: int = 64,
) -> bytes:
    """An ICMP or ICMPv6 error quoting (the start of) a packet. `rest`: the 32 bits before it, e.g. the next
    hop's MTU.
    """
    proto = ICMPV6 if ip_address(source).version == 6 else ICMP
    return _finish(source, destination, proto, struct.pack("!BBHI", kind, code, 0, rest) + quoted, 2, ttl)


def carried(source: Address, sport: int, destination: Address, dport: int, inner: bytes, *, flags: int = 0) -> bytes:
    """`inner` in GUE, as nodes carry packets to each other: without a UDP checksum (RFC 6935 section 5)."""
    payload = Gue(41 if inner[0] >> 4 == 6 else 4, flags).pack() + inner
    return ip(source, destination, UDP, struct.pack("!HHHH", sport, dport, 8 + len(payload), 0) + payload)


def ethernet(destination: str, source: str, payload: bytes, ethertype: int | None = None) -> bytes:
    """A frame. The type follows from the IP version unless given."""
    if ethertype is None:
        ethertype = 0x86DD if payload[0] >> 4 == 6 else 0x0800
    return mac_bytes(destination) + mac_bytes(source) + struct.pack("!H", ethertype) + payload


def mac_bytes(text: str) -> bytes:
    """`02:00:5e:00:00:01` -> six bytes."""
    return bytes.fromhex(text.replace(":", ""))
