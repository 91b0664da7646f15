# SPDX-License-Identifier: Apache-2.0
"""A namespace with an uplink and an on-ramp, and the real `softunicast agent` in it, as a process.

    node  up0 10.0.1.11/24 ------- 10.0.1.1/24 r0  router
          fish0 10.77.0.1/24 ----- c0              (the router's namespace again: nobody talks there)

Everything is named by process id and number; closing takes the node away with `agent uninstall`, then by hand what
that should have left.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softunicast.model.allocator import allocate
from softunicast.model.binding import Bindings
from softunicast.model.bindings_file import dump_bindings
from softunicast.model.plan import load_plan
from tests.support.dump import PINS, RUN, dump
from tests.support.wait import wait_until

PLAN = """\
prefixes:
  - {{prefix: 198.51.100.0/24}}
sites:
  lhr:
    nodes:
      {node}:
        underlay: 10.0.1.11
        uplinks: [up0]
        onramps:
          fish: {{device: fish0, pool: gb, sources: [10.77.0.0/24], gateway: 10.77.0.1}}
      {node}x: {{underlay: 10.0.1.12}}
pools:
  gb: {{addresses: [198.51.100.10], site: lhr, slice_ports: 2048}}
  ten: {{site: lhr, slices: [{{slice: "198.51.100.20:9000-9009", node: {node}}}]}}
settings: {{flows: 2048}}
"""
NUMBERS = itertools.count()


@dataclass
class AgentNode:
    """One node; `folder` holds its plan and bindings. Make with `agent_node(tmp_path)`."""

    name: str
    netns: str
    folder: Path
    bindings: Bindings = field(default_factory=lambda: Bindings(0, ()))

    @property
    def plan(self) -> Path:
        return self.folder / "plan.yaml"

    @property
    def bindings_file(self) -> Path:
        return self.folder / "bindings.yaml"

    def write(self, *replacements: tuple[str, str]) -> None:
        """Write the plan (with these texts replaced) and bindings that fit it, moved as little as possible."""
        text = PLAN.format(node=self.name)
        for old, new in replacements:
            assert old in text, old
            text = text.replace(old, new)
        self.plan.write_text(text)
        last = self.bindings if self.bindings.epoch else None
        self.bindings = allocate(load_plan(text, "plan.yaml"), last)
        self.bindings_file.write_text(dump_bindings(self.bindings))

    def command(self, *arguments: str) -> list[str]:
        return ["nsenter", f"--net=/run/netns/{self.netns}", sys.executable, "-m", "softunicast.cli", *arguments]

    def agent(self, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
        """Run `softunicast agent` with the node's files to its end; `path` goes before PATH."""
        files = ("--plan", str(self.plan), "--bindings", str(self.bindings_file), "--node", self.name)
        return self.softunicast("agent", *files, *arguments, path=path)

    def softunicast(self, *arguments: str, path: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PATH": f"{path}:{os.environ['PATH']}"} if path else None
        command = self.command(*arguments)
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False, env=environment)

    def once(self, *arguments: str) -> int:
        """Reconcile once, which must go well; how many operations it took."""
        done = self.agent("--once", "--log-format", "json", *arguments)
        assert done.returncode == 0, done.stderr
        lines = [json.loads(line) for line in done.stderr.splitlines()]
        return int(next(line["changed"] for line in lines if line["event"] == "reconciled"))

    def uninstall(self) -> subprocess.CompletedProcess[str]:
        done = self.softunicast("agent", "uninstall", "--node", self.name)
        assert done.returncode == 0, done.stderr
        return done

    @contextmanager
    def daemon(self, *arguments: str, **environment: str) -> Iterator[Daemon]:
        """The agent as a daemon, ready; killed at the end if it still runs."""
        log = self.folder / "agent.log"
        files = ("--plan", str(self.plan), "--bindings", str(self.bindings_file), "--node", self.name)
        with log.open("w") as stream:
            command = self.command("agent", *files, "--log-format", "json", *arguments)
            process = subprocess.Popen(command, stderr=stream, env={**os.environ, **environment})
        daemon = Daemon(process, log)
        try:
            wait_until(lambda: daemon.events("ready") or process.poll() is not None, 60, "the agent is ready")
            assert process.poll() is None, log.read_text()
            yield daemon
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            process.wait()

    def dump(self, *, volatile: bool = False) -> dict[str, Any]:
        return dump(self.name, self.netns, volatile=volatile)

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.netns, *arguments], check=True, capture_output=True, timeout=30)

    def inside(self, *command: str, stdin: str | None = None) -> str:
        prefix = ["nsenter", f"--net=/run/netns/{self.netns}"]
        done = subprocess.run([*prefix, *command], input=stdin, capture_output=True, text=True, timeout=60, check=True)
        return done.stdout

    def state(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((RUN / self.name / "node.json").read_text())
        return found


@dataclass
class Daemon:
    process: subprocess.Popen[bytes]
    log: Path

    def events(self, event: str) -> list[dict[str, Any]]:
        """Log lines of that event."""
        lines = [line for line in self.log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
        return [entry for line in lines if (entry := json.loads(line))["event"] == event]

    def done(self, part: str) -> bool:
        """Whether an operation with `part` in its line was done."""
        return any(part in entry["operation"] for entry in self.events("done"))

    def kill(self) -> None:
        """kill -9, and wait for its end."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def terminate(self) -> int:
        """SIGTERM; the exit status."""
        self.process.terminate()
        return self.process.wait(timeout=30)


@contextmanager
def agent_node(folder: Path) -> Iterator[AgentNode]:
    """A node in a fresh namespace, plan and bindings written, agent not started."""
    number = next(NUMBERS)
    name = f"t-agent-{os.getpid()}-{number}"
    node = AgentNode(name, name, folder)
    router = f"{name}-r"
    try:
        for netns in (name, router):
            subprocess.run(["ip", "netns", "add", netns], check=True, timeout=30)
        node.ip("link", "set", "lo", "up")
        for device, peer in (("up0", "r0"), ("fish0", "c0")):
            node.ip("link", "add", device, "type", "veth", "peer", "name", peer, "netns", router)
            node.ip("link", "set", device, "addrgenmode", "none", "up")
            subprocess.run(["ip", "-n", router, "link", "set", peer, "up"], check=True, timeout=30)
        node.ip("address", "add", "10.0.1.11/24", "dev", "up0")
        node.ip("address", "add", "10.77.0.1/24", "dev", "fish0")
        subprocess.run(["ip", "-n", router, "address", "add", "10.0.1.1/24", "dev", "r0"], check=True, timeout=30)
        node.ip("route", "add", "default", "via", "10.0.1.1")
        node.write()
        yield node
    finally:
        node.softunicast("agent", "uninstall", "--node", name)
        for left in (PINS / name, RUN / name):
            shutil.rmtree(left, ignore_errors=True)
        for netns in (name, router):
            subprocess.run(["ip", "netns", "delete", netns], check=False, capture_output=True, timeout=30)
