# SPDX-License-Identifier: Apache-2.0
"""What an IPv6 client, and a sender whose answer does not fit the tunnel, is told: packet in, packet out."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from softunicast.kernel.abi import Counter, Drop
from softunicast.wire.craft import echo, icmp_error, ip, tcp, udp
from tests.bpf.egress_bench import REDIRECT, SHOT, Bench, bench
from tests.support.dataplane import CLIENT6, GATEWAY6, MARK, OTHER, SERVER6, SLICE6
from tests.support.packets import ACK, RST, SYN, extension, fragment6, header6

ROUTER6 = "2001:db8:e::1"
BODY = b"odd" * 33


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    return loaded


@dataclass(frozen=True)
class Told:
    name: str
    packet: bytes
    drop: Drop
    answer: tuple[int, int] | None
    quoted: int = 48


LONG = [extension(60, 2)] * 4 + [extension(60, 1)] * 2
TOLD = [
    Told("udp", udp(CLIENT6, 1, SERVER6, 53, BODY), Drop.NO_SLICE, (1, 4)),
    Told("udp behind a chain", header6(udp(CLIENT6, 1, SERVER6, 53, BODY), *LONG), Drop.NO_SLICE, (1, 4), 176),
    Told("echo", echo(CLIENT6, SERVER6, 7, payload=BODY), Drop.NO_SLICE, (1, 3)),
    Told("last hop", tcp(CLIENT6, 1, SERVER6, 443, BODY, ttl=1), Drop.HOPS, (3, 0), 60),
    Told("gre", ip(CLIENT6, SERVER6, 47, BODY), Drop.PROTOCOL, (1, 1)),
    Told("short", ip(CLIENT6, SERVER6, 47, b"xyz"), Drop.PROTOCOL, (1, 1), 43),
    Told("error", icmp_error(CLIENT6, SERVER6, 1, 4, udp(SERVER6, 53, CLIENT6, 1)), Drop.ERROR_UNKNOWN, None),
    Told("error, last hop", icmp_error(CLIENT6, SERVER6, 1, 4, udp(SERVER6, 53, CLIENT6, 1), ttl=1), Drop.HOPS, None),
    Told("spoofed", udp("2001:db8:9::2", 1, SERVER6, 53), Drop.SPOOFED, None),
    Told("no flow", tcp(CLIENT6, 1, SERVER6, 443, flags=ACK), Drop.NOT_INITIAL, None),
]


@pytest.mark.parametrize("case", TOLD, ids=lambda case: case.name)
def test_told(b: Bench, case: Told) -> None:
    ran = b.out(case.packet)
    assert b.plane.drops() == {case.drop: 1}
    assert b.plane.flows() == {}
    if case.answer is None:
        assert ran.verdict == SHOT
        return
    assert ran.verdict == REDIRECT
    assert ran.data[14:] == icmp_error(GATEWAY6, CLIENT6, *case.answer, case.packet[: case.quoted])
    assert b.plane.count(Counter.ICMP_SENT) == 1


@pytest.mark.parametrize("chain", [[], [extension(0, 1)]], ids=["plain", "behind a chain"])
def test_syn_is_refused(b: Bench, chain: list[tuple[int, bytes]]) -> None:
    ran = b.out(header6(tcp(CLIENT6, 40000, SERVER6, 443, b"early", flags=SYN, sequence=0xFFFFFFFE), *chain))
    assert ran.verdict == REDIRECT
    wanted = tcp(SERVER6, 443, CLIENT6, 40000, flags=RST | ACK, acknowledgement=4, window=0)
    assert ran.data[14:] == wanted
    assert b.plane.count(Counter.RST_SENT) == 1


def test_too_big_for_the_uplink(b: Bench) -> None:
    b.plane.add_slice(SLICE6, 9000, 9009)
    assert b.out(udp(CLIENT6, 40000, SERVER6, 53, b"x" * 1552)).verdict == REDIRECT
    too_big = udp(CLIENT6, 40000, SERVER6, 53, b"x" * 1553)
    ran = b.out(too_big)
    assert ran.data[14:] == icmp_error(GATEWAY6, CLIENT6, 2, 0, too_big[:48], rest=1600)
    assert b.plane.drops() == {Drop.TOO_BIG: 1}


def test_too_big_for_the_tunnel(b: Bench) -> None:
    b.plane.add_slice(SLICE6, 9010, 9019, node=OTHER)
    fits, too_big = (udp(SERVER6, 53, SLICE6, 9012, b"x" * (1600 - 32 - 48 + more)) for more in (0, 1))
    assert b.back(fits).verdict == REDIRECT
    ran = b.back(too_big)
    assert (ran.verdict, ran.mark) == (REDIRECT, MARK)
    assert ran.data[14:] == icmp_error(SLICE6, SERVER6, 2, 0, too_big[:48], rest=1568)
    whole = icmp_error(ROUTER6, SLICE6, 3, 0, udp(SLICE6, 9012, SERVER6, 53, b"x" * 1600))
    assert b.back(whole).verdict == SHOT
    told = sum(b.back(header6(too_big, fragment6(3))).verdict == REDIRECT for _ in range(2000))
    assert told < 1000
    assert b.plane.drops() == {Drop.TOO_BIG: 2002}
