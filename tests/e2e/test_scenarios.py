# SPDX-License-Identifier: Apache-2.0
"""What breaks, and what it costs: no connection whose owner lives, and little time."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from softunicast.lab import scenarios
from softunicast.lab.lab import Lab
from softunicast.lab.scenarios import SCENARIOS, Result, bill_text
from softunicast.lab.topology import NODES, SITES

NOTICED_S = 8.0  # BFD notices within 0.8 s, TCP asks again after 0.2, 0.6, 1.4 and 3; BGP alone would take 30


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(f"scen{os.getpid()}") as made:
        yield made


def run(lab: Lab, name: str, monkeypatch: pytest.MonkeyPatch) -> Result:
    monkeypatch.setattr(scenarios, "DOWN_S", 2.0)
    monkeypatch.setattr(scenarios, "FLAPS", 3)
    steps: list[str] = []
    result = SCENARIOS[name](lab, steps.append)
    print("\n".join([*steps, *bill_text(result), *result.facts]))
    assert result.wrong() == []
    assert len(steps) == len(result.steps) > 1
    # Everybody had flows, and whatever was lost is found again before the end: none is broken, not even the victims'.
    assert set(result.costs) == set(NODES)
    for cost in result.costs.values():
        assert cost.broken == 0 and cost.flows >= 12 and cost.packets > 100, cost
    return result


def lost(result: Result, *nodes: str) -> int:
    return sum(result.costs[node].lost for node in nodes)


def test_a_node_goes_dark(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(lab, "fail-node", monkeypatch)
    # Half of the answers came to it, until the router noticed.
    assert lost(result, "lhr1", "lhr2", "cdg2") > 0
    assert all(result.costs[node].silence_s < NOTICED_S for node in ("lhr1", "lhr2", "cdg2")), result.costs
    assert result.costs["cdg1"].silence_s > 2


def test_a_site_is_cut_off(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(lab, "fail-site", monkeypatch)
    assert all(result.costs[node].silence_s < NOTICED_S for node in SITES["lhr"]), result.costs
    assert all(result.costs[node].refused == 0 for node in SITES["lhr"]), result.costs
    assert all(result.costs[node].silence_s > 2 for node in SITES["cdg"]), result.costs


def test_the_backbone_is_cut(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(lab, "backbone", monkeypatch)
    assert lost(result, *SITES["cdg"]) == 0


def test_a_small_line(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(lab, "mtu", monkeypatch)
    assert sum(fact.startswith("through the small ones") for fact in result.facts) == 8


def test_a_node_is_drained(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(lab, "drain", monkeypatch)
    assert all(cost.lost < cost.flows and cost.refused == 0 for cost in result.costs.values()), result.costs


def test_bird_and_the_agent_die(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(lab, "bird", monkeypatch)
    # BIRD's death is told by its socket, the agent's is not told at all: hardly an answer is lost.
    assert all(cost.lost < cost.flows and cost.refused == 0 for cost in result.costs.values()), result.costs


def test_a_line_flaps(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    result = run(lab, "flap", monkeypatch)
    assert all(cost.silence_s < NOTICED_S for cost in result.costs.values()), result.costs


def test_steering_does_not_depend_on_the_routers_tables() -> None:
    with Lab(f"feed{os.getpid()}", feed=20_000) as lab:
        assert [lab.feed_routes(router) for router in ("r1", "r2")] == [20_000, 20_000]
        for where in ("c1", "t2", "c3"):
            for target in ("203.0.113.1", "[2001:db8:f::1]"):
                said = lab.node(where).run(["curl", "-sS", "-m", "20", f"http://{target}/"])
                assert said.stdout.startswith(("you are 198.51.100.", "you are [2001:db8:100::")), said
