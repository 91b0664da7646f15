# SPDX-License-Identifier: Apache-2.0
"""What changes between two sets of bindings, by slice and by site. Pure; `plan apply` and `plan diff` print it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from softunicast.model.binding import Binding, Bindings
from softunicast.model.slice import Slice


@dataclass(frozen=True, slots=True)
class Moves:
    """`moved`: (before, after) of a slice whose node changed; `new`, `gone`: slices of one side only;
    `renamed`: same slice and node, another pool; `kept`: how many did not change at all.
    """

    moved: tuple[tuple[Binding, Binding], ...]
    new: tuple[Binding, ...]
    gone: tuple[Binding, ...]
    renamed: tuple[tuple[Binding, Binding], ...]
    kept: int

    @property
    def any(self) -> bool:
        """Whether there is a change."""
        return bool(self.moved or self.new or self.gone or self.renamed)


def moves(before: Bindings | None, after: Bindings) -> Moves:
    """Compare by slice; order is that of the bindings."""
    old: dict[Slice, Binding] = {binding.slice: binding for binding in before.bindings} if before else {}
    found = {binding.slice for binding in after.bindings}
    pairs = [(old[binding.slice], binding) for binding in after.bindings if binding.slice in old]
    return Moves(
        moved=tuple((was, now) for was, now in pairs if was.node != now.node),
        new=tuple(binding for binding in after.bindings if binding.slice not in old),
        gone=tuple(binding for slice_, binding in old.items() if slice_ not in found),
        renamed=tuple((was, now) for was, now in pairs if was.node == now.node and was.pool != now.pool),
        kept=sum(was.node == now.node and was.pool == now.pool for was, now in pairs),
    )


@dataclass(slots=True)
class SiteMoves:
    """Slices of one site. `within`: to another of its nodes; `came`, `left`: from or to another site; `orphans`: from
    nodes that the plan no longer has, whose site nobody knows any more.
    """

    within: int = 0
    came: int = 0
    left: int = 0
    orphans: int = 0
    new: int = 0
    gone: int = 0

    @property
    def any(self) -> bool:
        """Whether there is a change."""
        return bool(self.within or self.came or self.left or self.orphans or self.new or self.gone)


def by_site(found: Moves, sites: Mapping[str, str]) -> dict[str, SiteMoves]:
    """Counts for each site, in the order of names; `sites`: node -> site of the plan that is. A slice that is gone with
    its node is counted nowhere.
    """
    result = {name: SiteMoves() for name in sorted(set(sites.values()))}
    for was, now in found.moved:
        before, after = sites.get(was.node), sites[now.node]
        if before is None:
            result[after].orphans += 1
        elif before == after:
            result[after].within += 1
        else:
            result[before].left += 1
            result[after].came += 1
    for binding in found.new:
        result[sites[binding.node]].new += 1
    for binding in found.gone:
        if (site := sites.get(binding.node)) is not None:
            result[site].gone += 1
    return result


def rehomed(found: Moves, sites: Mapping[str, str]) -> dict[tuple[str, str, str], int]:
    """(pool, site before, site after) -> how many slices of the pool change their site, in the order of names."""
    counts: dict[tuple[str, str, str], int] = {}
    for was, now in found.moved:
        before, after = sites.get(was.node), sites[now.node]
        if before is not None and before != after:
            key = (now.pool, before, after)
            counts[key] = counts.get(key, 0) + 1
    return dict(sorted(counts.items()))
