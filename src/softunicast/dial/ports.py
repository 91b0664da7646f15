# SPDX-License-Identifier: Apache-2.0
"""Keeping a socket's port within a slice by what the kernel itself offers, hooks or not.

    NO_PORT    bind(address, 0) under IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE set: connect() chooses, by four-tuple
    EXPLICIT   bind(address, port), port after port from a random one; connect() says whether it is taken

The trap (FINDINGS.md 1): without our hooks a range outside net.ipv4.ip_local_port_range is accepted, read back and
ignored, one that overlaps it is cut, and reserved ports are passed over. Then a SYN leaves from somebody else's slice.
So NO_PORT is used only where hooks are seen at work, or the kernel's own range has the whole slice and none of it
is reserved; else EXPLICIT, which needs neither. The two do not mix on one port (FINDINGS.md 1).

Whether the hooks are at work is asked without privilege: a port below 1024 that this node does not hold, at an
address of the fleet, is refused by the hook with EADDRNOTAVAIL; without it the kernel says EACCES, or gives it to root.

Source: net/ipv4/af_inet.c (__inet_bind), net/ipv4/inet_connection_sock.c (inet_sk_get_local_port_range), since 6.3.
"""

from __future__ import annotations

import errno
import math
import socket
import struct
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path
from typing import Final

from softunicast.model.slice import Slice

IP_BIND_ADDRESS_NO_PORT: Final = 24
IP_LOCAL_PORT_RANGE: Final = 51
SYSCTLS: Final = Path("/proc/sys/net/ipv4")
SYSTEM_PORTS: Final = range(1, 1024)
RANGE: Final = struct.Struct("=I")


class Style(Enum):
    """How a port of a slice is had."""

    NO_PORT = "no-port"
    EXPLICIT = "explicit"


def family_of(version: int) -> socket.AddressFamily:
    return socket.AF_INET6 if version == 6 else socket.AF_INET


def range_option() -> bool:
    """Whether this kernel has IP_LOCAL_PORT_RANGE (6.3)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        try:
            made.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, 0)
        except OSError:
            return False
    return True


def hooks_at_work(address: str, version: int, held: Iterable[Slice]) -> bool:
    """Whether the hooks guard that address for sockets of this thread's network namespace. OSError: it is not local."""
    ports = [one for one in held if str(one.address) == address]
    port = next(port for port in SYSTEM_PORTS if not any(port in one for one in ports))
    with socket.socket(family_of(version), socket.SOCK_STREAM) as made:
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.bind((address, 0))
    with socket.socket(family_of(version), socket.SOCK_STREAM) as made:
        try:
            made.bind((address, port))
        except OSError as error:
            return error.errno == errno.EADDRNOTAVAIL
    return False


def kernel_range_has(first: int, last: int, local: str, reserved: str) -> bool:
    """Whether the kernel would choose from all of first-last if told to; `local` and `reserved` are the texts of
    net.ipv4.ip_local_port_range and ip_local_reserved_ports."""
    low, high = map(int, local.split())
    if first < low or last > high:
        return False
    for part in filter(None, reserved.strip().split(",")):
        start, _, end = part.partition("-")
        if int(start) <= last and first <= int(end or start):
            return False
    return True


def style_for(lane: Slice, *, hooks: bool, option: bool) -> Style:
    """The style that cannot leave the slice, by what this thread's network namespace has now."""
    if not option:
        return Style.EXPLICIT
    if hooks:
        return Style.NO_PORT
    local = (SYSCTLS / "ip_local_port_range").read_text(encoding="ascii")
    reserved = (SYSCTLS / "ip_local_reserved_ports").read_text(encoding="ascii")
    return Style.NO_PORT if kernel_range_has(lane.first, lane.last, local, reserved) else Style.EXPLICIT


def ports_of(lane: Slice, random: int) -> Iterator[int]:
    """Every port once, from a random one by a coprime stride (RFC 6056 section 3.3.5 in spirit)."""
    size = lane.size
    start, stride = random % size, random // size % size or 1
    while math.gcd(stride, size) != 1:
        stride += 1
    for at in range(size):
        yield lane.first + (start + at * stride) % size


def prepare(made: socket.socket, lane: Slice, style: Style, port: int = 0, *, hooks: bool) -> None:
    """Bind for a later connect(). OSError: EADDRNOTAVAIL, EADDRINUSE when that port is not to be had."""
    if style is Style.NO_PORT:
        made.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
        made.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, RANGE.pack(lane.last << 16 | lane.first))
    # What lets a port serve several destinations. UDP would then share even one destination, unless a hook forbids it.
    if made.type == socket.SOCK_STREAM or hooks:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((str(lane.address), port))


def prepare_unconnected(made: socket.socket, lane: Slice, *, option: bool, random: int, hooks: bool) -> None:
    """Bind a UDP socket that is never to connect: a port of its own. OSError: none is left."""
    if hooks and option:
        # The hook gives one of the slice's first ports, claimed towards every destination.
        made.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, RANGE.pack(lane.last << 16 | lane.first))
        made.bind((str(lane.address), 0))
        return
    last: OSError | None = None
    for port in ports_of(lane, random):
        try:
            made.bind((str(lane.address), port))
        except OSError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL):
                raise
            last = error
        else:
            return
    raise last or OSError(errno.EADDRNOTAVAIL, "no port")
