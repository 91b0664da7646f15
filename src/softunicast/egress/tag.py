# SPDX-License-Identifier: Apache-2.0
"""A policy put on one socket that exists, by its descriptor: what su_sock_create does when a socket is born in a cgroup
that has a policy.

The storage of sockets (`socks`) can be written by whoever may use bpf(2), keyed by a descriptor of the calling process
(net/core/bpf_sk_storage.c, bpf_fd_sk_storage_update_elem). The socket stays its maker's: its user, its cgroup (and so
its memory's account), its network namespace. docs/adr/0012 has what this costs beside the other ways.
"""

from __future__ import annotations

import socket
import struct
from dataclasses import replace
from typing import Final

from softunicast.errors import KernelError, UsageError
from softunicast.kernel import abi, maps, netns

FD: Final = struct.Struct("=i")
COOKIE: Final = struct.Struct("=Q")
MPTCP: Final = 262
PROTOCOLS: Final = frozenset(
    {socket.IPPROTO_TCP, socket.IPPROTO_UDP, socket.IPPROTO_ICMP, socket.IPPROTO_ICMPV6, MPTCP}
)


def check_taggable(made: socket.socket, netns_cookie: int) -> None:
    """UsageError: not an internet socket of that network namespace that could use a slice."""
    if made.family not in (socket.AF_INET, socket.AF_INET6) or made.proto not in PROTOCOLS:
        raise UsageError("a policy is for sockets of TCP, UDP, MPTCP and ping; this is another")
    if COOKIE.unpack(made.getsockopt(socket.SOL_SOCKET, netns.SO_NETNS_COOKIE, COOKIE.size))[0] != netns_cookie:
        raise UsageError("the socket is of another network namespace than the node; make it there")


def tag(socks: maps.Map, descriptor: int, policy: abi.Policy) -> None:
    """That socket follows `policy` from its next connect() on. UsageError while it holds a flow; KernelError."""
    key = FD.pack(descriptor)
    try:
        try:
            socks.update(key, abi.Sock(policy=policy).pack(), maps.NOEXIST)
        except FileExistsError:
            before = abi.Sock.unpack(socks.lookup(key) or bytes(abi.Sock.SIZE))
            if before.flags & abi.SockFlag.CLAIMED:
                raise UsageError("the socket holds a flow already; close it, and use a new one") from None
            socks.update(key, replace(before, policy=policy).pack(), maps.EXIST)
    except OSError as error:
        raise KernelError(f"policy of a socket: {error.strerror or error}", errno=error.errno or 0) from error
