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

from softunicast.egress.arbiter_oracle import Broken
from softunicast.kernel.abi import Counter
from softunicast.steering.oracle import update_checksum
from tests.support import fish_packets
from tests.support.dataplane import u32
from tests.support.fish_traffic import Traffic
from tests.support.fish_world import World, world

PACKETS = int(os.environ.get("SOFTUNICAST_PACKETS", "100000"))
PARTS = 4
MINIMUM: dict[str, int] = {}


@pytest.fixture(scope="module")
def traffic() -> Iterator[Traffic]:
    seed = int(os.environ.get("SOFTUNICAST_SEED", time.time_ns() % 1_000_000_007))
    print(f"seed {seed}")
    with world() as node:
        yield Traffic(node, seed)


@pytest.mark.timeout(900)
@pytest.mark.parametrize("part", range(PARTS))
def test_programs_and_oracle_agree(traffic: Traffic, part: int) -> None:
    traffic.run(PACKETS // PARTS)


def test_every_verdict_was_met(traffic: Traffic) -> None:
    for what, count in sorted(traffic.tally.items()):
        print(f"{count:7} {what}")
    print(dict(traffic.beside_tally), f"{traffic.world.aged_s} s")
    print({name: traffic.world.count(Counter[name]) for name in ("STOLEN", "REAPED", "STALE_ORIGIN", "VERIFIED_FULL")})
