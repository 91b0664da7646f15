# SPDX-License-Identifier: Apache-2.0
"""Random packets: both steering programs and the Python oracle decide alike, byte for byte.

50,000 packets an entry, some 6 s each, on a node whose underlay has both families; a tenth of that on nodes with one.
The seed is printed on failure; SOFTUNICAST_SEED and SOFTUNICAST_PACKETS choose others.
"""

from __future__ import annotations

import os
import time
from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import replace

import pytest

from softunicast.kernel import netns
from softunicast.kernel.abi import Counter, Drop, Stats, Uplink, UplinkFlag
from softunicast.kernel.bpf import BpfObject
from softunicast.steering.oracle import Decision, Tables, Verdict, steer
from softunicast.steering.oracle_packet import Fragments
from tests.bpf import steer_support as support

TC_UNSPEC, TC_SHOT, TC_REDIRECT = 0xFFFFFFFF, 2, 7
XDP_DROP, XDP_PASS, XDP_TX, XDP_REDIRECT = 1, 2, 3, 4
TC_VERDICTS = {TC_UNSPEC: Verdict.PASS, TC_SHOT: Verdict.DROP, TC_REDIRECT: Verdict.CARRY}  # or ANSWER
XDP_VERDICTS = {
    XDP_DROP: Verdict.DROP,
    XDP_PASS: Verdict.PASS,
    XDP_TX: Verdict.CARRY,
    XDP_REDIRECT: Verdict.CARRY,
}
PACKETS = int(os.environ.get("SOFTUNICAST_PACKETS", "50000"))

# Each must be met at least that often in 2,000 packets, so that the comparison says something. No other may be met.
MINIMUM = {
    ("pass", Drop.NONE, False): 100,
    ("pass", Drop.NONE, True): 60,
    ("carry", Drop.NONE, False): 80,
    ("carry", Drop.NONE, True): 40,
    ("drop", Drop.NO_OWNER, False): 40,
    ("drop", Drop.STRANGER, False): 20,
    ("drop", Drop.GUE_MALFORMED, False): 40,
    ("drop", Drop.INNER_NOT_SLICE, False): 40,
    ("drop", Drop.INNER_INTERNAL, False): 40,
    ("drop", Drop.FINAL_NOT_MINE, True): 20,
    ("drop", Drop.TTL, False): 5,
    ("drop", Drop.MALFORMED, False): 40,
    ("drop", Drop.PROTOCOL, False): 10,
    ("drop", Drop.ERROR_UNKNOWN, False): 20,
    ("drop", Drop.TOO_BIG, False): 5,
    ("drop", Drop.ECN, False): 10,
    ("drop", Drop.SITE_DOWN, False): 10,
}
# The same by IP versions: of the tunnel a packet came in, of the one it went out by (0: none), and its own.
TUNNELS = {
    **{(came, 0, own): 4 for came in (4, 6) for own in (4, 6)},
    **{(0, went, own): 4 for went in (4, 6) for own in (4, 6)},
    **{(came, went, own): 1 for came in (4, 6) for went in (4, 6) for own in (4, 6)},
}
# Which packets meet a node that has no underlay address of their family.
ALONE = {"IPv4 only": ("10.0.1.11",), "IPv6 only": ("fd00:1::11",)}
# XDP leaves to tc behind what must be remembered.
AT_TC = {
    ("drop", Drop.FRAGMENT, False): 3,
    ("drop", Drop.FRAGMENT_EARLY, False): 20,
}
FOLLOWED = 60
"""Fragments of 2,000 packets whose ports the program knew."""


@pytest.fixture(scope="module")
def world() -> Iterator[tuple[str, int]]:
    """A namespace in which all underlay addresses have a route and a neighbour: what XDP needs to carry."""
    with support.neighbourhood() as found:
        yield found


@pytest.fixture(scope="module")
def steering(world: tuple[str, int]) -> Iterator[tuple[BpfObject, Tables]]:
    contents = support.map_contents((Uplink(world[1], support.MTU, UplinkFlag.XMIT),))
    with netns.enter(world[0]), support.load(contents) as loaded:
        yield loaded, support.tables(contents)


def totals(loaded: BpfObject) -> Stats:
    """Sums over CPUs."""
    each = [Stats.unpack(value) for value in loaded.maps["stats"].lookup_percpu(support.u32(0))]
    drops = tuple(sum(stats.drops[i] for stats in each) for i in range(len(each[0].drops)))
    counters = tuple(sum(stats.counters[i] for stats in each) for i in range(len(each[0].counters)))
    return Stats(drops, counters)


def describe(name: str, seed: int, number: int, frame: bytes, expected: Decision, got: object) -> str:
    return f"{name}, seed {seed}, packet {number}: {frame.hex()}\nexpected {expected}\ngot {got}"


@pytest.mark.parametrize("name", ["su_steer_tc", "su_steer"])
def test_the_programs_and_the_oracle_agree(
    name: str, steering: tuple[BpfObject, Tables], world: tuple[str, int]
) -> None:
    loaded, tables = steering
    seed = int(os.environ.get("SOFTUNICAST_SEED", time.time_ns() % 1_000_000_007))
    print(f"seed {seed}")
    generator, program = support.Generator(seed), loaded.programs[name]
    verdicts = TC_VERDICTS if name == "su_steer_tc" else XDP_VERDICTS
    met: Tally[tuple[str, Drop, bool]] = Tally()
    tunnels: Tally[tuple[int, int, int]] = Tally()
    fragments = Fragments()
    before = totals(loaded)
    with netns.enter(world[0]):
        for number in range(PACKETS):
            frame = generator.frame()
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            expected = steer(tables, frame, xdp=name == "su_steer", fragments=fragments, now_ns=now_ns)
            run = program.test_run(frame)
            verdict = verdicts.get(run.retval)
            if name == "su_steer" and expected.drop is Drop.TOO_BIG:
                # As it came, for tc behind, which decides the same and tells the sender.
                expected = replace(expected, verdict=Verdict.PASS, frame=frame)
            if verdict is Verdict.CARRY and expected.verdict is Verdict.ANSWER:
                verdict = Verdict.ANSWER
            met[expected.verdict.value, expected.drop, expected.uncovered] += 1
            assert verdict == expected.verdict, describe(name, seed, number, frame, expected, run.retval)
            tunnels[through(frame, expected)] += 1
            if verdict is not Verdict.DROP:
                # Ethernet addresses: XDP writes them, tc leaves that to the kernel.
                same = run.data[12:] == expected.frame[12:]
                assert same, describe(name, seed, number, frame, expected, run.data.hex())
    after = totals(loaded)
    print({f"{verdict} {drop.name} {carried}": count for (verdict, drop, carried), count in sorted(met.items())})

    dropped = Tally[Drop]()
    for (verdict, drop, _), count in met.items():
        dropped[drop] += count if verdict == "drop" else 0
    for drop in Drop:
        if drop is not Drop.NONE:
            assert after.drops[drop] - before.drops[drop] == dropped[drop], f"seed {seed}: counted {drop.name}"
    carried = sum(count for (verdict, _, _), count in met.items() if verdict == "carry")
    assert after.counters[Counter.CARRIED_OUT] - before.counters[Counter.CARRIED_OUT] == carried
    answered = met["answer", Drop.NONE, False]
    assert after.counters[Counter.PROBE_ANSWERED] - before.counters[Counter.PROBE_ANSWERED] == answered
    assert PACKETS < 2000 or (answered >= 10 * PACKETS // 2000) == (name == "su_steer_tc")
    followed = after.counters[Counter.FRAGMENTS] - before.counters[Counter.FRAGMENTS]
    assert followed == fragments.followed
    assert PACKETS < 2000 or (followed >= FOLLOWED * PACKETS // 2000) == (name == "su_steer_tc")
    minimum = MINIMUM | (AT_TC if name == "su_steer_tc" else {})
    unknown = {drop for _, drop, _ in met} - {drop for _, drop, _ in minimum}
    assert not unknown, f"seed {seed}: reasons without a minimum: {unknown}"
    wanted = {key: least * PACKETS // 2000 for key, least in minimum.items()} if PACKETS >= 2000 else {}
    lacking = {key: met[key] for key, least in wanted.items() if sum_like(met, key) < least}
    print(dict(sorted(tunnels.items())))
    few = {key: tunnels[key] for key, least in TUNNELS.items() if tunnels[key] < least * PACKETS // 2000}
    assert not few or PACKETS < 2000, f"seed {seed}: too few through tunnels: {few}"
    assert not lacking, f"seed {seed}: too few to say anything: {lacking}"


def version(packet: bytes) -> int:
    return packet[0] >> 4


def through(frame: bytes, decision: Decision) -> tuple[int, int, int]:
    """The IP versions of TUNNELS; all 0 for what is dropped or answered."""
    if decision.verdict not in (Verdict.PASS, Verdict.CARRY):
        return 0, 0, 0
    came = version(frame[14:]) if decision.uncovered else 0
    if decision.verdict is Verdict.PASS:
        return came, 0, version(decision.frame[14:])
    went = version(decision.frame[14:])
    return came, went, version(decision.frame[14 + (52 if went == 6 else 32) :])


@pytest.mark.parametrize("name", ["su_steer_tc", "su_steer"])
@pytest.mark.parametrize("alone", ALONE)
def test_they_agree_where_a_node_has_no_address_of_that_family(name: str, alone: str, world: tuple[str, int]) -> None:
    contents = support.map_contents((Uplink(world[1], support.MTU, UplinkFlag.XMIT),))
    seed = int(os.environ.get("SOFTUNICAST_SEED", time.time_ns() % 1_000_000_007))
    print(f"seed {seed}")
    generator, tables, fragments = support.Generator(seed), support.tables(contents, *ALONE[alone]), Fragments()
    refused = carried = 0
    with netns.enter(world[0]), support.load(contents, *ALONE[alone]) as loaded:
        for number in range(PACKETS // 10):
            frame = generator.frame()
            now_ns = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
            expected = steer(tables, frame, xdp=name == "su_steer", fragments=fragments, now_ns=now_ns)
            run = loaded.programs[name].test_run(frame)
            if name == "su_steer" and expected.drop is Drop.TOO_BIG:
                expected = replace(expected, verdict=Verdict.PASS, frame=frame)
            verdict = (TC_VERDICTS if name == "su_steer_tc" else XDP_VERDICTS)[run.retval]
            wanted = Verdict.CARRY if expected.verdict is Verdict.ANSWER else expected.verdict
            assert verdict is wanted, describe(name, seed, number, frame, expected, run.retval)
            if verdict is not Verdict.DROP:
                same = run.data[12:] == expected.frame[12:]
                assert same, describe(name, seed, number, frame, expected, run.data.hex())
            refused += expected.drop is Drop.ENCAP
            carried += expected.verdict is Verdict.CARRY
        assert totals(loaded).drops[Drop.ENCAP] == refused
    assert PACKETS < 20000 or min(refused, carried) >= PACKETS // 2000


def sum_like(met: Tally[tuple[str, Drop, bool]], key: tuple[str, Drop, bool]) -> int:
    """Drops count whether the tunnel was passed before or not; verdicts are told apart."""
    if key[0] != "drop":
        return met[key]
    return sum(count for (_, drop, _), count in met.items() if drop == key[1])
