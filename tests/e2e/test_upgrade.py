# SPDX-License-Identifier: Apache-2.0
"""Another version of this project takes over under 200 live flows: none breaks, or it refuses with "drain first".

A version is a copy of the package with objects of its own, compiled from sources in which something was changed; its
agent is run from there. Changed programs replace the old ones link by link, maps and claims stay. A changed layout
(SU_ABI_VERSION) is refused before anything is touched.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import softunicast
from softunicast.kernel.nodes import pin_dir
from softunicast.kernel.programs import Program
from softunicast.lab.lab import environment
from tests.support.fleet_lab import ECHO_PORT, FleetLab, fleet_lab
from tests.support.wait import wait_until

REPOSITORY = Path(__file__).parents[2]
FLOWS_SCRIPT = REPOSITORY / "tests/support/many_flows.py"
NODES = ("lhr1", "lhr2")
PLACES = ("lhr1", "lhr2", "c1", "c2")
EACH = 50


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with fleet_lab("upgrade") as lab:
        yield lab


def version(folder: Path, header: str, pattern: str, replacement: str) -> Path:
    """A copy of the package with programs built from a changed header; the folder to import it from."""
    sources, package = folder / "bpf", folder / "lib" / "softunicast"
    shutil.copytree(REPOSITORY / "bpf", sources)
    shutil.copytree(Path(softunicast.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__", ".deps"))
    path = sources / "include" / header
    text, count = re.subn(pattern, replacement, path.read_text())
    assert count == 1, pattern
    path.write_text(text)
    for old in (package / "bpf").glob("*.bpf.o"):
        old.unlink()
    subprocess.run(["make", "-C", str(sources), f"OUT={package / 'bpf'}"], check=True, capture_output=True, timeout=120)
    return folder / "lib"


def reconcile(lab: FleetLab, node: str, library: Path) -> subprocess.CompletedProcess[str]:
    """That version's agent, once."""
    host = lab.node(node)
    command = [
        sys.executable, "-m", "softunicast.cli", "agent", "--once", "--plan", str(lab.plan_path), "--bindings",
        str(lab.bindings_path), "--node", host.plan_name,
    ]  # fmt: skip
    child = host.popen(
        command, env={**environment(), "PYTHONPATH": str(library)}, stdout=-1, stderr=-1, stdin=-3, text=True
    )
    out, errors = child.communicate(timeout=120)
    return subprocess.CompletedProcess(command, child.returncode, out, errors)


def programs(lab: FleetLab, node: str) -> dict[str, int]:
    """Ids of the pinned programs."""
    found = {}
    for path in sorted((pin_dir(lab.node(node).plan_name) / "progs").iterdir()):
        with Program.open_pinned(path) as program:
            found[path.name] = program.id
    return found


def claims(lab: FleetLab) -> dict[str, set[tuple[object, int]]]:
    """Every flow's key and generation: who holds it."""
    return {node: {(flow, claim.word >> 40) for flow, claim in lab.claims(node)} for node in NODES}


@contextmanager
def two_hundred_flows(lab: FleetLab) -> Iterator[list[subprocess.Popen[Any]]]:
    """50 from each node's sockets, 50 from each node's client, echoing all the time."""
    children = []
    for place in PLACES:
        under = ("softunicast", "run", "--pool", "gb", "--") if place in NODES else ()
        command = [*under, sys.executable, str(FLOWS_SCRIPT), lab.fresh(), str(ECHO_PORT), str(EACH)]
        children.append(lab.node(place).popen(command, stdin=-1, stdout=-1, text=True, bufsize=1))
    try:
        for child in children:
            assert child.stdout is not None
            assert child.stdout.readline() == "open\n"
        yield children
    finally:
        for child in children:
            child.kill()
            child.wait()


def fare(children: list[subprocess.Popen[Any]]) -> list[str]:
    """How the flows fared since the last time."""
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    answers = []
    for child in children:
        assert child.stdout is not None
        answers.append(child.stdout.readline().strip())
    return answers


def all_right(children: list[subprocess.Popen[Any]], what: str) -> None:
    answers = fare(children)
    print(what, answers)
    for answer in answers:
        assert re.fullmatch(rf"{EACH} flows, [1-9]\d* rounds", answer), f"{what}: {answers}"


def kill_agents(lab: FleetLab) -> int:
    """kill -9 of every agent in the nodes' namespaces; how many."""
    killed = 0
    places = {lab.node(node).netns.stat().st_ino for node in NODES}
    for child in lab.children:
        process = Path(f"/proc/{child.pid}")
        if child.poll() is not None or b"agent" not in (process / "cmdline").read_bytes().split(b"\0"):
            continue
        if (process / "ns/net").stat().st_ino in places:
            child.kill()
            child.wait()
            killed += 1
    return killed


def test_upgrades_under_two_hundred_flows(lab: FleetLab, tmp_path: Path) -> None:
    changed = version(tmp_path / "changed", "claim.h", r"#define SU_LOOK_S 60\b", "#define SU_LOOK_S 50")
    other_layout = version(
        tmp_path / "layout", "abi.h", r"#define SU_ABI_VERSION (\d+)", r"#define SU_ABI_VERSION 1\g<1>"
    )
    codec = other_layout / "softunicast/kernel/abi.py"
    text, count = re.subn(r"ABI_VERSION: Final = (\d+)", r"ABI_VERSION: Final = 1\g<1>", codec.read_text())
    assert count == 1
    codec.write_text(text)

    with two_hundred_flows(lab) as children:
        all_right(children, "before")
        began = claims(lab)
        assert sum(len(held) for held in began.values()) >= len(PLACES) * EACH

        assert kill_agents(lab) == len(NODES)
        all_right(children, "agents killed")

        # A changed layout: refused, with what to do, and nothing was touched.
        before = {node: programs(lab, node) for node in NODES}
        for node in NODES:
            done = reconcile(lab, node, other_layout)
            assert done.returncode == 2, done.stderr
            assert "drain the node first" in done.stderr
            assert len(done.stderr.strip().splitlines()) == 1, done.stderr
        assert {node: programs(lab, node) for node in NODES} == before
        all_right(children, "layout refused")

        # Changed programs: all of them are others afterwards, the claims are the same.
        for node in NODES:
            done = reconcile(lab, node, changed)
            assert done.returncode == 0, done.stderr
        after = {node: programs(lab, node) for node in NODES}
        for node in NODES:
            assert after[node].keys() == before[node].keys()
            assert not set(after[node].values()) & set(before[node].values()), node
        all_right(children, "upgraded")
        assert all(began[node] <= claims(lab)[node] for node in NODES)

        # And back, by an agent that stays.
        lab.start_agents(NODES)  # node.json says ready all along
        wait_until(
            lambda: not any(set(programs(lab, node).values()) & set(after[node].values()) for node in NODES),
            60, "the programs of this version are back",
        )  # fmt: skip
        all_right(children, "downgraded")
        assert all(began[node] <= claims(lab)[node] for node in NODES)
        fetched = lab.node("c1").run(["curl", "-sS", "-m", "20", f"http://{lab.fresh()}:443/bytes/10"])
        assert len(fetched.stdout) == 10, fetched.stderr
