# SPDX-License-Identifier: Apache-2.0
"""A proxy that is reloaded under load breaks nothing: downloads, idle connections, new ones, UDP associations."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.proxy_node import PATIENCE_S, Proxy
from tests.support.wait import wait_until

POLICY = """
listeners: {main: {listen: "127.0.0.1:PORT", anonymous: me}}
users: {me: {direct: true, allow: [127.0.0.0/8]}}
workers: 2
access_log: LOG
"""
RELOADS = int(os.environ.get("SOFTUNICAST_RELOADS", "4"))
DOWNLOADS = int(os.environ.get("SOFTUNICAST_DOWNLOADS", "100"))
IDLE = 50
COMERS = 8
CYCLE = bytes(range(251))
CHUNK = 8192
PATTERN = CYCLE * (65536 // 251 + 2)


@asynccontextmanager
async def far() -> AsyncIterator[int]:
    """ "d": bytes of CYCLE without end, until the client has shut; "e": everything comes back."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        kind = await reader.read(1)
        if kind == b"d":
            at = 0
            end = asyncio.ensure_future(reader.read())
            while not end.done():
                writer.write(PATTERN[at % 251 : at % 251 + CHUNK])
                at += CHUNK
                await writer.drain()
                await asyncio.wait([end], timeout=0.05)
        else:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, backlog=512)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def through(proxy: Proxy, port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    writer.write(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
    assert (await reader.readexactly(12))[:4] == b"\x05\x00\x05\x00"
    return reader, writer


@dataclass
class Load:
    """Clients, and what they saw."""

    proxy: Proxy
    port: int
    over: asyncio.Event = field(default_factory=asyncio.Event)
    came: int = 0
    read: int = 0

    async def download(self) -> None:
        reader, writer = await through(self.proxy, self.port)
        writer.write(b"d")
        stop = asyncio.ensure_future(self.over.wait())
        at = 0
        while data := await reader.read(65536):
            assert data == PATTERN[at % 251 : at % 251 + len(data)], f"other bytes than were sent, at {at}"
            at += len(data)
            if stop.done() and writer.can_write_eof() and not writer.is_closing():
                writer.write_eof()
                stop = asyncio.get_running_loop().create_future()
        assert at > CHUNK
        self.read += at
        writer.close()

    async def idle(self) -> None:
        reader, writer = await through(self.proxy, self.port)
        writer.write(b"e")
        await self.over.wait()
        writer.write(b"still there?")
        writer.write_eof()
        assert await reader.read() == b"still there?"
        writer.close()

    async def come_and_go(self) -> None:
        while not self.over.is_set():
            reader, writer = await through(self.proxy, self.port)
            writer.write(b"ehello")
            writer.write_eof()
            assert await reader.read() == b"hello"
            writer.close()
            self.came += 1
            await asyncio.sleep(0.01)


async def reload_under_load(proxy: Proxy) -> Load:
    async with far() as port:
        load = Load(proxy, port)
        clients = [asyncio.ensure_future(load.download()) for _ in range(DOWNLOADS)]
        clients += [asyncio.ensure_future(load.idle()) for _ in range(IDLE)]
        clients += [asyncio.ensure_future(load.come_and_go()) for _ in range(COMERS)]
        for _ in range(RELOADS):
            before = load.came
            await asyncio.to_thread(proxy.reload)
            while load.came < before + 20:
                failed = [one for one in clients if one.done()]
                assert not failed, failed
                await asyncio.sleep(0.01)
        load.over.set()
        await asyncio.wait_for(asyncio.gather(*clients), PATIENCE_S)
    return load


def test_reloads_under_load_break_nothing(tmp_path: Path) -> None:
    with Proxy(POLICY, tmp_path) as proxy:
        load = asyncio.run(reload_under_load(proxy))
        count = DOWNLOADS + IDLE + load.came
        entries = proxy.entries(count)
        assert len(entries) == count, "each connection has one line, whoever had it"
        assert {entry["end"] for entry in entries} == {"closed"}
        assert sum(entry["bytes_down"] for entry in entries) == load.read + IDLE * 12 + load.came * 5
        wait_until(lambda: len(proxy.told("a predecessor has ended")) == 2 * RELOADS, PATIENCE_S, "old workers to end")
        print(f"{RELOADS} reloads, {DOWNLOADS} downloads of {load.read >> 20} MiB in all, {load.came} new connections")


def test_a_udp_association_moves_too(tmp_path: Path) -> None:
    with (
        Proxy(POLICY.replace("workers: 2", "workers: 1"), tmp_path) as proxy,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client,
        socket.create_connection(("127.0.0.1", proxy.port), 20) as control,
    ):
        for one in (server, client):
            one.bind(("127.0.0.1", 0))
            one.settimeout(20)
        control.sendall(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
        answer = b""
        while len(answer) < 12:
            answer += control.recv(12 - len(answer))
        assert answer[:4] == b"\x05\x00\x05\x00"
        relay = (socket.inet_ntoa(answer[6:10]), int.from_bytes(answer[10:], "big"))
        head = b"\0\0\0\1\x7f\0\0\1" + server.getsockname()[1].to_bytes(2, "big")
        seen = set()
        for number in range(3):
            client.sendto(head + b"%d" % number, relay)
            data, source = server.recvfrom(2048)
            seen.add(source)
            server.sendto(data + b"!", source)
            assert client.recv(2048) == head + b"%d!" % number
            proxy.reload()
        assert len(seen) == 1, "the same socket all the time"
        wait_until(lambda: proxy.status()["associations"] == 1, PATIENCE_S, "the association to be taken")
        control.close()
        entry = proxy.entries(1)[0]
        assert (entry["protocol"], entry["bytes_up"], entry["bytes_down"]) == ("udp", 3, 6)


def test_an_unsound_policy_is_not_taken(tmp_path: Path) -> None:
    with Proxy(POLICY, tmp_path) as proxy:
        proxy.write_policy(POLICY.replace("me}}", "nobody}}"))
        proxy.process.send_signal(signal.SIGHUP)
        proxy.wait_for("not reloaded")
        assert "no user nobody" in proxy.told("not reloaded")[0]["why"]
        with socket.create_connection(("127.0.0.1", proxy.port), 20) as client:
            client.sendall(b"\x05\x01\x00")
            assert client.recv(2) == b"\x05\x00"


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path) -> None:
    with Proxy(POLICY.replace("workers: 2", "workers: 1"), tmp_path) as proxy:
        children = Path(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children")
        os.kill(int(children.read_text().split()[0]), signal.SIGKILL)
        proxy.wait_for("a worker died; there is a new one")
        with socket.create_connection(("127.0.0.1", proxy.port), 20) as client:
            client.sendall(b"\x05\x01\x00")
            assert client.recv(2) == b"\x05\x00"
