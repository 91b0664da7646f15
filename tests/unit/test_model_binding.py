# SPDX-License-Identifier: Apache-2.0
"""Bindings as text: both readers agree, epochs are what they promise."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from softunicast.model.allocator import allocate
from softunicast.model.binding import Binding, Bindings, check_bindings
from softunicast.model.bindings_file import HEADER, dump_bindings, load_bindings, read_bindings
from softunicast.model.moves import moves
from softunicast.model.plan import load_plan
from softunicast.model.slice import Slice

FULL = load_plan((Path(__file__).parents[2] / "examples/full.yaml").read_text(), "full.yaml")


def test_text_round_trips_by_both_readers() -> None:
    bindings = allocate(FULL)
    text = dump_bindings(bindings)
    assert load_bindings(text, "b.yaml") == bindings
    # A comment that apply does not write sends the file through the YAML reader.
    assert load_bindings(f"# mine\n{text}", "b.yaml") == bindings
    assert dump_bindings(load_bindings(text, "b.yaml")) == text


def test_names_that_yaml_would_take_for_something_else() -> None:
    part = Slice.parse("198.51.100.10:2048-4095")
    for name in ("null", "True", "1", "0x10", "1.5", "1e3", "2001-01-01", "a-b.c_d", "no", "7up", "e1"):
        bindings = Bindings(3, (Binding(part, name, 2, name),))
        text = dump_bindings(bindings)
        assert load_bindings(text, "b.yaml") == bindings, name
        assert load_bindings(f"# slow\n{text}", "b.yaml") == bindings, name


def test_nothing_bound() -> None:
    nothing = Bindings(0, ())
    assert load_bindings(dump_bindings(nothing), "b.yaml") == nothing


def test_both_readers_know_the_line() -> None:
    text = dump_bindings(allocate(FULL))
    assert tuple(read_bindings(text, "b").lines[:3]) == (4, 5, 6)
    assert read_bindings(f"# slow\n{text}", "b").lines[:3] == (5, 6, 7)


def test_order_in_the_file_does_not_matter() -> None:
    lines = dump_bindings(allocate(FULL)).splitlines()
    shuffled = "\n".join(lines[:3] + lines[:2:-1]) + "\n"
    assert lines[0] == HEADER
    assert load_bindings(shuffled, "b.yaml") == allocate(FULL)


def test_what_allocate_gives_passes_the_check() -> None:
    bindings = allocate(FULL)
    check_bindings(FULL, bindings)
    check_bindings(FULL, bindings, running=bindings)
    check_bindings(FULL, dataclasses.replace(bindings, epoch=bindings.epoch + 1), running=bindings)
    half = Bindings(bindings.epoch, bindings.bindings[::2])
    check_bindings(FULL, half)


def test_moves_counts_everything_once() -> None:
    a, b, c, d = (Slice.parse(f"198.51.100.10:{first}-{first + 9}") for first in (2000, 2010, 2020, 2030))
    before = Bindings(1, (Binding(a, "x", 1, "p"), Binding(b, "x", 1, "p"), Binding(c, "x", 1, "p")))
    after = Bindings(2, (Binding(a, "x", 1, "p"), Binding(b, "y", 2, "p"), Binding(d, "x", 2, "p")))
    found = moves(before, after)
    assert [now.node for _, now in found.moved] == ["y"]
    assert [binding.slice for binding in found.new] == [d]
    assert [binding.slice for binding in found.gone] == [c]
    assert found.kept == 1
    assert found.any
    assert not moves(before, before).any
    renamed = moves(before, Bindings(2, (Binding(a, "x", 1, "q"), *before.bindings[1:])))
    assert [(was.pool, now.pool) for was, now in renamed.renamed] == [("p", "q")]
    assert len(moves(None, after).new) == 3
