# SPDX-License-Identifier: Apache-2.0
"""TUN and TAP devices: a descriptor whose reads and writes are packets of a device.

Opened without packet information (IFF_NO_PI): one read or write is one bare IP packet (TUN) or one Ethernet
frame (TAP). The device belongs to the namespace the thread was in, and goes with its last descriptor unless
it was made to persist. Source: Documentation/networking/tuntap.rst.
"""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

from softunicast.errors import KernelError, UsageError

DEVICE: Final = "/dev/net/tun"
TUNSETIFF: Final = 0x400454CA
TUNSETPERSIST: Final = 0x400454CB
IFF_TUN: Final = 0x0001
IFF_TAP: Final = 0x0002
IFF_NO_PI: Final = 0x1000
NAME_ROOM: Final = 16  # IFNAMSIZ, the zero counted


def open_tun(name: str, *, tap: bool = False) -> int:
    """A blocking descriptor of device `name`, made when missing; the caller closes it.

    UsageError for a name the kernel cannot have, KernelError when it refuses (EBUSY: somebody holds it).
    """
    return open_named(name, tap=tap)[0]


def open_named(name: str, *, tap: bool = False) -> tuple[int, str]:
    """As open_tun, and what the device is called: of a name with %d in it the kernel makes one that is free."""
    raw = name.encode()
    if not raw or len(raw) >= NAME_ROOM:
        raise UsageError(f"device name {name!r}: must have 1 to {NAME_ROOM - 1} characters")
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        remedy = "load the module (modprobe tun)"
        raise KernelError(f"{DEVICE}: {error.strerror}: {remedy}", errno=error.errno or 0) from error
    try:
        made = fcntl.ioctl(fd, TUNSETIFF, struct.pack("=16sH22x", raw, (IFF_TAP if tap else IFF_TUN) | IFF_NO_PI))
    except OSError as error:
        os.close(fd)
        kind = "tap" if tap else "tun"
        raise KernelError(f"{kind} device {name}: {error.strerror}", errno=error.errno or 0) from error
    return fd, made[:NAME_ROOM].rstrip(b"\0").decode()


def persist(fd: int) -> None:
    """The device stays when its last descriptor is closed."""
    try:
        fcntl.ioctl(fd, TUNSETPERSIST, 1)
    except OSError as error:
        raise KernelError(f"keep a tun device: {error.strerror}", errno=error.errno or 0) from error
