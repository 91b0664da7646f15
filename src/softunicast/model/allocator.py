# SPDX-License-Identifier: Apache-2.0
"""Who holds which slice: deterministic, even, and moving as little as possible from the last bindings.

For each pool by itself, with N allocatable slices and nodes of weights w:

1. *Keep*: a slice of the last bindings that the pool still has, and whose node is still one of the pool's,
   may stay.
2. *Quota*: each node gets floor or ceil of N * w / sum(w) (the quota rule; with equal weights quotas differ
   by at most 1). The ceilings go first to nodes that hold more than their floor, then by largest remainder,
   then by name. No choice of quotas within the rule moves less.
3. *Give up*: a node that holds more than its quota gives the excess, evenly spaced over what it holds.
4. *Deal*: free slices, in order of address and port, go to nodes below quota, interleaved in proportion to
   what each lacks, so that every node gets something of every address.

So a pool in balance is left as it is; with equal weights a node that joins is given its quota and nothing
else moves, and when a node leaves only what it held moves. Static slices are the plan's own and never
allocated.

Epochs: a binding keeps its epoch while slice and node stay the same, else it gets the new file's epoch, which
is the last one plus 1 if anything changed at all.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from softunicast.model.address import IPAddress, sort_key
from softunicast.model.binding import Binding, Bindings
from softunicast.model.fleet import Plan, Pool
from softunicast.model.slice import Slice

_Before = dict[IPAddress, dict[tuple[int, int], Binding]]
"""The last bindings by address, then by ports."""


def allocate(plan: Plan, last: Bindings | None = None) -> Bindings:
    """New bindings for a plan. Same arguments, same answer; `last` itself when nothing changes."""
    before: _Before = {}
    for binding in last.bindings if last else ():
        before.setdefault(binding.slice.address, {})[binding.slice.first, binding.slice.last] = binding
    epoch = (last.epoch if last else 0) + 1
    made: dict[IPAddress, list[Binding]] = {}
    for name, pool in sorted(plan.pools.items()):
        owners = [(static.slice, static.node) for static in pool.slices]
        owners += _allocate_pool(pool, {node: plan.node(node).weight for node in pool.nodes}, before)
        for slice_, node in owners:
            kept = before.get(slice_.address, {}).get((slice_.first, slice_.last))
            if kept is None or kept.node != node or kept.pool != name:
                since = kept.epoch if kept is not None and kept.node == node else epoch
                kept = Binding(slice_, node, since, name)
            made.setdefault(slice_.address, []).append(kept)
    bindings = tuple(itertools.chain.from_iterable(made[address] for address in sorted(made, key=sort_key)))
    if last is not None and last.bindings == bindings:
        return last
    return Bindings(epoch, bindings)


def _allocate_pool(pool: Pool, weights: Mapping[str, int], before: _Before) -> list[tuple[Slice, str]]:
    """The owner of each of the pool's allocatable slices, in order of address and port."""
    parts = pool.parts()
    owners: list[str | None] = [None] * len(parts)
    held: dict[str, list[int]] = {node: [] for node in sorted(weights)}
    for index, part in enumerate(parts):
        kept = before.get(part.address, {}).get((part.first, part.last))
        if kept is not None and kept.node in held:
            owners[index] = kept.node
            held[kept.node].append(index)
    wanted = quotas(len(parts), weights, {node: len(mine) for node, mine in held.items()})
    lacking: dict[str, int] = {}
    for node, mine in held.items():
        for index in _spread(mine, len(mine) - wanted[node]):
            owners[index] = None
        lacking[node] = max(0, wanted[node] - len(mine))
    dealt = iter(_deal(lacking))
    return [(part, next(dealt) if node is None else node) for part, node in zip(parts, owners, strict=True)]


def quotas(total: int, weights: Mapping[str, int], held: Mapping[str, int]) -> dict[str, int]:
    """How many of `total` slices each node gets: floor or ceil of its share; they sum to `total`."""
    whole = sum(weights.values())
    floors = {node: total * weight // whole for node, weight in weights.items()}
    rest = {node: total * weight % whole for node, weight in weights.items()}
    eligible = sorted(
        (node for node in weights if rest[node]),
        key=lambda node: (held.get(node, 0) <= floors[node], -rest[node], node),
    )
    for node in eligible[: total - sum(floors.values())]:
        floors[node] += 1
    return floors


def _spread(items: Sequence[int], count: int) -> list[int]:
    """`count` of `items`, evenly spaced; none when count is not positive."""
    return [items[(2 * index + 1) * len(items) // (2 * count)] for index in range(count)]


def _deal(lacking: Mapping[str, int]) -> list[str]:
    """Each node as often as it lacks a slice, interleaved in proportion; ties by name."""
    turns = [((2 * turn + 1) / (2 * count), node) for node, count in lacking.items() for turn in range(count)]
    return [node for _, node in sorted(turns)]
