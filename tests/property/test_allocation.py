# SPDX-License-Identifier: Apache-2.0
"""Laws of allocation: disjoint, conserved, even, stable, minimal, idempotent; and who owns a port."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter
from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from softunicast.model.allocator import allocate
from softunicast.model.binding import Bindings, check_bindings
from softunicast.model.bindings_file import dump_bindings, load_bindings
from softunicast.model.owner import OwnerTable
from softunicast.model.plan import Plan
from tests.property.strategies import NODES, Shape, shapes


def held(bindings: Bindings, pool: str = "gb") -> Counter[str]:
    return Counter(binding.node for binding in bindings.bindings if binding.pool == pool)


def moved(before: Bindings, after: Bindings) -> list[tuple[str, str]]:
    """(old owner, new owner) of the slices of both whose owner changed."""
    old = {binding.slice: binding.node for binding in before.bindings}
    return [
        (old[binding.slice], binding.node)
        for binding in after.bindings
        if binding.slice in old and old[binding.slice] != binding.node
    ]


@given(shapes())
def test_every_allocatable_slice_is_bound_once_and_nothing_overlaps(shape: Shape) -> None:
    plan = shape.plan()
    bindings = allocate(plan)
    wanted = [part for pool in plan.pools.values() for part in pool.parts()]
    wanted += [static.slice for pool in plan.pools.values() for static in pool.slices]
    assert sorted(wanted, key=lambda part: part.sort_key) == [binding.slice for binding in bindings.bindings]
    for before, after in itertools.pairwise(bindings.bindings):
        assert not before.slice.overlaps(after.slice)
    assert all(binding.slice.first >= 1024 for binding in bindings.bindings)
    check_bindings(plan, bindings)
    for pool in plan.pools.values():
        for static in pool.slices:
            assert any(binding.slice == static.slice and binding.node == static.node for binding in bindings.bindings)


@given(shapes(pools=False))
def test_shares_are_exact_rounded_down_or_up(shape: Shape) -> None:
    bindings = allocate(shape.plan())
    count, weights = held(bindings), dict(shape.nodes)
    total, whole = len(bindings.bindings), sum(weights.values())
    for node, weight in weights.items():
        share = Fraction(total * weight, whole)
        assert share.__floor__() <= count[node] <= share.__ceil__()


@given(shapes())
def test_same_input_same_output(shape: Shape) -> None:
    nodes = tuple(reversed(shape.nodes))
    addresses = tuple(reversed(shape.addresses))
    turned = dataclasses.replace(shape, nodes=nodes, addresses=addresses)
    assert allocate(shape.plan()) == allocate(turned.plan())


@given(shapes(), shapes())
def test_idempotent_after_any_change(before: Shape, after: Shape) -> None:
    first = allocate(before.plan())
    second = allocate(after.plan(), first)
    assert allocate(after.plan(), second) is second
    assert second is first or second.epoch == first.epoch + 1
    assert (second is first) == (second.bindings == first.bindings)
    assert load_bindings(dump_bindings(second), "b.yaml") == second
    old = {binding.slice: binding for binding in first.bindings}
    for binding in second.bindings:
        was = old.get(binding.slice)
        kept = was is not None and was.node == binding.node
        assert binding.epoch == (was.epoch if was is not None and kept else second.epoch)


@given(shapes(equal=True, pools=False), st.sampled_from(NODES))
def test_a_node_that_joins_takes_its_share_and_nothing_else_moves(shape: Shape, name: str) -> None:
    if name in dict(shape.nodes):
        shape = dataclasses.replace(shape, nodes=tuple(node for node in shape.nodes if node[0] != name))
        if not shape.nodes:
            return
    before = allocate(shape.plan())
    joined = dataclasses.replace(shape, nodes=(*shape.nodes, (name, 1)))
    after = allocate(joined.plan(), before)
    changes = moved(before, after)
    assert all(new == name for _, new in changes)
    # Exactly: the new node's share rounded down. The others already hold what is left over.
    assert len(changes) == held(after)[name] == len(before.bindings) // len(joined.nodes)


@given(shapes(equal=True, pools=False), st.data())
def test_a_node_that_leaves_moves_only_what_it_held(shape: Shape, data: st.DataObject) -> None:
    if len(shape.nodes) < 2:
        return
    name = data.draw(st.sampled_from([node for node, _ in shape.nodes]))
    before = allocate(shape.plan())
    left = dataclasses.replace(shape, nodes=tuple(node for node in shape.nodes if node[0] != name))
    after = allocate(left.plan(), before)
    changes = moved(before, after)
    assert all(old == name for old, _ in changes)
    assert len(changes) == held(before)[name]


def fewest_moves(plan: Plan, before: Bindings) -> int:
    """Brute force over every way to round the shares: slices of both that must change hands."""
    pool = plan.pools["gb"]
    parts = set(pool.parts())
    weights = {node: plan.node(node).weight for node in pool.nodes}
    whole = sum(weights.values())
    kept = Counter(b.node for b in before.bindings if b.slice in parts and b.node in weights)
    orphans = sum(b.slice in parts and b.node not in weights for b in before.bindings)
    options = []
    for node, weight in weights.items():
        low, rest = divmod(len(parts) * weight, whole)
        options.append([(node, low), (node, low + 1)] if rest else [(node, low)])
    choices = [dict(choice) for choice in itertools.product(*options)]
    excess = [
        sum(max(0, kept[node] - quota) for node, quota in choice.items())
        for choice in choices
        if sum(choice.values()) == len(parts)
    ]
    return orphans + min(excess)


@given(shapes(pools=False), shapes(pools=False))
def test_no_rounding_of_the_shares_moves_less(one: Shape, other: Shape) -> None:
    other = dataclasses.replace(other, slice_ports=one.slice_ports)
    before = allocate(one.plan())
    after = allocate(other.plan(), before)
    assert len(moved(before, after)) == fewest_moves(other.plan(), before)


@settings(max_examples=30)
@given(shapes(), st.lists(st.integers(0, 65535), min_size=50, max_size=50))
def test_owner_table_agrees_with_a_search(shape: Shape, ports: list[int]) -> None:
    plan = shape.plan()
    bindings = allocate(plan)
    table = OwnerTable.build(plan, bindings)
    edges = [edge for binding in bindings.bindings for edge in (binding.slice.first, binding.slice.last)]
    beside = [port for edge in set(edges) for port in (edge - 1, edge, edge + 1) if 0 <= port <= 65535]
    for address in plan.address_shifts():
        mine = [binding for binding in bindings.bindings if binding.slice.address == address]
        for port in {0, 1023, 1024, 65535, *ports, *beside}:
            found = [binding for binding in mine if port in binding.slice]
            assert len(found) <= 1
            assert table.owner(address, port) == (found[0] if found else None)
