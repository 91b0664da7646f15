# SPDX-License-Identifier: Apache-2.0
"""Bindings: which node holds which slice, and since which epoch.

The epoch of all grows by one whenever anything changes; a binding's epoch is the one at which its owner last changed,
so it only grows even when a slice goes away and comes back. model.bindings_file is what they look like in a file.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from softunicast.errors import PlanError
from softunicast.model.address import IPAddress
from softunicast.model.fleet import Plan
from softunicast.model.slice import Slice, is_part

_OTHER: Final = "the bindings are of another plan, or older than this one: `softunicast plan apply`"


@dataclass(frozen=True, slots=True)
class Binding:
    """One slice, its node, the epoch since which it is that node's, and the pool it is of."""

    slice: Slice
    node: str
    epoch: int
    pool: str


@dataclass(frozen=True, slots=True)
class Bindings:
    """All bindings, sorted by slice. `epoch` 0: nothing was ever bound."""

    epoch: int
    bindings: tuple[Binding, ...]


def held_by(bindings: Bindings, node: str) -> tuple[Binding, ...]:
    """A node's own, sorted by slice."""
    return tuple(one for one in bindings.bindings if one.node == node)


def numbered(held: Iterable[Binding]) -> dict[Slice, int]:
    """Slice -> its place in that order, from 0."""
    return {one.slice: index for index, one in enumerate(held)}


def changed(before: Bindings, after: Bindings) -> tuple[tuple[Binding, Binding], ...] | None:
    """(before, after) of every slice whose binding is another one; None when they are not of the same slices, or most
    are other objects and all had to be looked at.

    Cheap when few changed and the others are the very same objects, as model.bindings_file reads a file again.
    """
    if before.bindings is after.bindings:
        return ()
    if len(before.bindings) != len(after.bindings):
        return None
    unlike = itertools.compress(itertools.count(), map(operator.is_not, before.bindings, after.bindings))
    pairs = [(before.bindings[at], after.bindings[at]) for at in unlike]
    if len(pairs) > 16 + len(after.bindings) // 8 or any(was.slice != now.slice for was, now in pairs):
        return None
    return tuple(pair for pair in pairs if pair[0] != pair[1])


@dataclass(frozen=True, slots=True)
class BindingsText:
    """A parsed file: `lines` has the line of each of `bindings.bindings` (empty: unknown), for messages; a range when
    `text` is as `dump_bindings` writes it."""

    file: str
    bindings: Bindings
    lines: Sequence[int] = ()
    text: str = ""


def check_bindings(
    plan: Plan,
    bindings: Bindings | BindingsText,
    *,
    running: Bindings | None = None,
    file: str = "bindings",
    checked: Bindings | None = None,
) -> None:
    """Raise PlanError unless every binding is one that this plan can give, and the file no older than `running`.

    A plan may have slices that nobody holds yet (not applied); bindings of what the plan does not have are
    refused. `running` is what the node runs now: an older epoch is refused, and so is another content under
    the same epoch. `file` is for messages when the bindings come without their text. `checked`: bindings that this very
    plan was found to be able to give.
    """
    source = bindings if isinstance(bindings, BindingsText) else BindingsText(file, bindings)
    if not _still_fits(plan, source.bindings, checked):
        _check_all(plan, source)
    epoch = source.bindings.epoch
    if running is None:
        return
    if epoch < running.epoch:
        problem = f"epoch {epoch} is older than {running.epoch}, which runs here"
        raise PlanError(source.file, 0, problem, "bring the newest bindings file")
    if epoch == running.epoch and source.bindings != running:
        problem = f"differs from what runs here under the same epoch {epoch}"
        raise PlanError(source.file, 0, problem, "write it with `softunicast plan apply`, in one place")


def _still_fits(plan: Plan, bindings: Bindings, checked: Bindings | None) -> bool:
    """Whether all that is not as in `checked` fits the plan; False also when that cannot be told cheaply."""
    pairs = changed(checked, bindings) if checked is not None else None
    if pairs is None:
        return False
    homes = _homes(plan, {now.slice.address for _, now in pairs}) if pairs else {}
    nodes = _nodes(plan)
    return not any(_mismatch(plan, homes, nodes, now) for _, now in pairs)


def _check_all(plan: Plan, source: BindingsText) -> None:
    homes, nodes = _homes(plan), _nodes(plan)
    for at, binding in enumerate(source.bindings.bindings):
        problem = _mismatch(plan, homes, nodes, binding)
        if problem:
            line = source.lines[at] if source.lines else 0
            raise PlanError(source.file, line, f"{binding.slice}: {problem}", _OTHER)


def _nodes(plan: Plan) -> dict[str, frozenset[str]]:
    """Pool -> its nodes."""
    return {pool.name: frozenset(pool.nodes) for pool in plan.pools.values()}


def _homes(
    plan: Plan, only: Collection[IPAddress] | None = None
) -> dict[IPAddress, tuple[str, int, dict[Slice, str] | None]]:
    """Address -> pool, shift and, where slices are static, each one's node; of some addresses or all."""
    homes: dict[IPAddress, tuple[str, int, dict[Slice, str] | None]] = {}
    for pool in plan.pools.values():
        for address in pool.addresses:
            if only is None or address in only:
                homes[address] = (pool.name, pool.shift_of(address), None)
        for address in pool.static_addresses:
            if only is None or address in only:
                given = {static.slice: static.node for static in pool.slices if static.slice.address == address}
                homes[address] = (pool.name, 0, given)
    return homes


def _mismatch(
    plan: Plan,
    homes: dict[IPAddress, tuple[str, int, dict[Slice, str] | None]],
    nodes: dict[str, frozenset[str]],
    binding: Binding,
) -> str:
    """Why the plan cannot give this binding; empty: it can."""
    if binding.pool not in nodes:
        return f"pool {binding.pool!r} is not in {plan.file}"
    if binding.node not in nodes[binding.pool]:
        if binding.node not in plan.nodes:
            return f"node {binding.node!r} is not in {plan.file}"
        return f"{binding.node} is not among the nodes of pool {binding.pool}"
    home = homes.get(binding.slice.address)
    if home is None:
        return f"its address is in no pool of {plan.file}"
    pool, shift, given = home
    if pool != binding.pool:
        return f"its address is of pool {pool}, not {binding.pool}"
    if given is not None:
        if binding.slice not in given:
            return f"is no slice of pool {pool}"
        owner = given[binding.slice]
        return "" if owner == binding.node else f"{plan.file} gives it to {owner}, not {binding.node}"
    return "" if is_part(binding.slice, shift) else f"is no slice of pool {pool}"
