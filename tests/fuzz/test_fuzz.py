# SPDX-License-Identifier: Apache-2.0
"""The fuzzer, short: `make fuzz SECONDS=600` is the long one."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from softunicast.kernel.bpf import BpfObject
from softunicast.wire.craft import ethernet, udp
from tests.fuzz.fuzz import Different, check, corpus, fuzz, fuzz_fish, loaded_parser

SECONDS = float(os.environ.get("SOFTUNICAST_FUZZ_SECONDS", "8"))


@pytest.fixture(scope="module")
def loaded() -> Iterator[BpfObject]:
    with loaded_parser() as made:
        yield made


def test_what_failed_once(loaded: BpfObject) -> None:
    for frame in corpus():
        check(loaded, frame)


def test_the_readers_agree(loaded: BpfObject) -> None:
    seed = int(os.environ.get("SOFTUNICAST_SEED", time.time_ns() % 1_000_000_007))
    print(f"seed {seed}")
    kinds = fuzz(loaded, seed, SECONDS)
    print(kinds)
    for kind, count in kinds.items():
        assert count > kinds["frames"] / 200, f"too few {kind}: {kinds}"


def test_the_programs_keep_to_their_oracle() -> None:
    seed = int(os.environ.get("SOFTUNICAST_SEED", time.time_ns() % 1_000_000_007))
    print(f"seed {seed}")
    cases = fuzz_fish(seed, SECONDS)
    print(cases)
    assert len(cases) > 30, cases


def test_a_difference_is_found(loaded: BpfObject, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = ethernet("02:00:00:00:00:01", "02:00:00:00:00:02", udp("203.0.113.1", 53, "198.51.100.10", 9000))
    check(loaded, frame)
    monkeypatch.setattr("tests.fuzz.fuzz.model_parse", lambda frame, offset, kind: None)
    with pytest.raises(Different, match="the oracle has"):
        check(loaded, frame)
