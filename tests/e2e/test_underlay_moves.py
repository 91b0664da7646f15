# SPDX-License-Identifier: Apache-2.0
"""The fleet's underlay moves from IPv4 to IPv6 by changes of the plan, as docs/operating.md says, under a steady flood.

All answers come to cdg, so every packet for lhr's clients and programs is carried. Not one is lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator

import pytest

from softunicast.kernel.abi import Counter, Drop
from softunicast.lab.topology import NODES, underlay
from tests.e2e.test_changes_lose_nothing import FLOOD, PORT, TARGETS, Floods
from tests.e2e.test_underlay6 import TUNNEL, underlay6
from tests.support.dump import RUN
from tests.support.fleet_lab import FleetLab, fleet_lab
from tests.support.wait import wait_until

PLACES = {"lhr1": "gb", "c1": "gb", "t2": "gb", "cdg1": "fr"}
CARRIED = 500


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with fleet_lab("moves") as lab:
        command = [sys.executable, str(FLOOD), "answer", str(PORT), *TARGETS]
        child = lab.node("inet").popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield lab


def has(lab: FleetLab, node: str, plan: str) -> bool:
    """The node's agent works by that plan, and is done."""
    folder = RUN / lab.node(node).plan_name
    return bool(json.loads((folder / "node.json").read_text())["ready"]) and (folder / "plan.yaml").read_text() == plan


def reached_by(lab: FleetLab, node: str) -> set[str]:
    """The underlay addresses of the others, as that node uses them, while all of them answer there."""
    peers = lab.json(node, "peers")["peers"]
    return {peer["underlay"] for peer in peers if peer["state"] == "up"}


def carried(lab: FleetLab) -> int:
    """Packets that lhr's nodes took out of the tunnel."""
    return sum(lab.stats(node)[1][Counter.CARRIED_IN] for node in ("lhr1", "lhr2"))


@pytest.mark.timeout(300)
def test_the_underlay_moves_to_ipv6(lab: FleetLab) -> None:
    before = lab.plan_path.read_text()
    both, turned, after = '[{0}, "{1}"]', '["{1}", {0}]', '"{1}"'
    with lab.capture() as capture, Floods(lab, PLACES) as floods:
        for form in (both, turned, after):
            plan = before
            for node in NODES:
                old = f"underlay: {underlay(node)}\n"
                assert plan.count(old) == 1
                plan = plan.replace(old, f"underlay: {form.format(underlay(node), underlay6(node))}\n")
            lab.plan_path.write_text(plan)
            for node in NODES:
                wait_until(lambda node=node, plan=plan: has(lab, node, plan), 60, f"{node} has {form}")  # type: ignore[misc]
            if form is turned:
                for node in NODES:
                    others = {underlay6(other) for other in NODES if other != node}
                    wait_until(
                        lambda node=node, others=others: reached_by(lab, node) == others,  # type: ignore[misc]
                        30,
                        f"{node} to reach all others at {others}",
                    )
            start = carried(lab)
            wait_until(lambda start=start: carried(lab) - start > CARRIED, 30, f"answers carried with {form}")  # type: ignore[misc]
        floods.check(500)
    report = capture.report()
    assert report.ok, report.problems()
    assert reached_by(lab, "cdg1") == {underlay6(other) for other in NODES if other != "cdg1"}
    for node in NODES:
        drops = lab.stats(node)[0]
        assert not any(drops[reason] for reason in (*TUNNEL, Drop.NO_OWNER)), f"{node}: {drops}"
