# SPDX-License-Identifier: Apache-2.0
"""The lab's VPN: a process that holds one TUN device in a node's namespace and one in a client's, and moves
packets.

    client's kernel -> tun0 -> this process -> t1 -> the node's tc ingress, and back

It stands for any program with a TUN on a server: it neither looks at packets nor keeps state. Run as `python
-m softunicast.lab.pump NODE-NETNS NODE-DEVICE CLIENT-NETNS CLIENT-DEVICE`; the devices exist already (they
are persistent) and may be reopened after this process was killed. Writes "ready" to standard output once it
pumps. Ends with status 0 on SIGTERM, or when a device is removed. What cannot be written (a device that is
down) is lost, as on any line.

Sources: Documentation/networking/tuntap.rst, drivers/net/tun.c.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import select
import signal
import struct
import sys
from pathlib import Path
from typing import Final

CLONE_NEWNET: Final = 0x40000000
TUNSETIFF: Final = 0x400454CA
IFF_TUN: Final = 0x0001
IFF_NO_PI: Final = 0x1000
LARGEST_PACKET: Final = 65535
BATCH: Final = 64  # packets one side may send before the other has its turn


def enter_for_good(path: str) -> None:
    """Move this (single-threaded) process to a network namespace. OSError when there is none."""
    libc = ctypes.CDLL(None, use_errno=True)
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if libc.setns(handle, CLONE_NEWNET):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), path)
    finally:
        os.close(handle)


def attach(device: str) -> int:
    """A descriptor of a TUN device of the current namespace, bare IP packets, non-blocking."""
    handle = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(handle, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
    return handle


def move(source: int, target: int) -> None:
    """Move up to BATCH waiting packets. OSError (EBADFD, EIO) when `source` is gone or down."""
    for _ in range(BATCH):
        try:
            packet = os.read(source, LARGEST_PACKET)
        except BlockingIOError:
            return
        try:
            os.write(target, packet)
        except OSError as error:
            if error.errno not in (errno.EIO, errno.EAGAIN, errno.EINVAL, errno.ENOBUFS):
                raise


def pump(first: int, last: int) -> None:
    """Move packets both ways until a device goes away."""
    poller = select.poll()
    other = {first: last, last: first}
    for handle in other:
        poller.register(handle, select.POLLIN)
    while True:
        for handle, events in poller.poll():
            if events & select.POLLIN:
                move(handle, other[handle])
            elif events & (select.POLLERR | select.POLLHUP | select.POLLNVAL):
                return


def main(arguments: list[str]) -> int:
    """See the module's text for arguments."""
    node_netns, node_device, client_netns, client_device = arguments
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    handles = []
    # The client's namespace last but one: the process stays in the node's, as a VPN server would.
    for path, device in ((client_netns, client_device), (node_netns, node_device)):
        enter_for_good(str(Path(path)))
        handles.append(attach(device))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    pump(*handles)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
