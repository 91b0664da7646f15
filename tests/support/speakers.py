# SPDX-License-Identifier: Apache-2.0
"""A node that announces, and its neighbour: BIRD at the router, and BIRD (or what a test starts) on the node.

    node  up0 10.0.1.11 (underlay), 10.0.9.11, fd00:1::11 ---- r0 10.0.9.1, fd00:1::1  router

The session is between 10.0.9.11 (AS 65101) and 10.0.9.1 (AS 65001), so that the underlay can go without it.
"""

from __future__ import annotations

import contextlib
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

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
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)

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

        self.processes[name] = process

        def answers() -> bool:
            assert process.poll() is None, (self.folder / f"{name}.log").read_text()
            with contextlib.suppress(KernelError), Birdc(self.control(name)):
                return True
            return False

        wait_until(answers, 10, f"BIRD {name} answers")
        return process

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()

    def routes(self) -> dict[str, str]:
        """The fleet's prefixes as the neighbour has them: MED and communities."""
        found: dict[str, str] = {}
        with Birdc(self.control("router"), timeout_s=20) as bird:
            answers = (bird.command(f"show route protocol {name} all") for name in ("server", "server6"))
            lines = [line.text for answer in answers for line in answer]
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


@contextmanager
def speakers(folder: Path, *, bird: bool = True) -> Iterator[Speakers]:
    """Both namespaces, the router's BIRD, and with `bird` the node's and its key in the plan; the agent not started."""
    with agent_node(folder) as node, contextlib.ExitStack() as undo:
        found = Speakers(node, folder)
        undo.callback(found.stop)
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
        # For daemons that want a session of its own for IPv6.
        session6 = (
            f"local fd00:1::1 as 65001; neighbor fd00:1::11 as 65101; {TIMERS} ipv6 {{ import all; export none; }};"
        )
        found.write(
            "router", f"protocol bgp server {{ {session} {channels} }}", f"protocol bgp server6 {{ {session6} }}"
        )
        for name in ("router", "node") if bird else ("router",):
            found.start(name)
        prefixes = f'  - {{prefix: {V4}}}\n  - {{prefix: "{V6}"}}\n'
        key = f"        bird: {{control: {found.control('node')}, drain: {{settle_s: 6}}}}\n" if bird else ""
        node.write(
            ("  - {prefix: 198.51.100.0/24}\n", prefixes),
            ("uplinks: [up0]\n", f"uplinks: [up0]\n{key}"),
        )
        yield found
