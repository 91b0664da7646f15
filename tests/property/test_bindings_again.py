# SPDX-License-Identifier: Apache-2.0
"""A bindings file that is read again says what it says when it is read for the first time, mistakes too."""

from __future__ import annotations

from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from softunicast.errors import PlanError
from softunicast.model.allocator import allocate
from softunicast.model.binding import check_bindings
from softunicast.model.bindings_file import dump_bindings, read_bindings
from softunicast.model.plan import load_plan

FULL = load_plan((Path(__file__).parents[2] / "examples/full.yaml").read_text(), "full.yaml")
TEXT = dump_bindings(allocate(FULL))
LINES = TEXT.split("\n")
BEFORE = read_bindings(TEXT, "b.yaml")

WORDS = [("lhr1", "lhr2"), ("lhr2", "lhr1"), ("lhr2", "nobody"), ("epoch: 1", "epoch: 2"), ("epoch: 1", "epoch: 77"),
         ("pool: gb", "pool: fr"), ("-", "0-"), (":", ":: "), ('"', ""), ("2048", "2049"),
         ("}", "} # mine")]  # fmt: skip
EDITS = st.one_of(
    st.tuples(st.just("replace"), st.integers(1, len(LINES) - 1), st.sampled_from(WORDS)),
    st.tuples(st.just("drop"), st.integers(0, len(LINES) - 1), st.just(("", ""))),
    st.tuples(st.just("twice"), st.integers(0, len(LINES) - 1), st.just(("", ""))),
    st.tuples(st.just("swap"), st.integers(3, len(LINES) - 3), st.just(("", ""))),
    st.tuples(st.just("epoch"), st.integers(0, 3), st.just(("", ""))),
)


def edited(edits: list[tuple[str, int, tuple[str, str]]]) -> str:
    lines = list(LINES)
    for what, at, (old, new) in edits:
        at = min(at, len(lines) - 2)
        if what == "replace":
            lines[at] = lines[at].replace(old, new, 1)
        elif what == "drop":
            del lines[at]
        elif what == "twice":
            lines.insert(at, lines[at])
        elif what == "swap":
            lines[at], lines[at - 1] = lines[at - 1], lines[at]
        else:
            lines[1] = f"epoch: {at}"
    return "\n".join(lines)


def outcome(text: str, *, again: bool) -> object:
    """What is read and fits the plan, or the mistake."""
    try:
        found = read_bindings(text, "b.yaml", BEFORE if again else None)
        check_bindings(FULL, found, checked=BEFORE.bindings if again else None)
    except PlanError as error:
        return str(error)
    return found.bindings, tuple(found.lines), found.text


@given(st.lists(EDITS, max_size=4))
@example([])
@example([("epoch", 2, ("", "")), ("replace", 5, ("lhr1", "lhr2"))])
@example([("epoch", 0, ("", ""))])
def test_read_again_is_read(edits: list[tuple[str, int, tuple[str, str]]]) -> None:
    text = edited(edits)
    assert outcome(text, again=True) == outcome(text, again=False)


def test_what_did_not_change_is_the_same_object() -> None:
    at = next(number for number, line in enumerate(LINES) if "node: lhr1" in line and "pool: gb" in line)
    lines = [
        LINES[0],
        "epoch: 2",
        *LINES[2:at],
        LINES[at].replace("lhr1, epoch: 1", "lhr2, epoch: 2"),
        *LINES[at + 1 :],
    ]
    again = read_bindings("\n".join(lines), "b.yaml", BEFORE)
    pairs = list(zip(BEFORE.bindings.bindings, again.bindings.bindings, strict=True))
    assert [(was.node, now.node, now.epoch) for was, now in pairs if was is not now] == [("lhr1", "lhr2", 2)]
    assert all(was.slice is now.slice for was, now in pairs)
