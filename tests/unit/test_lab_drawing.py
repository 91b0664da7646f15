# SPDX-License-Identifier: Apache-2.0
"""Drawings are read as drawn, and refused where they are broken."""

from __future__ import annotations

from pathlib import Path

import pytest

from softunicast.lab.drawing import DrawingError, read_drawing
from softunicast.lab.topology import DRAWING, NODES, mac, plan_text, topology
from softunicast.model.plan import load_plan

SMALL = """
  ┌──────────────────────┐
  │ a   some remark      │
  │ # another            │
  │ lo 203.0.113.1       │
  │ br0 10.0.0.1/24      │
  └──┬───────────────┬───┘
  port1     x 10.1.0.1/24
     │               ┆
  mtu 1600           ┆
 y 10.0.0.2/24  z 10.1.0.2/24
  ┌──┴───┐       ┌───┴──┐
  │ b    │       │ c    │
  └──────┘       └──────┘
"""


ACROSS = """
┌───────────────────┐              ┌───────────────────┐
│ a                 ├x─ mtu 9000 ─y┤ b                 │
│ x 10.0.0.1/24     │              │ y 10.0.0.2/24     │
└─────────┬─────────┘              └───────────────────┘
    up fd01::1/64
      10.1.0.1/24
          │
         eth0
      10.1.0.2/24
     fd01::2/64
      ┌───┴───┐
      │ c     │
      └───────┘
"""


def test_lines_across_and_addresses_below_their_device() -> None:
    down, across = read_drawing(ACROSS).links
    assert [str(address) for address in down.upper.addresses] == ["fd01::1/64", "10.1.0.1/24"]
    assert [str(address) for address in down.lower.addresses] == ["10.1.0.2/24", "fd01::2/64"]
    assert (across.upper.namespace, across.lower.namespace, across.mtu) == ("a", "b", 9000)
    assert [str(address) for address in (*across.upper.addresses, *across.lower.addresses)] == [
        "10.0.0.1/24",
        "10.0.0.2/24",
    ]
    with pytest.raises(DrawingError, match="ends in nothing"):
        read_drawing(ACROSS.replace("┤", "│"))


def test_boxes_lines_and_labels() -> None:
    read = read_drawing(SMALL)
    assert read.namespaces == ("a", "b", "c")
    assert read.bridge("a") == "br0" and read.bridge("b") is None
    port, tunnel = read.links
    assert (port.upper.device, port.upper.addresses, port.mtu, port.tunnel) == ("port1", (), 1600, False)
    assert (port.lower.namespace, port.lower.device) == ("b", "y")
    assert (tunnel.tunnel, tunnel.mtu, str(tunnel.lower.addresses[0])) == (True, 1500, "10.1.0.2/24")
    assert ("a", "lo", "203.0.113.1/32") in read.facts()
    assert ("a", "port1", "") in read.facts()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("  └──┬", "  ───┬"),
        ("│ b    │", "│      │"),
        ("│ c    │", "│ b    │"),
        ("y 10.0.0.2/24", "y 10.0.0.299/2"),
        ("  port1   ", "          "),
        ("┌──┴───┐  ", "┌──────┐  "),
        ("└──┬────", "└───────"),
        ("     │               ┆\n  mtu", "                     ┆\n  mtu"),
    ],
)
def test_a_broken_drawing_is_refused(old: str, new: str) -> None:
    assert old in SMALL
    with pytest.raises(DrawingError):
        read_drawing(SMALL.replace(old, new, 1))


def test_the_labs_drawing() -> None:
    read = topology()
    assert set(NODES) < set(read.namespaces)
    assert sum(link.tunnel for link in read.links) == 3
    backbone = read.links[-1]
    assert (backbone.upper.namespace, backbone.lower.namespace, backbone.mtu) == ("r1", "r2", 1600)
    assert [str(address) for address in backbone.lower.addresses] == ["10.9.0.2/30", "fd00:9::2/64"]
    assert all(len(line) <= 100 and line == line.rstrip() for line in DRAWING.splitlines())
    macs = [mac(end.namespace, end.device) for end in read.ends()]
    assert len(set(macs)) == len(macs)


def test_the_documentation_shows_the_same() -> None:
    text = (Path(__file__).parents[2] / "docs" / "lab.md").read_text(encoding="utf-8")
    assert DRAWING in text


@pytest.mark.parametrize("prefix", ["su", "t1"])
def test_the_labs_plan_agrees_with_its_drawing(prefix: str) -> None:
    plan = load_plan(plan_text(prefix), "plan.yaml")
    facts = {(end.namespace, end.device): [str(address.ip) for address in end.addresses] for end in topology().ends()}
    for site in plan.sites.values():
        for node in site.nodes.values():
            where = node.name.removeprefix(f"{prefix}-")
            assert facts[where, node.uplinks[0]][0] == str(node.underlay)
            for ramp in node.onramps.values():
                assert facts[where, ramp.device] == [str(ramp.gateway4), str(ramp.gateway6)]
