# SPDX-License-Identifier: Apache-2.0
"""The prober reads an answer when it comes, not when it next has something to ask."""

from __future__ import annotations

import contextlib
import selectors
import socket
import time
from ipaddress import IPv4Address
from typing import Any, cast

import structlog

from softunicast.agent.machine import Machine
from softunicast.agent.prober import Prober
from softunicast.kernel import abi
from softunicast.model.fleet import Node, Plan, Settings, Site
from softunicast.wire import probe


def plan(port: int) -> Plan:
    """Two nodes on loopback, which no plan that is read may have."""
    nodes = {name: Node(name, "lhr", (IPv4Address(at),)) for name, at in (("me", "127.0.0.1"), ("other", "127.0.0.2"))}
    return Plan("plan.yaml", (), {"lhr": Site("lhr", nodes)}, {}, Settings(gue_port=port))


class Nodes:
    """The map `nodes`: one node that is planned."""

    def __init__(self) -> None:
        self.value = abi.Node(bytes(16), int(abi.NodeFlag.SET)).pack()

    def lookup(self, _: bytes) -> bytes:
        return self.value

    def update(self, _: bytes, value: bytes) -> None:
        self.value = value


class FakeMachine:
    node = "me"

    def __init__(self) -> None:
        self.nodes = Nodes()
        self.files: dict[str, str] = {}

    def map(self, _: str) -> Nodes:
        return self.nodes

    def write_file(self, name: str, text: str, *, lasting: bool = True) -> None:
        self.files[name] = text


def test_an_answer_is_read_at_once_and_nothing_is_left_to_wake_the_loop() -> None:
    with contextlib.ExitStack() as stack:
        other = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        other.bind(("127.0.0.2", 0))
        other.settimeout(30)
        selector = stack.enter_context(selectors.DefaultSelector())
        machine = FakeMachine()
        prober = Prober(cast(Machine, machine), structlog.get_logger(), selector, time.monotonic)
        stack.callback(prober.close)
        prober.follow(plan(other.getsockname()[1]), {"me": 1, "other": 2})
        prober.tick()
        payload, asker = other.recvfrom(64)
        question = probe.unpack(payload)
        assert selector.select(0) == []
        other.sendto(probe.Probe(probe.REPLY, probe.FIT, question.sequence).pack(), asker)
        ((key, _),) = selector.select(30)
        heard: Any = key.data
        assert heard(key.fileobj) is False, "no reason to reconcile"
        assert selector.select(0) == [], "it was read"
        prober.tick()
        assert '"life": "up"' in machine.files["peers.json"]
