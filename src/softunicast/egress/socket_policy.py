# SPDX-License-Identifier: Apache-2.0
"""A policy for one socket: whoever made it writes the tag that the hooks read, by the socket's descriptor.

What `su_sock_create` does for sockets born in a cgroup with a policy is done here from user space: the record in
the map `socks` (BPF_MAP_TYPE_SK_STORAGE, whose key from user space is a descriptor) gets a policy before the socket
connects or binds. It needs no cgroup, no fork and no other process, so one program may use many pools at once, each
socket another. It counts only where the hooks are attached: `require_hooks` makes sure.

The update is one bpf(2); the attribute is kept and filled in, because it is made for each connection.
Source: kernel/bpf/syscall.c (map_update_elem), net/core/bpf_sk_storage.c (bpf_fd_sk_storage_update_elem).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Final

from softunicast.errors import KernelError, UsageError
from softunicast.kernel import abi, nodes
from softunicast.kernel.libbpf import BPF_SYSCALL, Command, libc
from softunicast.kernel.maps import NOEXIST

HOOKS: Final = ("su_connect4", "su_connect6", "su_sendmsg4", "su_sendmsg6", "su_bind4", "su_bind6", "su_sockops")


def require_hooks(node: str) -> None:
    """UsageError when the node's hooks are not there: a tag would mean nothing, and sockets leave as they please."""
    lacking = [name for name in HOOKS if not nodes.link_pin(node, name).exists()]
    if lacking:
        raise UsageError(f"node {node}: its socket hooks are not attached ({lacking[0]} ...); start its agent")


class SocketPolicies:
    """Tags sockets of this node's network namespace."""

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
            NOEXIST,
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
