# SPDX-License-Identifier: Apache-2.0
"""Socket options that Python 3.11 has no names for, and the hold socket made of them.

A *hold socket* keeps a five-tuple in the kernel's table without sending anything: with TCP_FASTOPEN_CONNECT
connect(2) waits for the first write before it sends the SYN, and with TCP_FASTOPEN_NO_COOKIE it needs no cookie for
that; a program that never writes never sends. Sources: include/uapi/linux/in.h, tcp.h; net/ipv4/tcp_fastopen.c
(tcp_fastopen_defer_connect); tcp(7), ip(7).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable
from typing import Final

IP_BIND_ADDRESS_NO_PORT: Final = 24
IP_LOCAL_PORT_RANGE: Final = 51
TCP_FASTOPEN_CONNECT: Final = 30
TCP_FASTOPEN_NO_COOKIE: Final = 34
TCP_REPAIR: Final = 19
IP_TRANSPARENT: Final = 19
SO_ORIGINAL_DST: Final = 80
STATES: Final = {1: "ESTABLISHED", 2: "SYN-SENT", 3: "SYN-RECV", 7: "CLOSE"}
Place = tuple[str, int]


def tcp() -> socket.socket:
    """A TCP socket that vanishes by a RST, or without a word if it never spoke: no TIME_WAIT is left."""
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    return made


def udp() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM)


def port_range(sock: socket.socket, first: int, last: int) -> None:
    """Take a port only at connect(2), and one of these."""
    sock.setsockopt(socket.IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1)
    sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, last << 16 | first)


def hold(local: Place, remote: Place, *, reuse: bool = True) -> socket.socket:
    """A TCP hold socket. OSError: EADDRNOTAVAIL or EADDRINUSE, somebody has that five-tuple."""
    made = tcp()
    try:
        if reuse:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_CONNECT, 1)
        made.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN_NO_COOKIE, 1)
        made.bind(local)
        made.connect(remote)
    except BaseException:
        made.close()
        raise
    return made


def state(sock: socket.socket) -> str:
    """A TCP socket's state by TCP_INFO, whose first byte it is."""
    number = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
    return STATES.get(number, str(number))


def answer(work: Callable[[], object]) -> str:
    """`works`, or the name of the errno that it raised."""
    try:
        work()
    except TimeoutError:
        return "no answer"
    except OSError as error:
        if error.errno == errno.EOPNOTSUPP:
            return "EOPNOTSUPP"  # Linux has one number for it and ENOTSUP
        return errno.errorcode.get(error.errno or 0, str(error))
    return "works"
