# SPDX-License-Identifier: Apache-2.0
"""What an event cost: flows on every node and every client host, started before it and asked after it.

On each node a program under `softunicast run`, behind it its clients, each with the flows of `traffic.py` in IPv4 and
IPv6, all by way of slices. The sums are told apart by the node that owns them, because that is what decides: a flow
whose owner lives must not break, whatever happens to the machines its answers came through.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Final, Self

from softunicast.errors import KernelError

from . import topology as facts
from .lab import Lab

TARGETS: Final = (facts.ECHO[2], facts.ECHO6[2])
END_S: Final = 30.0


@dataclass(slots=True)
class Cost:
    """What the flows of one node paid. `silence_s`: the longest that an answer was late; `broken`: connections that
    ended with an error, `flows` all there were; `refused`: new connections that failed, of `opened + refused`.
    """

    node: str
    flows: int = 0
    packets: int = 0
    lost: int = 0
    silence_s: float = 0.0
    broken: int = 0
    opened: int = 0
    refused: int = 0
    errors: list[str] = field(default_factory=list)

    def add(self, said: dict[str, Any]) -> None:
        """Count one process's report in (traffic.py)."""
        for flow in said["flows"]:
            self.flows += 1
            self.silence_s = max(self.silence_s, flow["silence_s"])
            if flow["protocol"] == "udp":
                self.packets += flow["sent"]
                self.lost += flow["sent"] - flow["received"]
            if flow["error"]:
                self.broken += 1
                self.errors.append(f"{flow['protocol']} {flow['seen']} to {flow['remote']}: {flow['error']}")
        self.opened += said["opened"]
        self.refused += len(said["refused"])

    def row(self) -> tuple[str, ...]:
        """For a table, under COLUMNS."""
        return (
            self.node,
            str(self.flows),
            f"{self.lost} of {self.packets}",
            f"{self.silence_s:.2f} s",
            str(self.broken),
            f"{self.refused} of {self.opened + self.refused}",
        )


COLUMNS: Final = ("owner", "flows", "datagrams lost", "longest silence", "broken", "new connections refused")


class Bill:
    """The flows of a lab. A context manager: inside it they run; `costs()` ends them and says what they paid."""

    def __init__(self, lab: Lab, nodes: Sequence[str] = facts.NODES, targets: Sequence[str] = TARGETS) -> None:
        self.lab = lab
        self._nodes = nodes
        self._targets = targets
        self._children: list[tuple[str, str, subprocess.Popen[Any]]] = []

    def __enter__(self) -> Self:
        for node in self._nodes:
            for where in (node, *facts.CLIENTS[node]):
                command = [sys.executable, "-m", "softunicast.lab.traffic", *self._targets]
                if where == node:
                    pool = facts.POOL_OF_SITE[facts.site_of(node)]
                    command = ["softunicast", "run", "--pool", pool, "--", *command]
                with (self.lab.folder / f"traffic-{where}.log").open("ab") as errors:
                    child = self.lab.node(where).popen(
                        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
                    )
                self._children.append((node, where, child))
        for _, where, child in self._children:
            if self._line(child) != "ready":
                raise KernelError(f"lab: traffic at {where} did not start: {self.lab.log(f'traffic-{where}')}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, _, child in self._children:
            if child.poll() is None:
                child.kill()
            child.communicate()

    @staticmethod
    def _line(child: subprocess.Popen[Any]) -> str:
        assert child.stdout is not None
        return str(child.stdout.readline()).strip()

    def costs(self) -> dict[str, Cost]:
        """End the flows; what they paid, by the node that owns them."""
        found = {node: Cost(node) for node in self._nodes}
        for _, _, child in self._children:
            assert child.stdin is not None
            child.stdin.close()
            child.stdin = None
        for node, where, child in self._children:
            out, _ = child.communicate(timeout=END_S)
            try:
                found[node].add(json.loads(out))
            except json.JSONDecodeError as error:
                said = self.lab.log(f"traffic-{where}")
                raise KernelError(f"lab: traffic at {where} said nothing: {said}") from error
        return found
