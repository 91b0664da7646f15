# SPDX-License-Identifier: Apache-2.0
"""`softunicast run`: the program, its children, its exit status, its signals, and what is left behind."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.cli.run import run_program
from softunicast.errors import UsageError
from softunicast.kernel import nodes
from softunicast.kernel.abi import Control
from tests.support.sock_node import ADDRESS, U32, WORLD, SockNode
from tests.support.wait import wait_until

CONNECT = f"import socket; s = socket.create_connection(('{WORLD}', 443)); print(*s.getsockname())"


@pytest.fixture
def node() -> Iterator[SockNode]:
    with SockNode(pinned=True, timers={"sock_reuse_s": 60}) as made:
        made.object.maps["cgroups"].delete(struct.pack("=Q", made.cgroup.id))
        made.object.maps["control"].update(U32.pack(0), Control().pack())
        yield made


def command(node: SockNode, *arguments: str, inside: bool = True) -> list[str]:
    enter = ["nsenter", f"--net=/run/netns/{node.name}"] if inside else []
    return [*enter, sys.executable, "-m", "softunicast.cli", "run", *arguments]


def run(node: SockNode, *arguments: str, inside: bool = True) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(node, *arguments, inside=inside), capture_output=True, text=True, timeout=60)


def untouched(node: SockNode) -> bool:
    folder = nodes.cgroup_dir(node.name).path
    return not list(node.object.maps["cgroups"].keys()) and not list(folder.glob("run-*"))


def test_a_program_and_its_children_use_the_pool(node: SockNode) -> None:
    server = node.server()
    script = f"import subprocess, sys; {CONNECT}; subprocess.run([sys.executable, '-c', {CONNECT!r}], check=True)"
    done = run(node, "--pool", "ten", "--", sys.executable, "-c", script)
    assert (done.returncode, done.stderr) == (0, "")
    said = [tuple(line.split()) for line in done.stdout.splitlines()]
    assert sorted(said) == sorted((name[0], str(name[1])) for name in (server.accept()[1], server.accept()[1]))
    assert {name[0] for name in said} == {ADDRESS}
    assert untouched(node)


def test_part_of_a_slice(node: SockNode) -> None:
    node.server()
    for _ in range(2):
        done = run(node, "--pool", "ten", "--slice", f"{ADDRESS}:9007-9007", "--", sys.executable, "-c", CONNECT)
        assert done.stdout == f"{ADDRESS} 9007\n" or "Errno 99" in done.stderr
    assert "Errno 99" in done.stderr, "its TIME_WAIT still has the only port"
    assert done.returncode == 1


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)])
def test_the_exit_status_is_the_programs(node: SockNode, script: str, status: int) -> None:
    assert run(node, "--pool", "ten", "--", "sh", "-c", script).returncode == status
    assert untouched(node)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(node: SockNode, number: signal.Signals) -> None:
    script = f"trap 'echo got it; exit 5' {number.name[3:]}; echo up; while :; do sleep 0.05; done"
    # A shell cannot trap what it was started ignoring, as background jobs of a script are with SIGINT (POSIX, trap).
    heeding = ["env", "--default-signal", *command(node, "--pool", "ten", "--", "sh", "-c", script)]
    with subprocess.Popen(heeding, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        assert program.stdout.readline() == "up\n"
        program.send_signal(number)
        assert program.stdout.readline() == "got it\n"
        assert program.wait(10) == 5
    assert untouched(node)


def test_who_stays_in_the_background_keeps_the_policy(node: SockNode) -> None:
    done = run(node, "--pool", "ten", "--", "sh", "-c", "sleep 60 > /dev/null 2>&1 & echo $!")
    assert done.returncode == 0
    assert len(list(node.object.maps["cgroups"].keys())) == 1
    os.kill(int(done.stdout), signal.SIGKILL)
    folders = list(nodes.cgroup_dir(node.name).path.glob("run-*"))
    wait_until(lambda: "populated 0" in (folders[0] / "cgroup.events").read_text(), 5, "an empty cgroup")
    assert Control.unpack(node.object.maps["control"].lookup(U32.pack(0)) or b"").policies == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--pool", "tem", "--", "true"), "pool tem: not in the plan of node NODE; did you mean ten?"),
        (("--pool", "zzzz", "--", "true"), "pool zzzz: not in the plan of node NODE; there are: empty, other, ten"),
        (
            ("--pool", "empty", "--", "true"),
            "pool empty: node NODE holds no slice of it; `softunicast plan apply` gives it one",
        ),
        (
            ("--pool", "ten", "--slice", f"{ADDRESS}:9005-9010", "--", "true"),
            f"slice {ADDRESS}:9005-9010: node NODE does not hold it in pool ten; it holds {ADDRESS}:9000-9009",
        ),
        (
            ("--pool", "ten", "--slice", "198.51.100.21:9000-9009", "--", "true"),
            f"slice 198.51.100.21:9000-9009: node NODE does not hold it in pool ten; it holds {ADDRESS}:9000-9009",
        ),
        (("--pool", "ten", "--node", "nowhere", "--", "true"), "node nowhere: not on this machine"),
        (("--pool", "ten", "--slice", "9000-9009", "--", "true"), "Invalid value for '--slice'"),
        (("--pool", "ten"), "Missing argument"),
        (("--", "true"), "Missing option '--pool'"),
    ],
)
def test_wrong_arguments_are_one_line_and_change_nothing(node: SockNode, arguments: tuple[str, ...], said: str) -> None:
    done = run(node, *arguments)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("softunicast: " + said.replace("NODE", node.name))
    assert done.stderr.count("\n") == 1
    assert untouched(node)


def test_a_program_that_is_not_there(node: SockNode) -> None:
    done = run(node, "--pool", "ten", "--", "no-such-program-here")
    assert (done.returncode, done.stderr.count("\n")) == (127, 1)
    assert "no-such-program-here" in done.stderr
    assert untouched(node)


def test_a_file_that_cannot_be_executed(node: SockNode, tmp_path: Path) -> None:
    file = tmp_path / "broken"
    file.write_bytes(b"\0")
    file.chmod(0o755)
    done = run(node, "--pool", "ten", "--", str(file))
    assert (done.returncode, done.stderr.count("\n")) == (126, 1)
    assert untouched(node)


def test_outside_of_the_nodes_namespace(node: SockNode) -> None:
    done = run(node, "--pool", "ten", "--node", node.name, "--", "true", inside=False)
    assert done.returncode == 2
    assert "lives in another network namespace" in done.stderr
    assert untouched(node)


def test_only_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(UsageError, match="only root"):
        run_program(["true"], "ten")
