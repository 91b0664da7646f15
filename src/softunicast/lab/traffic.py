# SPDX-License-Identifier: Apache-2.0
"""Ordinary flows that go on while something happens, and what it cost each of them.

Run as `python -m softunicast.lab.traffic ADDRESS...` on any host of the lab: to each address (IPv4 or IPv6, the echo
servers' port 7) it keeps one UDP flow (a numbered datagram every 20 ms) and two TCP connections (a line every 100 ms),
and opens a fresh TCP connection four times a second. Prints "ready" when every flow has had its first answer; ends at
end of input with one JSON object:

    {"flows": [{"protocol", "remote", "seen": what the server saw, "sent", "received", "silence_s": the longest time
     without the answer that was due, "error": errno's name or ""}],
     "opened", "refused": [errno's name or "timeout", ...]}

An answer is late, not lost, as long as it comes: a UDP flow's `sent - received` is what never came. Knows nothing of
softunicast.
"""

from __future__ import annotations

import contextlib
import errno
import json
import select
import signal
import socket
import sys
import time
from dataclasses import dataclass, field
from typing import Final

PORT: Final = 7
UDP_EVERY_S: Final = 0.02
TCP_EVERY_S: Final = 0.1
FRESH_EVERY_S: Final = 0.25
FRESH_PATIENCE_S: Final = 5.0
TCP_FLOWS: Final = 2
SETTLE_S: Final = 1.0  # what is on its way when the end comes may still arrive
READY_S: Final = 10.0


@dataclass(slots=True, eq=False)
class Flow:
    """One flow. `due_s`: since when an answer is awaited, 0: none is."""

    protocol: str
    remote: str
    sock: socket.socket
    every_s: float
    next_s: float
    seen: str = ""
    sent: int = 0
    received: int = 0
    due_s: float = 0.0
    silence_s: float = 0.0
    error: str = ""
    buffer: bytearray = field(default_factory=bytearray)

    def send(self, now_s: float) -> None:
        """The next datagram or line. A refusal of UDP is a loss, one of TCP the connection's end."""
        if self.protocol == "tcp" and self.due_s:
            return  # one line at a time: TCP's own buffers would only hide how long it stood still
        self.sent += 1
        self.due_s = self.due_s or now_s
        try:
            self.sock.send(b"%d\n" % self.sent)
        except BlockingIOError:
            pass
        except OSError as error:
            self.failed(error)

    def failed(self, error: OSError) -> None:
        """An error of the socket."""
        if self.protocol == "tcp":
            self.error = name_of(error)

    def receive(self, now_s: float) -> None:
        """What has come."""
        try:
            while data := self.sock.recv(65536):
                self._take(data)
                if self.due_s:
                    self.silence_s = max(self.silence_s, now_s - self.due_s)
                    self.due_s = 0.0
            self.error = self.error or "EOF"
        except BlockingIOError:
            return
        except OSError as error:
            self.failed(error)

    def _take(self, data: bytes) -> None:
        if self.protocol == "udp":
            self.seen = self.seen or data.split()[0].decode()
            self.received += 1
            return
        self.buffer += data
        *lines, rest = bytes(self.buffer).split(b"\n")
        self.buffer = bytearray(rest)
        if lines and not self.seen:
            self.seen = lines.pop(0).decode()
        self.received += len(lines)

    def end(self, now_s: float) -> None:
        """Count a silence that lasts."""
        if self.due_s:
            self.silence_s = max(self.silence_s, now_s - self.due_s)
        self.sock.close()


def name_of(error: OSError) -> str:
    """ECONNRESET ..."""
    return errno.errorcode.get(error.errno or 0, str(error))


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


class Traffic:
    """All flows of one process."""

    def __init__(self, addresses: list[str]) -> None:
        self.flows: dict[int, Flow] = {}
        self.poll = select.poll()
        self.addresses = addresses
        self.fresh: dict[int, tuple[socket.socket, float]] = {}
        self.opened = 0
        self.refused: list[str] = []
        self.next_fresh_s = time.monotonic() + FRESH_EVERY_S
        for address in addresses:
            self._begin("udp", address, UDP_EVERY_S)
            for _ in range(TCP_FLOWS):
                self._begin("tcp", address, TCP_EVERY_S)

    def _begin(self, protocol: str, address: str, every_s: float) -> None:
        sock = socket.socket(_family(address), socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM)
        sock.settimeout(READY_S)
        sock.connect((address, PORT))
        sock.setblocking(False)
        self.flows[sock.fileno()] = Flow(protocol, address, sock, every_s, time.monotonic())
        self.poll.register(sock.fileno(), select.POLLIN)

    def turn(self, *, sending: bool = True) -> bool:
        """One round of sending what is due and taking what came; whether something had."""
        now_s = time.monotonic()
        if sending:
            for flow in self.flows.values():
                if flow.next_s <= now_s and not flow.error:
                    flow.next_s = max(flow.next_s + flow.every_s, now_s)
                    flow.send(now_s)
            if self.next_fresh_s <= now_s:
                self.next_fresh_s = now_s + FRESH_EVERY_S
                self._open(now_s)
        for handle, (sock, until_s) in list(self.fresh.items()):
            if until_s < now_s:
                self._settle(handle, sock, "timeout")
        ready = self.poll.poll(5)
        for handle, _ in ready:
            if handle in self.fresh:
                sock, _ = self.fresh[handle]
                code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                self._settle(handle, sock, errno.errorcode.get(code, str(code)) if code else "")
            elif handle in self.flows:
                flow = self.flows[handle]
                flow.receive(time.monotonic())
                if flow.error:
                    self.poll.unregister(handle)
        return bool(ready)

    def _open(self, now_s: float) -> None:
        address = self.addresses[(self.opened + len(self.refused)) % len(self.addresses)]
        sock = socket.socket(_family(address), socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        code = sock.connect_ex((address, PORT))
        if code not in (0, errno.EINPROGRESS):
            sock.close()
            self.refused.append(errno.errorcode.get(code, str(code)))
            return
        self.fresh[sock.fileno()] = (sock, now_s + FRESH_PATIENCE_S)
        self.poll.register(sock.fileno(), select.POLLOUT)

    def _settle(self, handle: int, sock: socket.socket, error: str) -> None:
        self.poll.unregister(handle)
        del self.fresh[handle]
        if error:
            self.refused.append(error)
        else:
            self.opened += 1
        with contextlib.suppress(OSError):
            # Closed by RST: no TIME_WAIT is to hold a port of a small slice.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()

    def report(self) -> dict[str, object]:
        """What became of all; the flows end."""
        now_s = time.monotonic()
        for flow in self.flows.values():
            flow.end(now_s)
        flows = [
            {
                "protocol": flow.protocol,
                "remote": flow.remote,
                "seen": flow.seen,
                "sent": flow.sent,
                "received": flow.received,
                "silence_s": round(flow.silence_s, 3),
                "error": flow.error,
            }
            for flow in self.flows.values()
        ]
        return {"flows": flows, "opened": self.opened, "refused": self.refused}


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main(addresses: list[str]) -> int:
    """See the module's text."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    traffic = Traffic(addresses)
    deadline_s = time.monotonic() + READY_S
    while not all(flow.received for flow in traffic.flows.values()) and time.monotonic() < deadline_s:
        traffic.turn()
    for flow in traffic.flows.values():
        flow.silence_s = 0.0
    _say("ready")
    ended = select.poll()
    ended.register(sys.stdin, select.POLLIN | select.POLLHUP)
    while not ended.poll(0):
        traffic.turn()
    deadline_s = time.monotonic() + SETTLE_S
    # What waits in the sockets is read, however late it is.
    while traffic.turn(sending=False) or time.monotonic() < deadline_s:
        pass
    _say(json.dumps(traffic.report()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
