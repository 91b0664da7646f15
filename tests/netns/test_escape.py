# SPDX-License-Identifier: Apache-2.0
"""Every experiment of `softunicast escape` sees what it expects, and docs/strategies.md says what they say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from softunicast.kernel import netns, nodes
from softunicast.lab.escape import pages
from softunicast.lab.escape.notes import Notes
from softunicast.lab.escape.stage import STEM, Stage, remove_leftovers
from softunicast.lab.escape.steps import STEPS
from softunicast.lab.escape.strategies import STRATEGIES
from tests.support.wait import wait_until

PAGE = Path(__file__).resolve().parents[2] / "docs" / "strategies.md"
DONE: dict[int, Notes] = {}


def performed(number: int) -> Notes:
    """A step's notes; each is done once for all tests here."""
    if number not in DONE:
        DONE[number] = STEPS[number - 1].perform()
    return DONE[number]


def mine() -> list[str]:
    return [name for name in netns.names() if name.startswith(f"{STEM}{os.getpid()}")]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "softunicast.cli", "escape", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=240, check=False)


@pytest.mark.parametrize("step", STEPS, ids=lambda step: step.name)
def test_what_is_seen_is_what_was_expected(step: object) -> None:
    number = step.number  # type: ignore[attr-defined]
    notes = performed(number)
    assert [check for check in notes.checks if not check.ok] == []
    assert len(notes.checks) >= 5
    assert mine() == []


def test_no_agent_is_left() -> None:
    performed(10)
    performed(11)
    left = nodes.PINS.iterdir() if nodes.PINS.exists() else []
    assert [path for path in left if path.name.startswith(f"{STEM}{os.getpid()}")] == []


def test_the_table_stands_beside_ours() -> None:
    rows = performed(11).tables["strategies"]
    assert [row["strategy"] for row in rows] == [strategy.name for strategy in STRATEGIES]
    for row in rows:
        assert 0.5 < row["new_flow_us"] < 10_000 and 0.5 < row["packet_us"] < 10_000
        assert 100 < row["memory_bytes"] < 20_000
        assert row["wrong"] and row["eleventh"] and row["program"] and row["after"]
    ours = rows[-1]
    assert (ours["new_flow_ratio"], ours["packet_ratio"]) == (1, 1)
    # What the older ways pay for a new flow, by far: a netlink message, a socket.
    assert all(row["new_flow_ratio"] > 1.5 for row in rows if row["strategy"] in ("ctnetlink", "hold"))
    assert next(row["memory_bytes"] for row in rows if row["strategy"] == "hold") > 2000


def test_the_page_is_what_the_command_generates() -> None:
    text = PAGE.read_text(encoding="utf-8")
    begin, end = text.index(pages.BEGIN), text.index(pages.END)
    generated = pages.markdown([performed(step.number) for step in STEPS])
    written = text[begin : end + len(pages.END)] + "\n"
    assert pages.shape(written) == pages.shape(generated), "write it again: make strategies"


def test_the_command_tells_a_step_and_its_packets() -> None:
    done = command("--step", "2")
    assert done.returncode == 0, done.stderr
    assert "2. A slice exhausted under SNAT" in done.stdout
    assert "host# nft -f -" in done.stdout
    assert "on the wire at world:" in done.stdout and "> 203.0.113.1:443 [S]" in done.stdout
    assert "SYNs that leave, of fourteen: expected 10; seen 10" in done.stdout
    assert done.stdout.endswith("all as expected\n")


def test_the_command_writes_json() -> None:
    done = command("--step", "6", "--step", "1", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] and [step["step"] for step in document["steps"]] == [1, 6]
    assert all(check["expected"] == check["seen"] for step in document["steps"] for check in step["checks"])


def keys(value: object) -> set[str]:
    """Every key of a JSON document, however deep."""
    if isinstance(value, dict):
        return set(value) | keys(list(value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


def test_every_json_key_is_in_cli_md() -> None:
    text = (PAGE.parent / "cli.md").read_text(encoding="utf-8")
    document = pages.as_json([performed(5), performed(11)])
    assert {"figures", "strategies", "packet_ratio"} < keys(document)
    assert [key for key in sorted(keys(document)) if f'"{key}"' not in text] == []


def test_a_signal_ends_a_step_and_takes_all_down() -> None:
    words = [sys.executable, "-m", "softunicast.cli", "escape", "--step", "10"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environment) as child:
        assert child.stdout is not None
        assert any("softunicast agent --plan" in line for line in child.stdout)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 128 + signal.SIGTERM
        stem = f"{STEM}{child.pid}"
    assert [name for name in netns.names() if name.startswith(stem)] == []
    assert not nodes.pin_dir(stem).exists() and not nodes.run_dir(stem).exists()


def test_a_stage_goes_when_its_experiment_fails() -> None:
    with pytest.raises(ZeroDivisionError), Stage(Notes(0, "", "", "")) as stage, stage.web():
        assert len(mine()) == 3
        1 / 0  # noqa: B018
    assert mine() == []


def test_what_a_killed_maker_left_is_removed_by_the_next() -> None:
    with subprocess.Popen(["true"]) as dead:
        pass
    name = f"{STEM}{dead.pid}-host"
    netns.create(name)
    with subprocess.Popen(["nsenter", f"--net={netns.path_of(name)}", "sleep", "1000"]) as sleeper:
        try:
            inside = Path(f"/proc/{sleeper.pid}/comm")
            wait_until(lambda: inside.read_text() == "sleep\n", 30, "nsenter is inside and has become sleep")
            remove_leftovers()
            assert sleeper.wait(10) != 0
        finally:
            sleeper.kill()
    assert name not in netns.names()
