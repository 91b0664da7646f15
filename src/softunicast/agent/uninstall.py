# SPDX-License-Identifier: Apache-2.0
"""Take everything away, in the order that leaks nothing, and whatever half of it is still there.

    withdraw the prefixes; close the door; on-ramps and uplinks let go; hooks go; slice addresses leave lo; only then
    the guards go; nft table, rules, routes; sysctls back to what they were; cgroups; pins (now the maps and every claim
    are gone); files last, because node.json is what tells a second try what is left.

It works from any namespace: node.json's cookie says which one the node lived in, and named namespaces are
searched for it. Is that namespace gone, what was inside went with it, and pins, cgroups and files are removed
here.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from softunicast.agent import children, notrack, onramp_file
from softunicast.agent.announcing import include_path, tell_bird
from softunicast.agent.machine import Machine
from softunicast.agent.observed import read_sysctls
from softunicast.agent.reconcile import namespace_of
from softunicast.agent.resources import NFT_TABLE, Hook
from softunicast.agent.state import NodeState, load
from softunicast.agent.terminus import of_device
from softunicast.announce.bird_conf import Announcement, Stage, render
from softunicast.errors import KernelError, SoftunicastError
from softunicast.kernel import cgroup, clsact, netns, nft, nodes
from softunicast.kernel.routing import Rule
from softunicast.model.plan import load_plan


@dataclass(frozen=True, slots=True)
class Step:
    """One thing to take away; `line` is what --dry-run prints."""

    line: str
    act: Callable[[], object]


def uninstall(node: str, *, dry_run: bool, say: Callable[[str], None]) -> int:
    """Remove node `node` from this machine; returns how many things were there.

    Goes on after a step that failed and raises KernelError at the end with the first reason; then node.json
    is kept, and running it again tries what is left.
    """
    path = nodes.node_file(node)
    damaged = None
    try:
        state = load(path)
    except KernelError as error:
        state, damaged = None, error
    place = "" if state is None else namespace_of(state.netns_cookie)
    failures: list[str] = []
    count = 0

    def work(step: Step) -> None:
        nonlocal count
        count += 1
        say(step.line)
        if not dry_run:
            try:
                step.act()
            except (SoftunicastError, OSError) as error:
                failures.append(f"{step.line}: {error}")

    with netns.enter(place or None), Machine(node) as machine:
        for step in _announced(node):
            work(step)
        for name in children.NAMES:
            if children.running(machine.run, name) is not None:
                work(Step(f"end the {name}", partial(children.end, machine.run, name)))
        for step in _outside(machine, before=True):
            work(step)
        if place is None:
            say(f"the network namespace of node {node} is gone, and what was in it")
        elif state is not None or _pinned(machine):
            for step in _inside(machine, state):
                work(step)
        for step in _outside(machine, before=False):
            work(step)
    if failures:
        raise KernelError(f"{failures[0]}; {len(failures)} of {count} steps failed: mend this and run it again")
    for step in _files(node):
        work(step)
    if not dry_run:
        # Last, and with the lock in it, which is ours.
        remove_tree(nodes.run_dir(node))
    if damaged is not None and not dry_run:
        say(f"{damaged.message}: sysctls could not be put back")
    return count


def _announced(node: str) -> Iterator[Step]:
    """What BIRD says for this node, before anything else goes. Without a readable plan nobody knows which BIRD."""
    try:
        plan = load_plan(nodes.plan_file(node).read_text(encoding="utf-8"), str(nodes.plan_file(node)))
        bird = plan.node(node).bird
    except (OSError, SoftunicastError):
        return
    if bird is not None and include_path(node, bird).exists():
        text = render(Announcement(node, (), Stage.WITHDRAWN, why="uninstalled"))
        yield Step(
            f"withdraw by BIRD at {bird.control}",
            partial(tell_bird, include_path(node, bird), text, bird.control, withdrawn=True),
        )


def _pinned(machine: Machine) -> bool:
    return machine.pins.exists()


def _links(machine: Machine) -> list[str]:
    folder = machine.pins / "links"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _outside(machine: Machine, *, before: bool) -> Iterator[Step]:
    """What can be reached from any namespace. Before: all hooks but the guards; after: guards, cgroups,
    pins."""
    names = _links(machine)
    guards = [name for name in names if name.startswith("guard")]
    if before:
        if (machine.pins / "maps" / "control").exists():
            yield Step("close: fish may not claim", lambda: machine.set_ready(False))
        for name in sorted(set(names) - set(guards), key=lambda name: (not name.startswith("onramp"), name)):
            yield Step(f"detach {name}", partial(machine.detach, name))
        return
    for name in guards:
        yield Step(f"detach {name}", partial(machine.detach, name))
    folder = nodes.cgroup_dir(machine.node)
    if folder.exists:
        yield Step(f"remove cgroup {folder.path}", lambda: remove_cgroups(folder))
    for name in nodes.terminus_namespaces(machine.node):
        yield Step(f"remove namespace {name}", partial(netns.delete, name))
    if machine.pins.exists():
        yield Step(f"remove {machine.pins}", lambda: remove_tree(machine.pins))


def _inside(machine: Machine, state: NodeState | None) -> Iterator[Step]:
    """What lives in the node's namespace. Without node.json, our rules tell our addresses."""
    net = machine.netlink
    yield from _filters(machine, Hook.INGRESS)
    rules = net.rules()
    wanted = set(state.addresses_added) if state else {_with_length(rule) for rule in rules}
    for address in sorted(wanted & net.lo_addresses()):
        yield Step(f"remove address {address} from lo", partial(net.delete_address, address))
    for rule in sorted(rules):
        yield Step(f"delete {rule}", partial(net.delete_rule, rule))
    for route in sorted(net.routes()):
        yield Step(f"delete {route}", partial(net.delete_route, route))
    if nft.list_table("inet", NFT_TABLE) is not None:
        yield Step(f"delete nft table inet {NFT_TABLE}", notrack.delete)
    before = dict(state.sysctls_before) if state else {}
    now = read_sysctls(before)
    for path, value in sorted(before.items()):
        if now.get(path, value) != value:
            yield Step(
                f"sysctl {path.replace('/', '.')} = {value}",
                partial(machine.set_sysctl, path, value),
            )
    yield from _filters(machine, Hook.EGRESS)
    yield from _made(machine)
    for device in net.devices().values():
        end = of_device(device)
        if end is not None and end.node == machine.node:
            yield Step(f"remove {end}", partial(machine.remove_terminus, end))


def _made(machine: Machine) -> Iterator[Step]:
    """Devices that the agent made for on-ramps. Those of programs go with the programs' descriptors."""
    try:
        added = onramp_file.load(machine.run)
    except KernelError:
        return
    devices = machine.netlink.devices()
    for one in added:
        if one.made and one.device in devices:
            remove = partial(machine.netlink.delete_device, devices[one.device].ifindex)
            yield Step(f"remove device {one.device}", remove)


def _filters(machine: Machine, hook: Hook) -> Iterator[Step]:
    """Our clsact filters, where the kernel has no TCX."""
    for device in machine.netlink.devices().values():
        if clsact.attached(device.ifindex, egress=hook is Hook.EGRESS) is not None:
            what = f"detach {hook.value} filter of {device.name}"
            yield Step(what, partial(_unfilter, machine, device.ifindex, hook))


def _unfilter(machine: Machine, ifindex: int, hook: Hook) -> None:
    clsact.detach(ifindex, egress=hook is Hook.EGRESS)
    machine.netlink.remove_idle_clsact(ifindex)


def _with_length(rule: Rule) -> str:
    return f"{rule.source}/{32 if rule.version == 4 else 128}"


def _files(node: str) -> Iterator[Step]:
    folder = nodes.run_dir(node)
    if folder.exists() and any(path.name != "agent.lock" for path in folder.iterdir()):
        yield Step(f"remove {folder}", lambda: None)


def remove_tree(folder: Path) -> None:
    """Remove a folder and, when it was the last of its parent's, the parent."""
    if folder.exists():
        shutil.rmtree(folder)
    with contextlib.suppress(OSError):
        folder.parent.rmdir()


def remove_cgroups(folder: cgroup.CgroupDir) -> None:
    """Remove a cgroup and those below; processes that are still in them move to the root. KernelError when
    busy."""
    root = cgroup.CgroupDir(cgroup.root())
    for path in (folder.path, *folder.path.rglob("*")):
        for pid in cgroup.CgroupDir(path).processes() if path.is_dir() else ():
            with contextlib.suppress(KernelError):
                # It ended meanwhile; if not, removing the folder says so.
                root.add(pid)
    folder.remove()
    with contextlib.suppress(OSError):
        folder.path.parent.rmdir()
