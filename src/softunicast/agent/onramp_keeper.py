# SPDX-License-Identifier: Apache-2.0
"""Gives on-ramps to those who ask the agent, and takes them back.

    device   a device that is there or will be: veth, tap, WireGuard; stays until it is removed
    make     a TUN or tap of the agent's making; stays until it is removed, then goes with its device
    tun      a TUN whose descriptor the asker gets: when it closes the last copy, device and on-ramp are gone
    socket   the asker hands over one end of a socket pair (AF_UNIX, SOCK_SEQPACKET), one IP packet a record; socat(1)
             copies between it and such a TUN, and ends when the asker closes its end

An on-ramp is there when the answer is: its keys are checked as a plan's, it is written down (agent.onramps), and the
node reconciled; if anything of that fails, nothing is left of it. No packet passes through Python: a TUN's are between
kernel and asker, a socket's are copied by socat, which outlives the agent as the on-ramp does.

Root may ask for anything. Others, whom the socket's mode lets in, get `tun` and `socket`, and remove their own.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final

from softunicast.agent import desired, onramp_file
from softunicast.agent.facts import Facts
from softunicast.agent.machine import Machine
from softunicast.agent.onramp_file import Added
from softunicast.agent.onramps import Merger
from softunicast.agent.state import load as load_state
from softunicast.errors import KernelError, SoftunicastError, UsageError
from softunicast.kernel import netns, sysctl, tun
from softunicast.model.document import Value
from softunicast.model.fleet import Node, Onramp, Plan
from softunicast.model.reader import DEVICE, NAME
from softunicast.model.reading_onramps import read_added

DEVICE_NAMES: Final = "su%d"
RECORD_BYTES: Final = 65535
"""Longest IP packet; a record of the socket is one."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What somebody asks for. `name` and `device` may be None where the agent makes the device: then it names them."""

    kind: str
    keys: Mapping[str, Value]
    name: str | None = None
    device: str | None = None
    tap: bool = False
    uid: int = 0


@dataclass(frozen=True, slots=True)
class Given:
    """An on-ramp that is there. `fd`: of its TUN, for the asker; whoever has this closes it."""

    onramp: Onramp
    id: int
    generation: int
    ifindex: int
    mtu: int
    fd: int | None = None

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.onramp.name,
            "device": self.onramp.device,
            "pool": self.onramp.pool,
            "slice": None if self.onramp.slice is None else str(self.onramp.slice),
            "tenant": self.onramp.tenant,
            "id": self.id,
            "generation": self.generation,
            "ifindex": self.ifindex,
            "mtu": self.mtu,
        }


@dataclass(slots=True)
class Keeper:
    """`plan`: the last good one; `reconcile`: make the kernel follow the file."""

    machine: Machine
    plan: Callable[[], Plan]
    reconcile: Callable[[], object]
    log: Any
    _pumps: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def add(self, ask: Ask, handed: socket.socket | None = None) -> Given:
        """UsageError: what is asked for is wrong or not allowed. KernelError: it could not be done. Nothing is left."""
        self._allowed(ask)
        for what, text, pattern in (("name", ask.name, NAME), ("device", ask.device, DEVICE)):
            if text is not None and pattern.fullmatch(text) is None:
                raise UsageError(f"on-ramp: {text[:70]!r} is no {what}; use letters, digits, `-`, `_` and `.`")
        if ask.kind == "socket":
            _check_handed(handed)
        if ask.kind == "device":
            if ask.name is None:
                raise UsageError("on-ramp: no name; say which on-ramp this is to be")
            return self._enter(Added(ask.name, ask.device or ask.name, ask.keys, uid=ask.uid))
        fd, device = self._make(ask)
        done = False
        try:
            ifindex = socket.if_nametoindex(device)
            leased = ask.kind in ("tun", "socket")
            kind = "tap" if ask.tap else "tun"
            added = Added(ask.name or device, device, ask.keys, "" if leased else kind, leased, ifindex, ask.uid)
            self._prepare(added, ifindex)
            given = self._enter(added)
            if handed is not None:
                try:
                    self._pump(handed.fileno(), fd)
                except BaseException:
                    self._forget(added.name)
                    raise
            if ask.kind == "make":
                tun.persist(fd)
            done = ask.kind == "tun"
            return replace(given, fd=fd) if done else given
        finally:
            if not done:
                os.close(fd)

    def remove(self, name: str, uid: int = 0) -> Added:
        """Take one back, and the device if the agent made it. UsageError: there is none that this one may remove."""
        added = {one.name: one for one in onramp_file.load(self.machine.run)}
        if name not in added:
            node = self.plan().node(self.machine.node)
            if name in node.onramps:
                raise UsageError(f"on-ramp {name}: stands in the plan; remove it there, and the agent follows")
            raise UsageError(f"on-ramp {name}: none was added; there are: {', '.join(sorted(added)) or 'none'}")
        one = added[name]
        if uid not in (0, one.uid):
            raise UsageError(f"on-ramp {name}: user {one.uid} asked for it, not user {uid}; ask as that one or as root")
        self._forget(name)
        device = self.machine.netlink.devices().get(one.device)
        if device is not None and (one.made or (one.leased and device.ifindex == one.ifindex)):
            self.machine.netlink.delete_device(device.ifindex)
        self.log.info("on-ramp removed", onramp=name, device=one.device, uid=uid)
        return one

    def listed(self) -> list[Added]:
        """Those that were added, by name."""
        return list(onramp_file.load(self.machine.run))

    def end(self, names: tuple[str, ...]) -> None:
        """Write off those whose lease is over, and bury pumps that ended."""
        self._pumps[:] = [pump for pump in self._pumps if pump.poll() is None]
        if names:
            onramp_file.save(
                self.machine.run, [one for one in onramp_file.load(self.machine.run) if one.name not in names]
            )
            for name in names:
                self.log.info("on-ramp ended with its device", onramp=name)

    def _allowed(self, ask: Ask) -> None:
        if ask.uid != 0 and ask.kind not in ("tun", "socket"):
            raise UsageError(
                f"on-ramp {ask.name or ask.device or ''}: user {ask.uid} may ask for a TUN or hand over a socket; "
                "what takes a device of this machine is root's"
            )

    def _make(self, ask: Ask) -> tuple[int, str]:
        """A new device; there is no on-ramp of a device that somebody else has."""
        name = ask.device or (ask.name if ask.kind == "make" else None) or DEVICE_NAMES
        if name in self.machine.netlink.devices():
            raise UsageError(
                f"device {name}: is there already; name another, or add it as it is: softunicast onramp add NAME "
                f"--device {name}"
            )
        if name != DEVICE_NAMES and "%" in name:
            raise UsageError(f"device {name}: a name has no %; choose another")
        return tun.open_named(name, tap=ask.tap)

    def _prepare(self, added: Added, ifindex: int) -> None:
        """Up, with the gateways' addresses; silent, for whoever reads the descriptor wants packets of flows only."""
        onramp = read_added(*self._others(), added.name, {**added.keys, "device": added.device})
        folder = f"net/ipv6/conf/{added.device}"
        if sysctl.path_of(folder).exists():
            sysctl.put(f"{folder}/addr_gen_mode", 1)
            sysctl.put(f"{folder}/router_solicitations", 0)
            if onramp.gateway6 is None:
                sysctl.put(f"{folder}/disable_ipv6", 1)
        sysctl.put(f"net/ipv4/conf/{added.device}/rp_filter", 0)
        addresses = [str(one) for one in (onramp.gateway4, onramp.gateway6) if one is not None]
        self.machine.netlink.set_up(ifindex, *addresses)

    def _enter(self, added: Added) -> Given:
        """Check, write down, reconcile. An error leaves things as they were."""
        plan, here = self._others()
        onramp = read_added(plan, here, added.name, {**added.keys, "device": added.device})
        before = onramp_file.load(self.machine.run)
        onramp_file.save(self.machine.run, (*before, added))
        try:
            self.reconcile()
            state = load_state(self.machine.run / "node.json")
            known = state.onramps.get(added.name) if state else None
            if known is None:
                raise KernelError(f"on-ramp {added.name}: the node did not take it; see the agent's log")
        except BaseException:
            self._forget(added.name)
            raise
        device = self.machine.netlink.devices().get(added.device)
        self.log.info("on-ramp added", onramp=added.name, device=added.device, pool=onramp.pool, uid=added.uid)
        return Given(onramp, known.id, known.generation, known.ifindex, device.mtu if device else 0)

    def _others(self) -> tuple[Plan, Node]:
        """The plan with all on-ramps that are there, and this node of it with its uplinks."""
        netlink, plan = self.machine.netlink, self.plan()
        facts = Facts(netns.cookie(), netlink.devices(), netlink.default_routes())
        here = desired.node_here(plan, self.machine.node, facts)
        merged = Merger().merge(plan, here, onramp_file.load(self.machine.run), facts.devices)
        return merged.plan, replace(merged.plan.node(self.machine.node), uplinks=here.uplinks)

    def _write_off(self, names: tuple[str, ...]) -> None:
        folder = self.machine.run
        onramp_file.save(folder, [one for one in onramp_file.load(folder) if one.name not in names])

    def _forget(self, name: str) -> None:
        self._write_off((name,))
        with contextlib.suppress(SoftunicastError):
            self.reconcile()

    def _pump(self, end: int, device: int) -> None:
        command = ["socat", "-b", str(RECORD_BYTES), f"FD:{end}", f"FD:{device}"]
        self._pumps.append(
            subprocess.Popen(
                command,
                pass_fds=(end, device),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,
            )
        )


def _check_handed(handed: socket.socket | None) -> None:
    if handed is None:
        raise UsageError("on-ramp: no socket was handed over; send one end of a socket pair with the request")
    if (handed.family, handed.type) != (socket.AF_UNIX, socket.SOCK_SEQPACKET):
        raise UsageError(
            "on-ramp: the socket handed over is none of AF_UNIX, SOCK_SEQPACKET; others keep no packets apart, or do "
            "not tell that their other end is closed"
        )
    if shutil.which("socat") is None:
        raise KernelError(
            "on-ramp: socat, which carries a socket's packets, is not installed; install it, or ask for a TUN"
        )
