# SPDX-License-Identifier: Apache-2.0
"""tc before TCX (kernels 6.1 to 6.5): a direct-action filter on the clsact qdisc.

The filter needs no pin and outlives everyone; it ends with detach() or its device. Ours is known by its
priority and handle, so a second attach() replaces it in place. Devices are those of the calling thread's
namespace.

Sources: net/sched/cls_bpf.c, net/sched/sch_ingress.c, tc-bpf(8), tools/lib/bpf/netlink.c (bpf_tc_*).
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import Final

from softunicast.errors import KernelError
from softunicast.kernel.libbpf import TcHook, TcOptions, captured_log, libbpf
from softunicast.kernel.programs import Program

INGRESS: Final = 1  # enum bpf_tc_attach_point
EGRESS: Final = 2
REPLACE: Final = 1  # BPF_TC_F_REPLACE
PRIORITY: Final = 0x5355
HANDLE: Final = 0x5355
GONE: Final = frozenset({errno.ENOENT, errno.EINVAL, errno.ENODEV})


def attach(program: Program, ifindex: int, *, egress: bool) -> None:
    """Attach `program`, the qdisc added when missing. KernelError when the kernel refuses; nothing has
    changed then, but for the qdisc."""
    hook, options = place(ifindex, egress)
    options.prog_fd, options.flags = program.fd, REPLACE
    with captured_log() as log:
        made = libbpf().bpf_tc_hook_create(ctypes.byref(hook))
        if made == -errno.EEXIST:
            made = 0
        result = made or libbpf().bpf_tc_attach(ctypes.byref(hook), ctypes.byref(options))
    if result < 0:
        message = f"attach {program.name} to device {ifindex}, clsact: {os.strerror(-result)}"
        raise KernelError(message, errno=-result, log="".join(log))


def detach(ifindex: int, *, egress: bool) -> bool:
    """Remove our filter; False when there was none. The qdisc stays, others may use it."""
    if attached(ifindex, egress=egress) is None:
        return False
    hook, options = place(ifindex, egress)
    with captured_log() as log:
        result = libbpf().bpf_tc_detach(ctypes.byref(hook), ctypes.byref(options))
    if -result in GONE:
        return False
    if result < 0:
        message = f"detach from device {ifindex}, clsact: {os.strerror(-result)}"
        raise KernelError(message, errno=-result, log="".join(log))
    return True


def attached(ifindex: int, *, egress: bool) -> int | None:
    """The id of the program in our filter, None when there is none, or no such device."""
    hook, options = place(ifindex, egress)
    with captured_log() as log:
        result = libbpf().bpf_tc_query(ctypes.byref(hook), ctypes.byref(options))
    if -result in GONE:
        return None
    if result < 0:
        message = f"read the filters of device {ifindex}: {os.strerror(-result)}"
        raise KernelError(message, errno=-result, log="".join(log))
    return int(options.prog_id)


def place(ifindex: int, egress: bool) -> tuple[TcHook, TcOptions]:
    """Where our filter is."""
    hook = TcHook(sz=ctypes.sizeof(TcHook), ifindex=ifindex, attach_point=EGRESS if egress else INGRESS)
    return hook, TcOptions(sz=ctypes.sizeof(TcOptions), handle=HANDLE, priority=PRIORITY)
