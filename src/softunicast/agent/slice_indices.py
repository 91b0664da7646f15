# SPDX-License-Identifier: Apache-2.0
"""Slices keep their places in the map `slices`. Pure.

One slice more must not shift those behind it, for the number of a slice lives on in claims, in remembered crowds and in
the policies of running programs. So a slice that was there before keeps its index, and a new one takes the lowest that
no slice has or had at the last count.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count

from softunicast.model.slice import Slice


def keep_slice_indices(held: Iterable[Slice], known: Mapping[Slice, int]) -> dict[Slice, int]:
    """Where each is. `held` in their order; `known`: where those of the last count are."""
    taken = set(known.values())
    free = (index for index in count() if index not in taken)
    return {slice_: known[slice_] if slice_ in known else next(free) for slice_ in held}
