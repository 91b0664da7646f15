# SPDX-License-Identifier: Apache-2.0
"""The cookies of all TCP and UDP sockets of this network namespace.

A SOCKET claim names its owner by the socket's cookie; sock_diag shows the same cookie (net/core/sock_diag.c,
sock_diag_save_cookie and bpf_get_socket_cookie both read sk_cookie). MPTCP connections show twice: the
subflows under TCP, the connection itself under MPTCP.

    request  nlmsghdr 16 | inet_diag_req_v2: family u8, protocol u8, ext u8, pad u8, states u32,
    inet_diag_sockid 48 answer   nlmsghdr 16 | inet_diag_msg: family, state, timer, retrans u8 | sport, dport
    be16 | src 16 | dst 16 |
                           ifindex u32 | cookie 2 x u32 | ...

Sources: include/uapi/linux/inet_diag.h, sock_diag.h; net/ipv4/inet_diag.c.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from softunicast.errors import KernelError

_NETLINK_SOCK_DIAG: Final = 4
_SOCK_DIAG_BY_FAMILY: Final = 20
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_NLM_F_REQUEST_DUMP: Final = 0x301
_NLM_F_DUMP_INTR: Final = 0x10
_INET_DIAG_REQ_PROTOCOL: Final = 3
_IPPROTO_MPTCP: Final = 262
_COOKIE_AT: Final = 44
_NO_HANDLER: Final = frozenset({errno.ENOENT, errno.EINVAL, errno.EOPNOTSUPP})
_PROTOCOLS: Final = (socket.IPPROTO_TCP, socket.IPPROTO_UDP, _IPPROTO_MPTCP)


def cookies() -> frozenset[int]:
    """Cookies of all TCP, UDP and MPTCP sockets, of both families. KernelError when the dump fails.

    A socket that is born or dies during the dump may or may not be in it; a caller who deletes on absence
    asks twice. Bound TCP sockets that are neither connected nor listening are not shown by the kernel.
    """
    found: set[int] = set()
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as link:
            link.settimeout(10)
            for family in (socket.AF_INET, socket.AF_INET6):
                for protocol in _PROTOCOLS:
                    found.update(_dump(link, family, protocol))
    except OSError as error:
        raise KernelError(f"sock_diag: {error.strerror or error}", errno=error.errno or 0) from error
    return frozenset(found)


def _dump(link: socket.socket, family: int, protocol: int) -> Iterator[int]:
    body = struct.pack("=BBBBI48x", family, protocol & 0xFF, 0, 0, 0xFFFFFFFF)
    if protocol > 0xFF:
        body += struct.pack("=HHI", 8, _INET_DIAG_REQ_PROTOCOL, protocol)
    link.send(struct.pack("=IHHII", 16 + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST_DUMP, 0, 0) + body)
    interrupted = False
    while True:
        data = link.recv(1 << 18)
        at = 0
        while at + 16 <= len(data):
            length, kind, flags = struct.unpack_from("=IHH", data, at)
            interrupted |= bool(flags & _NLM_F_DUMP_INTR)
            if kind == _NLMSG_DONE:
                if interrupted:
                    raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                return
            if kind == _NLMSG_ERROR:
                number = -struct.unpack_from("=i", data, at + 16)[0]
                if number in _NO_HANDLER:
                    return
                raise OSError(number, os.strerror(number))
            low, high = struct.unpack_from("=II", data, at + 16 + _COOKIE_AT)
            yield low | high << 32
            at += (length + 3) & ~3
