# SPDX-License-Identifier: Apache-2.0
"""Nodes notice each other's death, whoever's agent lives, and another site is reached through those that live."""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Iterator

import pytest

from softunicast.kernel import abi, nodes
from softunicast.lab.topology import NODES
from tests.support.fleet_lab import FleetLab, fleet_lab
from tests.support.wait import wait_until

NOTICED_S = 6  # three lost questions of 0.3 s each, on a loaded machine; BFD and reconciliations are slower


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with fleet_lab("peers") as lab:
        yield lab


def states(lab: FleetLab, node: str) -> dict[str, str]:
    """What a node thinks of the others, by their names in the drawing."""
    names = {lab.node(name).plan_name: name for name in NODES}
    return {names[peer["node"]]: peer["state"] for peer in lab.json(node, "peers")["peers"]}


def wait_states(lab: FleetLab, node: str, wanted: dict[str, str], patience_s: float = 20) -> float:
    began = time.monotonic()
    wait_until(lambda: states(lab, node) == wanted, patience_s, f"{node} sees {wanted}, not {states(lab, node)}")
    return time.monotonic() - began


def is_down(lab: FleetLab, node: str, other: str) -> bool:
    """Whether the map says so, by which packets go."""
    name = lab.node(node).plan_name
    state = json.loads(nodes.node_file(name).read_text())
    index = state["places"]["nodes"][lab.node(other).plan_name]
    with nodes.open_maps(name) as maps:
        found = maps["nodes"].lookup(struct.pack("=I", index))
    return found is not None and bool(abi.Node.unpack(found).flags & abi.NodeFlag.DOWN)


def up_but(node: str, **others: str) -> dict[str, str]:
    return {name: "up" for name in NODES if name != node} | others


def test_all_live(lab: FleetLab) -> None:
    for node in NODES:
        wait_states(lab, node, up_but(node))
    peer = lab.json("lhr1", "peers")["peers"][0]
    assert 0 < peer["rtt_ms"] < 200 and peer["answered_ago_s"] < 5


def test_a_dead_line_is_noticed_by_all_and_its_return_too(lab: FleetLab) -> None:
    lab.node("cdg1").run(["ip", "link", "set", "eth0", "down"], check=True)
    began = time.monotonic()
    wait_until(lambda: is_down(lab, "lhr1", "cdg1"), 20, "lhr1 notices")
    took_s = time.monotonic() - began
    wait_states(lab, "lhr1", up_but("lhr1", cdg1="down"))
    wait_states(lab, "cdg2", up_but("cdg2", cdg1="down"))
    print(f"noticed after {took_s:.1f} s")
    assert took_s < NOTICED_S
    # Answers to cdg's slices that come to lhr's nodes are to go to cdg2 alone; which node is known in the map.
    told = lab.node("lhr1").softunicast("explain", "198.51.100.40:3000", "--from", "203.0.113.1:443")
    assert "carried to" in told.stdout and "cdg2" in told.stdout and "cdg1" not in told.stdout
    lab.node("cdg1").run(["ip", "link", "set", "eth0", "up"], check=True)
    for route in ("default via 10.0.2.1 mtu 1500", "10.0.0.0/16 via 10.0.2.1"):
        lab.node("cdg1").run(["ip", "route", "replace", *route.split()], check=True)
    wait_states(lab, "lhr1", up_but("lhr1"))


def test_a_dead_agent_is_no_dead_node(lab: FleetLab) -> None:
    agent = next(child for child in lab.children if "agent" in child.args and lab.node("lhr2").plan_name in child.args)
    agent.kill()
    agent.wait()
    before = lab.json("lhr1", "peers")["peers"]
    wait_until(lambda: lab.json("lhr1", "peers")["peers"] != before, 5, "lhr1 goes on asking")
    wait_states(lab, "lhr1", up_but("lhr1"))
    lab.start_agents(["lhr2"])


def test_a_node_that_drains_is_not_asked_to_carry(lab: FleetLab) -> None:
    name = lab.node("cdg2").plan_name
    assert lab.node("cdg2").softunicast("announce", "drain", "--node", name).returncode == 0
    wait_states(lab, "lhr1", up_but("lhr1", cdg2="unfit"))
    assert lab.node("cdg2").softunicast("announce", "undrain", "--node", name).returncode == 0
    wait_states(lab, "lhr1", up_but("lhr1"))
