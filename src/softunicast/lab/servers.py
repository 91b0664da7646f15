# SPDX-License-Identifier: Apache-2.0
"""The lab's internet: a web server and echo servers, one process, one epoll loop, no threads.

Every server says whom it saw, because that is what the lab is about: address and port *as they arrived*.

Web (HTTP/1.1, keep-alive, on several addresses and ports):
    /            `you are ADDRESS:PORT` /bytes/N     N bytes: the line `TOKEN\n` again and again, cut at N.
    TOKEN is `?token=...` or the peer's ADDRESS:PORT,
                 so that a byte of somebody else's stream shows
    /hold        head and `you are ...` at once, the connection then stays open until the peer closes it,
    sends
                 anything (answered by `released`), or somebody asks for /release
    /release     ends all held connections, says how many
Echo, TCP: the line `ADDRESS:PORT\n` once, then whatever comes. Echo, UDP: `ADDRESS:PORT ` before what came.

The log is a file of JSON lines, flushed before the loop sleeps:
    {"event": "open", "id", "peer", "port", "server", "server_port", "t"}
    {"event": "request", "id", "path"}  {"event": "sent", "id", "bytes"}  {"event": "close", "id", "error"}

IPv6 peers are written [ADDRESS]:PORT.

Run as `python -m softunicast.lab.servers --log FILE --web A:P,... --echo A:P,...` (IPv6 too without brackets: the last
colon counts); writes "ready" when all listen.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

BACKLOG: Final = 4096
CHUNK: Final = 256 * 1024
LARGEST_HEAD: Final = 16384
ACCEPTS_PER_TURN: Final = 256


@dataclass(slots=True, eq=False)
class Connection:
    """A TCP connection. `pattern` repeats `left` bytes long behind what waits in `out`."""

    sock: socket.socket
    number: int
    peer: str
    web: bool
    head: bytearray = field(default_factory=bytearray)
    out: bytearray = field(default_factory=bytearray)
    pattern: bytes = b""
    at: int = 0
    left: int = 0
    sent: int = 0
    held: bool = False
    closing: bool = False
    interest: int = select.EPOLLIN


class Servers:
    """All servers of the process. `log` is an open text file."""

    def __init__(self, log: Path) -> None:
        self._epoll = select.epoll()
        self._listeners: dict[int, tuple[socket.socket, bool]] = {}
        self._datagrams: dict[int, socket.socket] = {}
        self._connections: dict[int, Connection] = {}
        self._count = 0
        self._log = log.open("a", encoding="utf-8", buffering=1 << 20)
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def listen(self, address: str, port: int, *, web: bool) -> None:
        """Listen on TCP. OSError when the address is not here or taken."""
        listener = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, port))
        listener.listen(BACKLOG)
        self._listeners[listener.fileno()] = (listener, web)
        self._epoll.register(listener.fileno(), select.EPOLLIN)

    def receive(self, address: str, port: int) -> None:
        """Echo UDP on an address of its own, so that answers come from where they were asked."""
        sock = socket.socket(_family(address), socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4 << 20)
        sock.bind((address, port))
        self._datagrams[sock.fileno()] = sock
        self._epoll.register(sock.fileno(), select.EPOLLIN)

    def serve(self) -> None:
        """Serve until the process ends."""
        while True:
            self._log.flush()
            for handle, events in self._epoll.poll():
                connection = self._connections.get(handle)
                if connection is not None:
                    self._turn(connection, events)
                elif handle in self._listeners:
                    self._accept(*self._listeners[handle])
                elif handle in self._datagrams:
                    self._echo_datagrams(self._datagrams[handle])

    def _note(self, **event: object) -> None:
        self._log.write(json.dumps(event) + "\n")

    def _accept(self, listener: socket.socket, web: bool) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                sock, (peer, port, *_) = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._shed(listener)
                    return
                continue  # the peer gave up while it waited (ECONNABORTED)
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._count += 1
            connection = Connection(sock, self._count, _place(peer, port), web)
            self._connections[sock.fileno()] = connection
            server, server_port, *_ = sock.getsockname()
            self._note(
                event="open",
                id=self._count,
                peer=peer,
                port=port,
                server=server,
                server_port=server_port,
                t=time.time(),
            )
            self._epoll.register(sock.fileno(), connection.interest)
            if not web:
                connection.out += f"{connection.peer}\n".encode()
                self._flush(connection)

    def _shed(self, listener: socket.socket) -> None:
        """Out of descriptors: refuse one connection instead of spinning on a listener that stays readable."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            listener.accept()[0].close()
        self._spare = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def _turn(self, connection: Connection, events: int) -> None:
        try:
            if events & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                data = connection.sock.recv(65536)
                if not data:
                    connection.held = False
                    if connection.out or connection.left:
                        connection.closing = True  # half closed: finish what was asked for
                    else:
                        self._close(connection)
                        return
                elif connection.web:
                    self._web(connection, data)
                else:
                    connection.out += data
            self._send(connection)
        except BlockingIOError:
            return
        except OSError as error:
            self._close(connection, errno.errorcode.get(error.errno or 0, str(error)))

    def _flush(self, connection: Connection) -> None:
        try:
            self._send(connection)
        except OSError as error:
            self._close(connection, errno.errorcode.get(error.errno or 0, str(error)))

    def _send(self, connection: Connection) -> None:
        """Send what the socket takes now; OSError when the connection is dead."""
        while connection.out or connection.left:
            if not connection.out:
                size = min(connection.left, CHUNK)
                turns = (connection.at + size) // len(connection.pattern) + 1
                connection.out += (connection.pattern * turns)[connection.at : connection.at + size]
                connection.at = (connection.at + size) % len(connection.pattern)
                connection.left -= size
            try:
                done = connection.sock.send(connection.out)
            except BlockingIOError:
                break
            del connection.out[:done]
            connection.sent += done
            if not connection.out and not connection.left and connection.web:
                self._note(event="sent", id=connection.number, bytes=connection.sent)
        waiting = bool(connection.out or connection.left)
        if connection.closing and not waiting:
            self._close(connection)
            return
        interest = (0 if connection.closing else select.EPOLLIN) | (select.EPOLLOUT if waiting else 0)
        if waiting and not connection.web and len(connection.out) > 1 << 20:
            interest = select.EPOLLOUT  # an echo that is not read: do not buffer without end
        if interest != connection.interest:
            connection.interest = interest
            self._epoll.modify(connection.sock.fileno(), interest)

    def _close(self, connection: Connection, error: str = "") -> None:
        if self._connections.pop(connection.sock.fileno(), None) is None:
            return
        with contextlib.suppress(OSError):
            self._epoll.unregister(connection.sock.fileno())
        connection.sock.close()
        self._note(event="close", id=connection.number, error=error)

    def _web(self, connection: Connection, data: bytes) -> None:
        if connection.held:
            connection.held = False
            connection.out += b"released\n"
            connection.closing = True
            return
        connection.head += data
        while (end := connection.head.find(b"\r\n\r\n")) >= 0:
            head = bytes(connection.head[:end])
            del connection.head[: end + 4]
            self._answer(connection, head)
        if len(connection.head) > LARGEST_HEAD:
            raise OSError(errno.EMSGSIZE, "head too long")

    def _answer(self, connection: Connection, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        method, target, *_ = [*lines[0].split(), "", ""]
        path, _, query = target.partition("?")
        self._note(event="request", id=connection.number, path=target)
        token = next((item[6:] for item in query.split("&") if item.startswith("token=")), connection.peer)
        status, body, size = "200 OK", f"you are {connection.peer}\n".encode(), -1
        if path.startswith("/bytes/") and path[7:].isdigit():
            size = int(path[7:])
            body = b""
        elif path == "/hold":
            connection.held = True
        elif path == "/release":
            body = f"{self._release()} released\n".encode()
        elif path != "/":
            status, body = "404 Not Found", b"no such page\n"
        if any(line.lower().replace(" ", "") == "connection:close" for line in lines[1:]):
            connection.closing = True
        length = "" if connection.held else f"Content-Length: {size if size >= 0 else len(body)}\r\n"
        answer = f"HTTP/1.1 {status}\r\nX-Peer: {connection.peer}\r\n{length}"
        answer += "Connection: close\r\n\r\n" if connection.closing or connection.held else "\r\n"
        connection.out += answer.encode()
        if method != "HEAD":
            connection.out += body
            # One stream at a time: a client that pipelines behind /bytes gets what it asked for, in order.
            connection.pattern, connection.at, connection.left = f"{token}\n".encode(), 0, max(size, 0)

    def _release(self) -> int:
        held = [connection for connection in self._connections.values() if connection.held]
        for connection in held:
            connection.held = False
            connection.closing = True
            connection.out += b"released\n"
            self._flush(connection)
        return len(held)

    def _echo_datagrams(self, sock: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_TURN):
            try:
                data, peer = sock.recvfrom(65535)
                sock.sendto(f"{_place(*peer[:2])} ".encode() + data, peer)
            except BlockingIOError:
                return
            except OSError:
                continue  # an ICMP error that came back for an earlier answer


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def _place(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _places(text: str) -> list[tuple[str, int]]:
    pairs = [item.rpartition(":") for item in text.split(",") if item]
    return [(address, int(port)) for address, _, port in pairs]


def main(arguments: list[str]) -> int:
    """See the module's text for arguments."""
    parser = argparse.ArgumentParser(prog="softunicast.lab.servers")
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--web", type=_places, default=[])
    parser.add_argument("--echo", type=_places, default=[])
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    servers = Servers(options.log)
    for address, port in options.web:
        servers.listen(address, port, web=True)
    for address, port in options.echo:
        servers.listen(address, port, web=False)
        servers.receive(address, port)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    servers.serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
