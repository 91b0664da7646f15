# SPDX-License-Identifier: Apache-2.0
"""The agent as a daemon: reconcile, watch, sweep; its death disturbs nothing.

    wait (at most a second) --- SIGHUP, or plan or bindings changed ------> read the files again, reconcile
        |                   --- a link or address changed (rtnetlink) ----> reconcile, a moment later
        |                   --- `interval_s` is over ---------------------> reconcile, sweep
        |                   --- SIGTERM, SIGINT --------------------------> leave; the data plane stays
        |                   --- its time has come ----------------------> ask the other nodes; announce this one
        |                   --- a local program asks (softunicast.api) --> answer it
        |                   --- a child is wanted, dead, or told otherwise --> start, end or tell it (agent.children)
        +--- always: WATCHDOG=1

A bad file while running is told and the last good one stays in force. A reconciliation that fails is told and
tried again after the interval; only the first one ends the process, so that systemd shows it. The data plane
needs none of this: flows begin, go on and end without an agent.

Source: rtnetlink(7); sd_notify(3).
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

from softunicast.agent.announcing import Announcer
from softunicast.agent.attachment import Choice
from softunicast.agent.children import Children, Wanted
from softunicast.agent.diff import Desired
from softunicast.agent.findings import Finding
from softunicast.agent.machine import Machine
from softunicast.agent.notify import notify, watchdog_s
from softunicast.agent.onramp_keeper import Keeper
from softunicast.agent.operations import MakeTerminus, Operation
from softunicast.agent.prober import Prober
from softunicast.agent.reconcile import Inputs, Memory, carry_out, decide, locked
from softunicast.agent.sweep import Sweeper
from softunicast.errors import SoftunicastError
from softunicast.model.plan import Plan
from softunicast.proxy.terminate import FILE as TERMINATE_FILE

RTMGRP_LINK: Final = 0x1
RTMGRP_IPV4_IFADDR: Final = 0x10
RTMGRP_IPV6_IFADDR: Final = 0x100
SETTLE_S: Final = 0.2
TICK_S: Final = 1.0


@dataclass(frozen=True, slots=True)
class Options:
    """What the command line said. `interval_s`: between two reconciliations when nothing else happens; `proxy`: the
    policy of a proxy that is to run beside the agent."""

    node: str
    plan: Path
    bindings: Path
    interval_s: float = 10.0
    tcx: bool = True
    proxy: Path | None = None


class Service(Protocol):
    """What answers local programs. What it registers with the selector is called as `data(fileobj)` when readable, and
    says whether to reconcile soon."""

    def open(self, keeper: Keeper, selector: selectors.BaseSelector) -> None: ...
    def close(self) -> None: ...


@dataclass(slots=True)
class Agent:
    """One node's agent. `log` is a structlog logger; `clock` gives monotonic seconds."""

    options: Options
    log: Any
    clock: Callable[[], float] = time.monotonic
    service: Service | None = None
    _inputs: Inputs | None = None
    _stamps: tuple[object, ...] = ()
    _findings: frozenset[Finding] = frozenset()
    _changed: int = 0
    _choices: Mapping[str, Choice] = field(default_factory=dict)
    _memory: Memory = field(default_factory=Memory)
    _stop: bool = False
    _reload: bool = False
    _wanted: Desired | None = None
    _keeper: Keeper | None = None
    _children: Children | None = None

    def once(self) -> int:
        """Reconcile once; how many operations that took. SoftunicastError when it cannot."""
        with locked(self.options.node), self._machine() as machine:
            return self._reconcile(machine)

    def run(self) -> None:
        """Reconcile, then watch until SIGTERM or SIGINT. SoftunicastError only from the first
        reconciliation."""
        with locked(self.options.node), self._machine() as machine, self._events() as selector:
            try:
                self._children = Children(machine.run, self.log, self.clock)
                # First, so that who finds the node ready may ask; answered from the loop on.
                self._serve(machine, selector)
                self._reconcile(machine)
                notify("READY=1", f"STATUS=epoch {self._epoch()}")
                self.log.info("ready", node=self.options.node, epoch=self._epoch(), changed=self._changed)
                prober = Prober(machine, self.log, selector, self.clock)
                try:
                    self._watch(machine, selector, prober, Announcer(machine, self.log, self.clock))
                finally:
                    prober.close()
            finally:
                if self.service is not None:
                    self.service.close()
            notify("STOPPING=1")
            self.log.info("leaving; the data plane stays", node=self.options.node)

    def _serve(self, machine: Machine, selector: selectors.BaseSelector) -> None:
        def plan() -> Plan:
            assert self._inputs is not None
            return self._inputs.plan

        self._keeper = Keeper(machine, plan, lambda: self._reconcile(machine), self.log)
        if self.service is not None:
            self.service.open(self._keeper, selector)

    def _machine(self) -> Machine:
        return Machine(self.options.node, tcx=self.options.tcx)

    def _epoch(self) -> int:
        return self._inputs.bindings.epoch if self._inputs else 0

    def _reconcile(self, machine: Machine, *, again: bool = False) -> int:
        """How many operations it took. `again`: the second look, after one that made devices."""
        if self._inputs is None:
            self._read()
        assert self._inputs is not None
        decision = decide(machine, self._inputs, self._memory)
        found = frozenset(decision.findings)
        for finding in sorted(found - self._findings):
            self.log.warning("finding", name=finding.name, text=finding.message)
        for finding in sorted(self._findings - found):
            self.log.info("finding gone", name=finding.name)
        self._findings = found
        for device, choice in sorted(decision.choices.items()):
            if self._choices.get(device) != choice:
                self.log.info("attachment", device=device, at=choice.hook.value, why=choice.why)
        self._choices = decision.choices
        self._changed = 0
        refused = len(self._memory.refused)
        carry_out(machine, decision, self._done, self._memory)
        if len(self._memory.refused) > refused:
            # Once more, without what the kernel refused.
            return self._changed + self._reconcile(machine)
        if not again and any(isinstance(one, MakeTerminus) for one in decision.operations):
            # Once more, now that there are devices that lead there.
            return self._changed + self._reconcile(machine, again=True)
        self._wanted = decision.desired
        try:
            self._look_after_children()
        except (SoftunicastError, OSError) as error:
            self.log.error("failed", error=str(error))
        if self._keeper is not None:
            self._keeper.end(decision.ended)
        return self._changed

    def _done(self, operation: Operation) -> None:
        self._changed += 1
        self.log.info("done", operation=str(operation))

    def _read(self) -> None:
        """Read both files; the stamps are taken first, so that a write during the reading is seen next
        time."""
        self._stamps = self._stamp()
        self._inputs = Inputs.read(self.options.plan, self.options.bindings, self._inputs)

    def _stamp(self) -> tuple[object, ...]:
        stamps: list[object] = []
        for path in (self.options.plan, self.options.bindings):
            try:
                status = path.stat()
                stamps.append((status.st_mtime_ns, status.st_ino, status.st_size))
            except OSError as error:
                stamps.append(error.errno)
        return tuple(stamps)

    def _watch(self, machine: Machine, selector: selectors.BaseSelector, prober: Prober, announcer: Announcer) -> None:
        sweeper = Sweeper(machine)
        self._follow(prober, announcer)
        next_at = self.clock() + self.options.interval_s
        due_s = self.clock()
        sweep_at = self.clock()
        tick_s = min(TICK_S, watchdog_s() or TICK_S)
        while not self._stop:
            for key, _ in selector.select(max(0.0, min(tick_s, min(next_at, due_s) - self.clock()))):
                if key.data(key.fileobj):
                    next_at = min(next_at, self.clock() + SETTLE_S)
            notify("WATCHDOG=1")
            if self._reload or self._stamp() != self._stamps:
                self._reload = False
                if self._again(self._read):
                    next_at = self.clock()
            if self.clock() >= next_at:
                self._again(lambda: self._reconcile(machine))
                self._follow(prober, announcer)
                next_at = self.clock() + self.options.interval_s
            if self.clock() >= sweep_at:
                self._again(lambda: self._sweep(sweeper))
                sweep_at = self.clock() + self.options.interval_s
            if self.clock() >= due_s:
                due_s = self.clock() + TICK_S
                for duty in (prober, announcer, self._children):
                    assert duty is not None
                    try:
                        due_s = min(due_s, duty.tick())
                    except (SoftunicastError, OSError) as error:
                        self.log.error("failed", error=str(error))

    def _follow(self, prober: Prober, announcer: Announcer) -> None:
        """Tell those that work between reconciliations what the last good one was about."""
        if self._inputs is None or self._wanted is None:
            return
        prober.follow(self._inputs.plan, self._wanted.state.places.nodes)
        announcer.follow(self._inputs.plan, self._wanted)

    def _look_after_children(self) -> None:
        """Those that the last good reconciliation and the command line want."""
        if self._children is None or self._wanted is None:
            return
        wanted = {}
        told = self._wanted.resources.files.get(TERMINATE_FILE)
        if told is not None:
            wanted["terminator"] = Wanted(("terminator", "--node", self.options.node), told)
        policy = self.options.proxy
        if policy is not None:
            arguments = ("proxy", "--node", self.options.node, "--policy", str(policy))
            wanted["proxy"] = Wanted(arguments, policy.read_text(encoding="utf-8"))
        self._children.follow(wanted)

    def _again(self, work: Callable[[], object]) -> bool:
        """Do it, tell when it fails, and go on."""
        try:
            work()
        except (SoftunicastError, OSError) as error:
            self.log.error("failed", error=str(error))
            notify(f"STATUS=failed: {error}")
            return False
        notify(f"STATUS=epoch {self._epoch()}")
        return True

    def _sweep(self, sweeper: Sweeper) -> None:
        swept = sweeper.sweep()
        if swept.reaped or swept.released or swept.cgroups:
            self.log.info("swept", reaped=swept.reaped, released=swept.released, cgroups=swept.cgroups)

    @contextmanager
    def _events(self) -> Iterator[selectors.BaseSelector]:
        """Signals and rtnetlink in one selector; what was there before is put back."""
        with contextlib.ExitStack() as stack:
            selector = stack.enter_context(selectors.DefaultSelector())
            reader, writer = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            stack.callback(os.close, reader)
            stack.callback(os.close, writer)
            stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(writer, warn_on_full_buffer=False))
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
                stack.callback(signal.signal, number, signal.signal(number, self._signalled))
            link = stack.enter_context(
                socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
            )
            link.bind((0, RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR))
            link.setblocking(False)
            selector.register(reader, selectors.EVENT_READ, _drained_pipe)
            selector.register(link, selectors.EVENT_READ, _drained_socket)
            yield selector

    def _signalled(self, number: int, _: object) -> None:
        if number == signal.SIGHUP:
            self._reload = True
        else:
            self._stop = True


def _drained_pipe(reader: int) -> bool:
    with contextlib.suppress(BlockingIOError):
        os.read(reader, 4096)
    return False


def _drained_socket(link: socket.socket) -> bool:
    while True:
        try:
            link.recv(1 << 16)
        except BlockingIOError:
            return True
        except OSError:
            # ENOBUFS: messages were lost, so look all the more.
            return True
