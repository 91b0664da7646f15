# SPDX-License-Identifier: Apache-2.0
"""Allocation by example; tests/property has the laws."""

from __future__ import annotations

import time
from collections import Counter

from softunicast.model.allocator import allocate, quotas
from softunicast.model.binding import Binding, Bindings
from softunicast.model.moves import moves
from softunicast.model.owner import OwnerTable
from softunicast.model.plan import Plan, load_plan
from softunicast.model.slice import Slice


def fleet(nodes: dict[str, int], pool: str = "addresses: 198.51.100.10-198.51.100.13") -> Plan:
    inside = ", ".join(f"{name}: {{underlay: 10.0.0.{at}, weight: {weight}}}" for at, (name, weight) in
                       enumerate(nodes.items(), start=1))  # fmt: skip
    return load_plan(
        "prefixes: [{prefix: 198.51.0.0/16}]\n"
        f"sites: {{a: {{nodes: {{{inside}}}}}}}\n"
        f"pools: {{p: {{site: a, {pool}}}}}\n",
        "plan.yaml",
    )


def counts(bindings: Bindings) -> Counter[str]:
    return Counter(binding.node for binding in bindings.bindings)


def test_two_nodes_share_every_address() -> None:
    bindings = allocate(fleet({"a": 1, "b": 1}))
    assert counts(bindings) == {"a": 62, "b": 62}
    for address in {binding.slice.address for binding in bindings.bindings}:
        of_address = Counter(binding.node for binding in bindings.bindings if binding.slice.address == address)
        assert abs(of_address["a"] - of_address["b"]) <= 1


def test_weights() -> None:
    assert counts(allocate(fleet({"a": 1, "b": 3}))) == {"a": 31, "b": 93}
    assert quotas(10, {"a": 1, "b": 1, "c": 1}, {}) == {"a": 4, "b": 3, "c": 3}
    assert quotas(10, {"a": 1, "b": 1, "c": 1}, {"c": 4}) == {"a": 3, "b": 3, "c": 4}


def test_fewer_slices_than_nodes() -> None:
    bindings = allocate(fleet({"a": 1, "b": 1, "c": 1}, "addresses: 198.51.100.10, slice_ports: 32768"))
    assert counts(bindings) == {"a": 1}


def test_epochs() -> None:
    one = allocate(fleet({"a": 1, "b": 1}))
    assert (one.epoch, {binding.epoch for binding in one.bindings}) == (1, {1})
    assert allocate(fleet({"a": 1, "b": 1}), one) is one
    two = allocate(fleet({"a": 1, "b": 1, "c": 1}), one)
    assert two.epoch == 2
    assert {binding.epoch for binding in two.bindings if binding.node == "c"} == {2}
    assert {binding.epoch for binding in two.bindings if binding.node != "c"} == {1}
    three = allocate(fleet({"a": 1, "b": 1}), two)
    back = {binding.slice for binding in two.bindings if binding.node == "c"}
    assert {binding.epoch for binding in three.bindings if binding.slice in back} == {3}


def test_a_slice_that_comes_back_has_a_newer_epoch() -> None:
    one = allocate(fleet({"a": 1}))
    two = allocate(fleet({"a": 1}, "addresses: 198.51.100.10-198.51.100.12"), one)
    three = allocate(fleet({"a": 1}), two)
    assert three.epoch == 3
    assert {binding.epoch for binding in three.bindings if str(binding.slice.address) == "198.51.100.13"} == {3}


def test_static_slices_follow_the_plan() -> None:
    text = 'slices: [{slice: "198.51.100.20:9000-9009", node: %s}]'
    one = allocate(fleet({"a": 1, "b": 1}, text % "a"))
    assert one.bindings == (Binding(Slice.parse("198.51.100.20:9000-9009"), "a", 1, "p"),)
    two = allocate(fleet({"a": 1, "b": 1}, text % "b"), one)
    assert two.bindings == (Binding(Slice.parse("198.51.100.20:9000-9009"), "b", 2, "p"),)


def test_another_slice_size_makes_new_slices() -> None:
    one = allocate(fleet({"a": 1, "b": 1}))
    two = allocate(fleet({"a": 1, "b": 1}, "addresses: 198.51.100.10-198.51.100.13, slice_ports: 1024"), one)
    assert {binding.epoch for binding in two.bindings} == {2}
    assert counts(two) == {"a": 126, "b": 126}


def test_a_big_plan_is_quick() -> None:
    plan = fleet({f"n{at}": 1 for at in range(100)}, "addresses: 198.51.0.0/20")
    took_s = []
    for _ in range(3):
        started_s = time.process_time()
        bindings = allocate(plan)
        took_s.append(time.process_time() - started_s)
    assert len(bindings.bindings) == 4096 * 31
    assert min(took_s) < 2.0
    assert allocate(plan, bindings) is bindings
    assert not moves(bindings, bindings).any
    assert len(OwnerTable.build(plan, bindings)) == 4096 * 32
