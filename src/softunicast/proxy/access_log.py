# SPDX-License-Identifier: Apache-2.0
"""One JSON line for each connection that ended: who, whence, whither, as whom, how much, how well.

The five-tuple as it was on the wire, and what TCP itself knew of both connections at their end (struct tcp_info,
include/uapi/linux/tcp.h): retransmissions, round trip time, bytes. Lines are gathered and written once a second, or
when there are many: one write(2) for all of them, so that lines of workers do not mix (O_APPEND).
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
import time
from dataclasses import dataclass
from typing import Any, Final

from softunicast.errors import KernelError
from softunicast.proxy.loop import Loop

FLUSH_S: Final = 1.0
FLUSH_LINES: Final = 500
_RTT: Final = struct.Struct("=II")
_TOTAL_RETRANS: Final = struct.Struct("=I")
_BYTES: Final = struct.Struct("=QQ")
_TCP_INFO_BYTES: Final = 136


@dataclass(frozen=True, slots=True)
class TcpInfo:
    """`rtt_us` and its variation, segments sent again, bytes the peer has acknowledged, bytes received from it."""

    rtt_us: int
    rttvar_us: int
    retransmits: int
    bytes_acked: int
    bytes_received: int

    def as_json(self) -> dict[str, int]:
        return {
            "rtt_us": self.rtt_us,
            "rttvar_us": self.rttvar_us,
            "retransmits": self.retransmits,
            "bytes_acked": self.bytes_acked,
            "bytes_received": self.bytes_received,
        }


def tcp_info(sock: socket.SocketType) -> TcpInfo | None:
    """What TCP knows of a connection; None: not a TCP socket."""
    try:
        raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    except OSError:
        return None
    if len(raw) < _TCP_INFO_BYTES:
        return None
    rtt, variation = _RTT.unpack_from(raw, 68)
    acked, received = _BYTES.unpack_from(raw, 120)
    return TcpInfo(rtt, variation, _TOTAL_RETRANS.unpack_from(raw, 100)[0], acked, received)


class AccessLog:
    """Appends to a file; without one, nothing is gathered."""

    def __init__(self, loop: Loop, path: str | None) -> None:
        """KernelError when the file cannot be opened. "-": standard output."""
        self._loop = loop
        self._path = path
        self._fd = -1
        self._lines: list[str] = []
        self._armed = False
        self.reopen()

    @property
    def wanted(self) -> bool:
        return self._fd >= 0

    def reopen(self) -> None:
        """After logrotate."""
        self.flush()
        if self._path is None:
            return
        before = self._fd
        try:
            self._fd = (
                1
                if self._path == "-"
                else os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o640)
            )
        except OSError as error:
            why = os.strerror(error.errno or 0)
            raise KernelError(f"access log {self._path}: {why}; correct access_log in the policy") from error
        if before > 2:
            os.close(before)

    def close(self) -> None:
        """Write what is left and let go of the file."""
        self.flush()
        if self._fd > 2:
            os.close(self._fd)
        self._fd = -1

    def write(self, entry: dict[str, Any]) -> None:
        """One line; `time` is put before it."""
        if self._fd < 0:
            return
        self._lines.append(json.dumps({"time": round(time.time(), 3), **entry}, separators=(",", ":")))
        if len(self._lines) >= FLUSH_LINES:
            self.flush()
        elif not self._armed:
            self._armed = True
            self._loop.later(FLUSH_S, self.flush)

    def flush(self) -> None:
        """Write what was gathered. A full disk costs lines, not connections."""
        self._armed = False
        if self._lines:
            data = ("\n".join(self._lines) + "\n").encode()
            self._lines.clear()
            with contextlib.suppress(OSError):
                os.write(self._fd, data)
