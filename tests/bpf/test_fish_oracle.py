# SPDX-License-Identifier: Apache-2.0
"""100,000 packets in sequence, from on-ramps, the uplink and the stack, malformed ones too, with sockets' claims beside
them and a clock that jumps: the programs and the oracle agree on verdict, bytes, claims, hints, counters and reasons.

The seed is printed; SOFTUNICAST_SEED and SOFTUNICAST_PACKETS choose others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from tests.support.fish_traffic import Traffic
from tests.support.fish_world import World, world

PACKETS = int(os.environ.get("SOFTUNICAST_PACKETS", "100000"))


@pytest.fixture
def node() -> Iterator[World]:
    with world() as made:
        yield made


def test_programs_and_oracle_agree(node: World) -> None:
    seed = int(os.environ.get("SOFTUNICAST_SEED", time.time_ns() % 1_000_000_007))
    print(f"seed {seed}")
    traffic = Traffic(node, seed)
    traffic.run(PACKETS)
    for what, count in sorted(traffic.tally.items()):
        print(f"{count:7} {what}")
    print(traffic.beside_tally, f"{node.aged_s} s")
