# SPDX-License-Identifier: Apache-2.0
"""What a NAT leaves alone: DSCP and ECN, the IPv4 id and DF, types and codes of errors, checksums that were wrong
before, and claims that an error tells of (RFC 2474, 3168, 5508, 6864)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace

import pytest

from softunicast.kernel.abi import Drop, Flow, State
from softunicast.kernel.abi_util import word_seen_s, word_state
from softunicast.wire.checksum import checksum
from softunicast.wire.craft import echo, icmp_error, tcp, udp
from softunicast.wire.packet import checksum_errors, parse
from tests.bpf.egress_bench import REDIRECT, SHOT, Bench, bench
from tests.support.dataplane import CLIENT, CLIENT6, SERVER, SERVER6, SLICE, SLICE6, packed
from tests.support.packets import ACK, RST, SYN, header4

ROUTER = "203.0.113.77"


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    loaded.plane.add_slice(SLICE6, 9000, 9009)
    return loaded


def fields(packet: bytes, tos: int, ident: int = 0, flags: int = 0x4000) -> bytes:
    """An IPv4 packet with that DSCP and ECN, id and flags; an IPv6 one with that traffic class and a flow label."""
    if packet[0] >> 4 == 6:
        return struct.pack("!I", 6 << 28 | tos << 20 | 0xABCDE) + packet[4:]
    head = (
        packet[:1]
        + bytes([tos])
        + packet[2:4]
        + struct.pack("!HH", ident, flags)
        + packet[8:10]
        + b"\0\0"
        + packet[12:20]
    )
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + packet[20:]


@pytest.mark.parametrize("tos", [0, 0xB8 | 2, 0x28 | 1, 0xFF], ids=["none", "EF, ECT(0)", "AF11, ECT(1)", "all, CE"])
@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
@pytest.mark.parametrize("version", [4, 6])
def test_dscp_ecn_and_the_rest_of_the_header_are_kept(b: Bench, version: int, proto: str, tos: int) -> None:
    client, server, outer = (CLIENT, SERVER, SLICE) if version == 4 else (CLIENT6, SERVER6, SLICE6)

    def make(source: str, sport: int, target: str, dport: int, ttl: int, *, reply: bool = False) -> bytes:
        if proto == "echo":
            made = echo(source, target, dport if reply else sport, reply=reply, ttl=ttl)
        elif proto == "tcp":
            made = tcp(source, sport, target, dport, flags=SYN | (ACK if reply else 0), ttl=ttl)
        else:
            made = udp(source, sport, target, dport, b"x", ttl=ttl)
        return fields(made, tos, 0xBEEF, 0)

    ran = b.out(make(client, 40000, server, 443, 64))
    port = b.the_claim()[0].local_port
    assert ran.data[14:] == make(outer, port, server, 443, 63)
    ran = b.back(make(server, 443, outer, port, 60, reply=True))
    assert ran.data[14:] == make(server, 443, client, 40000, 59, reply=True)


def begun(b: Bench) -> int:
    """A client's flow; its outer port."""
    b.out(udp(CLIENT, 40000, SERVER, 53, b"question"))
    return b.the_claim()[0].local_port


ERRORS = [(3, code) for code in range(16)] + [(11, 0), (11, 1), (12, 0), (12, 2)]


@pytest.mark.parametrize(("kind", "code"), ERRORS)
def test_errors_of_each_type_and_code_come_through_both_ways(b: Bench, kind: int, code: int) -> None:
    """RFC 5508 REQ-4, REQ-5: type, code, and the next hop's MTU as they were; what is quoted as it was sent."""
    port = begun(b)
    seen = icmp_error(ROUTER, SLICE, kind, code, udp(SLICE, port, SERVER, 53, b"question", ttl=9), rest=1300)
    ran = b.back(seen)
    assert ran.verdict == REDIRECT
    quoted = udp(CLIENT, 40000, SERVER, 53, b"question", ttl=9)
    assert ran.data[14:] == icmp_error(ROUTER, CLIENT, kind, code, quoted, rest=1300, ttl=63)
    ran = b.out(icmp_error(CLIENT, SERVER, kind, code, udp(SERVER, 53, CLIENT, 40000, b"answer", ttl=9), rest=1300))
    quoted = udp(SERVER, 53, SLICE, port, b"answer", ttl=9)
    assert ran.data[14:] == icmp_error(SLICE, SERVER, kind, code, quoted, rest=1300, ttl=63)


def test_an_error_about_a_packet_with_options(b: Bench) -> None:
    """RFC 5508 REQ-3b: the ports are behind them."""
    port = begun(b)
    quoted = header4(udp(SLICE, port, SERVER, 53, b"question"), options=b"\x01" * 8)
    ran = b.back(icmp_error(ROUTER, SLICE, 3, 3, quoted))
    assert ran.data.endswith(header4(udp(CLIENT, 40000, SERVER, 53, b"question"), options=b"\x01" * 8))
    assert ran.packet.is_error


def test_an_error_with_extensions(b: Bench) -> None:
    """RFC 5508 REQ-3d: an extension structure behind the quotation (RFC 4884) is no part of it, and comes along."""
    port = begun(b)
    padding = bytes(128 - 36)
    extension = b"\x20\0\0\0" + struct.pack("!HBB", 8, 1, 1) + b"\0\x01\x01\xff"
    quoted = udp(SLICE, port, SERVER, 53, b"question")
    ran = b.back(icmp_error(ROUTER, SLICE, 11, 0, quoted + padding + extension, rest=32 << 16))
    assert ran.packet.icmp_type == 11
    assert ran.data.endswith(udp(CLIENT, 40000, SERVER, 53, b"question") + padding + extension)


@pytest.mark.parametrize("where", ["icmp", "quoted header", "quoted udp"])
def test_a_wrong_checksum_stays_wrong(b: Bench, where: str) -> None:
    """RFC 5508 REQ-3: nothing is validated here, and no error is made to look right: its receiver drops it."""
    port = begun(b)
    right = icmp_error(ROUTER, SLICE, 3, 3, udp(SLICE, port, SERVER, 53, b"question"))
    at = {"icmp": 22, "quoted header": 28 + 10, "quoted udp": 28 + 20 + 6}[where]
    wrong = bytearray(right)
    wrong[at] ^= 0x55
    good, bad = b.back(right), b.back(bytes(wrong))
    assert (good.verdict, bad.verdict) == (REDIRECT, REDIRECT)
    if where == "icmp":
        assert checksum_errors(bad.data[14:]) == ("icmp",)
    else:
        assert good.data[14:][at : at + 2] != bad.data[14:][at : at + 2]
    assert checksum_errors(good.data[14:]) == ()


@pytest.mark.parametrize("way", ["in", "out"])
@pytest.mark.parametrize("proto", ["tcp", "udp", "echo"])
def test_an_error_neither_ends_nor_keeps_a_flow(b: Bench, proto: str, way: str) -> None:
    """RFC 4787 REQ-12, RFC 5382 REQ-10, RFC 5508 REQ-6; outwards RFC 7857 section 7.1."""

    def out(source: str, port: int) -> bytes:
        if proto == "echo":
            return echo(source, SERVER, port)
        return tcp(source, port, SERVER, 443) if proto == "tcp" else udp(source, port, SERVER, 443)

    def back(target: str, port: int) -> bytes:
        if proto == "echo":
            return echo(SERVER, target, port, reply=True)
        return tcp(SERVER, 443, target, port, flags=ACK) if proto == "tcp" else udp(SERVER, 443, target, port)

    b.out(out(CLIENT, 40000))
    flow, claim = b.the_claim()
    old = word_seen_s(claim.word) - 30
    b.plane.put("flows", flow.pack(), replace(claim, word=claim.word >> 32 << 32 | old).pack())
    if way == "in":
        ran = b.back(icmp_error(ROUTER, SLICE, 3, 1, out(SLICE, flow.local_port)))
    else:
        ran = b.out(icmp_error(CLIENT, SERVER, 3, 3, back(CLIENT, 40000)))
    assert ran.verdict == REDIRECT
    after = b.the_claim()[1]
    assert (word_seen_s(after.word), word_state(after.word)) == (old, State.NEW)


def test_source_quench_and_redirect_do_not_pass(b: Bench) -> None:
    """RFC 5508 REQ-10b, c: they would tell a client of routers that are not its own (RFC 6633, RFC 1812)."""
    port = begun(b)
    for kind in (4, 5):
        assert b.back(icmp_error(ROUTER, SLICE, kind, 0, udp(SLICE, port, SERVER, 53))).verdict == SHOT
    assert b.plane.drops() == {Drop.PROTOCOL: 2}


def test_a_reset_is_passed_on_and_lingers(b: Bench) -> None:
    """RFC 7857 section 2.2: translated, and the session is kept until nothing came for a while."""
    b.out(tcp(CLIENT, 40000, SERVER, 443, flags=SYN))
    port = b.the_claim()[0].local_port
    b.back(tcp(SERVER, 443, SLICE, port, flags=SYN | ACK))
    ran = b.back(tcp(SERVER, 443, SLICE, port, flags=RST))
    assert str(ran.packet.destination) == CLIENT
    assert b.the_claim()[0] == Flow(packed(SLICE), packed(SERVER), port, 443, 6)
    assert word_state(b.the_claim()[1].word) == State.LINGER
    assert parse(b.back(tcp(SERVER, 443, SLICE, port, b"late", flags=ACK)).data[14:]).destination_port == 40000
