# SPDX-License-Identifier: Apache-2.0
"""Housekeeping: what the data plane can do without, but not for ever.

- `su_sweep` reaps expired claims (the clock hand only moves when something is inserted).
- A SOCKET claim never expires by time. Should its socket be gone without the hooks having seen it (a cgroup
  link detached by hand, for example), the claim would stay: the cookies of all living sockets are compared,
  and a claim that missed twice in a row in the same generation is turned into LINGER by `su_release`, which
  checks the word again.
- A TCP connection of a client whose on-ramp is gone, or has another generation, would hold its port for hours: it is
  turned into LINGER in the same way.
- What the claims of an on-ramp came to (`uses`) is forgotten when the on-ramp, or that generation of it, is gone.
- Folders of `softunicast run` that are empty twice in a row, their policies, and `control.policies`; policies of other
  cgroups (`softunicast policy`) that are gone.

Nothing here ever deletes a claim from userspace: the programs do, after winning its word.
"""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

from softunicast.agent import sock_diag
from softunicast.agent.machine import Machine
from softunicast.errors import KernelError
from softunicast.kernel import abi, cgroup, nodes
from softunicast.kernel.abi_util import word_generation, word_state
from softunicast.kernel.maps import Map


@dataclass(frozen=True, slots=True)
class Swept:
    """What one sweep did; all zeros when nothing was to do."""

    seen: int = 0
    reaped: int = 0
    released: int = 0
    cgroups: int = 0


@dataclass(slots=True)
class Sweeper:
    """Remembers from one sweep to the next what was missing."""

    machine: Machine
    _missing: dict[bytes, int] = field(default_factory=dict)
    _empty: set[int] = field(default_factory=set)
    _idle: bool = False

    def sweep(self) -> Swept:
        """One round. KernelError when the maps are not there."""
        seen, reaped = self._expired()
        self._uses()
        return Swept(seen, reaped, self._orphans(), self._cgroups())

    def _expired(self) -> tuple[int, int]:
        with self.machine.program("su_sweep") as program:
            answer = abi.SweepArgs.unpack(program.test_run(ctx=abi.SweepArgs().pack()).ctx)
        return answer.seen, answer.reaped

    def _orphans(self) -> int:
        # Claims first, sockets second: a claim is older than the list it is looked up in.
        claims: dict[bytes, abi.Claim] = {}
        strays: dict[bytes, abi.Claim] = {}
        owners = self._owners()
        for key, value in self.machine.map("flows").items():
            claim = abi.Claim.unpack(value)
            if word_state(claim.word) not in (abi.State.NEW, abi.State.OPEN):
                continue
            if claim.kind == abi.Kind.SOCKET:
                claims[key] = claim
            elif claim.kind == abi.Kind.PACKET and claim.owner not in owners:
                strays[key] = claim
        alive = sock_diag.cookies() if claims else frozenset()
        orphans = {key: claim for key, claim in claims.items() if claim.owner not in alive}
        ending = {k: claim for k, claim in orphans.items() if self._missing.get(k) == word_generation(claim.word)}
        # Their on-ramps may be new: they were there before their claims, so they are now.
        owners = self._owners() if strays else owners
        for key, claim in strays.items():
            if claim.owner not in owners and abi.Flow.unpack(key).proto == socket.IPPROTO_TCP:
                ending[key] = claim
        released = 0
        if ending:
            with self.machine.program("su_release") as program:
                for key, claim in ending.items():
                    arguments = abi.ReleaseArgs(abi.Flow.unpack(key), claim.word, claim.owner, 1)
                    answer = abi.ReleaseArgs.unpack(program.test_run(ctx=arguments.pack()).ctx)
                    released += answer.result == 0
        self._missing = {key: word_generation(claim.word) for key, claim in orphans.items()}
        return released

    def _owners(self) -> frozenset[int]:
        """On-ramps that are there, as claims name them."""
        found = set()
        for key, value in self.machine.map("onramps").items():
            onramp = abi.Onramp.unpack(value)
            if onramp.flags:
                found.add(int.from_bytes(key, sys.byteorder) << 32 | onramp.generation)
        return frozenset(found)

    def _uses(self) -> None:
        # Uses first, on-ramps second: an owner is in `onramps` before its first flow.
        uses = [key for key, _ in self.machine.map("uses").items()]
        owners = self._owners() if uses else frozenset()
        for key in uses:
            if int.from_bytes(key, sys.byteorder) not in owners:
                self.machine.map("uses").delete(key)

    def _cgroups(self) -> int:
        policies = self.machine.map("cgroups")
        folder = nodes.cgroup_dir(self.machine.node)
        empty: dict[int, Path] = {}
        for path in folder.path.iterdir() if folder.exists else ():
            if path.is_dir() and "populated 0" in (path / "cgroup.events").read_text():
                empty[path.stat().st_ino] = path
        removed = 0
        for number, path in empty.items():
            if number not in self._empty or _runs(path.name):
                continue
            try:
                path.rmdir()
            except OSError:
                # Somebody moved in meanwhile, or there are folders below: not empty after all.
                continue
            policies.delete(number.to_bytes(8, sys.byteorder))
            removed += 1
        self._empty = set(empty)
        removed += self._gone(policies)
        self._recount()
        return removed

    def _gone(self, policies: Map) -> int:
        """Policies of cgroups that are gone: a service's or a container's, which somebody else made and removed."""
        removed = 0
        for key in list(policies.keys()):
            try:
                gone = cgroup.by_id(int.from_bytes(key, sys.byteorder)) is None
            except KernelError:
                # Not to be known here (no CAP_DAC_READ_SEARCH): better too many policies than one too few.
                break
            if gone:
                removed += policies.delete(key)
        return removed

    def _recount(self) -> None:
        """Lower control.policies when there was no policy twice in a row; hooks then look no more. Raising it is the
        business of `run`, at once."""
        idle, self._idle = self._idle, next(self.machine.map("cgroups").keys(), None) is None
        control = self.machine.read_control()
        if self._idle and idle and control.policies:
            self.machine.write_control(replace(control, policies=0))


def _runs(name: str) -> bool:
    """Whether the `softunicast run` that made the folder run-<pid> is still alive: it may not have moved in yet.

    One that was killed and not yet waited for (a zombie, proc_pid_stat(5)) is not.
    """
    pid = name.removeprefix("run-")
    if not pid.isdigit():
        return False
    try:
        state = Path("/proc", pid, "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return False
    return state not in "ZX"
