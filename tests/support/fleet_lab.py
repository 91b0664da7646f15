# SPDX-License-Identifier: Apache-2.0
"""Labs for end-to-end tests: one a module, on-ramps in the pool it wants, destinations nobody used yet."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from softunicast.kernel.abi import Claim, Counter, Drop, Flow
from softunicast.kernel.maps import Map
from softunicast.kernel.nodes import map_pin
from softunicast.kernel.stats import sum_percpu
from softunicast.lab.lab import Lab
from softunicast.lab.topology import NODES

FRESH = [f"203.0.113.{last}" for last in range(100, 180)]
WEB_PORT = 443
ECHO_PORT = 7


class FleetLab(Lab):
    """A lab with a pile of destinations of its own: each a web server on 443 and echo on 7 (tcp, udp)."""

    def __init__(
        self,
        prefix: str,
        *,
        pool: str = "gb",
        timers: dict[str, int] | None = None,
        rack_mtu: int = 1600,
        onramp_keys: str = "",
    ) -> None:
        super().__init__(prefix, agents=False)
        self._pool = pool
        self._timers = timers or {}
        self._rack_mtu = rack_mtu
        self._onramp_keys = onramp_keys
        self._fresh = iter(FRESH)

    def up(self) -> None:
        super().up()
        try:
            text = self.plan_path.read_text(encoding="utf-8")
            ramp_pool = f", pool: {self._pool},"
            text = text.replace(", pool: gb,", ramp_pool)
            text = text.replace('::1"}\n', f'::1"{self._onramp_keys}}}\n')
            for name, value in self._timers.items():
                head, _, rest = text.partition(f"{name}: ")
                assert rest, f"the lab's plan has no timer {name}"
                digits = len(rest) - len(rest.lstrip("0123456789"))
                text = f"{head}{name}: {value}{rest[digits:]}"
            self.plan_path.write_text(text, encoding="utf-8")
            for node in NODES:
                self.node(node).run(["ip", "link", "set", "eth0", "mtu", str(self._rack_mtu)], check=True)
            inet = self.node("inet")
            inet.run(["ip", "-batch", "-"], input="".join(f"addr add {a}/32 dev lo\n" for a in FRESH), check=True)
            web = ",".join(f"{address}:{WEB_PORT}" for address in FRESH)
            echo = ",".join(f"{address}:{ECHO_PORT}" for address in FRESH)
            log = str(self.folder / "fresh.jsonl")
            command = [
                sys.executable,
                "-m",
                "softunicast.lab.servers",
                "--log",
                log,
                "--web",
                web,
                "--echo",
                echo,
            ]
            child = self._spawn("inet", "fresh-servers", command)
            assert child.stdout is not None
            assert child.stdout.readline() == b"ready\n", self.log("fresh-servers")
            self.start_agents()
        except BaseException:
            self.down()
            raise

    def fresh(self) -> str:
        """A destination that no flow of this lab has gone to."""
        return next(self._fresh)

    def stats(self, node: str) -> tuple[dict[Drop, int], dict[Counter, int]]:
        """Drops and counters of a node since its agent was first started."""
        with contextlib.closing(Map.open_pinned(map_pin(self.node(node).plan_name, "stats"))) as stats:
            return sum_percpu(stats)

    def claims(self, node: str) -> list[tuple[Flow, Claim]]:
        """All claims of a node, as they are in the map."""
        with contextlib.closing(Map.open_pinned(map_pin(self.node(node).plan_name, "flows"))) as flows:
            return [(Flow.unpack(key), Claim.unpack(value)) for key, value in flows.items()]

    def json(self, node: str, *arguments: str) -> Any:
        """What a read verb of softunicast prints on that node with --json."""
        done = self.node(node).softunicast(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@contextlib.contextmanager
def fleet_lab(
    name: str,
    *,
    pool: str = "gb",
    timers: dict[str, int] | None = None,
    rack_mtu: int = 1600,
    onramp_keys: str = "",
) -> Iterator[FleetLab]:
    """A lab whose name no other test run has; on failure what its parts logged is printed. `onramp_keys`: more keys of
    each on-ramp in the plan, as text behind a comma."""
    lab = FleetLab(f"{name}{os.getpid()}", pool=pool, timers=timers, rack_mtu=rack_mtu, onramp_keys=onramp_keys)
    try:
        with lab:
            yield lab
    except BaseException:
        for path in sorted(lab.folder.glob("*.log")) if lab.folder.exists() else []:
            print(f"--- {path.name}\n{path.read_text(errors='replace')[-4000:]}")
        raise
