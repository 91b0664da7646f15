# SPDX-License-Identifier: Apache-2.0
"""Clients that are slow, mute, greedy or mad do not disturb the others, and cost what they may."""

from __future__ import annotations

import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.proxy_node import PATIENCE_S, Proxy, curl, origin
from tests.support.wait import wait_until

POLICY = """
listeners:
  main: {listen: "127.0.0.1:PORT", anonymous: me}
users:
  me: {direct: true, allow: [127.0.0.0/8]}
  few: {direct: true, allow: [127.0.0.0/8], password: x, connections: 2}
  slow: {direct: true, allow: [127.0.0.0/8], password: x, connects_per_s: 1}
access_log: LOG
handshake_s: 3
"""
MADE_OF = (
    b"\x05\x01\x00\x05\x01\x00\x03\x0bexample.org\x01\xbb",
    b"\x05\x01\x02\x01\x02me\x01x\x05\x01\x00\x01\x7f\0\0\1\0\1",
    b"\x05\x01\x00\x05\x03\x00\x01\0\0\0\0\0\0",
    b"CONNECT 127.0.0.1:1 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic bWU6eA==\r\n\r\n",
    b"POST http://127.0.0.1:1/ HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nConnection: close, x\r\n\r\nhello",
)


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(POLICY, tmp_path) as made:
        yield made


def served(proxy: Proxy, port: int) -> float:
    """Seconds that a polite client needs for one request."""
    began = time.monotonic()
    done = curl("-x", f"socks5h://127.0.0.1:{proxy.port}", f"http://127.0.0.1:{port}/who", "-f")
    assert done.returncode == 0, done.stderr
    return time.monotonic() - began


HELD = ("setting_up", "relaying", "associations")


def test_a_thousand_slow_clients(proxy: Proxy) -> None:
    with ExitStack() as stack, origin() as port:
        slow = []
        for number in range(1000):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), 20))
            one.sendall(b"CONNECT exa" if number % 2 else b"\x05\x02")
            slow.append(one)
        # Who has to wait for the slow ones waits each time; a machine stands still once.
        assert min(served(proxy, port) for _ in range(3)) < 2
        assert proxy.status()["setting_up"] <= 1000
        wait_until(lambda: proxy.status()["setting_up"] == 0, PATIENCE_S, "slow clients to be sent away")
        assert proxy.status()["failed"]["timeout"] == 1000
        for one in slow:
            assert one.recv(1) == b""


def resident_kib(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0])


def test_stalled_readers_hold_a_bounded_memory(proxy: Proxy) -> None:
    """The origin of each can send a bounded amount: two socket buffers on each side, and one pipe."""
    worker = int(Path(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children").read_text().split()[0])
    with ExitStack() as stack, origin() as port:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        before = resident_kib(worker)
        most = [int(Path(f"/proc/sys/net/ipv4/{name}").read_text().split()[2]) for name in ("tcp_wmem", "tcp_rmem")]
        bound = 2 * most[0] + most[1] + (1 << 20)  # the origin's and our sending, our receiving; the pipe, the client
        senders = []
        for _ in range(50):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
            client.settimeout(20)
            client.connect(("127.0.0.1", proxy.port))
            client.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\0\0\1" + server.getsockname()[1].to_bytes(2, "big"))
            there = stack.enter_context(server.accept()[0])
            there.setblocking(False)
            senders.append(there)
        sent = [0] * len(senders)

        def push() -> bool:
            more = False
            for at, one in enumerate(senders):
                try:
                    while True:
                        sent[at] += one.send(bytes(65536))
                        more = True
                except BlockingIOError:
                    pass
            return not more

        quiet = 0
        deadline = time.monotonic() + PATIENCE_S
        while quiet < 20 and time.monotonic() < deadline:
            quiet = quiet + 1 if push() else 0
            served(proxy, port)
        assert quiet == 20, "they are stalled"
        assert max(sent) < bound, f"one origin could send {max(sent)} bytes"
        assert resident_kib(worker) - before < 16384, "no byte of them is in the process"
        wait_until(lambda: proxy.status()["relaying"] == 50, PATIENCE_S, "only the stalled ones are left")


def test_mad_clients(proxy: Proxy) -> None:
    seed = int(os.environ.get("SOFTUNICAST_SEED", time.time_ns() % 1_000_000_007))
    print(f"seed {seed}")
    chance = random.Random(seed)
    with origin() as port:
        for number in range(600):
            data = bytearray(chance.choice(MADE_OF))
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] = chance.randrange(256)
            with socket.create_connection(("127.0.0.1", proxy.port), 20) as client:
                try:
                    client.sendall(data[: chance.randint(1, len(data))])
                    if chance.random() < 0.5:
                        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                except ConnectionError:
                    pass
            if number % 200 == 0:
                served(proxy, port)
        served(proxy, port)
        wait_until(lambda: not any(map(proxy.status().get, HELD)), PATIENCE_S, "nobody left")
        assert proxy.status()["errors"] == 0


def test_limits_of_a_user(proxy: Proxy) -> None:
    with origin() as port, ExitStack() as stack:
        url = f"http://127.0.0.1:{port}/who"
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
        few = f"http://few:x@127.0.0.1:{proxy.port}"
        for _ in range(2):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", proxy.port), 20))
            client.sendall(
                b"CONNECT 127.0.0.1:%d HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic ZmV3Ong=\r\n\r\n"
                % server.getsockname()[1]
            )
            assert client.recv(100).startswith(b"HTTP/1.1 200 ")
        refused = curl("-i", "-x", few, url)
        assert refused.stdout.startswith("HTTP/1.1 429 ")
        assert "user few has 2 connections already" in refused.stdout
        for _ in range(2):
            server.accept()[0].close()
        client.close()
        wait_until(lambda: curl("-i", "-x", few, url).stdout.startswith("HTTP/1.1 200"), PATIENCE_S, "a free place")
        slow = f"http://slow:x@127.0.0.1:{proxy.port}"
        codes = [curl("-o", "/dev/null", "-w", "%{http_code}", "-x", slow, url).stdout for _ in range(5)]
        assert "429" in codes
        assert codes[0] == "200"
