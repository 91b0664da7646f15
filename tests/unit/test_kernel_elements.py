# SPDX-License-Identifier: Apache-2.0
"""An array's contents in one piece behave as the dictionary of its elements that are not all zeros."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softunicast.kernel.elements import Elements

SIZE = 3
VALUES = st.one_of(st.just(bytes(SIZE)), st.binary(min_size=SIZE, max_size=SIZE))
# Beyond what is compared in one go, so that whole parts are equal, and others not.
CONTENTS = st.dictionaries(st.one_of(st.integers(0, 5), st.integers(500, 530), st.integers(3000, 3010)), VALUES)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


def table(contents: dict[int, bytes]) -> dict[bytes, bytes]:
    return {u32(index): value for index, value in contents.items()}


def whole(contents: dict[int, bytes]) -> dict[bytes, bytes]:
    return {u32(index): value for index, value in sorted(contents.items()) if any(value)}


@given(CONTENTS)
def test_the_mapping(contents: dict[int, bytes]) -> None:
    made, expected = Elements.of(SIZE, table(contents)), whole(contents)
    assert made == expected
    assert expected == made
    assert list(made.items()) == list(expected.items())
    assert (len(made), bool(made)) == (len(expected), bool(expected))
    assert made.used == max((index for index, value in contents.items() if any(value)), default=-1) + 1
    for index in (0, 4, 511, 512, 4000):
        assert made.get(u32(index)) == expected.get(u32(index))
        assert made.element(index) == expected.get(u32(index), bytes(SIZE))


@given(CONTENTS, CONTENTS)
def test_changed_and_compared(before: dict[int, bytes], changes: dict[int, bytes]) -> None:
    old = Elements.of(SIZE, table(before))
    new = old.but(changes)
    assert old == whole(before), "it never changes itself"
    assert new == whole(before | changes)
    updates, gone = new.changes(old)
    expected = {index: value for index, value in changes.items() if value != before.get(index, bytes(SIZE))}
    assert updates == whole(expected)
    assert gone == tuple(u32(index) for index, value in sorted(expected.items()) if not any(value))
    assert new.but({index: old.element(index) for index in new.differing(old)}) == old
    assert list(new.differing(old)) == list(old.differing(new))


def test_what_is_no_array() -> None:
    with pytest.raises(ValueError, match="7 bytes are no whole number of elements of 3"):
        Elements(3, bytes(7))
    with pytest.raises(ValueError, match="element 2: 4 bytes, not 3"):
        Elements(3).but({2: b"four"})
    with pytest.raises(ValueError, match="elements of 3 and of 4 bytes"):
        Elements(3).changes(Elements(4))
