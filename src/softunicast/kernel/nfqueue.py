# SPDX-License-Identifier: Apache-2.0
"""A queue of netfilter: packets that wait for a verdict. Only their headers come here (NFQNL_COPY_PACKET, cut short).

The few messages are written here, as no library can go on with a queue's descriptor that another process opened, which
an upgrade needs. One socket is bound to a queue of the namespace it was made in; any process that has the descriptor
may read and give verdicts. A packet whose queue has no socket, or is full, is dropped.

    nlmsghdr | nfgenmsg (family, version, queue: be16) | attributes (nla: u16 length, u16 type, value)

Sources: include/uapi/linux/netfilter/nfnetlink_queue.h, net/netfilter/nfnetlink_queue.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from softunicast.errors import KernelError

NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 3 << 8
_PACKET, _VERDICT, _CONFIG = _SUBSYSTEM | 0, _SUBSYSTEM | 1, _SUBSYSTEM | 2
_REQUEST, _ACK = 1, 4
_ERROR: Final = 2  # NLMSG_ERROR
_CFG_CMD, _CFG_PARAMS, _CFG_MAXLEN = 1, 2, 3
_PACKET_HDR, _VERDICT_HDR, _MARK, _PAYLOAD = 1, 2, 3, 10
_BIND: Final = b"\x01\0\0\0"
_COPY_PACKET: Final = 2
HEADER_BYTES: Final = 64
"""Of each packet: IPv6 and the ports."""
_MESSAGE: Final = struct.Struct("=IHHII")
_GENERIC: Final = struct.Struct("!BBH")
_ATTRIBUTE: Final = struct.Struct("=HH")
_TYPE_MASK: Final = 0x3FFF
_READ_BYTES: Final = 65536
_TCP: Final = 6


class Verdict(IntEnum):
    """What becomes of a packet (include/uapi/linux/netfilter.h)."""

    DROP = 0
    ACCEPT = 1
    QUEUE = 3  # again, at the end of the same queue 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """A packet that waits. `source` and `destination` None: no TCP that we can read."""

    id: int
    source: tuple[IPv4Address | IPv6Address, int] | None
    destination: tuple[IPv4Address | IPv6Address, int] | None


def open_queue(number: int, length: int = 1024) -> socket.socket:
    """Bind a queue of the current namespace, for at most `length` packets. KernelError: somebody has it (EBUSY), or
    the kernel has no queues."""
    made = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETLINK_NETFILTER)
    try:
        made.bind((0, 0))
        made.settimeout(5)
        params = struct.pack("!IB", HEADER_BYTES, _COPY_PACKET)
        for kind, value in ((_CFG_CMD, _BIND), (_CFG_PARAMS, params), (_CFG_MAXLEN, struct.pack("!I", length))):
            made.send(_message(_CONFIG, number, _attribute(kind, value), _ACK))
            _answered(made.recv(_READ_BYTES))
        made.setblocking(False)
    except OSError as error:
        made.close()
        why = os.strerror(error.errno or 0)
        raise KernelError(f"netfilter queue {number}: {why}", errno=error.errno or 0) from error
    return made


def _answered(data: bytes) -> None:
    _, kind, _, _, _ = _MESSAGE.unpack_from(data)
    number = -int(struct.unpack_from("=i", data, _MESSAGE.size)[0]) if kind == _ERROR else 0
    if number:
        raise OSError(number, os.strerror(number))


def read(queue: socket.socket) -> list[Waiting]:
    """What waits; empty: nothing more now."""
    try:
        data = queue.recv(_READ_BYTES)
    except OSError as error:
        # ENOBUFS: some were lost, and will be sent again by whoever sent them.
        if error.errno in (errno.EAGAIN, errno.ENOBUFS):
            return []
        raise
    return list(parse(data))


def parse(data: bytes) -> Iterator[Waiting]:
    """The packets of what was read. Messages that are cut off or of other kinds are passed over."""
    at = 0
    while at + _MESSAGE.size <= len(data):
        length, kind, _, _, _ = _MESSAGE.unpack_from(data, at)
        if length < _MESSAGE.size or at + length > len(data):
            return
        if kind == _PACKET and length >= _MESSAGE.size + _GENERIC.size:
            attributes = dict(_attributes(data[at + _MESSAGE.size + _GENERIC.size : at + length]))
            header = attributes.get(_PACKET_HDR, b"")
            if len(header) >= 4:
                ends = tcp_ends(attributes.get(_PAYLOAD, b""))
                yield Waiting(int.from_bytes(header[:4], "big"), *(ends or (None, None)))
        at += (length + 3) & ~3


def tcp_ends(
    packet: bytes,
) -> tuple[tuple[IPv4Address | IPv6Address, int], tuple[IPv4Address | IPv6Address, int]] | None:
    """Source and destination of a TCP packet; None: it is another, too short, or its ports are behind IPv6 extension
    headers."""
    version = packet[0] >> 4 if packet else 0
    source: IPv4Address | IPv6Address
    destination: IPv4Address | IPv6Address
    if version == 4 and len(packet) >= 20 and packet[9] == _TCP:
        at = (packet[0] & 15) * 4
        source, destination = IPv4Address(packet[12:16]), IPv4Address(packet[16:20])
    elif version == 6 and len(packet) >= 40 and packet[6] == _TCP:
        at = 40
        source, destination = IPv6Address(packet[8:24]), IPv6Address(packet[24:40])
    else:
        return None
    if at < 20 or len(packet) < at + 4:
        return None
    ports = struct.unpack_from("!HH", packet, at)
    return (source, ports[0]), (destination, ports[1])


def decide(queue: socket.socket, waiting: int, verdict: Verdict, mark: int = 0) -> None:
    """Let the packet of that id go its way. One that is gone (its device went) is no error."""
    header = _attribute(_VERDICT_HDR, struct.pack("!II", verdict, waiting))
    queue.send(_message(_VERDICT, 0, header + (_attribute(_MARK, struct.pack("!I", mark)) if mark else b"")))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        yield kind & _TYPE_MASK, data[at + _ATTRIBUTE.size : at + length]
        at += (length + 3) & ~3


def _attribute(kind: int, value: bytes) -> bytes:
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def _message(kind: int, number: int, attributes: bytes, flags: int = 0) -> bytes:
    body = _GENERIC.pack(socket.AF_UNSPEC, 0, number) + attributes
    return _MESSAGE.pack(_MESSAGE.size + len(body), kind, _REQUEST | flags, 0, 0) + body
