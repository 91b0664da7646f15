# SPDX-License-Identifier: Apache-2.0
"""A program that competes for flows: waits at a barrier, opens COUNT flows at once, says what became of each.

    python contestant.py tcp|udp|icmp ADDRESS PORT COUNT

Prints "ready". On "go" it opens all flows and prints one JSON list, an object a flow:
    {"ok", "errno": name or null, "ms": until it knew, "local": port it believes it has, "seen": "ADDRESS:PORT"}
where `seen` is what the server saw. On another "go" it opens as many more; on "end" (or end of input) it closes all
(TCP by RST, so that no TIME_WAIT stays) and ends. Nothing here knows softunicast: it is an ordinary program.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import struct
import sys
import time
from typing import Any

PATIENCE_S = {"icmp": 3.0, "tcp": 30.0, "udp": 30.0}  # who lost is told, but for pings of sockets
IP_RECVERR = 11


def name_of(number: int) -> str:
    return errno.errorcode.get(number, str(number))


def checksum(data: bytes) -> int:
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


class Flow:
    """One flow: a non-blocking socket and what is known of it."""

    def __init__(self, protocol: str, address: str, port: int, number: int) -> None:
        self.protocol = protocol
        self.began = time.monotonic()
        self.result: dict[str, Any] = {"ok": False, "errno": None, "ms": None, "local": None, "seen": None}
        self.done = False
        self.asked = False
        self.received = b""
        if protocol == "icmp":
            self.sock = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
            self.sock.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)  # host-unreachable is a soft error without it
            self.id = (os.getpid() * 64 + number) & 0xFFFF
        else:
            kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
            self.sock = socket.socket(socket.AF_INET, kind)
        self.sock.setblocking(False)
        try:
            self.open(address, port)
        except OSError as error:
            self.fail(error.errno or 0)

    def open(self, address: str, port: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self.sock.connect((address, 0 if self.protocol == "icmp" else port))
        if self.protocol == "udp":
            self.sock.send(b"hello")
        elif self.protocol == "icmp":
            head = struct.pack("!BBHHH", 8, 0, 0, self.id, 1)
            self.sock.send(struct.pack("!BBHHH", 8, 0, checksum(head), self.id, 1))

    def fail(self, number: int) -> None:
        self.finish(False, name_of(number))

    def finish(self, ok: bool, problem: str | None = None) -> None:
        self.done = True
        self.result |= {"ok": ok, "errno": problem, "ms": round((time.monotonic() - self.began) * 1000, 2)}
        if ok and self.protocol != "icmp":
            self.result["local"] = self.sock.getsockname()[1]

    def writable(self) -> None:
        """TCP: the handshake is over, one way or the other."""
        problem = self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if problem:
            self.fail(problem)
        else:
            self.sock.send(b"GET /hold HTTP/1.1\r\nHost: x\r\n\r\n")

    def error_is_mine(self) -> bool:
        """A raw socket is told of every error that quotes its peer; the queue has what each of them quoted."""
        mine = False
        with contextlib.suppress(BlockingIOError):
            while True:
                quoted = self.sock.recvmsg(512, 512, socket.MSG_ERRQUEUE)[0]
                mine |= struct.unpack("!H", quoted[4:6])[0] == self.id
        return mine

    def readable(self) -> None:
        try:
            data = self.sock.recv(4096)
        except BlockingIOError:
            return
        except OSError as error:
            if self.protocol != "icmp" or self.error_is_mine():
                self.fail(error.errno or 0)
            return
        if self.protocol == "tcp":
            self.received += data
            if not data:
                self.finish(False, "EOF")
            elif b"you are " in self.received and b"\n" in self.received.split(b"you are ")[1]:
                self.result["seen"] = self.received.split(b"you are ")[1].split()[0].decode()
                self.finish(True)
        elif self.protocol == "udp":
            self.result["seen"] = data.split(b" ")[0].decode()
            self.finish(True)
        else:
            icmp = data[(data[0] & 15) * 4 :]
            kind, _, _, ident, _ = struct.unpack("!BBHHH", icmp[:8])
            if kind == 0 and ident == self.id:
                self.finish(True)


def compete(protocol: str, address: str, port: int, count: int, first: int) -> list[Flow]:
    flows = [Flow(protocol, address, port, first + number) for number in range(count)]
    deadline = time.monotonic() + PATIENCE_S[protocol]
    poll = select.poll()
    by_descriptor = {flow.sock.fileno(): flow for flow in flows if not flow.done}
    for descriptor in by_descriptor:
        poll.register(descriptor, select.POLLOUT if protocol == "tcp" else select.POLLIN)
    # What has come is read, however late it is.
    while by_descriptor and ((ready := poll.poll(50)) or time.monotonic() < deadline):
        for descriptor, events in ready:
            flow = by_descriptor[descriptor]
            if protocol == "tcp" and not flow.asked:
                flow.asked = True
                poll.modify(descriptor, select.POLLIN)
                flow.writable()
            elif events:
                flow.readable()
            if flow.done:
                poll.unregister(descriptor)
                del by_descriptor[descriptor]
    for flow in by_descriptor.values():
        flow.finish(False, "timeout")
    return flows


def main() -> None:
    protocol, address, port, count = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
    kept: list[Flow] = []
    print("ready", flush=True)
    for line in sys.stdin:
        if line.strip() == "end":
            break
        flows = compete(protocol, address, port, count, len(kept))
        kept += flows
        print(json.dumps([flow.result for flow in flows]), flush=True)
    for flow in kept:
        if protocol == "tcp":
            flow.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        flow.sock.close()


if __name__ == "__main__":
    main()
