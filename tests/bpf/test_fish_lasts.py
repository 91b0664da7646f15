# SPDX-License-Identifier: Apache-2.0
"""Without an agent: new flows go on for three times the map's size, dead claims are swept and stolen, live ones stay.

And a million flows at once: what they take, and that a sweep ends them all.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from bench import limits, plane, tools
from bench.forward import fresh, path
from softunicast.kernel import netns
from softunicast.kernel.abi import Counter
from softunicast.kernel.abi_util import word_generation
from softunicast.kernel.bpf import BpfObject, object_path
from softunicast.wire.craft import udp
from tests.bpf.egress_bench import REDIRECT, Bench, bench
from tests.support.ageing import age
from tests.support.dataplane import CLIENT, MAP_SIZES, MARK, SERVER
from tests.support.wait import wait_until

LIVE = 100
STEP_S = 60
NEW = 80  # with what lives, not quite half of the map
MIB = 1 << 20


@pytest.fixture
def b() -> Iterator[Bench]:
    with bench() as made:
        made.reset()
        yield made


def live(b: Bench, client: str = CLIENT, count: int = LIVE) -> list[int]:
    """A packet of each living flow; their ports outside."""
    ports = []
    for port in range(1, count + 1):
        ran = b.out(udp(client, port, SERVER, 53, b"alive"))
        assert (ran.verdict, ran.mark) == (REDIRECT, MARK)
        assert ran.packet.source_port is not None
        ports.append(ran.packet.source_port)
    return ports


def generations(b: Bench) -> dict[object, int]:
    return {flow: word_generation(claim.word) for flow, claim in b.plane.flows().items()}


def test_ever_new_destinations_for_three_times_the_map(b: Bench) -> None:
    b.plane.add_slice("198.51.100.30", 2048, 2047 + 2048)
    ports = live(b)
    held = generations(b)
    begun = 0
    while begun < 3 * MAP_SIZES["flows"]:
        age(b.plane.object.maps, STEP_S)
        assert live(b) == ports
        for _ in range(NEW):
            target = str(ip_address("203.0.0.1") + begun % 60_000)
            ran = b.out(udp(CLIENT, 1000 + begun % 50_000, target, 53))
            assert ran.mark == MARK, f"flow {begun}: {b.plane.drops()}"
            begun += 1
    now = generations(b)
    assert all(now[flow] == generation for flow, generation in held.items())
    assert b.plane.drops() == {}
    assert b.plane.count(Counter.REAPED) >= begun - MAP_SIZES["flows"]


def test_expired_claims_are_stolen_live_ones_are_not(b: Bench) -> None:
    """Ten ports towards one destination; three flows live, seven come anew each time that the last seven expired."""
    ports = live(b, count=3)
    held = generations(b)
    for turn in range(40):
        for number in range(7):
            ran = b.out(udp(CLIENT, 1000 + turn * 7 + number, SERVER, 53))
            assert ran.mark == MARK, f"turn {turn}: {b.plane.drops()}"
        assert len(b.plane.flows()) == 10
        for _ in range(6):
            age(b.plane.object.maps, STEP_S)
            assert live(b, count=3) == ports
    assert b.plane.drops() == {}
    now = generations(b)
    assert all(now[flow] == generation for flow, generation in held.items())
    assert b.plane.count(Counter.STOLEN) + b.plane.count(Counter.REAPED) >= 39 * 7
    assert b.plane.count(Counter.STOLEN) > 0


def test_a_million_flows_and_their_sweep(tmp_path: Path) -> None:
    helpers = tools.compile_helpers(tmp_path)
    with path("fish", helpers) as found, fresh(found, limits.SIZES) as loaded:
        assert loaded is not None
        sent = limits.fill_million(found)
        assert sent.arrived == limits.FLOWS
        whole = sum(limits.memlock(held) for held in loaded.maps.values())
        print(f"{whole / MIB:.0f} MiB, all maps")
        assert whole < 1024 * MIB
        # The sweep of an agent whose timers are short: it is the settings of the sweeping program that count.
        settings = replace(plane.SETTINGS, slots=limits.SIZES["slots"], udp_s=1)
        shared = {name: held for name, held in loaded.maps.items() if "rodata" not in name and "bss" not in name}
        with netns.enter(found.node), BpfObject.load(
            object_path("claim"), settings=settings.pack(), reuse=shared, map_sizes=limits.SIZES, programs={"su_sweep"}
        ) as claims:  # fmt: skip
            until = time.clock_gettime(time.CLOCK_BOOTTIME) + 2
            wait_until(lambda: time.clock_gettime(time.CLOCK_BOOTTIME) > until, 10, "all are older than a second")
            began = time.monotonic()
            done = claims.programs["su_sweep"].test_run(ctx=bytes(16))
            print(f"swept in {time.monotonic() - began:.2f} s")
        seen, reaped = struct.unpack("=QQ", done.ctx)
        assert (seen, reaped) == (limits.FLOWS, limits.FLOWS)
        for name in ("flows", "origin"):
            assert next(loaded.maps[name].keys(), None) is None
        assert found.send(1_000, 10, 100).arrived == 1_000
