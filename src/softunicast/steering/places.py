# SPDX-License-Identifier: Apache-2.0
"""Where things are in the maps, and that they stay there: a table changes without an instant in which it misleads.

    nodes    name -> index in `nodes`, from 1          sites    name -> index in `sites`, from 1
    owners   address of this site -> its block of `owners`
    lists    site -> its block of `site_nodes`, and whose indices are in it

Programs read these maps while they are written. So what was somewhere at the last reconciliation stays there as long as
it means the same, and what is new takes a place that nothing old has, not even what has just left. The new block is
written first, then the one 64-bit word that points to it (in `addresses`, in `sites`), and what is no longer pointed
at is cleared last (agent.diff). A packet in between finds the old way or the new one, whole.

Pure: the same plan and the same past give the same places.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from softunicast.model.address import sort_key

if TYPE_CHECKING:
    from softunicast.model.fleet import Plan


class Block(NamedTuple):
    """`size` elements of an array from `first` on, a power of two: an address has one for every 65536 / size ports."""

    first: int
    size: int

    def part(self, port: int) -> int:
        """The element of a port."""
        return self.first + (port * self.size >> 16)


class SiteList(NamedTuple):
    """A site's nodes, in the order of their names, from `first` on in `site_nodes`."""

    first: int
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Places:
    """One node's. Addresses are texts, as ipaddress writes them."""

    nodes: Mapping[str, int] = field(default_factory=dict)
    sites: Mapping[str, int] = field(default_factory=dict)
    owners: Mapping[str, Block] = field(default_factory=dict)
    lists: Mapping[str, SiteList] = field(default_factory=dict)


NOWHERE = Places()


def places(plan: Plan, node_name: str, last: Places = NOWHERE) -> Places:
    """Places of everything in the plan, as they were in `last` where they can be. UsageError: no such node."""
    home = plan.node(node_name).site
    counts = {
        str(address): 65536 >> shift
        for address, shift in sorted(plan.address_shifts(home).items(), key=lambda item: sort_key(item[0]))
    }
    members = {name: tuple(sorted(site.nodes)) for name, site in sorted(plan.sites.items())}
    kept = {text: block for text, block in last.owners.items() if counts.get(text) == block.size}
    lists = {name: known for name, known in last.lists.items() if members.get(name) == known.nodes}
    fresh_owners = _blocks(
        {text: count for text, count in counts.items() if text not in kept}, list(last.owners.values())
    )
    fresh_lists = _blocks(
        {name: len(nodes) for name, nodes in members.items() if name not in lists},
        [Block(known.first, len(known.nodes)) for known in last.lists.values()],
    )
    return Places(
        nodes=_indices(plan.nodes, last.nodes),
        sites=_indices(sorted(plan.sites), last.sites),
        owners={text: kept.get(text) or fresh_owners[text] for text in counts},
        lists={name: lists.get(name) or SiteList(fresh_lists[name].first, nodes) for name, nodes in members.items()},
    )


def _indices(names: Iterable[str], last: Mapping[str, int]) -> dict[str, int]:
    """From 1; a new name takes the lowest index that no name has or had."""
    taken = set(last.values())
    result = {}
    free = 1
    for name in names:
        if name in last:
            result[name] = last[name]
            continue
        while free in taken:
            free += 1
        taken.add(free)
        result[name] = free
    return result


def _blocks(counts: Mapping[str, int], taken: list[Block]) -> dict[str, Block]:
    """A block each, one after the other, in the first gaps that are wide enough."""
    result: dict[str, Block] = {}
    around = iter(sorted(taken))
    at = 0
    gap = next(around, None)
    for name, count in counts.items():
        while gap is not None and at + count > gap.first:
            at = max(at, gap.first + gap.size)
            gap = next(around, None)
        result[name] = Block(at, count)
        at += count
    return result
