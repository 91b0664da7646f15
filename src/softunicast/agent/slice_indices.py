# SPDX-License-Identifier: Apache-2.0
"""Slices keep their places: a pure rewriting of the tables.

The tables come with this node's slices numbered by address and port, so that one slice more shifts those
behind it. But the number of a slice lives on in claims, in remembered crowds and in the policies of running
programs. So a slice that was there before keeps its index, and a new one takes the lowest that no slice has
or had at the last count. Four tables name slices by index: `slices` (keys), `pool_slices`, `owners` and the
policies in `onramps`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from itertools import count

from softunicast.agent.state import NodeState
from softunicast.kernel import abi
from softunicast.kernel.abi_util import addr_ip
from softunicast.model.slice import Slice

Tables = dict[str, dict[bytes, bytes]]


def slice_text(held: abi.Slice) -> str:
    """A slice as Slice.parse reads it."""
    return str(Slice(addr_ip(held.addr), held.first, held.last))


def keep_slice_indices(tables: Tables, last: NodeState | None) -> Tables:
    """The same tables, with the slices of `last` where they were. The very same object when nothing moves."""
    known = {held.slice: held.index for held in last.slices} if last else {}
    moved = _moves(tables.get("slices", {}), known)
    if all(old == new for old, new in moved.items()):
        return tables
    owners: dict[bytes, bytes] = {}

    def owner(value: bytes) -> bytes:
        if value not in owners:
            now = abi.Owner.unpack(value)
            owners[value] = replace(now, slice=moved.get(now.slice, now.slice)).pack()
        return owners[value]

    def onramp(value: bytes) -> bytes:
        now = abi.Onramp.unpack(value)
        return replace(now, policy=replace(now.policy, slice=_moved(now.policy, moved))).pack()

    return {
        **tables,
        "slices": {_key(moved[_number(key)]): value for key, value in tables["slices"].items()},
        "pool_slices": {key: _key(moved[_number(value)]) for key, value in tables["pool_slices"].items()},
        "owners": {key: owner(value) for key, value in tables["owners"].items()},
        "onramps": {key: onramp(value) for key, value in tables["onramps"].items()},
    }


def _moves(slices: Mapping[bytes, bytes], known: Mapping[str, int]) -> dict[int, int]:
    taken = set(known.values())
    free = (index for index in count() if index not in taken)
    moves = {}
    for key, value in sorted(slices.items(), key=lambda item: _number(item[0])):
        before = known.get(slice_text(abi.Slice.unpack(value)))
        moves[_number(key)] = next(free) if before is None else before
    return moves


def _moved(policy: abi.Policy, moved: Mapping[int, int]) -> int:
    return moved.get(policy.slice, policy.slice) if policy.flags & abi.PolicyFlag.RANGE else policy.slice


def _number(key: bytes) -> int:
    return int.from_bytes(key, sys.byteorder)


def _key(number: int) -> bytes:
    return number.to_bytes(4, sys.byteorder)
