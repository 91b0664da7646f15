# SPDX-License-Identifier: Apache-2.0
"""Bytes between two sockets by splice(2), both ways, without ever being here.

    client  ==socket==>  [pipe]  ==socket==>  upstream        a Way
            <==        a Way the other way        ==

A Way takes a pipe from the store when its source has bytes, moves them in and out, and gives it back when it is empty,
so that an idle connection has none. A sink that is full keeps its pipe, and its source is not read until it is drained:
what a stalled reader costs is one pipe (256 KiB) and the kernel's two socket buffers.

What happens to one side is told to the other as it was: FIN by shutdown(SHUT_WR) once all before it is delivered; RST,
or a connection that timed out, by RST. No SPLICE_F_MORE: it holds small messages back. Readiness is level-triggered;
a Way moves on for some pipes before others have their turn.

    Relay(loop, pipes, client, upstream, done, only=None)

joins two non-blocking sockets until both ways have ended; `only`: how many bytes may pass upstream (None: all). What is
registered for them in the loop is replaced by `start`. `done(relay)` is called once, with the sockets still open; it
closes them (`close()`) or passes them on. The machinery is C: native/relay.c.

Source: splice(2); net/ipv4/tcp.c (tcp_splice_read, tcp_poll: HUP once both directions are shut).
"""

from __future__ import annotations

import fcntl
import struct
from typing import Final

from softunicast.proxy._relay import End, Pipe, Pipes, Relay, Way

__all__ = ["LINGER_RESET", "End", "Pipe", "Pipes", "Relay", "Way", "bytes_in"]

LINGER_RESET: Final = struct.pack("=ii", 1, 0)
_FIONREAD: Final = 0x541B


def bytes_in(pipe: Pipe) -> int:
    """How many bytes a pipe holds, as the kernel counts."""
    return int(struct.unpack("=i", fcntl.ioctl(pipe.read, _FIONREAD, b"\0" * 4))[0])
