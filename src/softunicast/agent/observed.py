# SPDX-License-Identifier: Apache-2.0
"""What is: facts about the host, and what of ours is in the kernel. Reads only; makes nothing, mounts
nothing.

Arrays are read up to the highest index that was ever filled (node.json's `array_used`) and no further,
because the `owners` of a fleet have a million elements and a look at them must cost little every few seconds.
"""

from __future__ import annotations

import errno
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from softunicast.agent import notrack, state
from softunicast.agent.desired import CGROUP_HOOKS, XDP_ROLES
from softunicast.agent.diff import Desired, Observed
from softunicast.agent.facts import Facts
from softunicast.agent.machine import CONTROL_KEY, Machine
from softunicast.agent.resources import Attachment, Hook, Resources, Tables
from softunicast.agent.terminus import Terminus, of_device
from softunicast.errors import KernelError
from softunicast.kernel import abi, cgroup, clsact, entries, links, netns, nft, nodes, sysctl
from softunicast.kernel.bpf import Map, MapType, Program, bpffs_mounted
from softunicast.kernel.elements import Elements

ROLES: Final[Mapping[str, tuple[str, Hook]]] = {
    "onramp_in": ("su_onramp_in", Hook.INGRESS),
    "terminus_in": ("su_terminus_in", Hook.INGRESS),
    "uplink_in": ("su_uplink_in", Hook.INGRESS),
    "guard": ("su_guard", Hook.EGRESS),
    "guard_other": ("su_guard_other", Hook.EGRESS),
    **{role: ("su_steer", hook) for hook, role in XDP_ROLES.items()},
}
HOST_SYSCTLS: Final = (
    "net/ipv4/tcp_timestamps",
    "net/ipv4/ip_local_reserved_ports",
    "net/ipv4/conf/all/rp_filter",
)
GONE: Final = -1
IPTABLES_TIMEOUT_S: Final = 20


def facts(machine: Machine) -> Facts:
    """The host as it is now, in the current network namespace."""
    devices = machine.netlink.devices()
    wanted = [*HOST_SYSCTLS, *(f"net/ipv4/conf/{name}/rp_filter" for name in devices)]
    return Facts(
        netns_cookie=netns.cookie(),
        devices=devices,
        defaults=machine.netlink.default_routes(),
        sysctls=read_sysctls(wanted),
        ruleset=tuple(nft.list_ruleset()),
        iptables=tuple(iptables()),
        cgroup_root=str(cgroup.root()),
        entries=entries.entries(devices, _our_programs(machine)),
    )


def _our_programs(machine: Machine) -> frozenset[int]:
    """Ids of the programs that run by our links, and of those that are pinned to replace them."""
    found = set(_programs(machine.pins / "progs").values())
    for path in _entries(machine.pins / "links"):
        with links.Link.open_pinned(path) as link:
            found.add(link.program_id)
    return frozenset(found)


def read_sysctls(paths: Iterable[str]) -> dict[str, str]:
    """Values of those that exist."""
    found = {}
    for path in paths:
        try:
            found[path] = sysctl.get(path)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise
    return found


def iptables() -> Iterable[str]:
    """What the legacy tools show: rules that nft does not list. Tools that are missing or fail show
    nothing."""
    for tool in ("iptables-legacy-save", "ip6tables-legacy-save", "iptables-nft-save", "ip6tables-nft-save"):
        if shutil.which(tool) is None:
            continue
        try:
            done = subprocess.run([tool], capture_output=True, text=True, timeout=IPTABLES_TIMEOUT_S, check=False)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if done.returncode == 0 and done.stdout.strip():
            yield done.stdout


def observe(machine: Machine, want: Desired, facts_: Facts, known: Tables | None = None) -> Observed:
    """What of ours is there. With `known` contents of maps they are not read; a map that is gone has none."""
    last = state.load(machine.run / "node.json")
    programs = _programs(machine.pins / "progs")
    found, link_programs = _links(machine, facts_)
    if not machine.tcx:
        _clsact(want, facts_, programs, found, link_programs)
    paths = set(want.resources.sysctls) | set(last.sysctls_before if last else ())
    ours = machine.netlink
    resources = Resources(
        tables=_tables(machine, want, last) if known is None else _still_there(machine, known),
        links=found,
        addresses=ours.lo_addresses(),
        rules=ours.rules(),
        routes=ours.routes(),
        sysctls=read_sysctls(sorted(paths)),
        notrack=notrack.read(facts_.ruleset),
        files={name: text for name in want.resources.files if (text := _text(machine.run / name)) is not None},
        termini=frozenset(_termini(machine.node, facts_)),
    )
    return Observed(
        resources=resources,
        programs=programs,
        link_programs=link_programs,
        ready=_ready(machine),
        state=last,
        pins_without_state=last is None and bool(programs or found),
        bpffs=bpffs_mounted(),
    )


def _termini(node: str, facts_: Facts) -> Iterable[Terminus]:
    """Those whose namespace is there."""
    there = set(nodes.terminus_namespaces(node))
    for device in facts_.devices.values():
        found = of_device(device)
        if found is not None and found.node == node and found.namespace in there:
            yield found


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except (FileNotFoundError, UnicodeDecodeError):
        return None


def _entries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _programs(folder: Path) -> dict[str, int]:
    found = {}
    for path in _entries(folder):
        if not path.name.endswith("_new"):
            with Program.open_pinned(path) as program:
                found[path.name] = program.id
    return found


def _links(machine: Machine, facts_: Facts) -> tuple[dict[str, Attachment], dict[str, int]]:
    names = {device.ifindex: name for name, device in facts_.devices.items()}
    found: dict[str, Attachment] = {}
    programs: dict[str, int] = {}
    for path in _entries(machine.pins / "links"):
        role = path.name.rpartition("-")[0]
        with links.Link.open_pinned(path) as link:
            info = link.info
        programs[path.name] = info.program_id
        if role in ROLES:
            program, hook = ROLES[role]
            found[path.name] = Attachment(path.name, program, hook, names.get(info.ifindex, ""), info.ifindex)
        elif path.name in CGROUP_HOOKS:
            # A link that was detached from its cgroup keeps its pin, as an empty shell.
            ifindex = 0 if info.cgroup_id else GONE
            found[path.name] = Attachment(path.name, path.name, Hook.CGROUP, "", ifindex)
        else:
            found[path.name] = Attachment(path.name, "unknown", Hook.CGROUP, "", GONE)
    return found, programs


def _clsact(
    want: Desired,
    facts_: Facts,
    programs: Mapping[str, int],
    found: dict[str, Attachment],
    link_programs: dict[str, int],
) -> None:
    """Before TCX there are filters instead of links; one of ours is told by its program, else by its
    place."""
    by_id = {number: program for program, number in programs.items()}
    wanted = {(link.ifindex, link.hook): link for link in want.resources.links.values()}
    for device in facts_.devices.values():
        for hook, fallback in ((Hook.INGRESS, "uplink_in"), (Hook.EGRESS, "guard_other")):
            number = clsact.attached(device.ifindex, egress=hook is Hook.EGRESS)
            if number is None:
                continue
            place = wanted.get((device.ifindex, hook))
            role = next((role for role, at in ROLES.items() if at == (by_id.get(number), hook)), None)
            if role is None:
                role = place.name.rpartition("-")[0] if place else fallback
            name = f"{role}-{device.ifindex}"
            found[name] = Attachment(name, ROLES[role][0], hook, device.name, device.ifindex)
            link_programs[name] = number


def _ready(machine: Machine) -> bool:
    if not (machine.pins / "maps" / "control").exists():
        return False
    raw = machine.map("control").lookup(CONTROL_KEY)
    return raw is not None and abi.Control.unpack(raw).ready != 0


def _tables(machine: Machine, want: Desired, last: state.NodeState | None) -> Tables:
    found: dict[str, Mapping[bytes, bytes]] = {}
    for name in want.resources.tables:
        if (machine.pins / "maps" / name).exists():
            used = max(want.state.array_used.get(name, 0), last.array_used.get(name, 0) if last else 0)
            try:
                found[name] = read_table(machine.map(name), used)
                if name == "nodes":
                    as_planned = {key: _as_planned(value) for key, value in found[name].items()}
                    found[name] = Elements.of(abi.Node.SIZE, as_planned)
            except OSError as error:
                raise KernelError(f"map {name}: {error.strerror}", errno=error.errno or 0) from error
    return found


def _still_there(machine: Machine, known: Tables) -> Tables:
    """Without those whose pin is gone: the next map of that name is an empty one."""
    return {name: table for name, table in known.items() if (machine.pins / "maps" / name).exists()}


def _as_planned(value: bytes) -> bytes:
    """A node as the plan has it: whether it answers is the prober's to say, in the same word."""
    node = abi.Node.unpack(value)
    return replace(node, flags=int(node.flags & abi.NodeFlag.SET)).pack()


def read_table(map_: Map, used: int) -> Mapping[bytes, bytes]:
    """All entries of a hash; an array's first `used` elements."""
    return map_.elements(used) if map_.type == MapType.ARRAY else dict(map_.items())
