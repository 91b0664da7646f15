# SPDX-License-Identifier: Apache-2.0
"""Every project process is killed with -9 during 40 transfers: the data plane does not notice.

Bytes go on, new sockets and new forwarded flows start, program ids stay. An agent started again finds everything as it
left it: an independent dump of maps, links, programs, routes, rules, addresses and sysctls is the same before and
after.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.dump import differences, dump
from tests.support.fleet_lab import FleetLab, fleet_lab
from tests.support.wait import wait_until

BYTES = 8_000_000
READER = Path(__file__).parent.parent / "support" / "slow_reader.py"
NODES = ("lhr1", "lhr2")
CLIENTS = ("c1", "t1", "c2", "t2")


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with fleet_lab("survive") as lab:
        yield lab


def begin(lab: FleetLab, where: str, *command: str) -> subprocess.Popen[Any]:
    """An ordinary program: on a node under `softunicast run`, on a client host as it is."""
    under = ("softunicast", "run", "--pool", "gb", "--") if where in NODES else ()
    return lab.node(where).popen([*under, *command], stdout=-1, stderr=-1, text=True)


def small_download(lab: FleetLab, where: str) -> str:
    return begin(lab, where, "curl", "-sS", "-m", "20", "http://203.0.113.1/bytes/10").communicate(timeout=30)[0]


def project_processes(lab: FleetLab) -> list[int]:
    """The agents and the waiting halves of `softunicast run` in this lab's nodes."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            words = (entry / "cmdline").read_bytes().split(b"\0")
            here = (entry / "ns/net").stat().st_ino
        except OSError:
            continue
        if b"softunicast.cli" in words and here in {lab.node(node).netns.stat().st_ino for node in NODES}:
            found.append(int(entry.name))
    return found


def dumps(lab: FleetLab) -> dict[str, Any]:
    return {node: dump(lab.node(node).plan_name, lab.node(node).netns.name) for node in NODES}


def changed(before: dict[str, Any], lab: FleetLab) -> list[str]:
    """What is not as it was. A starting agent may be at work: then there is nothing to compare yet."""
    try:
        return differences(before, dumps(lab))
    except RuntimeError as error:
        return [str(error)]


def test_killed_during_forty_transfers(lab: FleetLab) -> None:
    before = dumps(lab)
    hurry = lab.folder / "hurry"
    reader = (sys.executable, str(READER), "203.0.113.1", str(BYTES), str(hurry))
    transfers = [begin(lab, where, *reader) for where in (*NODES * 10, *CLIENTS * 5)]
    assert len(transfers) == 40

    def begun() -> int:
        return sum(str(seen.path).startswith(f"/bytes/{BYTES}") for seen in lab.web_log())

    wait_until(
        lambda: begun() >= 40 or any(child.poll() is not None for child in transfers), 60, "forty transfers begin"
    )
    for child in transfers:
        assert child.poll() is None, child.communicate()

    # A child of an agent that has not become its program yet looks like an agent.
    wait_until(lambda: len(project_processes(lab)) == 2 + 20, 20, "two agents, twenty `run`")
    for victim in project_processes(lab):
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not project_processes(lab), 30, "all are dead")

    # With nobody there: new forwarded flows, and sockets (`run` is a project process, but it needs no agent).
    for where in (*CLIENTS, *NODES):
        assert len(small_download(lab, where)) == 10, where

    # The transfers, those of killed `run`s too, go on to their last byte.
    hurry.touch()
    for child, where in zip(transfers, (*NODES * 10, *CLIENTS * 5), strict=True):
        if where in CLIENTS:
            out, problems = child.communicate(timeout=60)
            assert out == f"{BYTES} right\n", problems
    wait_until(
        lambda: sum(seen.sent_bytes > BYTES and not seen.error for seen in lab.web_log()) >= 40,
        60,
        "all forty came through",
    )

    lab.start_agents(NODES)
    found = ["not looked yet"]

    def as_before() -> bool:
        found[:] = changed(before, lab)
        return not found

    try:
        wait_until(as_before, 120, "all is as it was before")
    except AssertionError as error:
        raise AssertionError(found) from error


def test_a_restart_changes_nothing(lab: FleetLab) -> None:
    for node in NODES:
        planned = lab.node(node).softunicast(
            "agent", "--plan", str(lab.plan_path), "--bindings", str(lab.bindings_path),
            "--node", lab.node(node).plan_name, "--dry-run",
        )  # fmt: skip
        assert planned.returncode == 0, planned.stderr
        assert "nothing to do" in planned.stdout, planned.stdout
