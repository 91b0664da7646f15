# SPDX-License-Identifier: Apache-2.0
"""Sysctls, of any network namespace.

/proc/sys/net shows the namespace of the thread that looks (fs/proc/proc_sysctl.c, net/sysctl_net.c), so a
value is read and written inside `netns.enter()`. Names are as sysctl(8) takes them: `net.ipv4.ip_forward`, or
with slashes, `net/ipv4/conf/eth0.100/forwarding`, where a device's name has dots of its own.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from softunicast.errors import KernelError
from softunicast.kernel import netns as namespaces

FOLDER: Final = Path("/proc/sys")


def path_of(name: str) -> Path:
    """The file of a sysctl."""
    return FOLDER / (name if "/" in name else name.replace(".", "/"))


def get(name: str, *, netns: str | Path | None = None) -> str:
    """The value, without the newline; several are separated by tabs. KernelError when there is none such."""
    with namespaces.enter(netns):
        try:
            return path_of(name).read_text().strip()
        except OSError as error:
            raise KernelError(f"sysctl {name}: {error.strerror}", errno=error.errno or 0) from error


def put(name: str, value: str | int, *, netns: str | Path | None = None) -> str:
    """Set it, unless it is so already; gives the value before. KernelError: nothing was changed."""
    with namespaces.enter(netns):
        before = get(name)
        wanted = str(value)
        if before.split() != wanted.split():
            try:
                path_of(name).write_text(wanted)
            except OSError as error:
                message = f"sysctl {name}: cannot set {wanted!r}: {error.strerror}"
                raise KernelError(message, errno=error.errno or 0) from error
        return before
