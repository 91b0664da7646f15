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
    assert sum(link.tunnel for link in read.links) == 2
    assert all(len(line) <= 100 and line == line.rstrip() for line in DRAWING.splitlines())
    macs = [mac(end.namespace, end.device) for end in read.ends()]
    assert len(set(macs)) == len(macs)


def test_the_documentation_shows_the_same() -> None:
    text = (Path(__file__).parents[2] / "docs" / "lab.md").read_text(encoding="utf-8")
    assert DRAWING in text


@pytest.mark.parametrize("prefix", ["su", "t1"])
def test_the_labs_plan_agrees_with_its_drawing(prefix: str) -> None:
    plan = load_plan(plan_text(prefix), "plan.yaml")
    facts = {(namespace, device): address for namespace, device, address in topology().facts() if address}
    for site in plan.sites.values():
        for node in site.nodes.values():
            where = node.name.removeprefix(f"{prefix}-")
            assert facts[where, node.uplinks[0]].split("/")[0] == str(node.underlay)
            for ramp in node.onramps.values():
                assert facts[where, ramp.device].split("/")[0] == str(ramp.gateway4)
