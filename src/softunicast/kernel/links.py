# SPDX-License-Identifier: Apache-2.0
"""BPF links: where a program is attached, owned by a descriptor or a pin instead of a process.

A link is made by bpf(2) directly, because libbpf 1.1 has no TCX; the attribute is the same for all:

    u32 program | u32 target (ifindex or cgroup descriptor) | u32 attach type | u32 flags | by type

Device links belong to the namespace the calling thread is in. Links are pinned to outlive their maker;
`detach()` takes effect at once although pins and descriptors stay. Kernels before 6.6 have no TCX: there
softunicast.kernel.clsact puts the program on the clsact qdisc, which needs no pin and outlives everyone.

Sources: kernel/bpf/syscall.c (link_create), kernel/bpf/tcx.c, net/core/dev.c (bpf_xdp_link_attach),
kernel/bpf/cgroup.c, kernel/bpf/bpf_iter.c.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from softunicast.errors import KernelError
from softunicast.kernel.descriptor import Descriptor, object_info
from softunicast.kernel.libbpf import Command, bpf
from softunicast.kernel.programs import Program

INFO_SIZE: Final = 64
XDP_GENERIC: Final = 1 << 1  # XDP_FLAGS_SKB_MODE
XDP_NATIVE: Final = 1 << 2  # XDP_FLAGS_DRV_MODE
BEFORE: Final = 1 << 3  # BPF_F_BEFORE: ahead of all that is attached


class AttachType(IntEnum):
    """enum bpf_attach_type: those used here (the kernel's numbers, not the header's of an old libbpf)."""

    CGROUP_INET_SOCK_CREATE = 2
    CGROUP_SOCK_OPS = 3
    CGROUP_INET4_BIND = 8
    CGROUP_INET6_BIND = 9
    CGROUP_INET4_CONNECT = 10
    CGROUP_INET6_CONNECT = 11
    CGROUP_UDP4_SENDMSG = 14
    CGROUP_UDP6_SENDMSG = 15
    CGROUP_UDP4_RECVMSG = 19
    CGROUP_UDP6_RECVMSG = 20
    TRACE_ITER = 28
    CGROUP_INET_SOCK_RELEASE = 34
    XDP = 37
    TCX_INGRESS = 46
    TCX_EGRESS = 47


class LinkType(IntEnum):
    """enum bpf_link_type: those made here."""

    CGROUP = 3
    ITER = 4
    XDP = 6
    TCX = 11


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """struct bpf_link_info. `ifindex` is 0 after its device went or it was detached, and for other types.

    `attach_type` and `cgroup_id` are 0 where the type of link has none.
    """

    type: int
    id: int
    program_id: int
    ifindex: int = 0
    cgroup_id: int = 0
    attach_type: int = 0


class Link(Descriptor):
    """An attachment, by descriptor. Closing the last descriptor of a link without a pin detaches it."""

    KIND = "link"

    def __repr__(self) -> str:
        return f"<Link {self.info}>" if self._fd >= 0 else "<Link closed>"

    @property
    def info(self) -> LinkInfo:
        """What the kernel says now."""
        raw = object_info(self.fd, INFO_SIZE)
        kind, number, program = struct.unpack_from("=III", raw)
        if kind == LinkType.TCX:
            ifindex, attach = struct.unpack_from("=II", raw, 16)
            return LinkInfo(kind, number, program, ifindex=ifindex, attach_type=attach)
        if kind == LinkType.XDP:
            (ifindex,) = struct.unpack_from("=I", raw, 16)
            return LinkInfo(kind, number, program, ifindex=ifindex, attach_type=AttachType.XDP)
        if kind == LinkType.CGROUP:
            cgroup, attach = struct.unpack_from("=QI", raw, 16)
            return LinkInfo(kind, number, program, cgroup_id=cgroup, attach_type=attach)
        return LinkInfo(kind, number, program)

    @property
    def id(self) -> int:
        """The kernel's number of this link."""
        return self.info.id

    @property
    def program_id(self) -> int:
        """The number of the program that runs now."""
        return self.info.program_id

    def update(self, program: Program) -> None:
        """Run `program` from now on; nothing passes in between. KernelError: the old one stays."""
        try:
            bpf(Command.LINK_UPDATE, struct.pack("=IIII", self.fd, program.fd, 0, 0))
        except OSError as error:
            message = f"replace the program of {self.info} by {program.name}: {error.strerror}"
            raise KernelError(message, errno=error.errno or 0) from error

    def detach(self) -> None:
        """Detach at once; pins and descriptors stay, empty. A link whose place is gone is no error."""
        try:
            bpf(Command.LINK_DETACH, struct.pack("=I", self.fd))
        except OSError as error:
            if error.errno not in (errno.ENOLINK, errno.ENODEV):
                raise KernelError(f"detach {self.info}: {error.strerror}", errno=error.errno or 0) from error


def create_link(program: Program, target: int, attach_type: int, flags: int, what: str) -> Link:
    """BPF_LINK_CREATE. What else the attribute has depends on the type and is left zero."""
    attribute = struct.pack("=IIII", program.fd, target, attach_type, flags)
    try:
        return Link(bpf(Command.LINK_CREATE, attribute.ljust(64, b"\0")))
    except OSError as error:
        raise KernelError(f"attach {program.name} to {what}: {error.strerror}", errno=error.errno or 0) from error


def attach_tcx(program: Program, ifindex: int, *, egress: bool) -> Link:
    """Attach at tc, ahead of all programs that are there. `ifindex` is of the calling thread's namespace.

    KernelError: `.errno` is EINVAL on kernels before 6.6 (use clsact), ENODEV without that device.
    """
    attach_type = AttachType.TCX_EGRESS if egress else AttachType.TCX_INGRESS
    what = f"device {ifindex}, tc {'egress' if egress else 'ingress'}"
    return create_link(program, ifindex, attach_type, BEFORE, what)


def attach_xdp(program: Program, ifindex: int, *, generic: bool) -> Link:
    """Attach at XDP; `generic` works on every device and is slow. KernelError: EBUSY, EOPNOTSUPP."""
    flags = XDP_GENERIC if generic else XDP_NATIVE
    what = f"device {ifindex}, XDP {'generic' if generic else 'native'}"
    return create_link(program, ifindex, AttachType.XDP, flags, what)


def attach_cgroup(program: Program, cgroup_fd: int, attach_type: int) -> Link:
    """Attach to a cgroup (a descriptor of its folder) and all below. Others' programs there run as well."""
    return create_link(program, cgroup_fd, attach_type, 0, f"a cgroup, attach type {attach_type}")


def run_iter(program: Program) -> str:
    """Run a BPF iterator once over everything; the text it wrote. KernelError when it cannot be made."""
    with create_link(program, 0, AttachType.TRACE_ITER, 0, "an iterator") as link:
        try:
            fd = bpf(Command.ITER_CREATE, struct.pack("=II", link.fd, 0))
        except OSError as error:
            raise KernelError(f"iterate {program.name}: {error.strerror}", errno=error.errno or 0) from error
    with os.fdopen(fd, "rb", buffering=0) as stream:
        parts = []
        while part := stream.read(65536):
            parts.append(part)
    return b"".join(parts).decode(errors="replace")
