# SPDX-License-Identifier: Apache-2.0
"""Bytes between two sockets by splice(2), both ways, without ever being here.

    client  ==socket==>  [pipe]  ==socket==>  upstream        a Way
            <==        a Way the other way        ==

A Way takes a pipe from the store when its source has bytes, moves them in and out, and gives it back when it is empty,
so that an idle connection has none. A sink that is full keeps its pipe, and its source is not read until it is drained:
what a stalled reader costs is one pipe (PIPE_BYTES) and the kernel's two socket buffers.

What happens to one side is told to the other as it was: FIN by shutdown(SHUT_WR) once all before it is delivered; RST,
or a connection that timed out, by RST. No SPLICE_F_MORE: it holds small messages back. Readiness is level-triggered;
a Way moves on for TURNS pipes before others have their turn.

Source: splice(2); net/ipv4/tcp.c (tcp_splice_read, tcp_poll: HUP once both directions are shut).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import struct
from collections.abc import Callable
from typing import Final

from softunicast.proxy.loop import ERR, HUP, IN, OUT, Loop

PIPE_BYTES: Final = 262144
FREE_PIPES: Final = 64
TURNS: Final = 4
SMALL: Final = 32768
"""A source that gave less than this has no more, most likely: let epoll say so rather than ask once more."""
FLAGS: Final = os.SPLICE_F_MOVE | os.SPLICE_F_NONBLOCK
LINGER_RESET: Final = struct.pack("=ii", 1, 0)
_FIONREAD: Final = 0x541B

splice = os.splice


class Pipe:
    """Two descriptors."""

    __slots__ = ("read", "write")

    def __init__(self, read: int, write: int) -> None:
        self.read = read
        self.write = write

    def close(self) -> None:
        os.close(self.read)
        os.close(self.write)


class Pipes:
    """Empty pipes, kept for the next one who needs one."""

    def __init__(self) -> None:
        self._free: list[Pipe] = []

    def take(self) -> Pipe:
        """OSError (EMFILE) when there is none to be had."""
        if self._free:
            return self._free.pop()
        pipe = Pipe(*os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC))
        with contextlib.suppress(OSError):  # the user's share of pipe memory is used up: smaller ones do, only slower
            fcntl.fcntl(pipe.write, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        return pipe

    def give(self, pipe: Pipe) -> None:
        """An empty one comes back."""
        if len(self._free) < FREE_PIPES:
            self._free.append(pipe)
        else:
            pipe.close()


class Way:
    """One direction. `held` bytes are in `pipe`; `left`: how many more may pass (None: all)."""

    __slots__ = ("eof", "held", "left", "moved", "pipe", "shut", "sink", "source")

    def __init__(self, source: End, sink: End, left: int | None = None) -> None:
        self.source = source
        self.sink = sink
        self.pipe: Pipe | None = None
        self.held = 0
        self.moved = 0
        self.left = left
        self.eof = False
        self.shut = False


class End:
    """A socket of the relay: `inward` reads from it, `outward` writes to it."""

    __slots__ = ("fd", "inward", "mask", "outward", "relay", "sock")

    def __init__(self, relay: Relay, sock: socket.socket) -> None:
        self.relay = relay
        self.sock = sock
        self.fd = sock.fileno()
        self.mask = -1
        self.inward: Way
        self.outward: Way

    def ready(self, events: int) -> None:
        """Called by the loop."""
        relay = self.relay
        if events & (ERR | HUP):
            number = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if number:
                relay.broken(self, number)
                return
        if events & OUT and self.outward.held:
            relay.pump(self.outward)
        if not relay.over and events & (IN | HUP) and not self.inward.held and not self.inward.eof:
            relay.pump(self.inward)


class Relay:
    """Two sockets joined until both ways have ended. `done(relay)` is called once, with the sockets still open; it
    closes them (`close()`) or passes them on."""

    __slots__ = ("client", "done", "down", "loop", "over", "pipes", "up", "upstream", "why")

    def __init__(
        self,
        loop: Loop,
        pipes: Pipes,
        client: socket.socket,
        upstream: socket.socket,
        done: Callable[[Relay], None],
        only: int | None = None,
    ) -> None:
        """Both are non-blocking; what is registered for them in the loop is replaced by `start`."""
        self.loop = loop
        self.pipes = pipes
        self.done = done
        self.over = False
        self.why = ""
        self.client = End(self, client)
        self.upstream = End(self, upstream)
        self.up = Way(self.client, self.upstream, only)
        self.down = Way(self.upstream, self.client)
        self.client.inward = self.upstream.outward = self.up
        self.client.outward = self.upstream.inward = self.down

    def start(self) -> None:
        """Begin, or go on with what another process began."""
        for end in (self.client, self.upstream):
            if end.inward.left == 0 and not end.inward.held:
                end.inward.eof = True
        for end in (self.client, self.upstream):
            self.watch(end)
        for way in (self.up, self.down):
            if way.eof and not way.held and not way.shut:
                self._ended(way)
        if not self.over and self.up.shut and self.down.shut:
            self.finish("closed")

    def watch(self, end: End) -> None:
        """Tell epoll what this end waits for. An end that is shut both ways waits for nothing: its HUP would never
        end."""
        inward, outward = end.inward, end.outward
        mask = (IN if not inward.eof and not inward.held else 0) | (OUT if outward.held else 0)
        if inward.eof and outward.shut and not mask and inward.left is None:
            if end.mask != -1:
                self.loop.remove(end.fd)
                end.mask = -1
        elif end.mask == -1:
            self.loop.add(end.fd, mask, end.ready)
            end.mask = mask
        elif mask != end.mask:
            self.loop.modify(end.fd, mask)
            end.mask = mask

    def pump(self, way: Way) -> None:
        """Move what can be moved."""
        pipe = way.pipe
        if pipe is None:
            try:
                pipe = way.pipe = self.pipes.take()
            except OSError as error:
                self.reset(os.strerror(error.errno or 0))
                return
        was_held = way.held
        source_fd, sink_fd, write, read = way.source.fd, way.sink.fd, pipe.write, pipe.read
        for _ in range(TURNS):
            if not way.held:
                wanted = PIPE_BYTES if way.left is None or way.left > PIPE_BYTES else way.left
                try:
                    got = splice(source_fd, write, wanted, flags=FLAGS)
                except BlockingIOError:
                    break
                except OSError as error:
                    self.broken(way.source, error.errno or 0)
                    return
                if got == 0:
                    way.eof = True
                    break
                way.held = got
                if way.left is not None:
                    way.left -= got
                    if not way.left:
                        way.eof = True
            else:
                got = way.held
            try:
                sent = splice(read, sink_fd, got, flags=FLAGS)
            except BlockingIOError:
                sent = 0
            except OSError as error:
                self.broken(way.sink, error.errno or 0)
                return
            way.moved += sent
            way.held = got - sent
            if way.held or way.eof or got < SMALL:
                break
        if not way.held:
            way.pipe = None
            self.pipes.give(pipe)
            if way.eof:
                self._ended(way)
                return
        if way.held or was_held:
            self.watch(way.source)
            self.watch(way.sink)

    def _ended(self, way: Way) -> None:
        """All of a way is delivered. One that was cut short (`left`) is not told: an origin that sees a half-closed
        connection may not answer any more."""
        way.shut = True
        if way.left is None:
            try:
                way.sink.sock.shutdown(socket.SHUT_WR)
            except OSError as error:
                if error.errno != errno.ENOTCONN:
                    raise
        if (self.up.shut and self.down.shut) or (way is self.down and self.up.left is not None):
            self.finish("closed")
            return
        self.watch(way.source)
        self.watch(way.sink)

    def broken(self, end: End, number: int) -> None:
        """A side failed: the other one is reset."""
        side = "client" if end is self.client else "upstream"
        what = {errno.ECONNRESET: "reset", errno.EPIPE: "reset", errno.ETIMEDOUT: "timed out"}.get(number)
        self.reset(f"{side} {what or os.strerror(number)}")

    def reset(self, why: str) -> None:
        """End both sides by RST."""
        for end in (self.client, self.upstream):
            end.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self.finish(why)

    def finish(self, why: str) -> None:
        if not self.over:
            self.over = True
            self.why = why
            self.done(self)

    def pause(self) -> None:
        """Hear nothing until `start`: the relay is on its way to another process."""
        for end in (self.client, self.upstream):
            self.loop.remove(end.fd)
            end.mask = -1

    def close(self) -> None:
        """Give everything back. Pipes with bytes in them are thrown away."""
        self.over = True
        for way in (self.up, self.down):
            if way.pipe is not None:
                way.pipe.close()
                way.pipe = None
        for end in (self.client, self.upstream):
            self.loop.close(end.sock)


def bytes_in(pipe: Pipe) -> int:
    """How many bytes a pipe holds, as the kernel counts."""
    return int(struct.unpack("=i", fcntl.ioctl(pipe.read, _FIONREAD, b"\0" * 4))[0])
