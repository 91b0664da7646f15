# SPDX-License-Identifier: Apache-2.0
"""What the verbs that only read have in common, and what they must not pay for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from softunicast.agent.state import NodeState
from softunicast.cli.reading import Reading
from softunicast.errors import KernelError
from softunicast.kernel import abi, nodes

HEAVY = ("pydantic", "ruamel", "rich", "pyroute2", "structlog", "concurrent.futures", "asyncio", "importlib.metadata")


def opened(state: NodeState) -> Reading:
    return Reading(state.node, nodes.NodeMaps(state.node), state)


def test_timers_are_those_of_the_programs_that_run() -> None:
    settings = abi.Settings(udp_s=77, answer_ping=1)
    assert opened(NodeState("lhr1", 7, 1, settings=settings.pack().hex())).settings == settings


def test_before_the_first_start_is_complete() -> None:
    with pytest.raises(KernelError, match="node lhr1: its agent has not completed a start yet"):
        _ = opened(NodeState("lhr1", 7, 1)).settings


def test_the_plan_is_read_only_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nodes, "RUN", tmp_path)
    at = opened(NodeState("lhr1", 7, 1))
    with pytest.raises(KernelError, match=r"lhr1/plan[.]yaml: No such file or directory; start the node's agent again"):
        _ = at.plan


@pytest.mark.parametrize("verb", ["run", "slices", "flows", "counters", "drops"])
def test_verbs_that_people_and_scripts_wait_for_import_little(verb: str) -> None:
    script = f"import sys; import softunicast.cli.main, softunicast.cli.{verb}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert f"softunicast.cli.{verb}" in loaded
    assert not loaded & set(HEAVY)
