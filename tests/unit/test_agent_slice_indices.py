# SPDX-License-Identifier: Apache-2.0
"""Slices keep their indices whatever is added before them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from softunicast.agent.slice_indices import keep_slice_indices
from softunicast.model.address import parse_address
from softunicast.model.slice import Slice

ADDRESS = parse_address("198.51.100.20")
SLICES = st.lists(
    st.integers(2, 60).map(lambda part: Slice(ADDRESS, part * 1000, part * 1000 + 999)),
    min_size=1,
    max_size=20,
    unique=True,
)


@given(first=SLICES, second=SLICES)
def test_kept_and_never_given_twice(first: list[Slice], second: list[Slice]) -> None:
    before = keep_slice_indices(first, {})
    assert before == {slice_: index for index, slice_ in enumerate(first)}
    after = keep_slice_indices(second, before)
    assert list(after) == second
    assert len(set(after.values())) == len(second)
    for slice_, index in after.items():
        assert index == before[slice_] if slice_ in before else index not in before.values()


@given(first=SLICES)
def test_nothing_new_nothing_moves(first: list[Slice]) -> None:
    before = keep_slice_indices(first, {})
    assert keep_slice_indices(first, before) == before
