# SPDX-License-Identifier: Apache-2.0
"""The PROXY protocol's header, versions 1 and 2: who the client is, told by a proxy in front.

    1   "PROXY TCP4 192.0.2.1 203.0.113.1 50000 443\\r\\n", at most 107 bytes; "PROXY UNKNOWN ...\\r\\n" tells nothing
    2   0D 0A 0D 0A 00 0D 0A 51 55 49 54 0A | 2 command | family protocol | length | addresses | TLVs
        command 0: LOCAL (the proxy's own, a health check), 1: PROXY; 11: TCP4, 21: TCP6

Source: proxy-protocol.txt of HAProxy, sections 2.1 and 2.2. What a version 2 header holds behind its addresses
(TLVs) is skipped; families without ports tell nothing.
"""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from softunicast.proxy.core.messages import Claim, Endpoint

MAX_LINE: Final = 107
MAX_LENGTH: Final = 4096
"""Of what follows the first 16 bytes of version 2. Addresses take 36, certificates in TLVs seldom a thousand."""
SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
TCP4, TCP6 = 0x11, 0x21
_PORTS: Final = struct.Struct("!HH")


class BadHeader(ValueError):
    """No PROXY header, or a wrong one; `str()` says why."""


def read_header(data: bytes) -> tuple[Claim, int] | None:
    """What a header at the beginning of `data` says, and where it ends; None: there must come more. BadHeader."""
    if data[: len(SIGNATURE)] == SIGNATURE[: len(data)]:
        return _read2(data)
    if data[:6] == b"PROXY "[: len(data)]:
        return _read1(data)
    raise BadHeader("no PROXY header")


def _read1(data: bytes) -> tuple[Claim, int] | None:
    end = data.find(b"\r\n", 0, MAX_LINE)
    if end < 0:
        if len(data) >= MAX_LINE:
            raise BadHeader(f"a PROXY line of more than {MAX_LINE} bytes")
        return None
    words = data[6:end].split(b" ")
    if words[0] == b"UNKNOWN":
        return Claim(None), end + 2
    if words[0] not in (b"TCP4", b"TCP6") or len(words) != 5:
        raise BadHeader("a PROXY line that is not TCP4 or TCP6, two addresses, two ports")
    parse = IPv4Address if words[0] == b"TCP4" else IPv6Address
    try:
        addresses = [parse(word.decode("ascii")) for word in words[1:3]]
    except ValueError as error:
        raise BadHeader("a PROXY line with a wrong address") from error
    ports = [int(word) if word.isdigit() and len(word) <= 5 else 65536 for word in words[3:]]
    if max(ports) > 65535:
        raise BadHeader("a PROXY line with a wrong port")
    return Claim(Endpoint(addresses[0], ports[0]), Endpoint(addresses[1], ports[1])), end + 2


def _read2(data: bytes) -> tuple[Claim, int] | None:
    if len(data) < 16:
        return None
    command, family = data[12], data[13]
    length = int.from_bytes(data[14:16], "big")
    if command not in (0x20, 0x21):
        raise BadHeader(f"a PROXY header of version and command {command:#04x}")
    if length > MAX_LENGTH:
        raise BadHeader(f"a PROXY header of {length} bytes")
    size = {TCP4: 4, TCP6: 16}.get(family, 0)
    if command == 0x21 and size and length < 2 * size + 4:
        raise BadHeader("a PROXY header shorter than its addresses")
    end = 16 + length
    if len(data) < end:
        return None
    if command == 0x20 or not size:
        return Claim(None), end
    parse = IPv4Address if size == 4 else IPv6Address
    source, destination = parse(data[16 : 16 + size]), parse(data[16 + size : 16 + 2 * size])
    ports = _PORTS.unpack_from(data, 16 + 2 * size)
    return Claim(Endpoint(source, ports[0]), Endpoint(destination, ports[1])), end


def write_header(version: int, source: Endpoint, destination: Endpoint) -> bytes:
    """A header of that version for a TCP connection. Ends that are names, or of two families, are told as unknown."""
    ends = (source.host, destination.host)
    v4 = all(isinstance(host, IPv4Address) for host in ends)
    v6 = all(isinstance(host, IPv6Address) for host in ends)
    if version == 1:
        if not (v4 or v6):
            return b"PROXY UNKNOWN\r\n"
        text = f"PROXY TCP{4 if v4 else 6} {ends[0]} {ends[1]} {source.port} {destination.port}\r\n"
        return text.encode("ascii")
    body = b""
    family = 0
    if isinstance(source.host, IPv4Address) and isinstance(destination.host, IPv4Address):
        family, body = TCP4, source.host.packed + destination.host.packed
    elif isinstance(source.host, IPv6Address) and isinstance(destination.host, IPv6Address):
        family, body = TCP6, source.host.packed + destination.host.packed
    if family:
        body += _PORTS.pack(source.port, destination.port)
    return SIGNATURE + bytes((0x21, family)) + len(body).to_bytes(2, "big") + body
