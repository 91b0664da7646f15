# SPDX-License-Identifier: Apache-2.0
"""The agent announces by a real BIRD to a real neighbour: fit, unfit, draining, through the deaths of agents."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from softunicast.announce.birdc import Birdc
from softunicast.errors import KernelError
from tests.support.agent_node import AgentNode, agent_node
from tests.support.dump import RUN
from tests.support.wait import wait_until

V4, V6 = "198.51.100.0/24", "2001:db8:100::/48"
TIMERS = "connect delay time 1; connect retry time 1; error wait time 1, 2;"


@dataclass
class Speakers:
    """BIRD on the node, which includes the agent's file, and BIRD at the router, its neighbour."""

    node: AgentNode
    folder: Path

    def config(self, name: str) -> Path:
        return self.folder / f"{name}.conf"

    def control(self, name: str) -> str:
        return str(self.folder / f"{name}.ctl")

    def write(self, name: str, *lines: str) -> None:
        head = [f"router id 10.0.1.{1 if name == 'router' else 11};", "log stderr all;", "protocol device {}"]
        self.config(name).write_text("\n".join([*head, *lines, ""]))

    def start(self, name: str) -> subprocess.Popen[bytes]:
        space = f"{self.node.netns}-r" if name == "router" else self.node.netns
        command = ["nsenter", f"--net=/run/netns/{space}", "bird", "-f", "-c", str(self.config(name))]
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen([*command, "-s", self.control(name)], stdout=log, stderr=log)

        def answers() -> bool:
            assert process.poll() is None, (self.folder / f"{name}.log").read_text()
            with contextlib.suppress(KernelError), Birdc(self.control(name)):
                return True
            return False

        wait_until(answers, 10, f"BIRD {name} answers")
        return process

    def routes(self) -> dict[str, str]:
        """The fleet's prefixes as the neighbour has them: MED and communities."""
        found: dict[str, str] = {}
        with Birdc(self.control("router")) as bird:
            lines = [line.text for line in bird.command("show route protocol server all")]
        prefix = ""
        for line in lines:
            if match := re.match(r"(\S+/\d+) ", line):
                prefix = match[1]
                found[prefix] = ""
            elif prefix and ("BGP.med" in line or "BGP.community" in line):
                found[prefix] += f"{' '.join(line.split())};"
        return found

    def wait(self, condition: Callable[[dict[str, str]], bool], what: str, patience_s: float = 20) -> float:
        """Until the neighbour's routes are so; how long it took."""
        began = time.monotonic()
        try:
            wait_until(lambda: condition(self.routes()), patience_s, what)
        except AssertionError as error:
            log = (self.folder / "agent.log").read_text()
            raise AssertionError(
                f"{error}; the neighbour has {self.routes()}; the agent said\n{log[-3000:]}"
            ) from error
        return time.monotonic() - began


def both(routes: dict[str, str]) -> bool:
    return set(routes) == {V4, V6}


def none(routes: dict[str, str]) -> bool:
    return not routes


@pytest.fixture
def speakers(tmp_path: Path) -> Iterator[Speakers]:
    with agent_node(tmp_path) as node, contextlib.ExitStack() as undo:
        found = Speakers(node, tmp_path)
        for address in ("fd00:1::11/64", "10.0.9.11/24"):
            node.ip("address", "add", address, "dev", "up0", "nodad")
        for address in ("fd00:1::1/64", "10.0.9.1/24"):
            command = ["ip", "-n", f"{node.netns}-r", "address", "add", address, "dev", "r0", "nodad"]
            subprocess.run(command, check=True, timeout=30)
        include = f"{RUN}*/{node.name}/bird.conf"  # a pattern, so that BIRD starts without it too
        # BIRD sends a MED to another AS only when the export filter itself has set it.
        ours = 'filter ours { if proto ~ "softunicast?" then { bgp_med = bgp_med; accept; } reject; }'
        channels = " ".join(f"ipv{version} {{ import none; export filter ours; }};" for version in (4, 6))
        session = f"local 10.0.9.11 as 65101; neighbor 10.0.9.1 as 65001; {TIMERS}"
        found.write("node", f'include "{include}";', ours, f"protocol bgp uplink {{ {session} {channels} }}")
        session = f"local 10.0.9.1 as 65001; neighbor 10.0.9.11 as 65101; {TIMERS}"
        channels = "ipv4 { import all; export none; }; ipv6 { import all; export none; };"
        found.write("router", f"protocol bgp server {{ {session} {channels} }}")
        for name in ("router", "node"):
            process = found.start(name)
            undo.callback(process.wait)
            undo.callback(process.kill)
        node.write(
            ("  - {prefix: 198.51.100.0/24}\n", f'  - {{prefix: {V4}}}\n  - {{prefix: "{V6}"}}\n'),
            ("uplinks: [up0]\n", f"uplinks: [up0]\n        bird: {{control: {found.control('node')}, "
             "drain: {settle_s: 2}}\n"),
        )  # fmt: skip
        yield found


def test_announced_while_fit_withdrawn_within_a_second_when_not(speakers: Speakers) -> None:
    node = speakers.node
    assert speakers.routes() == {}
    with node.daemon():
        speakers.wait(both, "announced")
        assert speakers.routes()[V4] == "BGP.med: 0;"
        status = json.loads(node.softunicast("announce", "status", "--node", node.name, "--json").stdout)
        assert (status["stage"], status["reasons"], status["prefixes"]) == ("announced", [], [V4, V6])
        assert status["bird"]["routes"] == 2 and status["bird"]["sessions"][0]["state"] == "up"
        # The underlay's address goes: nobody could carry anything here. The session itself goes on.
        node.ip("address", "delete", "10.0.1.11/24", "dev", "up0")
        took_s = speakers.wait(none, "withdrawn")
        print(f"withdrawn at the neighbour after {took_s:.2f} s")
        assert took_s < 1.0
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
        assert "drains: its prefixes become the last choice, withdrawn in 2 s" in done.stdout
        drained = "BGP.med: 1000;BGP.community: (65535,0);"
        speakers.wait(lambda routes: routes == {V4: drained, V6: drained}, "MED and community")
        speakers.wait(none, "withdrawn")
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
        with Birdc(speakers.control("router")) as bird:
            since = [line.text for line in bird.command(f"show route {V4} all")]
    with node.daemon("--interval", "0.5"):
        wait_until(lambda: (RUN / node.name / "announce.json").exists(), 10, "the agent has judged")
        node.softunicast("counters", "--node", node.name)
        with Birdc(speakers.control("router")) as bird:
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
        wait_until(lambda: daemon.events("bird"), 10, "the agent says so")
        assert "refuses `configure`" in daemon.events("bird")[0]["error"]
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
        assert (RUN / node.name / "announce.json").exists()
