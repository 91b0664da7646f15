# SPDX-License-Identifier: Apache-2.0
"""The lab's VPN: a process that holds one TUN device in a node's namespace and one in a client's, and moves
packets.

    client's kernel -> tun0 -> this process -> t1 -> the node's tc ingress, and back

It stands for any program with a TUN on a server: it neither looks at packets nor keeps state. Run as `python
-m softunicast.lab.pump NODE-NETNS NODE-DEVICE CLIENT-NETNS CLIENT-DEVICE` in the node's namespace, where it
stays; the devices exist already (they are persistent) and may be reopened after this process was killed. Writes
"ready" to standard output once it pumps. Ends with status 0 on SIGTERM, or when a device is removed. What cannot
be written (a device that is down) is lost, as on any line.

Source: drivers/net/tun.c.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
from typing import Final

from softunicast.kernel import netns
from softunicast.kernel.tun import open_tun

LARGEST_PACKET: Final = 65535
BATCH: Final = 64  # packets one side may send before the other has its turn


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
    for path, device in ((client_netns, client_device), (node_netns, node_device)):
        with netns.enter(path):
            handles.append(open_tun(device))
        os.set_blocking(handles[-1], False)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    pump(*handles)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
