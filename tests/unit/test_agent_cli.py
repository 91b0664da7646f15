# SPDX-License-Identifier: Apache-2.0
"""The root of the command line and `agent`'s arguments: one line on stderr, status 2, nothing changed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import click
import pytest

from softunicast.agent.notify import notify, watchdog_s
from softunicast.cli import main
from softunicast.errors import KernelError, PlanError

AGENT = ("agent", "--plan", "p.yaml", "--bindings", "b.yaml")


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["nonsense"], "nonsense"),
        (["--bogus"], "--bogus"),
        (["agent"], "--plan, --bindings, --node missing"),
        (["agent", "--plan", "p.yaml"], "--bindings, --node missing"),
        (["agent", "--bogus"], "--bogus"),
        (["agent", "uninstall"], "--node"),
        (["agent", "uninstall", "--node", "../x"], "a name has"),
        (["agent", "--node", "lhr1", "uninstall", "--node", "lhr1"], "put options behind the verb"),
        ([*AGENT, "--node", "a b"], "a name has"),
        ([*AGENT, "--node", "lhr1"], "--plan p.yaml: No such file"),
        ([*AGENT, "--node", "lhr1", "--interval", "0"], "--interval"),
        ([*AGENT, "--node", "lhr1", "--log-format", "xml"], "--log-format"),
        ([*AGENT, "--node", "lhr1", "extra"], "extra"),
    ],
)
def test_wrong_arguments(arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("softunicast: ")
    assert part in lines[0]


def test_files_that_are_no_text_or_no_plan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan = tmp_path / "plan.yaml"
    for content, part in ((b"\xff\xfe", "not UTF-8"), (b"pools: 3\n", "plan.yaml")):
        plan.write_bytes(content)
        bindings = tmp_path / "bindings.yaml"
        bindings.write_text("epoch: 0\nbindings: []\n")
        assert main.run(["agent", "--plan", str(plan), "--bindings", str(bindings), "--node", "lhr1"]) == 2
        message = capsys.readouterr().err
        assert part in message
        assert message.count("\n") == 1


def test_help_lists_every_verb_and_imports_none(capsys: pytest.CaptureFixture[str]) -> None:
    script = (
        "import sys; from softunicast.cli.main import run; run(['--help']); mine = 'softunicast.cli.'; "
        "print([name for name in sys.modules if name.startswith(mine) and name != mine + 'main'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    for verb in main.VERBS:
        assert f"  {verb} " in done.stdout
    assert done.stdout.rstrip().endswith("[]")


def test_no_arguments_at_all(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run([]) == 2
    assert "Usage: softunicast" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (PlanError("plan.yaml", 12, "pools.gb: no site", "name one"), 2, "plan.yaml:12: pools.gb: no site ; name one"),
        (KernelError("map flows: no room"), 1, "map flows: no room"),
        (KeyboardInterrupt(), 130, None),
    ],
)
def test_errors_become_one_line_and_a_status(
    error: BaseException,
    status: int,
    line: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr(main.cli, "get_command", lambda ctx, name: failing)
    assert main.run(["failing"]) == status
    assert capsys.readouterr().err.strip() == (f"softunicast: {line}" if line else "")


def test_a_programs_own_status_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    @click.pass_context
    def seven(ctx: click.Context) -> None:
        ctx.exit(7)

    monkeypatch.setattr(main.cli, "get_command", lambda ctx, name: seven)
    assert main.run(["seven"]) == 7


def test_notify(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    assert not notify("READY=1")
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
        listener.settimeout(5)
        monkeypatch.setenv("NOTIFY_SOCKET", str(path))
        assert notify("READY=1", "STATUS=epoch 3")
        assert listener.recv(1024) == b"READY=1\nSTATUS=epoch 3"
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert not notify("WATCHDOG=1")


def test_watchdog(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    assert watchdog_s() is None
    monkeypatch.setenv("WATCHDOG_USEC", "30000000")
    assert watchdog_s() == 15.0
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid() + 1))
    assert watchdog_s() is None
