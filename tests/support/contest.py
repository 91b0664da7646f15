# SPDX-License-Identifier: Apache-2.0
"""Contests in the lab: contestants of several kinds, held at a barrier, let go at once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softunicast.lab.lab import Lab

CONTESTANT = Path(__file__).with_name("contestant.py")


@dataclass(frozen=True)
class Entrant:
    """`where`: a node's name (then it runs under `softunicast run --pool pool`) or a client host's."""

    where: str
    count: int
    pool: str = "ten"


@dataclass(frozen=True)
class Outcome:
    """What became of one flow."""

    where: str
    ok: bool
    errno: str | None
    ms: float
    local: int | None
    seen: str | None


class Contest:
    """Contestants that are started, let go, asked again and ended. Use as a context manager: it ends them all."""

    def __init__(self, lab: Lab, protocol: str, address: str, port: int, entrants: Sequence[Entrant]) -> None:
        self._children: list[tuple[Entrant, subprocess.Popen[Any]]] = []
        for entrant in entrants:
            command = [sys.executable, str(CONTESTANT), protocol, address, str(port), str(entrant.count)]
            if entrant.where.startswith("lhr"):
                command = ["softunicast", "run", "--pool", entrant.pool, "--", *command]
            host = lab.node(entrant.where)
            child = host.popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                bufsize=1,
            )
            self._children.append((entrant, child))
        for entrant, child in self._children:
            assert child.stdout is not None and child.stderr is not None
            if child.stdout.readline() != "ready\n":
                raise AssertionError(f"contestant at {entrant.where}: {child.stderr.read()}")

    def go(self) -> list[Outcome]:
        """Let all go at once (the words go out first to last, microseconds apart) and gather what they say."""
        for _, child in self._children:
            assert child.stdin is not None
            child.stdin.write("go\n")
            child.stdin.flush()
        outcomes: list[Outcome] = []
        for entrant, child in self._children:
            assert child.stdout is not None
            outcomes += [Outcome(entrant.where, **result) for result in json.loads(child.stdout.readline())]
        return outcomes

    def end(self) -> None:
        for _, child in self._children:
            assert child.stdin is not None
            if child.poll() is None:
                child.stdin.write("end\n")
                child.stdin.close()
        for _, child in self._children:
            child.wait(60)
            for pipe in (child.stdout, child.stderr):
                assert pipe is not None
                pipe.close()

    def __enter__(self) -> Contest:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
