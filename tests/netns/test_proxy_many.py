# SPDX-License-Identifier: Apache-2.0
"""Ten thousand connections at once through one proxy, out of one slice: each has its claim, all end."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from softunicast.kernel import netns
from tests.support.crowd import Crowd, many_descriptors
from tests.support.proxy_node import PATIENCE_S, Proxy
from tests.support.proxy_place import within
from tests.support.sock_node import ADDRESS, SockNode, ip
from tests.support.wait import wait_until

MANY = 10_000
PORT = 7
TARGETS = [(f"203.0.113.{last}", PORT) for last in range(100, 104)]
SLICE = (ADDRESS, 16384, 24575)
POLICY = """
listeners: {main: {listen: "127.0.0.1:PORT", anonymous: me}}
users: {me: {pool: ten}}
access_log: LOG
workers: WORKERS
"""
KEPT_BACK = 1024  # of a worker's descriptors, for pipes and names (docs/proxy.md)
FREE_PIPES = 64
EACH_BYTES = 4096
"""What a connection may cost a worker: twice the two sockets, relay and names in Python's memory (1.7 kB measured).
A pipe, or a read buffer of 64 KiB, kept by each would be many times that."""


@pytest.fixture
def node() -> Iterator[SockNode]:
    with many_descriptors(), SockNode(pinned=True, slices=(SLICE,), flows=1 << 15) as made:
        made.attach_guard()
        ip("route", "add", "local", "203.0.113.96/27", "dev", "lo", ns=made.world)
        command = [sys.executable, str(Path(__file__).parents[1] / "support/crowd.py"), str(PORT)]
        with subprocess.Popen(within(made.world, command), stdout=subprocess.PIPE) as server:
            assert server.stdout is not None
            assert server.stdout.readline() == b"ready\n"
            yield made
            server.terminate()


def workers(proxy: Proxy) -> list[int]:
    children = Path(f"/proc/{proxy.process.pid}/task/{proxy.process.pid}/children")
    return [int(pid) for pid in children.read_text().split()]


def resident_bytes(pid: int) -> int:
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(fields["VmRSS"].split()[0]) << 10


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_one_worker(node: SockNode, tmp_path: Path) -> None:
    """As many as its descriptors allow are served at once; the others wait, unrefused, until some have gone."""
    with Proxy(POLICY.replace("WORKERS", "1"), tmp_path, node.name, port=1080) as proxy:
        (pid,) = workers(proxy)
        limits = Path(f"/proc/{pid}/limits").read_text().splitlines()
        allowed = next(int(line.split()[3]) for line in limits if line.startswith("Max open files"))
        room = min((allowed - KEPT_BACK) // 2, MANY)
        assert room > 0.9 * MANY, f"{allowed} descriptors allow {room} connections; raise the hard limit (ulimit -Hn)"
        before, held_before = resident_bytes(pid), descriptors(pid)
        with netns.enter(node.name), closing(Crowd(1080, TARGETS, PATIENCE_S)) as crowd:
            crowd.come_and_be_served(room)
            assert proxy.status()["relaying"] == room
            claims = node.alive()
            assert len({(one.local, one.remote) for one in claims}) == room
            assert {one.local[0] for one in claims} == {ADDRESS}
            crowd.come(MANY - room)
            for at in range(0, room, 100):
                crowd.talk(at)
            assert crowd.silent(room)
            assert resident_bytes(pid) - before < room * EACH_BYTES
            crowd.leave(0, 999)
            crowd.be_served(MANY - room)
            for at in range(room, MANY, 100):
                crowd.talk(at)
            assert bool(proxy.told("no more connections for a moment")) == (room < MANY)
            crowd.leave(1000, MANY - 1)
        wait_until(lambda: not node.alive(), PATIENCE_S, "claims to be given back")
        assert {entry.get("end") for entry in proxy.entries(MANY)} == {"closed"}
        assert proxy.status()["relaying"] == 0
        assert descriptors(pid) <= held_before + 2 * FREE_PIPES


def test_two_workers(node: SockNode, tmp_path: Path) -> None:
    """All at once, whatever a process may have; then the proxy is reloaded, and they are still there."""
    with Proxy(POLICY.replace("WORKERS", "2"), tmp_path, node.name, port=1080) as proxy:
        with netns.enter(node.name), closing(Crowd(1080, TARGETS, PATIENCE_S)) as crowd:
            crowd.come_and_be_served(MANY)
            claims = {(one.local, one.remote) for one in node.alive()}
            assert len(claims) == MANY
            proxy.reload()
            proxy.wait_for("a predecessor has ended", 2)
            for at in range(0, MANY, 100):
                crowd.talk(at)
            assert {(one.local, one.remote) for one in node.alive()} == claims, "the same connections"
            crowd.leave(0, MANY - 1)
        wait_until(lambda: not node.alive(), PATIENCE_S, "claims to be given back")
        assert {entry.get("end") for entry in proxy.entries(MANY)} == {"closed"}
