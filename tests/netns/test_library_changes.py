# SPDX-License-Identifier: Apache-2.0
"""A dialer that lives long: used by many threads, while the agent writes the node's file, when the plan changes."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

import softunicast
from softunicast.kernel import netns, nodes
from tests.support.sock_node import ADDRESS, WORLD, WORLD6, SockNode

SECOND, SIX = "198.51.100.21", "2001:db8:51::20"
SLICES = ((ADDRESS, 9000, 9009), (SECOND, 9000, 9001), (SIX, 5000, 5009))
WAYS = ("tag", "bind", "range")


@pytest.fixture
def node() -> Iterator[SockNode]:
    with SockNode(pinned=True, slices=SLICES) as made, netns.enter(made.name):
        yield made


def name(made: socket.socket) -> tuple[str, int]:
    host, port = made.getsockname()[:2]
    return host, port


@pytest.mark.parametrize("way", WAYS)
def test_threads_share_a_dialer(node: SockNode, way: str) -> None:
    """Both families at once, while the node's file is written again and again."""
    node.server()
    node.server(address=WORLD6)
    by = softunicast.dialer(pool="ten", way=way)
    text = nodes.node_file(node.name).read_text()

    def one(number: int) -> socket.socket:
        with netns.enter(node.name):
            made = softunicast.connect((WORLD6 if number % 2 else WORLD, 443), by=by, timeout=10)
        new = nodes.node_file(node.name).with_suffix(f".{number}")
        new.write_text(text)
        new.rename(nodes.node_file(node.name))
        return made

    with ThreadPoolExecutor(6) as threads:
        made = list(threads.map(one, range(20)))
    assert len({name(each) for each in made}) == 20
    for each in made:
        each.close()


def test_a_plan_that_changes_is_followed(node: SockNode) -> None:
    node.server()
    by = softunicast.dialer(pool="ten")
    softunicast.connect((WORLD, 443), by=by, timeout=5).close()
    file = nodes.node_file(node.name)
    raw = json.loads(file.read_text())
    raw["slices"] = [one for one in raw["slices"] if SECOND in one["slice"]]
    new = file.with_suffix(".new")
    new.write_text(json.dumps(raw))
    new.rename(file)
    assert [str(one.slice) for one in by.holdings().slices] == [f"{SECOND}:9000-9001"]
    by_port = softunicast.dialer(pool="ten", way="bind")
    with softunicast.connect((WORLD, 443), by=by_port, timeout=5) as made:
        assert name(made)[0] == SECOND


def test_a_node_that_is_written_often_costs_no_descriptors(node: SockNode) -> None:
    by, file = softunicast.dialer(pool="ten", way="tag"), nodes.node_file(node.name)

    def written(times: int) -> int:
        for _ in range(times):
            new = file.with_suffix(".new")
            new.write_text(file.read_text())
            new.rename(file)
            softunicast.create_datagram((WORLD, 53), by=by).close()
        return len(list(Path("/proc/self/fd").iterdir()))

    assert written(1) == written(20)
