# SPDX-License-Identifier: Apache-2.0
"""100,000 packets in sequence, from on-ramps, the uplink and the stack, malformed ones too, with sockets' claims beside
them and a clock that jumps: the programs and the oracle agree on verdict, bytes, claims, hints, counters and reasons.

The seed is printed; SOFTUNICAST_SEED and SOFTUNICAST_PACKETS choose others.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace

import pytest

from softunicast.egress.arbiter_oracle import Broken, Holder, Phase
from softunicast.kernel.abi import Counter
from softunicast.wire.craft import udp
from tests.support import fish_packets
from tests.support.fish_traffic import Traffic
from tests.support.fish_world import world
from tests.support.packets import frame

PACKETS = int(os.environ.get("SOFTUNICAST_PACKETS", "100000"))
PARTS = 4
# Each must be met so often in 100,000 packets, so that the comparison says something.
MINIMUM = {
    "guard claimed": 200,
    "guard drop FRAGMENT": 5,
    "guard drop FRAGMENT_EARLY": 60,
    "guard drop GUARD_FOREIGN": 100,
    "guard drop GUARD_NO_CLAIM": 1000,
    "guard drop MALFORMED": 20,
    "guard drop NO_SLICE": 20,
    "guard drop TABLE_FULL": 10,
    "guard marked": 200,
    "guard other": 400,
    "guard passed": 1000,
    "guard passed later fragment": 5,
    "guard rewritten": 300,
    "onramp ICMP HOPS": 1000,
    "onramp ICMP NO_SLICE": 1000,
    "onramp ICMP PROTOCOL": 100,
    "onramp ICMP SLICE_FULL": 10,
    "onramp ICMP TABLE_FULL": 50,
    "onramp ICMP TOO_BIG": 200,
    "onramp RST NO_SLICE": 600,
    "onramp RST SLICE_FULL": 10,
    "onramp RST TABLE_FULL": 30,
    "onramp drop ERROR_UNKNOWN": 500,
    "onramp drop FRAGMENT": 20,
    "onramp drop FRAGMENT_EARLY": 200,
    "onramp drop MALFORMED": 300,
    "onramp drop NOT_INITIAL": 1000,
    "onramp drop NOT_READY": 20,
    "onramp drop ONRAMP": 300,
    "onramp drop PROTOCOL": 300,
    "onramp drop SPOOFED": 300,
    "onramp drop TO_FLEET": 100,
    "onramp error": 100,
    "onramp known": 3000,
    "onramp known later fragment": 200,
    "onramp new": 3000,
    "onramp stack": 1000,
    "onramp stack: not IP": 100,
    "uplink ICMP TOO_BIG": 5,
    "uplink carried": 20,
    "uplink client": 1000,
    "uplink client later fragment": 20,
    "uplink drop ERROR_UNKNOWN": 500,
    "uplink drop FRAGMENT_EARLY": 200,
    "uplink drop GUE_MALFORMED": 20,
    "uplink drop INBOUND_NEW": 40,
    "uplink drop INNER_NOT_SLICE": 100,
    "uplink drop MALFORMED": 70,
    "uplink drop NO_CLAIM": 300,
    "uplink drop NO_OWNER": 500,
    "uplink drop ONRAMP": 200,
    "uplink drop PROTOCOL": 500,
    "uplink drop STRANGER": 300,
    "uplink drop TTL": 200,
    "uplink error to client": 200,
    "uplink local": 300,
    "uplink peer": 70,
    "uplink ping": 200,
    "uplink ping later fragment": 4,
    "uplink probe": 200,
    "uplink socket": 5000,
    "uplink stack": 1000,
}


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


COUNTERS = (Counter.STOLEN, Counter.REAPED, Counter.STALE_ORIGIN, Counter.VERIFIED_FULL)


def too_few(traffic: Traffic) -> dict[str, int]:
    """What was met less often than it should."""
    counted = {counter.name: traffic.world.count(counter) for counter in COUNTERS}
    least = {counter.name: PACKETS // 5000 for counter in COUNTERS}
    least |= {what: minimum * PACKETS // 100_000 for what, minimum in MINIMUM.items()}
    found = {**counted, **traffic.tally}
    return {what: found.get(what, 0) for what, minimum in least.items() if found.get(what, 0) < minimum}


@pytest.mark.timeout(900)
def test_every_verdict_was_met(traffic: Traffic) -> None:
    # Some come in clusters, a few of them in all packets: chance is given more of these before it is blamed.
    for _ in range(12):
        if not too_few(traffic):
            break
        traffic.run(PACKETS // PARTS)
    for what, count in sorted(traffic.tally.items()):
        print(f"{count:7} {what}")
    print(dict(traffic.beside_tally), f"{traffic.world.aged_s} s")
    for counter in COUNTERS:
        print(counter.name, traffic.world.count(counter))
    assert not too_few(traffic)


def test_a_difference_is_found(traffic: Traffic, monkeypatch: pytest.MonkeyPatch) -> None:
    """The judge notices another checksum, another state, another reason."""
    node = traffic.world
    known = frame(udp("10.8.0.2", 7, "203.0.113.9", 7, b"x"))
    node.set_ready(True)
    node.set_slice(0)
    # Whatever lives in the full table: there is room for one flow more.
    node.age(10_000)
    node.sweep()
    sockets = [key for key, held in node.fish.arbiter.claims.items() if held.holder is Holder.SOCKET]
    for key in sockets[:8]:
        node.end(key, linger=False)
    assert node.packet("su_onramp_in", "fish1", known) == "onramp new"
    with monkeypatch.context() as patch, pytest.raises(Broken, match="left as"):
        patch.setattr(fish_packets, "_updated", lambda check, old, new: check)
        node.packet("su_onramp_in", "fish1", known)
    with pytest.raises(Broken, match="dropped for"):
        node.fish.ready = False
        node.packet("su_onramp_in", "fish1", frame(udp("10.8.0.2", 8, "203.0.113.9", 8, b"x")))
    key, held = next((key, held) for key, held in node.fish.arbiter.claims.items() if held.phase is Phase.NEW)
    node.fish.ready = True
    node.fish.arbiter.claims[key] = replace(held, phase=Phase.OPEN)
    with pytest.raises(Broken, match=r"was expected|nobody asked"):
        node.compare()
