# SPDX-License-Identifier: Apache-2.0
"""The strategy `terminate`: a real agent, its terminator, clients behind veth and TUN. Needs root."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softunicast.agent import children
from softunicast.kernel import netns, nodes
from tests.support.agent_node import Daemon
from tests.support.dump import RUN
from tests.support.onramp_node import ECHO, SERVER, OnrampNode, onramp_node
from tests.support.wait import wait_until

NETWORK, CLIENT, GATEWAY = "10.64.1.0/24", "10.64.1.2", "10.64.1.1"
TEN = "198.51.100.20"
DARK = "203.0.113.99"
"""Routed to the world, where nobody answers for it."""
ADD = ("--source", NETWORK, "--gateway", GATEWAY, "--strategy", "terminate")


@pytest.fixture
def at(tmp_path: Path) -> Iterator[OnrampNode]:
    with onramp_node(tmp_path) as made:
        yield made


@pytest.fixture
def daemon(at: OnrampNode) -> Iterator[Daemon]:
    with at.node.daemon("--interval", "1") as running:
        yield running


def add(at: OnrampNode, name: str, device: str, *more: str) -> str:
    """An on-ramp whose TCP ends here, with a client behind a veth; the client's namespace."""
    client = at.veth_client(name, device, CLIENT, GATEWAY)
    at.add(name, "--device", device, *ADD, *more)
    return client


def pid(at: OnrampNode) -> int | None:
    return children.running(RUN / at.node.name, "terminator")


def begin(namespace: str, port: int, address: str = SERVER) -> socket.socket:
    """A connect that is under way."""
    with netns.enter(namespace):
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    assert made.connect_ex((address, port)) == errno.EINPROGRESS
    return made


def outcome(namespace: str, port: int, address: str = SERVER) -> int:
    """The errno that a connect ends with."""
    with netns.enter(namespace), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.settimeout(20)
        return made.connect_ex((address, port))


@pytest.mark.parametrize("handshake", ["held", "early"])
def test_tcp_ends_here_and_goes_on_from_the_slice(at: OnrampNode, daemon: Daemon, handshake: str) -> None:
    client = add(at, "box", "box0", "--pool", "ten", "--handshake", handshake)
    talking = at.talk(client, b"hello" * 100000, keep=True)
    proto, address, port = at.echo.seen[-1]
    assert (proto, address) == ("tcp", TEN)
    assert 9000 <= port <= 9009
    (flow,) = at.json("flows")["flows"]
    assert (flow["kind"], flow["remote"]) == ("socket", f"{SERVER}:{ECHO}")
    counters = at.json("counters")["counters"]
    assert counters["terminated_out"]["total"] > 3
    talking.shutdown(socket.SHUT_WR)
    assert talking.recv(1) == b"", "the end is passed on"
    talking.close()
