# SPDX-License-Identifier: Apache-2.0
"""A host that has more to do: `masquerade` on the uplink, a firewall that relies on `ct state`, its own traffic."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.support.fleet_lab import FleetLab, fleet_lab

RULES = """
table ip natting {
  chain post {
    type nat hook postrouting priority srcnat
    oifname "eth0" masquerade
  }
}
table inet wall {
  chain in {
    type filter hook input priority filter; policy drop
    iif lo accept
    ct state established,related accept
    ip saddr 10.0.0.0/8 accept
  }
}
"""
OPENING = "insert rule inet wall in ip daddr 198.51.100.0/24 accept\n"


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with fleet_lab("neighbours") as lab:
        yield lab


def curl(lab: FleetLab, where: str, patience_s: int = 20) -> str:
    command = ["curl", "-sS", "-m", str(patience_s), "http://203.0.113.1/"]
    if where == "lhr1":
        command = ["softunicast", "run", "--pool", "gb", "--", *command]
    done = lab.node(where).run(command)
    return done.stdout or done.stderr


def test_slices_hold_beside_masquerade_and_a_stateful_firewall(lab: FleetLab) -> None:
    assert lab.node("lhr1").run(["nft", "-f", "-"], input=RULES).returncode == 0
    report = lab.node("lhr1").softunicast(
        "agent", "--plan", str(lab.plan_path), "--bindings", str(lab.bindings_path),
        "--node", lab.node("lhr1").plan_name, "--dry-run",
    )  # fmt: skip
    said = report.stdout + report.stderr
    assert "masquerade" in said, said
    assert "ct state" in said, said

    with lab.capture() as capture:
        # Forwarded packets pass no netfilter at all.
        for where in ("c1", "t1"):
            assert "you are 198.51.100.1" in curl(lab, where)
        # A socket's answers are untracked: that firewall drops them, as the agent said; nothing leaves another way.
        assert "you are" not in curl(lab, "lhr1", 5)
        # With what the agent says to add, they come in, from a slice, not masqueraded.
        assert lab.node("lhr1").run(["nft", "-f", "-"], input=OPENING).returncode == 0
        for _ in range(20):
            assert "you are 198.51.100.1" in curl(lab, "lhr1")
    report_seen = capture.report()
    assert report_seen.ok, report_seen.problems()


def test_the_nodes_own_traffic_is_left_alone(lab: FleetLab) -> None:
    """Without a policy a program leaves from the node's own address (which the lab's internet cannot answer)."""
    assert lab.node("lhr1").run(["ping", "-c", "1", "-W", "10", "10.0.1.1"]).returncode == 0
    assert lab.node("lhr1").run(["ping", "-c", "1", "-W", "10", "10.0.1.12"]).returncode == 0
    assert (
        json.loads(lab.node("lhr1").run(["ip", "-j", "route", "get", "203.0.113.1"]).stdout)[0]["prefsrc"]
        == "10.0.1.11"
    )
