# SPDX-License-Identifier: Apache-2.0
"""Numbered datagrams both ways, steadily, and lines over TCP beside them: not one may be lost.

    python flood.py answer PORT ADDRESS...     answers all with whom it sees and what it got; prints "ready"
    python flood.py ask PORT EVERY_MS ADDRESS...
        a UDP and a TCP flow to each; prints "ready" when all were answered. At end of input it stops sending, waits for
        what is on its way and prints a JSON list of
        {"protocol", "remote", "seen": [all that the other end saw], "sent", "received", "twice", "missing": [numbers]}

Receive buffers are large by force (SO_RCVBUFFORCE), so that a busy machine delays and does not drop. A sender that was
kept from running does not catch up: it never bursts. Knows nothing of softunicast.
"""

from __future__ import annotations

import json
import selectors
import socket
import sys
import time

SO_RCVBUFFORCE = 33
BUFFER = 32 << 20
SETTLE_S = 10.0
READY_S = 30.0
TCP_EVERY = 10  # a line of TCP for as many datagrams


def family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


def made(address: str, kind: socket.SocketKind) -> socket.socket:
    sock = socket.socket(family(address), kind)
    if kind == socket.SOCK_DGRAM:
        sock.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, BUFFER)
    return sock


def answer(port: int, addresses: list[str]) -> None:
    selector = selectors.DefaultSelector()
    for address in addresses:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            sock = made(address, kind)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
            if kind == socket.SOCK_STREAM:
                sock.listen(64)
            selector.register(sock, selectors.EVENT_READ, kind)
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            sock = key.fileobj  # type: ignore[assignment]
            if key.data == socket.SOCK_DGRAM:
                data, peer = sock.recvfrom(2048)
                sock.sendto(b"%s %d %s" % (peer[0].encode(), peer[1], data), peer)
            elif key.data == socket.SOCK_STREAM:
                connection, peer = sock.accept()
                selector.register(connection, selectors.EVENT_READ, b"%s %d " % (peer[0].encode(), peer[1]))
            elif data := sock.recv(65536):
                sock.sendall(b"".join(key.data + line + b"\n" for line in data.split(b"\n") if line))
            else:
                selector.unregister(sock)
                sock.close()


class Flow:
    """One flow of the side that asks."""

    def __init__(self, address: str, port: int, kind: socket.SocketKind) -> None:
        self.remote = address
        self.protocol = "udp" if kind == socket.SOCK_DGRAM else "tcp"
        self.sock = made(address, kind)
        self.sock.settimeout(READY_S)
        self.sock.connect((address, port))
        self.sock.setblocking(False)
        self.sent = 0
        self.twice = 0
        self.got: set[int] = set()
        self.seen: set[str] = set()
        self.rest = b""

    def send(self) -> None:
        self.sent += 1
        self.sock.send(b"%d\n" % self.sent)

    def receive(self) -> None:
        try:
            while data := self.sock.recv(65536):
                *lines, self.rest = (self.rest + data).split(b"\n")
                for line in lines:
                    host, port, number = line.split()
                    self.seen.add(f"{host.decode()} {port.decode()}")
                    self.twice += int(number) in self.got
                    self.got.add(int(number))
            raise ConnectionError(f"{self.remote} closed")
        except BlockingIOError:
            return

    def report(self) -> dict[str, object]:
        return {
            "protocol": self.protocol,
            "remote": self.remote,
            "seen": sorted(self.seen),
            "sent": self.sent,
            "received": len(self.got),
            "twice": self.twice,
            "missing": sorted(set(range(1, self.sent + 1)) - self.got)[:20],
        }


def ask(port: int, every_s: float, addresses: list[str]) -> None:
    selector = selectors.DefaultSelector()
    selector.register(sys.stdin, selectors.EVENT_READ)
    flows = [Flow(address, port, kind) for address in addresses for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM)]
    for flow in flows:
        selector.register(flow.sock, selectors.EVENT_READ, flow)
        flow.send()
    next_s, turn, ready, ended = time.monotonic() + every_s, 0, False, False
    while not ended:
        for key, _ in selector.select(max(0.0, next_s - time.monotonic())):
            if key.data is None:
                ended = True
            else:
                key.data.receive()
        if not ready and all(flow.got for flow in flows):
            ready = True
            print("ready", flush=True)
        if ready and not ended and time.monotonic() >= next_s:
            turn += 1
            for flow in flows:
                if flow.protocol == "udp" or turn % TCP_EVERY == 0:
                    flow.send()
            next_s = max(next_s + every_s, time.monotonic())
        elif not ready:
            next_s = time.monotonic() + every_s
    selector.unregister(sys.stdin)
    deadline_s = time.monotonic() + SETTLE_S
    while any(len(flow.got) < flow.sent for flow in flows) and time.monotonic() < deadline_s:
        for key, _ in selector.select(0.1):
            key.data.receive()
    print(json.dumps([flow.report() for flow in flows]), flush=True)


def main(what: str, port: str, *rest: str) -> None:
    if what == "answer":
        answer(int(port), list(rest))
    else:
        ask(int(port), int(rest[0]) / 1000, list(rest[1:]))


if __name__ == "__main__":
    main(*sys.argv[1:])
