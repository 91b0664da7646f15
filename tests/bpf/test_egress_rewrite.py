# SPDX-License-Identifier: Apache-2.0
"""Rewriting over IPv6, and on kernels that do not say what a packet's checksum is (before 6.2)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.kernel.abi import Drop
from softunicast.kernel.bpf import object_path
from softunicast.wire.craft import echo, icmp_error, tcp, udp
from softunicast.wire.packet import parse
from tests.bpf.egress_bench import REDIRECT, Bench, bench
from tests.support.dataplane import CLIENT, CLIENT6, SERVER, SERVER6, SLICE, SLICE6
from tests.support.packets import ACK, SYN, extension, fragment6, header4, header6, routing

SOURCES = Path(__file__).parents[2] / "bpf"
KNOWING = "if (!bpf_cast_to_kern_ctx)"


@pytest.fixture(scope="module", params=["direct", "by helpers"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    if request.param == "direct":
        with bench(object_path("egress")) as made:
            yield made
        return
    folder = tmp_path_factory.mktemp("old-kernel")
    shutil.copytree(SOURCES, folder / "bpf")
    old = folder / "bpf" / "include" / "rewrite.h"
    text = old.read_text()
    assert KNOWING in text
    old.write_text(text.replace(KNOWING, "if (1)"))
    build = ["make", "-s", "-C", str(folder / "bpf"), f"OUT={folder}", f"{folder}/egress.bpf.o"]
    subprocess.run(build, check=True, capture_output=True, timeout=60)
    with bench(folder / "egress.bpf.o") as made:
        yield made


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    loaded.plane.add_slice(SLICE6, 9000, 9009)
    return loaded


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
def test_there_and_back(b: Bench, version: int, proto: str) -> None:
    client, server, outside = (CLIENT, SERVER, SLICE) if version == 4 else (CLIENT6, SERVER6, SLICE6)
    body = b"odd" * 33

    def make(source: str, sport: int, target: str, dport: int, ttl: int, reply: bool = False) -> bytes:
        if proto == "tcp":
            return tcp(source, sport, target, dport, body, flags=SYN | (ACK if reply else 0), ttl=ttl)
        if proto == "udp":
            return udp(source, sport, target, dport, body, ttl=ttl)
        return echo(source, target, dport if reply else sport, payload=body, reply=reply, ttl=ttl)

    for _ in range(2):
        ran = b.out(make(client, 40000, server, 443, 64))
        assert ran.verdict == REDIRECT
        port = b.the_claim()[0].local_port
        assert ran.data[14:] == make(outside, port, server, 443, 63)
    ran = b.back(make(server, 443, outside, port, 50, reply=True))
    assert ran.verdict == REDIRECT
    assert ran.data[14:] == make(server, 443, client, 40000, 49, reply=True)
    assert b.plane.drops() == {}


CHAINS = {
    "hop-by-hop": [extension(0)],
    "options before and behind": [extension(0, 1), extension(60, 3), routing(0), extension(60)],
    "six, of 128 bytes": [extension(60, 2)] * 4 + [extension(60, 1)] * 2,
    "a fragment header of a whole packet": [fragment6(7)],
}


@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
def test_there_and_back_behind_extension_headers(b: Bench, name: str, proto: str) -> None:
    def make(source: str, sport: int, target: str, dport: int, ttl: int, reply: bool = False) -> bytes:
        if proto == "tcp":
            packet = tcp(source, sport, target, dport, b"odd", flags=SYN | (ACK if reply else 0), ttl=ttl)
        elif proto == "udp":
            packet = udp(source, sport, target, dport, b"odd", ttl=ttl)
        else:
            packet = echo(source, target, dport if reply else sport, reply=reply, ttl=ttl)
        return header6(packet, *CHAINS[name])

    for _ in range(2):
        ran = b.out(make(CLIENT6, 40000, SERVER6, 443, 64))
        port = b.the_claim()[0].local_port
        assert ran.data[14:] == make(SLICE6, port, SERVER6, 443, 63)
    ran = b.back(make(SERVER6, 443, SLICE6, port, 50, reply=True))
    assert ran.verdict == REDIRECT
    assert ran.data[14:] == make(SERVER6, 443, CLIENT6, 40000, 49, reply=True)
    quoted = make(SLICE6, port, SERVER6, 443, 60)
    ran = b.back(header6(icmp_error("2001:db8:e::1", SLICE6, 3, 0, quoted), *CHAINS[name]))
    assert ran.verdict == REDIRECT
    assert ran.data.endswith(make(CLIENT6, 40000, SERVER6, 443, 60))
    assert str(ran.packet.destination) == CLIENT6
    assert b.plane.drops() == {}


UNKNOWN = {
    "AH": [(51, bytes(7))],
    "mobility": [(135, bytes(7))],
    "a way to go": [routing(1)],
    "seven": [extension(60)] * 7,
    "136 bytes": [extension(60, 16)],
}


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_behind_other_chains_is_not_looked_for(b: Bench, name: str) -> None:
    b.out(header6(udp(CLIENT6, 40000, SERVER6, 53), *UNKNOWN[name]))
    b.back(header6(udp(SERVER6, 53, SLICE6, 9000), *UNKNOWN[name]))
    assert b.plane.drops() == {Drop.PROTOCOL: 2}
    assert b.plane.flows() == {}


@pytest.mark.parametrize("proto", ["udp", "echo"])
def test_icmp6_errors_both_ways(b: Bench, proto: str) -> None:
    def out(source: str, port: int) -> bytes:
        return udp(source, port, SERVER6, 53, b"q") if proto == "udp" else echo(source, SERVER6, port)

    def back(target: str, port: int) -> bytes:
        return udp(SERVER6, 53, target, port, b"a") if proto == "udp" else echo(SERVER6, target, port, reply=True)

    b.out(out(CLIENT6, 4000))
    port = b.the_claim()[0].local_port
    ran = b.back(icmp_error("2001:db8:e::1", SLICE6, 3, 0, out(SLICE6, port)))
    assert ran.verdict == REDIRECT
    assert ran.data[14 + 48 :] == out(CLIENT6, 4000)
    assert str(ran.packet.destination) == CLIENT6
    ran = b.out(icmp_error(CLIENT6, SERVER6, 1, 4, back(CLIENT6, 4000)))
    assert ran.verdict == REDIRECT
    assert ran.packet.quoted == parse(back(SLICE6, port), quoted=True)
    assert b.plane.drops() == {}


def bare_udp(source: str, sport: int, target: str, dport: int, ttl: int) -> bytes:
    """Without a checksum."""
    whole = udp(source, sport, target, dport, b"odd", ttl=ttl)
    at = 26 if whole[0] >> 4 == 4 else 46
    return whole[:at] + b"\0\0" + whole[at + 2 :]


@pytest.mark.parametrize("version", [4, 6])
def test_udp_without_checksum_stays_without(b: Bench, version: int) -> None:
    """In quotations too. IPv6 has such in tunnels (RFC 6935)."""
    client, server, outside = (CLIENT, SERVER, SLICE) if version == 4 else (CLIENT6, SERVER6, SLICE6)
    ran = b.out(bare_udp(client, 40000, server, 443, 64))
    port = b.the_claim()[0].local_port
    assert ran.data[14:] == bare_udp(outside, port, server, 443, 63)
    assert b.back(bare_udp(server, 443, outside, port, 50)).data[14:] == bare_udp(server, 443, client, 40000, 49)
    kind = (3, 3) if version == 4 else (1, 4)
    ran = b.back(icmp_error(server, outside, *kind, bare_udp(outside, port, server, 443, 50)))
    assert ran.data.endswith(bare_udp(client, 40000, server, 443, 50))
    assert ran.packet.is_error
    assert b.plane.drops() == {}


@pytest.mark.parametrize("size", [4, 40])
@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
def test_ip4_options_are_kept(b: Bench, proto: str, size: int) -> None:
    def make(source: str, sport: int, target: str, dport: int, ttl: int, reply: bool = False) -> bytes:
        if proto == "tcp":
            packet = tcp(source, sport, target, dport, b"odd", flags=SYN | (ACK if reply else 0), ttl=ttl)
        elif proto == "udp":
            packet = udp(source, sport, target, dport, b"odd", ttl=ttl)
        else:
            packet = echo(source, target, dport if reply else sport, reply=reply, ttl=ttl)
        return header4(packet, options=b"\x94\x04\0\0" + b"\x01" * (size - 4))

    for _ in range(2):
        ran = b.out(make(CLIENT, 40000, SERVER, 443, 64))
        port = b.the_claim()[0].local_port
        assert ran.data[14:] == make(SLICE, port, SERVER, 443, 63)
    ran = b.back(make(SERVER, 443, SLICE, port, 50, reply=True))
    assert ran.data[14:] == make(SERVER, 443, CLIENT, 40000, 49, reply=True)
    error = header4(icmp_error("203.0.113.9", SLICE, 11, 0, make(SLICE, port, SERVER, 443, 1)), options=b"\x01" * 8)
    ran = b.back(error)
    assert ran.data.endswith(make(CLIENT, 40000, SERVER, 443, 1))
    assert str(ran.packet.destination) == CLIENT
    assert b.plane.drops() == {}


def test_ping_to_a_slice_is_answered(b: Bench) -> None:
    ran = b.back(echo(SERVER6, SLICE6, 7, 3, b"payload"))
    assert ran.data[14:] == echo(SLICE6, SERVER6, 7, 3, b"payload", reply=True)


@pytest.mark.parametrize("first", [0xFFFF, 0x0000, 0x1234])
def test_check_that_becomes_zero(b: Bench, first: int) -> None:
    """Payloads over which some checksum passes through 0 and 0xffff: each must come out right."""
    for word in range(0, 65536, 4099):
        payload = first.to_bytes(2, "big") + word.to_bytes(2, "big")
        assert b.out(udp(CLIENT, 40000, SERVER, 53, payload)).packet.ttl == 63
    port = b.the_claim()[0].local_port
    exact = next(
        word for word in range(65536) if udp(SLICE, port, SERVER, 53, word.to_bytes(2, "big"))[26:28] == b"\xff\xff"
    )
    ran = b.out(udp(CLIENT, 40000, SERVER, 53, exact.to_bytes(2, "big")))
    assert ran.data[14 + 26 : 14 + 28] == b"\xff\xff"
