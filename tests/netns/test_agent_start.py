# SPDX-License-Identifier: Apache-2.0
"""What the agent asks of kernel and host before it changes anything. Needs root.

The host is made poorer in a mount namespace of its own (`unshare --mount`), which nothing else sees.
"""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.cli import main
from softunicast.kernel import cgroup, netns, probe
from softunicast.kernel.bpf import BPFFS
from softunicast.kernel.probe import Feature
from tests.support.agent_node import AgentNode, agent_node
from tests.support.dump import PINS, RUN, differences

LACKING = [
    Feature("BTF", False, "programs", "boot one with BTF"),
    Feature("TCX", False, "speed", "boot 6.6", required=False),
    Feature("bpf_loop in sched_cls", False, "searching a port", "boot Linux 6.1 or newer"),
]


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AgentNode]:
    with agent_node(tmp_path) as made:
        yield made


def poorer(node: AgentNode, *steps: str) -> subprocess.CompletedProcess[str]:
    """Run shell commands in a mount namespace of their own; AGENT and UNINSTALL are the node's."""
    files = ("--plan", str(node.plan), "--bindings", str(node.bindings_file), "--node", node.name)
    words = {
        "AGENT": node.command("agent", *files, "--log-format", "json"),
        "UNINSTALL": node.command("agent", "uninstall", "--node", node.name),
    }
    script = "set -e\n" + "\n".join(steps)
    for word, command in words.items():
        script = script.replace(word, shlex.join(command))
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, timeout=120, check=False
    )


def untouched(node: AgentNode) -> bool:
    return not (RUN / node.name).exists() and not (PINS / node.name).exists()


@pytest.mark.parametrize("how", ["--once", "--dry-run", "--log-format=json"])
def test_a_kernel_that_lacks_something_is_told_and_left_alone(
    node: AgentNode, how: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(probe, "probe", lambda: LACKING)
    before = node.dump()
    with netns.enter(node.netns):
        status = main.run(
            ["agent", "--plan", str(node.plan), "--bindings", str(node.bindings_file), "--node", node.name, how]
        )
    assert status == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "softunicast: this kernel lacks BTF (needed for programs): boot one with BTF",
        "softunicast: this kernel lacks bpf_loop in sched_cls (needed for searching a port): boot Linux 6.1 or newer",
    ]
    assert untouched(node)
    assert differences(before, node.dump()) == []


@pytest.mark.parametrize("how", ["--once", "--dry-run"])
def test_without_capabilities(node: AgentNode, how: str) -> None:
    command = node.command("agent", "--plan", str(node.plan), "--bindings", str(node.bindings_file))
    weak = [*command[:2], "setpriv", "--bounding-set=-all", "--inh-caps=-all", *command[2:]]
    done = subprocess.run([*weak, "--node", node.name, how], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "softunicast: bpf(2) is not permitted: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"
    ]
    assert untouched(node)


@pytest.mark.parametrize("how", ["--once", "--dry-run"])
def test_without_cgroup2(node: AgentNode, how: str) -> None:
    done = poorer(node, f"umount --lazy {cgroup.root()}", f"AGENT {how}")
    assert done.returncode == 1, done.stderr
    [line] = done.stderr.splitlines()
    assert line.startswith("softunicast: this kernel lacks cgroup2 (needed for ")
    assert line.endswith(": mount -t cgroup2 none /sys/fs/cgroup")
    assert untouched(node)


def test_bpffs_is_mounted_where_nobody_has_and_said(node: AgentNode) -> None:
    gone = f"while umount {BPFFS}; do :; done 2>/dev/null"
    there = f"grep -c ' {BPFFS} bpf ' /proc/self/mounts"
    dry = poorer(node, gone, "AGENT --dry-run", f"! {there}")
    assert dry.returncode == 0, dry.stderr
    lines = dry.stdout.splitlines()
    assert lines[-1] == "0"
    assert lines.index(f"mount bpffs at {BPFFS}") < next(
        at for at, line in enumerate(lines) if line.startswith("load programs")
    )
    assert untouched(node)
    real = poorer(node, gone, "AGENT --once", there, f"ls {PINS / node.name}", "AGENT --once", "UNINSTALL")
    assert real.returncode == 0, real.stderr
    assert real.stdout.splitlines()[:4] == ["1", "links", "maps", "progs"]
    assert real.stderr.count(f"mount bpffs at {BPFFS}") == 1
    assert '"changed": 0' in real.stderr
    assert untouched(node)
