# SPDX-License-Identifier: Apache-2.0
"""Every project process is killed with -9 during 40 transfers: the data plane does not notice.

Bytes go on, new sockets and new forwarded flows start, program ids stay. An agent started again finds everything as it
left it: an independent dump of maps, links, programs, routes, rules, addresses and sysctls is the same before and
after.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.dump import differences, dump
from tests.support.fleet_lab import FleetLab, fleet_lab
from tests.support.wait import wait_until

BYTES = 3_000_000
RATE = 100_000  # bytes a second: a transfer lasts thirty seconds, starting forty of them takes some
NODES = ("lhr1", "lhr2")
CLIENTS = ("c1", "t1", "c2", "t2")


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with fleet_lab("survive") as lab:
        yield lab


def download(lab: FleetLab, where: str, path: str, *extra: str) -> subprocess.Popen[Any]:
    command = [
        "curl",
        "-sS",
        "-m",
        "60",
        "-o",
        "/dev/null",
        "-w",
        "%{size_download}",
        *extra,
        f"http://203.0.113.1{path}",
    ]
    if where in NODES:
        command = ["softunicast", "run", "--pool", "gb", "--", *command]
    return lab.node(where).popen(command, stdout=-1, stderr=-1, text=True)


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


def test_killed_during_forty_transfers(lab: FleetLab) -> None:
    before = dumps(lab)
    transfers = [
        download(lab, where, f"/bytes/{BYTES}", "--limit-rate", str(RATE)) for where in (*NODES * 10, *CLIENTS * 5)
    ]
    assert len(transfers) == 40
    web = f"/bytes/{BYTES}"
    wait_until(lambda: sum(seen.path == web for seen in lab.web_log()) >= 40, 20, "forty transfers have begun")

    victims = project_processes(lab)
    assert len(victims) == 2 + 20  # two agents, twenty `run`
    for victim in victims:
        os.kill(victim, signal.SIGKILL)
    wait_until(lambda: not project_processes(lab), 5, "all are dead")

    # With nobody there: new forwarded flows, and new sockets of a program that is under a policy already.
    for where in CLIENTS:
        child = download(lab, where, "/bytes/1000")
        assert child.communicate(timeout=20)[0] == "1000", where
    # (`run` is a project process itself: it works without an agent.)
    for where in NODES:
        child = download(lab, where, "/bytes/1000")
        assert child.communicate(timeout=20)[0] == "1000", where

    # The children of killed `run`s went on: the web server saw each transfer to its end.
    done = [child for child in transfers if child.pid not in victims]
    for child in done:
        out, problems = child.communicate(timeout=60)
        assert out == str(BYTES), problems
    wait_until(
        lambda: sum(seen.path == web and seen.sent == BYTES for seen in lab.web_log()) >= 40,
        30,
        "all forty came through",
    )

    lab.start_agents()
    wait_until(lambda: differences(before, dumps(lab)) == [], 15, "all is as it was before")


def test_a_restart_changes_nothing(lab: FleetLab) -> None:
    for node in NODES:
        planned = lab.node(node).softunicast(
            "agent", "--plan", str(lab.plan_path), "--bindings", str(lab.bindings_path),
            "--node", lab.node(node).plan_name, "--dry-run",
        )  # fmt: skip
        assert planned.returncode == 0, planned.stderr
        assert "nothing to do" in planned.stdout, planned.stdout
