# SPDX-License-Identifier: Apache-2.0
"""The agent announces by a real BIRD to a real neighbour: fit, unfit, draining, through the deaths of agents."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.announce.birdc import Birdc
from tests.support.agent_node import AgentNode, agent_node
from tests.support.dump import RUN
from tests.support.speakers import V4, V6, Speakers, both, none, speakers
from tests.support.wait import wait_until


@pytest.fixture(name="speakers")
def _speakers(tmp_path: Path) -> Iterator[Speakers]:
    with speakers(tmp_path) as found:
        yield found


def stage(node: AgentNode) -> str:
    """What `announce status` says; empty: nothing yet."""
    said = node.softunicast("announce", "status", "--node", node.name, "--json").stdout
    return str(json.loads(said)["stage"]) if said else ""


def test_announced_while_fit_withdrawn_within_a_second_when_not(speakers: Speakers) -> None:
    node = speakers.node
    assert speakers.routes() == {}
    with node.daemon():
        speakers.wait(both, "announced")
        assert speakers.routes()[V4] == "BGP.med: 0;"
        wait_until(lambda: stage(node) == "announced", 20, "the status says so")  # it is written after BIRD was told
        status = json.loads(node.softunicast("announce", "status", "--node", node.name, "--json").stdout)
        assert (status["stage"], status["reasons"], status["prefixes"]) == ("announced", [], [V4, V6])
        assert status["bird"]["routes"] == 2 and status["bird"]["sessions"][0]["state"] == "up"
        # The underlay's address goes: nobody could carry anything here. The session itself goes on.
        # A machine stands still once, an agent that is slow is slow each time: the middle one of three tells.
        took_s = []
        for again in range(3):
            if again:
                node.ip("address", "add", "10.0.1.11/24", "dev", "up0")
                speakers.wait(both, "announced again")
            node.ip("address", "delete", "10.0.1.11/24", "dev", "up0")
            took_s.append(speakers.wait(none, "withdrawn"))
        print(f"withdrawn at the neighbour after {took_s} s")
        assert sorted(took_s)[1] < 1.0, took_s
        wait_until(lambda: stage(node) == "withdrawn", 20, "the status says so")
        done = node.softunicast("announce", "status", "--node", node.name)
        assert done.returncode == 1
        assert "withdrawn: underlay address 10.0.1.11 is on no device" in done.stdout
        node.ip("address", "add", "10.0.1.11/24", "dev", "up0")
        speakers.wait(both, "announced again")


def test_draining_is_announced_then_withdrawn_and_outlives_agents(speakers: Speakers) -> None:
    node = speakers.node
    with node.daemon() as first:
        speakers.wait(both, "announced")
        done = node.softunicast("announce", "drain", "--node", node.name)
        assert "drains: its prefixes become the last choice, withdrawn in 6 s" in done.stdout
        drained = "BGP.med: 1000;BGP.community: (65535,0);"
        speakers.wait(lambda routes: routes == {V4: drained, V6: drained}, "MED and community")
        speakers.wait(none, "withdrawn")
        wait_until(lambda: stage(node) == "withdrawn", 20, "the status says so")
        first.kill()
    with node.daemon():
        assert node.softunicast("announce", "status", "--node", node.name).returncode == 1
        assert speakers.routes() == {}
        assert "drains no longer" in node.softunicast("announce", "undrain", "--node", node.name).stdout
        speakers.wait(both, "announced again")


def test_deaths_and_restarts_withdraw_nothing(speakers: Speakers) -> None:
    node = speakers.node
    with node.daemon() as daemon:
        speakers.wait(both, "announced")
        path = RUN / node.name / "bird.conf"
        written = path.stat().st_mtime_ns
        daemon.kill()
        with Birdc(speakers.control("router"), timeout_s=20) as bird:
            since = [line.text for line in bird.command(f"show route {V4} all")]
    with node.daemon("--interval", "0.5") as daemon:
        wait_until(lambda: daemon.events("announce"), 10, "the second agent has judged")
        with Birdc(speakers.control("router"), timeout_s=20) as bird:
            assert [line.text for line in bird.command(f"show route {V4} all")] == since
        assert path.stat().st_mtime_ns == written


def test_a_configuration_that_bird_refuses_leaves_the_file_as_it_was(speakers: Speakers) -> None:
    node = speakers.node
    with node.daemon() as daemon:
        speakers.wait(both, "announced")
        path = RUN / node.name / "bird.conf"
        before = path.read_text()
        good = speakers.config("node").read_text()
        speakers.config("node").write_text(good + "protocol nonsense;\n")
        node.softunicast("announce", "drain", "--node", node.name)
        refused = "refuses `configure`"
        wait_until(lambda: any(refused in one["error"] for one in daemon.events("bird")), 20, "the agent says so")
        assert path.read_text() == before
        assert both(speakers.routes())
        speakers.config("node").write_text(good)
        speakers.wait(none, "drained when the configuration is good again")


def test_uninstall_withdraws_first(speakers: Speakers) -> None:
    node = speakers.node
    with node.daemon():
        speakers.wait(both, "announced")
    node.uninstall()
    assert speakers.wait(none, "withdrawn") < 1.0
    assert not (RUN / node.name).exists()


def test_no_bird_is_said_and_the_node_goes_on(tmp_path: Path) -> None:
    with agent_node(tmp_path) as node:
        socket = tmp_path / "nobody.ctl"
        node.write(("uplinks: [up0]\n", f"uplinks: [up0]\n        bird: {{control: {socket}}}\n"))
        with node.daemon() as daemon:
            wait_until(lambda: daemon.events("bird"), 10, "the agent says so")
            assert f"BIRD does not answer at {socket}" in daemon.events("bird")[0]["error"]
            # BIRD will read it when it starts.
            assert "softunicast4" in (RUN / node.name / "bird.conf").read_text()
            # For `announce status`; written after the event is logged.
            status = RUN / node.name / "announce.json"
            wait_until(status.exists, 10, "the status is written")
            assert str(socket) in json.loads(status.read_text())["bird"]


def test_a_bird_that_restarts_announces_again(speakers: Speakers) -> None:
    with speakers.node.daemon():
        speakers.wait(both, "announced")
        speakers.processes["node"].kill()
        speakers.processes["node"].wait()
        speakers.wait(none, "gone with BIRD")
        speakers.start("node")
        speakers.wait(both, "announced again")


def test_unfit_is_withdrawn_even_when_bird_refuses_its_configuration(speakers: Speakers) -> None:
    node = speakers.node
    with node.daemon():
        speakers.wait(both, "announced")
        good = speakers.config("node").read_text()
        speakers.config("node").write_text(good + "protocol nonsense;\n")
        node.ip("address", "delete", "10.0.1.11/24", "dev", "up0")
        # No retry is in between, nor the hold timer of 30 s.
        assert speakers.wait(none, "withdrawn") < 5
        assert "route" not in (RUN / node.name / "bird.conf").read_text().replace("unreachable", "")
        node.ip("address", "add", "10.0.1.11/24", "dev", "up0")
        speakers.config("node").write_text(good)
        speakers.wait(both, "announced again")
