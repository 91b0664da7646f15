# SPDX-License-Identifier: Apache-2.0
"""The contents of all maps that the agent fills, by parts: what did not change is not made again. Pure.

    part       what it is of                                    made anew
    fleet      plan, places                                     when the plan changes
    owners     bindings of the site, places, own indices        when the plan changes; else only elements that moved
    holding    this node's own bindings                         when one of them is another
    egress     holding, plan, devices, on-ramps                 with any of these
    uplinks    devices, routes                                  with these

A binding that moves between two other nodes so costs one element of `owners` and a comparison of two lists, however
many slices there are; whether the kernel's maps are as they are thought to be is another question (agent.reconcile).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from softunicast.agent.resources import Notrack, Tables
from softunicast.agent.slice_indices import keep_slice_indices
from softunicast.agent.state import SliceState
from softunicast.agent.terminus import Terminus, of_device
from softunicast.egress import tables as egress_tables
from softunicast.egress.numbers import Numbers
from softunicast.kernel import abi
from softunicast.kernel.elements import Elements
from softunicast.kernel.routing import Device, Rule
from softunicast.model.binding import Binding, Bindings, changed, held_by
from softunicast.model.plan import Node, Plan
from softunicast.model.slice import Slice
from softunicast.steering import tables as steering_tables
from softunicast.steering.places import Places

ARRAYS: Final[Mapping[str, int]] = {
    # map: bytes of an element
    "slices": abi.Slice.SIZE,
    "pools": abi.Pool.SIZE,
    "pool_slices": 4,
    "owners": abi.Owner.SIZE,
    "sites": abi.Site.SIZE,
    "site_nodes": 4,
    "nodes": abi.Node.SIZE,
    "onramps": abi.Onramp.SIZE,
    "uplinks": abi.Uplink.SIZE,
}


@dataclass(frozen=True, slots=True)
class Ground:
    """What tables are made of besides bindings. `ends`: where the TCP of on-ramps ends, by name."""

    plan: Plan
    node: Node
    devices: Mapping[str, Device]
    generations: Mapping[str, int]
    at: Places
    uplinks: Mapping[bytes, bytes]
    given: Numbers
    ends: Mapping[str, Terminus]


@dataclass(frozen=True, slots=True)
class Holding:
    """What a node holds, in the words of those who need it. `states` by index; `addresses` without prefix length."""

    bindings: tuple[Binding, ...]
    indices: Mapping[Slice, int]
    states: tuple[SliceState, ...]
    addresses: tuple[str, ...]
    on_lo: frozenset[str]
    rules: frozenset[Rule]
    notrack: Notrack

    @classmethod
    def of(cls, bindings: tuple[Binding, ...], known: Mapping[Slice, int]) -> Holding:
        """`known`: where slices of earlier are in the map `slices`."""
        indices = keep_slice_indices((one.slice for one in bindings), known)
        states = (SliceState(indices[one.slice], str(one.slice), one.pool, one.epoch) for one in bindings)
        addresses = tuple(sorted(map(str, {one.slice.address for one in bindings})))
        four = frozenset(address for address in addresses if "." in address)
        six = frozenset(addresses) - four
        return cls(
            bindings,
            indices,
            tuple(sorted(states, key=lambda one: one.index)),
            addresses,
            frozenset([f"{address}/32" for address in four] + [f"{address}/128" for address in six]),
            frozenset([Rule(4, address) for address in four] + [Rule(6, address) for address in six]),
            Notrack(four, six),
        )


@dataclass(frozen=True, slots=True)
class Made:
    """`tables`: what the maps should hold, arrays as Elements. The very same object as before when nothing changed."""

    holding: Holding
    tables: Tables


@dataclass(slots=True)
class Memory:
    """What was made last, and of what; `last`: the slices of node.json at that time."""

    ground: Ground | None = None
    bindings: Bindings | None = None
    last: tuple[SliceState, ...] = ()
    made: Made | None = None


def make(ground: Ground, bindings: Bindings, last: tuple[SliceState, ...], memory: Memory) -> Made:
    """All tables. `last`: the slices of node.json, whose indices go on."""
    made = None
    if memory.made is not None and memory.bindings is not None and memory.ground == ground:
        pairs = changed(memory.bindings, bindings)
        if pairs == () and last in (memory.last, memory.made.holding.states):
            made = memory.made
        elif pairs and last == memory.made.holding.states:
            made = _moved(memory.made, ground, pairs)
    if made is None:
        made = _anew(ground, bindings, {Slice.parse(one.slice): one.index for one in last})
    memory.ground, memory.bindings, memory.last, memory.made = ground, bindings, last, made
    return made


def _anew(ground: Ground, bindings: Bindings, known: Mapping[Slice, int]) -> Made:
    name = ground.node.name
    holding = Holding.of(held_by(bindings, name), known)
    tables = {
        **_arrays(steering_tables.fleet_tables(ground.plan, name, ground.at)),
        "owners": steering_tables.owners(bindings.bindings, name, ground.at, holding.indices),
        **_arrays(_egress(ground, holding)),
        **_arrays({"uplinks": ground.uplinks}),
    }
    return Made(holding, tables)


def _moved(before: Made, ground: Ground, pairs: Iterable[tuple[Binding, Binding]]) -> Made:
    """After some bindings became others."""
    name = ground.node.name
    holding, tables = before.holding, dict(before.tables)
    if any(name in (was.node, now.node) for was, now in pairs):
        gone = {was.slice for was, _ in pairs}
        kept = [one for one in holding.bindings if one.slice not in gone]
        kept += [now for _, now in pairs if now.node == name]
        holding = Holding.of(tuple(sorted(kept, key=lambda one: one.slice.sort_key)), holding.indices)
        tables |= _arrays(_egress(ground, holding))
    owners = before.tables["owners"]
    assert isinstance(owners, Elements)
    afterwards = [now for _, now in pairs]
    tables["owners"] = steering_tables.owners_moved(owners, afterwards, name, ground.at, holding.indices)
    return Made(holding, tables)


def _egress(ground: Ground, holding: Holding) -> egress_tables.Tables:
    devices = ground.devices
    return egress_tables.build_tables(
        ground.plan,
        Bindings(0, holding.bindings),
        ground.node.name,
        {name: device.ifindex for name, device in devices.items()},
        ground.generations,
        bare_ip=[name for name, device in devices.items() if not device.ethernet],
        mtus={name: device.mtu for name, device in devices.items()},
        termini={name: _ifindex_of(end, devices) for name, end in ground.ends.items()},
        given=ground.given,
        indices=holding.indices,
    )


def _ifindex_of(end: Terminus, devices: Mapping[str, Device]) -> int:
    """Of the veth towards a terminus; 0: it is not made yet, or was made for something else."""
    device = devices.get(end.device)
    found = of_device(device) if device is not None else None
    return device.ifindex if device is not None and found is not None and found.onramp == end.onramp else 0


def _arrays(tables: Tables) -> dict[str, Mapping[bytes, bytes]]:
    """The same with arrays as Elements."""
    return {name: Elements.of(ARRAYS[name], table) if name in ARRAYS else table for name, table in tables.items()}


def array_used(tables: Tables) -> dict[str, int]:
    """For every array: one more than its highest index that is not all zeros."""
    return {name: table.used for name, table in tables.items() if isinstance(table, Elements)}
