# SPDX-License-Identifier: Apache-2.0
"""Telling systemd how the agent is: sd_notify(3), a datagram to the socket named in NOTIFY_SOCKET."""

from __future__ import annotations

import os
import socket


def notify(*lines: str) -> bool:
    """Send lines such as READY=1, WATCHDOG=1, STOPPING=1, STATUS=text. False: nobody asked, or nobody
    listens."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as link:
            link.connect(address)
            link.send("\n".join(lines).encode())
    except OSError:
        return False
    return True


def watchdog_s() -> float | None:
    """How often systemd wants to hear from us, in seconds; half of what it allows. None: it does not
    watch."""
    allowed_us = os.environ.get("WATCHDOG_USEC", "")
    owner = os.environ.get("WATCHDOG_PID", str(os.getpid()))
    if not allowed_us.isdigit() or owner != str(os.getpid()):
        return None
    return int(allowed_us) / 2_000_000
