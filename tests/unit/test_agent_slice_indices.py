# SPDX-License-Identifier: Apache-2.0
"""Slices keep their indices whatever is added before them, and every table says the same."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from softunicast.agent.slice_indices import keep_slice_indices, slice_text
from softunicast.agent.state import NodeState, SliceState
from softunicast.kernel import abi
from softunicast.kernel.abi_util import addr_bytes
from softunicast.model.address import parse_address

U32 = struct.Struct("=I")
PORTS = 1000


def tables(parts: list[int]) -> dict[str, dict[bytes, bytes]]:
    """Slices number 0.. for these parts of one address, in sorted order, as the builders give them."""
    address = addr_bytes(parse_address("198.51.100.20"))
    ordered = sorted(parts)
    slices = {
        U32.pack(at): abi.Slice(addr=address, first=part * PORTS, last=part * PORTS + PORTS - 1, flags=1).pack()
        for at, part in enumerate(ordered)
    }
    owners = {
        U32.pack(part): abi.Owner(1, ordered.index(part) if part in ordered else abi.NONE).pack() for part in range(64)
    }
    policy = abi.Policy(flags=int(abi.PolicyFlag.SET | abi.PolicyFlag.RANGE), slice=len(ordered) - 1)
    plain = abi.Policy(flags=int(abi.PolicyFlag.SET), slice=abi.NONE)
    return {
        "slices": slices,
        "pool_slices": {U32.pack(at): U32.pack(at) for at in range(len(ordered))},
        "owners": owners,
        "onramps": {
            U32.pack(1): abi.Onramp(flags=1, policy=policy).pack(),
            U32.pack(2): abi.Onramp(flags=1, policy=plain).pack(),
        },
    }


def state(made: dict[str, dict[bytes, bytes]]) -> NodeState:
    held = tuple(
        SliceState(U32.unpack(key)[0], slice_text(abi.Slice.unpack(value)), "ten", 1)
        for key, value in made["slices"].items()
    )
    return NodeState("lhr1", 1, 1, slices=held)


PARTS = st.lists(st.integers(2, 60), min_size=1, max_size=20, unique=True)


@given(first=PARTS, second=PARTS)
def test_kept_and_consistent(first: list[int], second: list[int]) -> None:
    last = state(keep_slice_indices(tables(first), None))
    made = keep_slice_indices(tables(second), last)
    before = {held.slice: held.index for held in last.slices}
    after = {held.slice: held.index for held in state(made).slices}
    assert len(set(after.values())) == len(second)
    for text, index in after.items():
        if text in before:
            assert index == before[text]
        else:
            assert index not in before.values()
    by_index = {U32.unpack(key)[0]: abi.Slice.unpack(value) for key, value in made["slices"].items()}
    for key, value in made["owners"].items():
        owner, part = abi.Owner.unpack(value), U32.unpack(key)[0]
        if part in second:
            assert by_index[owner.slice].first == part * PORTS
        else:
            assert owner.slice == abi.NONE
    assert sorted(U32.unpack(value)[0] for value in made["pool_slices"].values()) == sorted(by_index)
    ramp = abi.Onramp.unpack(made["onramps"][U32.pack(1)])
    assert by_index[ramp.policy.slice].first == max(second) * PORTS
    assert abi.Onramp.unpack(made["onramps"][U32.pack(2)]).policy.slice == abi.NONE


def test_nothing_moves_nothing_is_copied() -> None:
    made = tables([3, 5])
    assert keep_slice_indices(made, None) is made
    assert keep_slice_indices(made, state(made)) is made
