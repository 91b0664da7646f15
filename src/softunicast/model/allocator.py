# SPDX-License-Identifier: Apache-2.0
"""Who holds which slice: deterministic, even, and moving as little as possible from the last bindings.

For each pool by itself, with N allocatable slices and nodes of weights w:

1. *Keep*: a slice of the last bindings that the pool still has, whose node is still one of the pool's, stays a
   candidate to stay.
2. *Quota*: each node gets floor or ceil of N * w / sum(w) (the quota rule; with equal weights quotas differ by at
   most 1). The ceilings go first to nodes that hold more than their floor already, then by largest remainder,
   then by name. No choice of quotas within the rule moves less.
3. *Give up*: a node that holds more than its quota gives the excess, evenly spaced over what it holds.
4. *Deal*: free slices, in order of address and port, go to nodes below quota, interleaved in proportion to what
   each lacks, so that every node gets something of every address.

So a pool in balance is left as it is; with equal weights a node that joins is given its quota and nothing else moves,
and when a node leaves only what it held moves. Static slices are the plan's own and never allocated.

Epochs: a binding keeps its epoch while slice and node stay the same, else it gets the new file's epoch, which is the
last one plus 1 if anything changed at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from softunicast.model.binding import Binding, Bindings
from softunicast.model.fleet import Plan, Pool
from softunicast.model.slice import Slice


def allocate(plan: Plan, last: Bindings | None = None) -> Bindings:
    """New bindings for a plan. Same arguments, same answer; `last` itself (equal, same epoch) when nothing changes."""
    before = {binding.slice: binding for binding in last.bindings} if last else {}
    epoch = (last.epoch if last else 0) + 1
    made: list[Binding] = []
    for name, pool in sorted(plan.pools.items()):
        weights = {node: plan.node(node).weight for node in pool.nodes}
        owners = allocate_pool(pool, weights, {slice_: binding.node for slice_, binding in before.items()})
        for slice_, node in owners:
            kept = before.get(slice_)
            since = kept.epoch if kept is not None and kept.node == node else epoch
            made.append(Binding(slice_, node, since, name))
    made.sort(key=lambda binding: binding.slice.sort_key)
    bindings = tuple(made)
    if last is not None and last.bindings == bindings:
        return last
    return Bindings(epoch, bindings)


def allocate_pool(pool: Pool, weights: Mapping[str, int], before: Mapping[Slice, str]) -> list[tuple[Slice, str]]:
    """The owner of each of the pool's slices, static ones included."""
    owners = [(static.slice, static.node) for static in pool.slices]
    held: dict[str, list[Slice]] = {node: [] for node in sorted(weights)}
    free: list[Slice] = []
    parts = pool.parts()
    for part in parts:
        node = before.get(part)
        if node is not None and node in held:
            held[node].append(part)
        else:
            free.append(part)
    wanted = quotas(len(parts), weights, {node: len(slices) for node, slices in held.items()})
    for node, slices in held.items():
        excess = len(slices) - wanted[node]
        if excess > 0:
            given_up = set(_spread(slices, excess))
            free += given_up
            held[node] = [slice_ for slice_ in slices if slice_ not in given_up]
    free.sort(key=lambda slice_: slice_.sort_key)
    lacking = {node: wanted[node] - len(slices) for node, slices in held.items()}
    owners += zip(free, _deal(lacking), strict=True)
    owners += [(slice_, node) for node, slices in held.items() for slice_ in slices]
    return owners


def quotas(total: int, weights: Mapping[str, int], held: Mapping[str, int]) -> dict[str, int]:
    """How many of `total` slices each node gets: floor or ceil of its share; sums to `total`. Weights are positive."""
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


def _spread(slices: Sequence[Slice], count: int) -> Iterable[Slice]:
    """`count` of `slices`, evenly spaced."""
    return [slices[(2 * index + 1) * len(slices) // (2 * count)] for index in range(count)]


def _deal(lacking: Mapping[str, int]) -> list[str]:
    """Each node as often as it lacks a slice, interleaved in proportion; ties by name."""
    turns = [((2 * turn + 1) / (2 * count), node) for node, count in lacking.items() for turn in range(count)]
    return [node for _, node in sorted(turns)]
