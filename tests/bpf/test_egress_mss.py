# SPDX-License-Identifier: Apache-2.0
"""The MSS of SYN and SYN-ACK is lowered both ways, wherever it stands, and nothing else is touched."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from softunicast.kernel.abi import Counter
from softunicast.wire.checksum import TCP, transport_checksum
from softunicast.wire.craft import ip, tcp
from tests.bpf.egress_bench import REDIRECT, Bench, bench
from tests.support.dataplane import CLIENT, CLIENT6, GATEWAY, SERVER, SERVER6, SLICE, SLICE6, VETH_ONRAMP
from tests.support.packets import ACK, SYN, header4

MSS = 1360
NOP, WSCALE, STAMPS = b"\x01", b"\x03\x03\x07", b"\x08\x0a" + bytes(8)


def option(mss: int) -> bytes:
    return struct.pack("!BBH", 2, 4, mss)


def syn(
    source: str, sport: int, target: str, dport: int, options: bytes, flags: int = SYN, payload: bytes = b""
) -> bytes:
    """With TCP options, padded to a multiple of four bytes by their end (0)."""
    options += bytes(-len(options) % 4)
    head = struct.pack("!HHIIBBHHH", sport, dport, 1000, 0, (5 + len(options) // 4) << 4, flags, 65535, 0, 0)
    segment = head + options + payload
    check = transport_checksum(ip_address(source), ip_address(target), TCP, segment)
    return ip(source, target, TCP, segment[:16] + struct.pack("!H", check) + segment[18:])


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    loaded.plane.add_slice(SLICE6, 9000, 9009)
    loaded.plane.add_onramp(VETH_ONRAMP, loaded.fish, l2=True, gateway=GATEWAY, mss=MSS)
    return loaded


BEFORE = {
    "first": b"",
    "at an odd offset": NOP,
    "behind others": WSCALE + NOP + STAMPS,
    "behind an odd number of bytes": STAMPS + NOP + WSCALE + NOP + NOP + NOP + NOP,
    "last of forty bytes": NOP * 36,
    "behind an unknown one": b"\xfe\x06abcd",
}


@pytest.mark.parametrize("before", BEFORE.values(), ids=BEFORE)
@pytest.mark.parametrize("version", [4, 6])
def test_lowered_both_ways(b: Bench, version: int, before: bytes) -> None:
    """Checksums are judged by `Ran.packet`."""
    client, server, outer = (CLIENT, SERVER, SLICE) if version == 4 else (CLIENT6, SERVER6, SLICE6)
    wanted = MSS if version == 4 else MSS - 20
    ran = b.out(syn(client, 40000, server, 443, before + option(1460)))
    assert ran.verdict == REDIRECT
    port = ran.packet.source_port
    assert port is not None
    assert options_of(ran.data, ran.packet.transport)[: len(before) + 4] == before + option(wanted)
    ran = b.back(syn(server, 443, outer, port, before + option(8960), SYN | ACK))
    assert str(ran.packet.destination) == client
    assert options_of(ran.data, ran.packet.transport)[: len(before) + 4] == before + option(wanted)
    assert b.plane.count(Counter.MSS_CLAMPED) == 2


def options_of(frame: bytes, transport: int) -> bytes:
    segment = frame[14 + transport :]
    return segment[20 : (segment[12] >> 4) * 4]


KEPT = {
    "small already": option(536),
    "exactly so large": option(MSS),
    "none": WSCALE,
    "behind the end": b"\0" + option(1460),
    "of a wrong length": struct.pack("!BBHB", 2, 5, 1460, 0),
    "cut off": NOP * 37 + b"\x02\x04\x05",
    "behind one of length 0": b"\xfe\0" + option(1460),
    "behind one of length 1": b"\xfe\1" + option(1460),
    "behind one that is too long": b"\xfe\x28" + option(1460),
}


@pytest.mark.parametrize("options", KEPT.values(), ids=KEPT)
def test_kept(b: Bench, options: bytes) -> None:
    ran = b.out(syn(CLIENT, 40000, SERVER, 443, options))
    assert ran.verdict == REDIRECT
    assert options_of(ran.data, ran.packet.transport)[: len(options)] == options
    assert b.plane.count(Counter.MSS_CLAMPED) == 0


def test_only_in_a_syn_and_only_where_it_is_set(b: Bench) -> None:
    b.out(tcp(CLIENT, 40000, SERVER, 443, flags=SYN))
    ran = b.out(syn(CLIENT, 40000, SERVER, 443, option(1460), ACK, option(1460)))
    assert options_of(ran.data, ran.packet.transport) == option(1460)
    b.plane.add_onramp(VETH_ONRAMP, b.fish, l2=True, gateway=GATEWAY)
    ran = b.out(syn(CLIENT, 40001, SERVER, 443, option(1460)))
    assert options_of(ran.data, ran.packet.transport) == option(1460)
    assert b.plane.count(Counter.MSS_CLAMPED) == 0


def test_behind_ip_options(b: Bench) -> None:
    ran = b.out(header4(syn(CLIENT, 40000, SERVER, 443, option(1460)), options=NOP * 4))
    assert options_of(ran.data, ran.packet.transport) == option(MSS)
