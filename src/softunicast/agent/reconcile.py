# SPDX-License-Identifier: Apache-2.0
"""One reconciliation: read the files, look at the kernel, decide, do.

`decide` changes nothing and is what --dry-run shows; `carry_out` applies the operations in order and stops at
the first that fails, telling what is left. The door for fish stays as it was before (closed, when it had not
been open), so a node that is half done refuses rather than leaks; running again completes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from softunicast.agent import desired, observed, onramp_file, onramps
from softunicast.agent.attachment import Choice, choices
from softunicast.agent.attachment import findings as attachment_findings
from softunicast.agent.diff import Desired, Observed, diff
from softunicast.agent.findings import Finding, find
from softunicast.agent.machine import Machine, objects_digest
from softunicast.agent.operations import Attach, Operation, SetSysctl, UpdateLink
from softunicast.agent.resources import Hook, Tables
from softunicast.agent.state import load
from softunicast.errors import KernelError, SoftunicastError, UsageError
from softunicast.kernel import netns, nodes
from softunicast.model.binding import Bindings, BindingsText, check_bindings
from softunicast.model.bindings_file import load_bindings, read_bindings
from softunicast.model.plan import Plan, load_plan

MAPS_EVERY_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class Inputs:
    """Plan and bindings, as text and as meant."""

    plan_text: str
    plan: Plan
    bound: BindingsText

    @classmethod
    def read(cls, plan: Path, bindings: Path, last: Inputs | None = None) -> Inputs:
        """Read and check both files; what is as in `last` is not done again. UsageError, PlanError."""
        plan_text, bindings_text = _text(plan, "--plan"), _text(bindings, "--bindings")
        same = last is not None and last.plan_text == plan_text
        parsed = last.plan if last is not None and same else load_plan(plan_text, str(plan))
        bound = read_bindings(bindings_text, str(bindings), last.bound if last is not None else None)
        check_bindings(parsed, bound, checked=last.bindings if last is not None and same else None)
        return cls(plan_text, parsed, bound)

    @property
    def bindings(self) -> Bindings:
        """Who holds what."""
        return self.bound.bindings

    @property
    def files(self) -> dict[str, str]:
        """The copies kept in the run folder."""
        return {"plan.yaml": self.plan_text, "bindings.yaml": self.bound.text}


def _text(path: Path, option: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{option} {path}: {error.strerror}; name a file that can be read") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{option} {path}: not UTF-8 at byte {error.start}; save it as UTF-8") from error


@dataclass(frozen=True, slots=True)
class Decision:
    """What is wanted, what is there, what to do, and what else was found. `ended`: leased on-ramps that are over."""

    desired: Desired
    observed: Observed
    operations: tuple[Operation, ...]
    findings: tuple[Finding, ...]
    choices: Mapping[str, Choice]
    ended: tuple[str, ...] = ()


@dataclass(slots=True)
class Memory:
    """What a daemon need not find out again each time.

    `known`: what the maps hold, by the last reading or the last reconciliation that went well; None: nobody knows. They
    are read at the first look, after a failure, at the first look after one that wrote, and once a minute; otherwise
    only what others touch is looked at: links, routes, addresses, sysctls, nft. A binding that moves so is one write,
    and the look behind it is not in its way.
    """

    tables: desired.Memory = field(default_factory=desired.Memory)
    known: Tables | None = None
    written: bool = False
    read_at_s: float = 0.0
    refused: dict[tuple[int, Hook], str] = field(default_factory=dict)
    merger: onramps.Merger = field(default_factory=onramps.Merger)

    def trusted(self, wanted: Tables, now_s: float) -> Tables | None:
        """What the maps hold, when they need not be read now."""
        if now_s - self.read_at_s >= MAPS_EVERY_S or (self.written and self.known is wanted):
            return None
        return self.known

    def looked(self, found: Tables, now_s: float) -> None:
        """They were read."""
        self.known, self.written, self.read_at_s = found, False, now_s

    def reached(self, wanted: Tables) -> None:
        """All operations towards this went well."""
        self.known, self.written = wanted, True


def decide(machine: Machine, inputs: Inputs, memory: Memory | None = None) -> Decision:
    """Look and compare; changes nothing. UsageError when no operation may lead from here to there."""
    memory = Memory() if memory is None else memory
    inputs.plan.node(machine.node)
    last = load(machine.run / "node.json")
    if last is not None:
        _same_epoch_same_bindings(machine, inputs, last.bindings_epoch)
    facts = observed.facts(machine)
    _alone(machine.node, facts.netns_cookie)
    here = desired.node_here(inputs.plan, machine.node, facts)
    merged = memory.merger.merge(inputs.plan, here, onramp_file.load(machine.run), facts.devices)
    want = desired.desired(
        merged.plan,
        inputs.bindings,
        machine.node,
        facts,
        objects_digest(),
        last,
        inputs.files,
        int(time.time()),
        memory.tables,
        memory.refused,
    )
    now_s = time.monotonic()
    known = memory.trusted(want.resources.tables, now_s)
    have = observed.observe(machine, want, facts, known)
    if known is None:
        memory.looked(have.resources.tables, now_s)
    findings = find(desired.subject(merged.plan, memory.tables.holding, machine.node, facts), facts)
    chosen = choices(desired.node_here(merged.plan, machine.node, facts), facts, memory.refused)
    ours = {link.device for link in want.resources.links.values() if link.device}
    findings = sorted({*findings, *attachment_findings(chosen, ours, facts), *merged.findings})
    operations = tuple(diff(want, have))
    return Decision(want, have, operations, tuple(findings), chosen, merged.ended)


def _same_epoch_same_bindings(machine: Machine, inputs: Inputs, running_epoch: int) -> None:
    """Two files of one epoch that differ were made in two places: who holds what would depend on the node."""
    copy = machine.run / "bindings.yaml"
    if inputs.bindings.epoch != running_epoch or not copy.exists():
        return
    text = copy.read_text(encoding="utf-8")
    if text != inputs.bound.text and load_bindings(text, str(copy)) != inputs.bindings:
        raise UsageError(
            f"node {machine.node}: these bindings differ from those that run ({copy}) under the same epoch "
            f"{running_epoch}; write them with `softunicast plan apply` in one place"
        )


def _alone(node: str, cookie: int) -> None:
    """Two nodes in one namespace would fight over addresses and hooks."""
    for other in nodes.node_names():
        # Of another node only this is read: its agent may be of another version.
        if other != node and nodes.node_cookie(other) == cookie:
            raise UsageError(
                f"--node {node}: node {other} runs in this network namespace already; "
                f"`softunicast agent uninstall --node {other}` first, or start in another namespace"
            )


def carry_out(machine: Machine, decision: Decision, done: Callable[[Operation], None], memory: Memory) -> None:
    """What was decided. `done` is called after each. KernelError names the operation that failed and what is left.

    A device that cannot do XDP after all is no failure, because tc steers there: the kernel's words go to
    `memory.refused`. Nor is one that has just gone.
    """
    if decision.operations:
        memory.known = None
        _apply(machine, decision.operations, done, memory.refused)
        memory.reached(decision.desired.resources.tables)


def _apply(
    machine: Machine,
    operations: tuple[Operation, ...],
    done: Callable[[Operation], None],
    refused: MutableMapping[tuple[int, Hook], str],
) -> None:
    for position, operation in enumerate(operations):
        try:
            if isinstance(operation, Attach) and operation.link.hook.xdp:
                try:
                    operation.apply(machine)
                except KernelError as error:
                    refused[operation.link.ifindex, operation.link.hook] = error.message
                    continue
            else:
                operation.apply(machine)
        except KernelError as error:
            if not _went_away(operation, error.errno):
                raise _failed(operations, position, error) from error
            # It went away since it was looked at; that is seen, and looked at anew, at once.
            continue
        except (SoftunicastError, OSError) as error:
            raise _failed(operations, position, error) from error
        done(operation)


def _went_away(operation: Operation, number: int) -> bool:
    """Whether it failed because its device has just gone: one on which nobody relies but its own clients."""
    match operation:
        case Attach(link=link) | UpdateLink(link=link):
            return number == errno.ENODEV and link.program in ("su_onramp_in", "su_guard_other")
        case SetSysctl(path=path):
            return number == errno.ENOENT and "/conf/" in path and "/conf/lo/" not in path
    return False


def _failed(operations: tuple[Operation, ...], position: int, error: Exception) -> KernelError:
    left = len(operations) - position
    return KernelError(
        f"{operations[position]}: {error}; {position} of {len(operations)} operations are done, {left} left: "
        "mend this and run the agent again",
        errno=getattr(error, "errno", 0) or 0,
        log=getattr(error, "log", ""),
    )


@contextmanager
def locked(node: str) -> Iterator[None]:
    """Be the only agent of this node. UsageError names the other one's pid."""
    folder = nodes.run_dir(node)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    path = folder / "agent.lock"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
            raise UsageError(
                f"node {node}: its agent runs already (pid {pid}); stop it first: "
                f"systemctl stop softunicast-agent@{node}"
            ) from error
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
        try:
            yield
        finally:
            if not nodes.node_file(node).exists():
                # Refused before anything was made, or uninstalled: leave no trace of the attempt either.
                path.unlink(missing_ok=True)
                with contextlib.suppress(OSError):
                    folder.rmdir()
                    folder.parent.rmdir()
    finally:
        os.close(fd)


def namespace_of(cookie: int) -> str | None:
    """'' when the current namespace has this cookie, the name of a named one that has it, None when none
    does."""
    if netns.cookie() == cookie:
        return ""
    for name in netns.names():
        try:
            with netns.enter(name):
                if netns.cookie() == cookie:
                    return name
        except SoftunicastError:
            continue
    return None
