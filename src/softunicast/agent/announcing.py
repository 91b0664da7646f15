# SPDX-License-Identifier: Apache-2.0
"""Announces the prefixes of this node's site by its BIRD while the node is fit, and withdraws them when it is not.

    fit ------------------------------------------------> announced
    fit, `softunicast announce drain` ------------------> draining for `settle_s`, then withdrawn
    unfit ----------------------------------------------> withdrawn, at once

The agent writes one file (announce.bird_conf) and asks BIRD to read its configuration again; nothing else of BIRD is
touched. When BIRD refuses, the file becomes what it was (a withdrawal is made by other means). When the agent dies or
stops, file and announcement stay: the data plane goes on. That a node drains is a file in its run folder, which
outlives agents and ends with the machine.

What this node thinks of itself is also what its data plane tells those that probe it (control.probe_flags).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from softunicast.agent.diff import Desired
from softunicast.agent.fitness import Seen, unfit
from softunicast.agent.machine import Machine
from softunicast.agent.resources import Hook
from softunicast.agent.state import write_atomically
from softunicast.announce.bird_conf import PROTOCOLS, Announcement, Stage, render
from softunicast.announce.birdc import Birdc
from softunicast.errors import KernelError, SoftunicastError
from softunicast.kernel import abi, clsact, nodes
from softunicast.kernel.links import Link
from softunicast.model.fleet import BirdSpeaker
from softunicast.model.plan import Plan

LOOK_S: Final = 0.25
RETRY_S: Final = 2.0
STEERING: Final = frozenset({"su_uplink_in", "su_guard", "su_steer"})
DRAIN_FILE: Final = "drain.json"
STATUS_FILE: Final = "announce.json"


def include_path(node: str, bird: BirdSpeaker) -> Path:
    """The file that is ours."""
    return Path(bird.include) if bird.include is not None else nodes.run_dir(node) / "bird.conf"


def drain_path(node: str) -> Path:
    """There while the node drains; {"since_boot_s": seconds of the boot clock}."""
    return nodes.run_dir(node) / DRAIN_FILE


def boot_s() -> float:
    """The boot clock: it goes on through suspend, and a file of before the last boot is gone with /run."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def drained_since(node: str) -> float | None:
    """When draining began, seconds of the boot clock; None: the node does not drain."""
    path = drain_path(node)
    try:
        return float(json.loads(path.read_text(encoding="utf-8"))["since_boot_s"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        # Somebody wanted to drain and wrote nonsense: drained is the safe side.
        return 0.0


@dataclass(frozen=True, slots=True)
class Judged:
    """A node's stage and what speaks against it."""

    stage: Stage
    reasons: tuple[str, ...] = ()

    @property
    def why(self) -> str:
        return "; ".join(self.reasons)


def judge(reasons: list[str], drained_since_s: float | None, settle_s: float, now_s: float) -> Judged:
    """From fitness and the operator's wish to a stage. Seconds of one clock."""
    if reasons:
        return Judged(Stage.WITHDRAWN, tuple(reasons))
    if drained_since_s is None:
        return Judged(Stage.ANNOUNCED)
    if now_s - drained_since_s < settle_s:
        return Judged(Stage.DRAINING, ("`softunicast announce drain`",))
    return Judged(Stage.WITHDRAWN, ("drained",))


class Announcer:
    """One node's. `follow` after each reconciliation, `tick` several times a second. `clock`: monotonic seconds."""

    def __init__(self, machine: Machine, log: Any, clock: Callable[[], float]) -> None:
        self._machine, self._log, self._clock = machine, log, clock
        self._plan: Plan | None = None
        self._wanted: Desired | None = None
        self._judged: Judged | None = None
        self._told: str | None = None
        self._retry_s = 0.0
        self._complaint = ""
        self._status = ""

    def follow(self, plan: Plan, wanted: Desired) -> None:
        """What the last reconciliation that went well was about, and the plan in force."""
        self._plan, self._wanted = plan, wanted

    def tick(self) -> float:
        """Look, and tell BIRD when something changed; when to come again."""
        if self._plan is None or self._wanted is None:
            return self._clock() + LOOK_S
        node = self._plan.node(self._machine.node)
        bird = node.bird or BirdSpeaker()
        reasons = unfit(self._look(self._plan))
        judged = judge(reasons, drained_since(node.name), bird.drain_settle_s, boot_s())
        if judged != self._judged:
            say = self._log.warning if judged.reasons else self._log.info
            say("announce", stage=judged.stage.value, why=judged.why)
            self._judged = judged
        self._answer_probes(judged.stage is Stage.ANNOUNCED)
        if node.bird is not None:
            self._tell(self._plan, node.bird, judged)
        self._write_status(judged)
        return self._clock() + LOOK_S

    def _look(self, plan: Plan) -> Seen:
        assert self._wanted is not None
        devices = self._machine.netlink.devices()
        node = plan.node(self._machine.node)
        uplinks = tuple(self._wanted.state.uplinks) or node.uplinks
        detached = tuple(
            f"{link.program} at {link.device}"
            for link in self._wanted.resources.links.values()
            if link.program in STEERING and link.device in devices and not self._is_attached(link.name, link.ifindex)
        )
        return Seen(
            self._machine.read_control().ready != 0,
            uplinks,
            tuple(devices.values()),
            tuple(map(str, node.underlays)),
            detached,
        )

    def _is_attached(self, name: str, ifindex: int) -> bool:
        path = self._machine.pins / "links" / name
        if not self._machine.tcx:
            hook = self._wanted.resources.links[name].hook if self._wanted else Hook.INGRESS
            return clsact.attached(ifindex, egress=hook is Hook.EGRESS) is not None
        try:
            with Link.open_pinned(path) as link:
                return link.info.ifindex == ifindex
        except (KernelError, OSError):
            return False

    def _answer_probes(self, fit: bool) -> None:
        flags = int(abi.ProbeFlag.FIT) if fit else 0
        control = self._machine.read_control()
        if control.probe_flags != flags:
            self._machine.write_control(replace(control, probe_flags=flags))

    def _tell(self, plan: Plan, bird: BirdSpeaker, judged: Judged) -> None:
        """Write the file and have it read, when it is not what BIRD was told. A failure is logged once, tried again."""
        site = plan.node(self._machine.node).site
        prefixes = tuple(prefix.network for prefix in plan.prefixes if site in prefix.announce)
        text = render(
            Announcement(self._machine.node, prefixes, judged.stage, bird.drain_med, bird.drain_community, judged.why)
        )
        if text == self._told or self._clock() < self._retry_s:
            return
        path = include_path(self._machine.node, bird)
        expected = 0 if judged.stage is Stage.WITHDRAWN else len(prefixes)
        try:
            if self._told is None and _text(path) == text and bird_has(bird.control) == expected:
                # An agent that starts again and finds all as it should be changes nothing.
                self._told = text
                return
            tell_bird(path, text, bird.control, withdrawn=judged.stage is Stage.WITHDRAWN)
        except (SoftunicastError, OSError) as error:
            self._told, self._retry_s = None, self._clock() + RETRY_S
            if str(error) != self._complaint:
                self._complaint = str(error)
                self._log.error("bird", error=str(error))
            return
        if self._complaint:
            self._log.info("bird answers again", control=bird.control)
        self._complaint, self._told = "", text

    def _write_status(self, judged: Judged) -> None:
        document = {"stage": judged.stage.value, "reasons": list(judged.reasons), "bird": self._complaint}
        text = json.dumps(document, indent=1) + "\n"
        if text != self._status:
            self._machine.write_file(STATUS_FILE, text, lasting=False)
            self._status = text


def bird_has(control: str) -> int:
    """How many routes of ours BIRD has. KernelError when it does not answer."""
    with Birdc(control) as bird:
        there = {name for name, *_ in bird.protocols()}
        return sum(bird.routes(name) for name in PROTOCOLS.values() if name in there)


def tell_bird(path: Path, text: str, control: str, *, withdrawn: bool) -> None:
    """Write the file and have BIRD read its configuration again. When BIRD is not there the file is written all the
    same: BIRD will read it. KernelError in both bad cases.

    When BIRD refuses (the operator's own configuration has a mistake), the file becomes what it was; but a withdrawal
    does not wait: its file stays, for a BIRD that restarts, and our protocols are disabled, which reads nothing.
    """
    before = _text(path)
    try:
        write_atomically(path, text)
    except OSError as error:
        raise KernelError(f"write {path}: {error.strerror}", errno=error.errno or 0) from error
    with Birdc(control) as bird:
        try:
            bird.configure()
        except KernelError:
            if withdrawn:
                _each(bird, "disable")
            elif before is None:
                path.unlink(missing_ok=True)
            else:
                write_atomically(path, before)
            raise
        _each(bird, "enable")


def _each(bird: Birdc, verb: str) -> None:
    """Enable or disable those of our protocols that BIRD knows."""
    for name, *_ in bird.protocols():
        if name in PROTOCOLS.values():
            bird.command(f"{verb} {name}")


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None
