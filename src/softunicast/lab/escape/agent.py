# SPDX-License-Identifier: Apache-2.0
"""The real agent in the stage's host: softunicast as it is, with fishtun as an on-ramp."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from softunicast.errors import KernelError
from softunicast.kernel import nodes
from softunicast.lab.lab import environment, wait_until
from softunicast.lab.traces import forget_node
from softunicast.model.allocator import allocate
from softunicast.model.bindings_file import dump_bindings
from softunicast.model.plan import load_plan

from .stage import FIRST, HOST, LAST, SHARED, Stage

READY_S: Final = 120.0
POOL: Final = "ten"
CLIENTS: Final = "10.8.0.0/16"


def plan_text(name: str) -> str:
    """One node, one slice of ten ports, one on-ramp."""
    return f"""\
prefixes:
  - {{prefix: 198.51.100.0/24}}
sites:
  lhr:
    nodes:
      {name}:
        underlay: {HOST}
        uplinks: [up0]
        onramps:
          fish: {{device: fishtun, pool: {POOL}, sources: [{CLIENTS}], gateway: 10.8.0.1}}
pools:
  {POOL}: {{site: lhr, slices: [{{slice: "{SHARED}:{FIRST}-{LAST}", node: {name}}}]}}
settings: {{flows: 32768}}
"""


@contextmanager
def agent(stage: Stage) -> Iterator[None]:
    """Runs until the end; then nothing of it is left."""
    name = stage.name
    text = plan_text(name)
    with tempfile.TemporaryDirectory(prefix="softunicast-escape-") as made:
        folder = Path(made)
        files = {"plan": folder / "plan.yaml", "bindings": folder / "bindings.yaml"}
        files["plan"].write_text(text)
        files["bindings"].write_text(dump_bindings(allocate(load_plan(text, "plan.yaml"), None)))
        arguments = [
            "agent",
            *(word for key, path in files.items() for word in (f"--{key}", str(path))),
            "--node",
            name,
        ]
        stage.notes.command("host", "softunicast agent --plan plan.yaml --bindings bindings.yaml --node host &")
        command = [sys.executable, "-m", "softunicast.cli", *arguments]
        log = folder / "agent.log"
        try:
            with log.open("wb") as output, stage.popen("host", command, stdout=output, stderr=output) as child:
                wait_until(lambda: _ready(name, child, log), "the agent is ready", patience_s=READY_S)
                yield
            stage.notes.command("host", "softunicast agent uninstall --node host")
            words = stage.words("host", [sys.executable, "-m", "softunicast.cli", "agent", "uninstall", "--node", name])
            done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False, timeout=60)
            if done.returncode:
                raise KernelError(f"escape: agent uninstall: {done.stderr.strip()}")
        finally:
            forget_node(name)


def _ready(name: str, child: subprocess.Popen[bytes], log: Path) -> bool:
    if child.poll() is not None:
        raise KernelError(f"escape: the agent ended with status {child.returncode}: {log.read_text().strip()}")
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
        return bool(json.loads((nodes.run_dir(name) / "node.json").read_text())["ready"])
    return False


def bytes_a_flow(name: str) -> float:
    """What the maps that grow with flows take for each flow they have room for (fdinfo's memlock)."""
    from softunicast.kernel.maps import Map

    total, room = 0, 0
    for kind in ("flows", "origin", "slots"):
        with contextlib.closing(Map.open_pinned(nodes.map_pin(name, kind))) as one:
            info = Path(f"/proc/self/fdinfo/{one.fd}").read_text()
            total += next(int(line.split()[1]) for line in info.splitlines() if line.startswith("memlock:"))
            if kind == "flows":
                room = one.max_entries
    return total / room
