# SPDX-License-Identifier: Apache-2.0
"""tc before TCX (kernels 6.1 to 6.5): a direct-action filter on the clsact qdisc, by netlink.

The filter needs no pin and outlives everyone; it ends with detach() or its device. Ours is known by its
priority and handle, so a second attach() replaces it in place.

Sources: net/sched/cls_bpf.c, net/sched/sch_ingress.c, tc-bpf(8).
"""

from __future__ import annotations

import errno
import os
from typing import Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from softunicast.errors import KernelError
from softunicast.kernel.programs import Program

INGRESS: Final = 0xFFFFFFF2
EGRESS: Final = 0xFFFFFFF3
PRIORITY: Final = 0x5355
HANDLE: Final = 0x5355
ETH_P_ALL: Final = 0x0003
GONE: Final = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV})


def attach(program: Program, ifindex: int, *, egress: bool) -> None:
    """Attach `program`, the qdisc added when missing. KernelError when netlink refuses; nothing changed then,
    but for the qdisc."""
    try:
        with IPRoute() as netlink:
            try:
                netlink.tc("add", "clsact", ifindex)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
            netlink.tc(
                "replace-filter",
                "bpf",
                ifindex,
                handle=HANDLE,
                parent=EGRESS if egress else INGRESS,
                prio=PRIORITY,
                protocol=ETH_P_ALL,
                fd=program.fd,
                name=program.name,
                direct_action=True,
            )
    except NetlinkError as error:
        message = f"attach {program.name} to device {ifindex}, clsact: {os.strerror(error.code)}"
        raise KernelError(message, errno=error.code) from error


def detach(ifindex: int, *, egress: bool) -> bool:
    """Remove our filter; False when there was none. The qdisc stays, others may use it."""
    try:
        with IPRoute() as netlink:
            netlink.tc(
                "del-filter",
                "bpf",
                ifindex,
                handle=HANDLE,
                parent=EGRESS if egress else INGRESS,
                prio=PRIORITY,
                protocol=ETH_P_ALL,
            )
    except NetlinkError as error:
        if error.code in GONE:
            return False
        message = f"detach from device {ifindex}, clsact: {os.strerror(error.code)}"
        raise KernelError(message, errno=error.code) from error
    return True


def attached(ifindex: int, *, egress: bool) -> str | None:
    """The name of the program in our filter, None when there is none."""
    parent = EGRESS if egress else INGRESS
    try:
        with IPRoute() as netlink:
            for found in netlink.get_filters(index=ifindex, parent=parent):
                options = found.get_attr("TCA_OPTIONS")
                if found["handle"] == HANDLE and found["info"] >> 16 == PRIORITY and options is not None:
                    return str(options.get_attr("TCA_BPF_NAME"))
    except NetlinkError as error:
        if error.code not in GONE:
            message = f"read filters of device {ifindex}: {os.strerror(error.code)}"
            raise KernelError(message, errno=error.code) from error
    return None
