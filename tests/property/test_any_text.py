# SPDX-License-Identifier: Apache-2.0
"""Whatever the text, reading it gives a plan or one PlanError in one line, never a traceback."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from softunicast.errors import PlanError
from softunicast.model.allocator import allocate
from softunicast.model.binding import check_bindings
from softunicast.model.bindings_file import dump_bindings, load_bindings
from softunicast.model.plan import load_plan
from softunicast.model.slice import Slice

VALID = """\
prefixes:
  - {prefix: 198.51.100.0/24, announce: [lhr]}
  - {prefix: "2001:db8::/48"}
sites:
  lhr:
    nodes:
      lhr1:
        underlay: 10.0.1.11
        uplinks: [eth0]
        onramps:
          vpn: {device: wg0, pool: gb, sources: 10.64.0.0/24, gateway4: 10.64.0.1, slice: "198.51.100.10:2048-2050"}
      lhr2: {underlay: 10.0.1.12, weight: 2, bypass: [192.0.2.0/24]}
pools:
  gb: {addresses: [198.51.100.10-198.51.100.13], site: lhr, slice_ports: 2048, tags: {country: GB}}
  ten: {site: lhr, slices: [{slice: "198.51.100.20:9000-9009", node: lhr1}]}
  six: {site: lhr, prefix: "2001:db8:0:100::/64", count: 3, slice_ports6: 65536}
settings: {mark: 0x20000000, udp_wildcard_fraction: 0.25, timers: {udp_s: 300}}
"""
COARSE = VALID.replace(', slice: "198.51.100.10:2048-2050"', "").replace("2048", "16384")
BINDINGS = dump_bindings(allocate(load_plan(COARSE, "plan.yaml")))

SCRAPS = [
    *"{}[]:,-#&*!|>'\"%@`?\t\n\r\0~<=.\\/",
    *("  ", "\n  ", ": ", "- ", "---\n", "...\n", "%YAML 1.1\n---\n", "<<: ", "&a ", "*a", "!!binary ", "!!set {a}"),
    *(
        "!!python/object:os.system ",
        "!<x> ",
        "null",
        "true",
        "yes",
        "0x",
        "1e999",
        ".nan",
        "-.inf",
        "9" * 5000,
        "12:30:45",
    ),
    *(
        "-1",
        "0",
        "65536",
        "4294967296",
        "2001-01-01",
        "::",
        "::1",
        "::ffff:1.2.3.4",
        "0.0.0.0/0",
        "::/0",
        "fe80::1%eth0",
    ),
    *("198.51.100.10-198.51.100.255", "198.51.100.20:1-65535", "\u2028", "\x85", "\ufeff", "\ud800", "\U0001f600", "é"),
    *("prefixes:\n", "sites:\n", "pools: {}\n", "slice_ports: 1", "count: 65536", "weight: 1000", "lhr1", "lhr", "gb"),
]
ALPHABET = st.one_of(st.sampled_from(SCRAPS), st.text(max_size=4), st.sampled_from(VALID.split()))
RANDOM = st.lists(ALPHABET, max_size=30).map("".join)


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """A valid file with a few cuts, repeats and scraps in it."""
    for _ in range(draw(st.integers(1, 4))):
        first = draw(st.integers(0, len(text)))
        last = min(len(text), first + draw(st.integers(0, 12)))
        middle = draw(st.one_of(st.just(""), ALPHABET, st.just(text[first:last] * 2)))
        text = text[:first] + middle + text[last:]
    return text


@st.composite
def replaced(draw: st.DrawFn) -> str:
    """A valid plan with one word replaced by a whole value of another kind."""
    words = sorted({word.strip("{}[],:\"'") for word in VALID.split()} - {"", "-"})
    numbers = st.one_of(st.integers().map(str), st.floats().map(str))
    kinds = st.sampled_from(["[]", "{}", "[a]", "{a: 1}", "[[]]", "''", "~"])
    value = draw(st.one_of(st.sampled_from(SCRAPS), st.sampled_from(words), numbers, kinds))
    return VALID.replace(draw(st.sampled_from(words)), value, draw(st.integers(1, 3)))


def well_behaved(read: Callable[[str, str], object], text: str) -> None:
    try:
        read(text, "file.yaml")
    except PlanError as error:
        line = str(error)
        assert line.startswith("file.yaml")
        assert line.isprintable(), line
        assert len(line) < 1000, line
        assert 0 <= error.line <= len(text.splitlines()) + 2


def plan_and_bindings(text: str, file: str) -> None:
    plan = load_plan(text, file)
    if sum(len(pool.addresses) * (65536 >> pool.shift) for pool in plan.pools.values()) < 10_000:
        bindings = allocate(plan)
        check_bindings(plan, bindings)
        assert load_bindings(dump_bindings(bindings), file) == bindings


@settings(max_examples=300)
@given(RANDOM)
@example("[" * 5000)
@example("- " * 5000)
@example("? " * 500)
@example("{a: " * 500)
@example("a: &a [*a]")
@example("&a {a: *a}")
@example("%YAML 9.9\n---\na: 1")
@example("%TAG ! tag:x,2000:\n---\n!a b: c")
@example("a: !!int x\n")
@example("\ufeff")
@example("\ud800")
@example("a: |\n  \x00")
def test_any_text(text: str) -> None:
    well_behaved(plan_and_bindings, text)
    well_behaved(load_bindings, text)


@settings(max_examples=300)
@given(mutated(VALID))
def test_a_valid_plan_with_scraps_in_it(text: str) -> None:
    well_behaved(plan_and_bindings, text)


@settings(max_examples=300)
@given(replaced())
def test_a_valid_plan_with_a_word_replaced(text: str) -> None:
    well_behaved(plan_and_bindings, text)


@settings(max_examples=200)
@given(mutated(BINDINGS))
def test_bindings_with_scraps_in_them(text: str) -> None:
    well_behaved(load_bindings, text)


@settings(max_examples=60)
@given(mutated(BINDINGS))
def test_both_readers_of_bindings_agree(text: str) -> None:
    def outcome(text: str) -> object:
        try:
            return load_bindings(text, "b.yaml")
        except PlanError as error:
            return error.message

    if not text.startswith("# softunicast bindings"):
        return
    fast = outcome(text)
    slow = outcome(text.replace("# softunicast", "#  softunicast", 1))
    assert fast == slow


@given(st.text(max_size=60))
def test_slice_parse_gives_a_slice_or_a_value_error(text: str) -> None:
    try:
        found = Slice.parse(text)
    except ValueError as error:
        assert "; " in str(error)
        return
    assert Slice.parse(str(found)) == found


def test_the_valid_plan_is_valid() -> None:
    load_plan(VALID, "plan.yaml")
    with pytest.raises(PlanError):
        load_plan(VALID * 2, "plan.yaml")
