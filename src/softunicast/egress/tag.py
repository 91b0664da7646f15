# SPDX-License-Identifier: Apache-2.0
"""A policy put on one socket that exists, by its descriptor: what su_sock_create does when a socket is born in a cgroup
that has a policy.

The storage of sockets (`socks`) can be written by whoever may use bpf(2), keyed by a descriptor of the calling process
(net/core/bpf_sk_storage.c, bpf_fd_sk_storage_update_elem). The socket stays its maker's: its user, its cgroup (and so
its memory's account), its network namespace. docs/adr/0012 has what this costs beside the other ways.
"""

from __future__ import annotations

import ctypes
import os
import platform
import socket
import struct
from dataclasses import replace
from typing import Final

from softunicast.errors import KernelError, UsageError
from softunicast.kernel import abi, maps, netns, nodes
from softunicast.kernel.libbpf import BPF_SYSCALL, Command, libc

FD: Final = struct.Struct("=i")
COOKIE: Final = struct.Struct("=Q")
MPTCP: Final = 262
HOOKS: Final = ("su_connect4", "su_connect6", "su_sendmsg4", "su_sendmsg6", "su_bind4", "su_bind6", "su_sockops")
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


def require_hooks(node: str) -> None:
    """UsageError when the node's hooks are not there: a tag would mean nothing, and sockets leave as they please."""
    lacking = [name for name in HOOKS if not nodes.link_pin(node, name).exists()]
    if lacking:
        raise UsageError(f"node {node}: its socket hooks are not attached ({lacking[0]} ...); start its agent")


class SocketPolicies:
    """Tags many new sockets of this node's network namespace: one bpf(2) each, the attribute kept and filled in."""

    def __init__(self, node: str) -> None:
        """UsageError when the node has no maps: its agent never ran here."""
        self._maps = nodes.open_maps(node)
        self._key = ctypes.c_int()
        self._value = ctypes.create_string_buffer(abi.Sock.SIZE)
        self._attribute = ctypes.create_string_buffer(32)
        struct.pack_into(
            "=IxxxxQQQ",
            self._attribute,
            0,
            self._maps["socks"].fd,
            ctypes.addressof(self._key),
            ctypes.addressof(self._value),
            maps.NOEXIST,
        )
        self._syscall = libc().syscall
        number = BPF_SYSCALL[platform.machine()]  # the maps were opened by it
        self._arguments = (number, int(Command.MAP_UPDATE_ELEM), self._attribute, len(self._attribute))

    def tag(self, fd: int, policy: abi.Policy) -> None:
        """The socket follows `policy` from its next connect(), bind() or sendto(). KernelError: it does not; close it.

        For new sockets only: one that has a record already (born in a cgroup with a policy) is refused.
        """
        self.tag_packed(fd, abi.Sock(policy=policy).pack())

    def tag_packed(self, fd: int, record: bytes) -> None:
        """As `tag`, with the record made before."""
        self._key.value = fd
        self._value.raw = record
        if self._syscall(*self._arguments) < 0:
            number = ctypes.get_errno()
            raise KernelError(f"policy of a socket: {os.strerror(number)}", errno=number)

    def close(self) -> None:
        """Give the descriptors back."""
        self._maps.close()
