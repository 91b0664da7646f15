# SPDX-License-Identifier: Apache-2.0
"""The numbers by which maps, claims and counters of one node name pools, on-ramps, tenants and lists of prefixes.

On-ramps come and go while flows live. So a name keeps the number that it has, and what is new takes the lowest that
nothing has or had at the last reconciliation: programs that read the maps while they are written find the old meaning
or the new one. A tenant keeps its number, and with it what was counted, for as long as the node lives.

    pools     name -> index, from 0: `pools`, policies. Programs and sockets have policies that nobody rewrites: a pool
              keeps its number, and one that left the plan is not given to another while there is room
    onramps   name -> id, from 1: `onramps`, the upper half of a claim's owner
    tenants   name -> number, from 1: `tenants`, claims
    lists     prefixes, as text -> number in `prefixes`, from List.FIRST_FREE: sources and bypasses
    generation   the highest that an on-ramp was ever given: none is given twice, whatever goes and comes

Pure: the same node and the same past give the same numbers.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from softunicast.errors import UsageError
from softunicast.kernel import abi
from softunicast.model.address import IPNetwork, network_key
from softunicast.model.fleet import Node

MAX_ONRAMPS: Final = 1023
"""As bpf/include/maps.h, like MAX_TENANTS; number 0 is not given."""
MAX_TENANTS: Final = 1023
MAX_POOLS: Final = 1024
"""Numbers 0 to 1,023: SU_POOLS of bpf/include/maps.h."""


@dataclass(frozen=True, slots=True)
class Numbers:
    """One node's."""

    onramps: Mapping[str, int] = field(default_factory=dict)
    tenants: Mapping[str, int] = field(default_factory=dict)
    lists: Mapping[str, int] = field(default_factory=dict)
    generation: int = 0
    pools: Mapping[str, int] = field(default_factory=dict)


FRESH: Final = Numbers()


def list_text(networks: Collection[IPNetwork]) -> str:
    """The same for equal lists, however they are written."""
    return ",".join(str(network) for network in sorted(set(networks), key=network_key))


def numbers(node: Node, last: Numbers = FRESH, pools: Iterable[str] = ()) -> Numbers:
    """Numbers of everything at this node and of the plan's pools, as in `last` where it was there. UsageError: more
    than fit."""
    mine_pools = sorted(pools)
    kept_pools = dict.fromkeys([*last.pools, *mine_pools])
    if len(kept_pools) > MAX_POOLS:
        kept_pools = dict.fromkeys(mine_pools)
    lists = [list_text(one) for ramp in node.onramps.values() for one in (ramp.sources, ramp.bypass) if one]
    mine = sorted({ramp.tenant for ramp in node.onramps.values() if ramp.tenant})
    tenants = _given([*last.tenants, *mine], last.tenants, 1)
    for what, count, most in (
        ("pools", len(kept_pools), MAX_POOLS),
        ("on-ramps", len(node.onramps), MAX_ONRAMPS),
        ("tenants", len(tenants), MAX_TENANTS),
    ):
        if count > most:
            raise UsageError(
                f"node {node.name}: {count} {what}, at most {most} fit; use fewer"
                + (" names, or drain and uninstall the node, which forgets old ones" if what == "tenants" else "")
            )
    return Numbers(
        onramps=_given(sorted(node.onramps), last.onramps, 1, MAX_ONRAMPS),
        tenants=tenants,
        lists=_given(lists, last.lists, int(abi.List.FIRST_FREE)),
        generation=last.generation,
        pools=_given(list(kept_pools), last.pools, 0, MAX_POOLS - 1),
    )


def _given(names: Sequence[str], last: Mapping[str, int], first: int, most: int | None = None) -> dict[str, int]:
    """What has just left keeps its number from others once more, unless all up to `most` are taken."""
    kept = {name: last[name] for name in names if name in last}
    taken = set(last.values())
    free = first
    result: dict[str, int] = {}
    for name in dict.fromkeys(names):
        if name in kept:
            result[name] = kept[name]
            continue
        while free in taken:
            free += 1
        if most is not None and free > most:
            taken, free = {*kept.values(), *result.values()}, first
            while free in taken:
                free += 1
        taken.add(free)
        result[name] = free
    return result
