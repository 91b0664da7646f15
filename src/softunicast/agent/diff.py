# SPDX-License-Identifier: Apache-2.0
"""Desired state against observed state: a list of operations, pure.

The order is the safety. Read it as one sentence:

    remember what was there before (node.json), mount bpffs if nobody has, load programs beside the pinned
    maps, close the door if hooks were missing, make namespaces where TCP ends (the next look finds their devices),
    fill the maps, guard every egress device, hide the addresses
    from conntrack and ARP, lay routes and rules, put the addresses on lo, hook the sockets, adopt the living
    ones, take in packets from uplinks (at tc, then at XDP) and on-ramps, take away what is no longer wanted, copy
    plan and bindings, open the door, write node.json.

So nothing can leave a slice's address before the guard looks at it, no fish claims before every living socket
has its claim, and a run that breaks off anywhere leaves a closed door that the next run opens. When nothing
differs the list is empty: no write at all, the "restart changes nothing" of the design.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

from softunicast.agent import operations as op
from softunicast.agent.resources import Build, Hook, Resources
from softunicast.agent.state import NodeState
from softunicast.errors import UsageError
from softunicast.kernel.elements import Elements

MAP_ORDER = (
    "nodes",
    "peers",
    "site_nodes",
    "sites",
    "slices",
    "pool_slices",
    "pools",
    "owners",
    "addresses",
    "prefixes",
    "uplinks",
    "onramps",
    "onramp_devices",
)
"""What is pointed at is written before what points to it, and taken away after it, in the order turned round: an index
in `addresses` never leads to an owner that is not yet or no longer there."""


@dataclass(frozen=True, slots=True)
class Desired:
    """What should be. `state` is node.json when all is done; what it remembers of before is merged in by
    `diff`."""

    build: Build
    resources: Resources
    state: NodeState


@dataclass(frozen=True, slots=True)
class Observed:
    """What is. `programs` and `link_programs`: kernel ids by pin name; `ready`: control.ready.

    `pins_without_state`: pins of this node exist and node.json does not. `bpffs`: it is mounted.
    """

    resources: Resources = field(default_factory=Resources)
    programs: Mapping[str, int] = field(default_factory=dict)
    link_programs: Mapping[str, int] = field(default_factory=dict)
    ready: bool = False
    state: NodeState | None = None
    pins_without_state: bool = False
    bpffs: bool = True


def check(desired: Desired, observed: Observed) -> None:
    """Refuse what a restart must not do; UsageError, nothing was changed."""
    node = desired.state.node
    way_out = f"drain the node first, then `softunicast agent uninstall --node {node}` and start again"
    if observed.pins_without_state:
        raise UsageError(f"node {node}: its pinned maps are there but node.json is gone; {way_out}")
    state = observed.state
    if state is None:
        return
    if state.netns_cookie != desired.state.netns_cookie:
        raise UsageError(
            f"node {node}: runs in another network namespace (cookie {state.netns_cookie}, here "
            f"{desired.state.netns_cookie}); enter that one, or `softunicast agent uninstall --node {node}`"
        )
    if desired.state.bindings_epoch < state.bindings_epoch:
        raise UsageError(
            f"node {node}: bindings of epoch {desired.state.bindings_epoch} are older than epoch "
            f"{state.bindings_epoch}, which runs; bring the newest file (`softunicast plan apply` writes it)"
        )
    if not state.build_hash:
        return
    if desired.build.abi_version != state.abi_version:
        raise UsageError(
            f"node {node}: its maps have layout {state.abi_version}, this version makes layout "
            f"{desired.build.abi_version}; {way_out}"
        )
    for name, size in desired.build.map_sizes.items():
        if (running := state.map_sizes.get(name, size)) != size:
            raise UsageError(
                f"node {node}: map {name} has room for {running} entries, the plan asks for {size}, "
                f"and a map cannot grow while flows live in it; {way_out}"
            )


def diff(desired: Desired, observed: Observed) -> list[op.Operation]:
    """The operations that lead from observed to desired, in a safe order; empty when nothing differs.

    Raises UsageError (see `check`) when no operation may lead there.
    """
    check(desired, observed)
    want, have = desired.resources, observed.resources
    load = (
        observed.state is None
        or observed.state.build_hash != desired.build.hash
        or bool({link.program for link in want.links.values()} - set(observed.programs))
    )
    hooks_missing = any(link.hook is Hook.CGROUP and have.links.get(name) != link for name, link in want.links.items())
    fills = list(_fills(want, have))
    slices_changed = any(fill.name == "slices" for fill in fills)
    sysctls = list(_sysctls(want, observed))

    work: list[op.Operation] = []
    if not observed.bpffs:
        work.append(op.MountBpffs())
    if load:
        replaces = observed.state.build_hash if observed.state else ""
        work.append(op.LoadPrograms(desired.build, replaces))
    if hooks_missing and observed.ready:
        work.append(op.SetReady(False))
    work += [op.MakeTerminus(one) for one in sorted(want.termini - have.termini)]
    work += fills
    work += _links(want, observed, Hook.EGRESS, load)
    if want.notrack is not None and want.notrack != have.notrack:
        work.append(op.SetNotrack(want.notrack))
    work += sysctls
    wanted_routes = {(route.version, route.metric) for route in want.routes}
    work += [op.SetRoute(route) for route in sorted(want.routes - have.routes, key=lambda r: (r.version, -r.metric))]
    work += [op.AddRule(rule) for rule in sorted(want.rules - have.rules)]
    work += [op.AddAddress(address) for address in sorted(want.addresses - have.addresses)]
    work += _links(want, observed, Hook.CGROUP, load)
    if not observed.ready or hooks_missing or slices_changed:
        work.append(op.Adopt())
    unwanted = [have.links[name] for name in sorted(set(have.links) - set(want.links))]
    # A device takes one XDP program; without it tc behind steers the same.
    work += [op.Detach(link) for link in unwanted if link.hook.xdp]
    work += _links(want, observed, Hook.INGRESS, load)
    work += [*_links(want, observed, Hook.XDP, load), *_links(want, observed, Hook.XDP_GENERIC, load)]
    work += [op.Detach(link) for link in unwanted if not link.hook.xdp]
    added = observed.state.addresses_added if observed.state else ()
    gone = sorted((set(added) & have.addresses) - want.addresses)
    work += [op.DeleteAddress(address) for address in gone]
    work += [op.DeleteRule(rule) for rule in sorted(have.rules - want.rules)]
    work += [
        op.DeleteRoute(route)
        for route in sorted(have.routes - want.routes)
        if (route.version, route.metric) not in wanted_routes
    ]
    wanted_termini = {one.id for one in want.termini}
    work += [op.RemoveTerminus(one) for one in sorted(have.termini) if one.id not in wanted_termini]
    work += [op.WriteFile(name, text) for name, text in sorted(want.files.items()) if have.files.get(name) != text]
    if not observed.ready or hooks_missing:
        work.append(op.SetReady(True))
    return _remembering(desired, observed, work)


def _fills(want: Resources, have: Resources) -> Iterator[op.FillMap]:
    """All that is written, then all that is taken away."""
    taken: list[op.FillMap] = []
    for name in [*MAP_ORDER, *sorted(set(want.tables) - set(MAP_ORDER))]:
        wanted, found = want.tables.get(name), have.tables.get(name, {})
        if wanted is None or wanted is found:
            continue
        updates, deletions = _changes(wanted, found)
        if updates:
            yield op.FillMap(name, updates)
        if deletions:
            taken.append(op.FillMap(name, {}, deletions))
    yield from reversed(taken)


def _changes(
    wanted: Mapping[bytes, bytes], found: Mapping[bytes, bytes]
) -> tuple[dict[bytes, bytes], tuple[bytes, ...]]:
    """What is to be written and what to be taken away, sorted."""
    if isinstance(wanted, Elements):
        return wanted.changes(found if isinstance(found, Elements) else Elements.of(wanted.size, found))
    updates = dict(sorted((key, value) for key, value in wanted.items() if found.get(key) != value))
    return updates, tuple(sorted(found.keys() - wanted.keys()))


def _links(want: Resources, observed: Observed, hook: Hook, load: bool) -> Iterator[op.Operation]:
    have = observed.resources.links
    for name, link in sorted(want.links.items()):
        if link.hook is not hook:
            continue
        found = have.get(name)
        if found is None:
            yield op.Attach(link)
        elif found.ifindex != link.ifindex:
            # The device went away and its ifindex came back: the old link is dead, a new one is needed.
            yield op.Detach(found)
            yield op.Attach(link)
        elif load or observed.link_programs.get(name) != observed.programs.get(link.program):
            yield op.UpdateLink(link)


def _sysctls(want: Resources, observed: Observed) -> Iterator[op.SetSysctl]:
    current = observed.resources.sysctls
    for path, value in sorted(want.sysctls.items()):
        if path in current and current[path] != value:
            yield op.SetSysctl(path, value, current[path])
    before: Mapping[str, str] = observed.state.sysctls_before if observed.state else {}
    for path, value in sorted(before.items()):
        if path not in want.sysctls and current.get(path, value) != value:
            yield op.SetSysctl(path, value, current[path])


def _remembering(desired: Desired, observed: Observed, work: list[op.Operation]) -> list[op.Operation]:
    """Wrap the work in the two writes of node.json: what was before, and what is now."""
    last = observed.state
    want, have = desired.resources, observed.resources
    before = dict(last.sysctls_before) if last else {}
    for path, value in want.sysctls.items():
        if path in have.sysctls and have.sysctls[path] != value:
            before.setdefault(path, have.sysctls[path])
    earlier = set(last.addresses_added) if last else set()
    added = (earlier & want.addresses) | (want.addresses - have.addresses)
    started_s = last.started_s if last and last.started_s else desired.state.started_s
    final = replace(
        desired.state,
        ready=True,
        build_hash=desired.build.hash,
        settings=desired.build.settings.hex(),
        abi_version=desired.build.abi_version,
        map_sizes=dict(desired.build.map_sizes),
        sysctls_before={path: value for path, value in before.items() if path in want.sysctls},
        addresses_added=tuple(sorted(added)),
        started_s=started_s,
    )
    first = replace(
        last or replace(desired.state, build_hash=""),
        ready=False,
        bindings_epoch=desired.state.bindings_epoch,
        sysctls_before=before,
        addresses_added=tuple(sorted(added | earlier)),
        array_used=_most(desired.state.array_used, last.array_used if last else {}),
        started_s=started_s,
    )
    if last == final:
        # A device came or went: nothing to remember, so the file is left alone.
        return work
    result: list[op.Operation] = [op.SaveState(first)] if first != last and work else []
    return [*result, *work, op.SaveState(final)]


def _most(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return {name: max(one.get(name, 0), other.get(name, 0)) for name in {*one, *other}}
