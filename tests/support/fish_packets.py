# SPDX-License-Identifier: Apache-2.0
"""What the oracle of fish reads in a packet, and the packets it expects, byte for byte.

Reading starts where steering.oracle_packet.parse ends: flags of TCP, types of ICMP, what an error quotes. Writing
follows RFC 1624 for what changes in a packet, so that a checksum that was wrong stays wrong by as much, and RFC 9293,
792 and 4443 for answers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from softunicast.kernel.abi_util import MAPPED, addr_ip
from softunicast.steering.oracle_packet import (
    ECHO_REPLY,
    ECHO_REQUEST,
    ETHERNET,
    ICMP,
    ICMP6,
    IP4_HEADER,
    IP6_HEADER,
    TCP,
    UDP,
    Packet,
)
from softunicast.wire import craft
from softunicast.wire.extension import CutOff, follow

FIN, SYN, RST, ACK = 1, 2, 4, 16
CHECK_AT: Final = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}
ECHOES: Final = (ICMP, ICMP6)


@dataclass(frozen=True, slots=True)
class Quote:
    """The packet in an ICMP error. `ip` and `layer4` are offsets in the frame, ports in host order."""

    ip: int
    layer4: int
    proto: int
    source: bytes
    target: bytes
    source_port: int
    target_port: int


def tcp_flags(packet: Packet) -> int:
    """0 unless it is TCP whose header is there."""
    there = packet.proto == TCP and packet.ports is not None and not packet.fragment_at
    return packet.frame[packet.layer4 + 13] if there else 0


def is_bare_syn(packet: Packet) -> bool:
    return tcp_flags(packet) & (SYN | ACK) == SYN


def icmp_type(packet: Packet) -> int:
    """-1 unless it is ICMP (in IPv6: ICMPv6) whose header is there."""
    if packet.proto != (ICMP6 if packet.ip6 else ICMP) or packet.fragment_at:
        return -1
    return packet.frame[packet.layer4]


def quote_of(packet: Packet) -> Quote | None:
    """What an ICMP error quotes, if its ports are there."""
    if packet.quoted is None:
        return None
    frame, at = packet.frame, packet.layer4 + 8
    if packet.ip6:
        try:
            chain = follow(frame, at + IP6_HEADER, frame[at + 6])
        except CutOff:
            return None
        proto, layer4 = chain.proto, chain.offset
        source, target = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
    else:
        proto, layer4 = frame[at + 9], at + (frame[at] & 15) * 4
        source, target = MAPPED + frame[at + 12 : at + 16], MAPPED + frame[at + 16 : at + 20]
    first, second = struct.unpack_from("!HH", frame, layer4)
    if proto in ECHOES:
        identity = struct.unpack_from("!H", frame, layer4 + 4)[0]
        asked = frame[layer4] == ECHO_REQUEST[proto]
        first, second = (identity, 0) if asked else (0, identity)
    return Quote(at, layer4, proto, source, target, first, second)


def _updated(check: int, old: bytes, new: bytes) -> int:
    """RFC 1624 equation 3 over any number of bytes, an even one."""
    size = len(old) // 2
    total = (check ^ 0xFFFF) + sum(struct.unpack(f"!{size}H", new))
    total += sum(word ^ 0xFFFF for word in struct.unpack(f"!{size}H", old))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def _update(frame: bytearray, at: int, old: bytes, new: bytes) -> None:
    struct.pack_into("!H", frame, at, _updated(struct.unpack_from("!H", frame, at)[0], old, new))


def _port_at(proto: int, *, target: bool) -> int:
    return 4 if proto in ECHOES else 2 if target else 0


def _wire(address: bytes, ip6: bool) -> bytes:
    return address if ip6 else address[12:]


def _set_address(frame: bytearray, ip: int, ip6: bool, address: bytes, *, target: bool, hop: bool) -> None:
    """In the IP header at `ip`, one hop less to live if asked, IPv4's checksum along."""
    if ip6:
        at = ip + (24 if target else 8)
        frame[at : at + 16] = address
        frame[ip + 7] -= hop
        return
    at = ip + (16 if target else 12)
    before = bytes(frame[ip + 8 : ip + 10]) + bytes(frame[at : at + 4])
    frame[ip + 8] -= hop
    frame[at : at + 4] = address[12:]
    _update(frame, ip + 10, before, bytes(frame[ip + 8 : ip + 10]) + address[12:])


def translated(packet: Packet, address: bytes, port: int, *, target: bool, hop: bool) -> bytes:
    """The frame with its source (or target) replaced. TCP, UDP, echo; of a later fragment only what IP says."""
    frame, ip6, l4 = bytearray(packet.frame), packet.ip6, packet.layer4
    assert packet.ports is not None
    if packet.fragment_at:
        _set_address(frame, packet.offset, ip6, address, target=target, hop=hop)
        return bytes(frame)
    was = _wire(packet.target if target else packet.source, ip6)
    old = struct.pack("!H", packet.ports[1 if target else 0])
    new = struct.pack("!H", port)
    check = l4 + CHECK_AT[packet.proto]
    if packet.proto == ICMP:
        _update(frame, check, old, new)
    elif packet.proto != UDP or frame[check : check + 2] != b"\0\0":
        _update(frame, check, was + old, _wire(address, ip6) + new)
        if packet.proto == UDP and frame[check : check + 2] == b"\0\0":
            frame[check : check + 2] = b"\xff\xff"
    at = l4 + _port_at(packet.proto, target=target)
    frame[at : at + 2] = new
    _set_address(frame, packet.offset, ip6, address, target=target, hop=hop)
    return bytes(frame)


def translated_error(packet: Packet, address: bytes, port: int, *, target: bool, hop: bool) -> bytes:
    """An ICMP error with its source (or target) replaced, and the other end of its quote (RFC 5508 section 4.2)."""
    frame, ip6 = bytearray(packet.frame), packet.ip6
    quote = quote_of(packet)
    assert quote is not None
    inside = not target  # of the quotation: its target, when the error's own source changes
    was = _wire(quote.target if inside else quote.source, ip6)
    now = _wire(address, ip6)
    old = struct.pack("!H", quote.target_port if inside else quote.source_port)
    new = struct.pack("!H", port)
    message = bytes(frame[packet.layer4 :])
    check = quote.layer4 + CHECK_AT[quote.proto]
    if check + 2 <= len(frame) and (quote.proto != UDP or frame[check : check + 2] != b"\0\0"):
        pseudo = ip6 or quote.proto != ICMP
        _update(frame, check, was + old if pseudo else old, now + new if pseudo else new)
    at = quote.layer4 + _port_at(quote.proto, target=inside)
    frame[at : at + 2] = new
    at = quote.ip + ((24 if inside else 8) if ip6 else (16 if inside else 12))
    if not ip6:
        _update(frame, quote.ip + 10, was, now)
    frame[at : at + len(now)] = now
    outer_was = _wire(packet.target if target else packet.source, ip6)
    before = message + bytes(len(message) & 1)
    after = bytes(frame[packet.layer4 :]) + bytes(len(message) & 1)
    if ip6:
        before, after = outer_was + before, now + after
    _update(frame, packet.layer4 + 2, before, after)
    _set_address(frame, packet.offset, ip6, address, target=target, hop=hop)
    return bytes(frame)


def _answer(packet: Packet, ip_packet: bytes) -> bytes:
    """Back to where the frame came from."""
    return packet.frame[6:12] + packet.frame[:6] + packet.frame[12:ETHERNET] + ip_packet


def refusal(packet: Packet) -> bytes:
    """The RST|ACK to a SYN, RFC 9293 section 3.10.7.1."""
    assert packet.ports is not None
    sequence, offset = struct.unpack_from("!I4xB", packet.frame, packet.layer4 + 4)
    length = packet.total - (packet.layer4 - packet.offset) - (offset >> 4) * 4 + 1
    segment = craft.tcp(
        addr_ip(packet.target), packet.ports[1], addr_ip(packet.source), packet.ports[0],
        flags=RST | ACK, acknowledgement=(sequence + length) & 0xFFFFFFFF, window=0,
    )  # fmt: skip
    return _answer(packet, segment)


def error(packet: Packet, source: bytes, kind: int, code: int, mtu: int = 0) -> bytes:
    """The ICMP (ICMPv6) error about a packet: quoted are its IP header and 8 bytes, 20 of TCP."""
    size = packet.layer4 - packet.offset + (20 if packet.proto == TCP else 8)
    quoted = packet.frame[packet.offset : packet.offset + size]
    return _answer(packet, craft.icmp_error(addr_ip(source), addr_ip(packet.source), kind, code, quoted, rest=mtu))


def echo_answer(packet: Packet) -> bytes:
    """The reply to a ping, made in place. A later fragment of one has no type to turn."""
    frame, at, l4 = bytearray(packet.frame), packet.offset, packet.layer4
    if not packet.fragment_at:
        before = bytes(frame[l4 : l4 + 2])
        frame[l4], frame[l4 + 1] = ECHO_REPLY[packet.proto], 0
        _update(frame, l4 + 2, before, bytes(frame[l4 : l4 + 2]))
    if packet.ip6:
        frame[at + 7] = 64
        frame[at + 8 : at + 40] = packet.target + packet.source
    else:
        before = bytes(frame[at + 8 : at + 10])
        frame[at + 8] = 64
        _update(frame, at + 10, before, bytes(frame[at + 8 : at + 10]))
        frame[at + 12 : at + 20] = packet.target[12:] + packet.source[12:]
    return bytes(frame)


def header_size(ether_type: int) -> int:
    """Bytes of an IP header without options."""
    return IP6_HEADER if ether_type == 0x86DD else IP4_HEADER
