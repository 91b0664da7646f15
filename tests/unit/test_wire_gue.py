# SPDX-License-Identifier: Apache-2.0
"""GUE headers, byte by byte as draft-ietf-intarea-gue-09 section 3 draws them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from softunicast.wire import craft, gue
from softunicast.wire.packet import Malformed, parse

ABI = Path(__file__).parents[2] / "bpf" / "include" / "abi.h"


def test_four_bytes() -> None:
    assert gue.Gue(gue.IPV4).pack() == bytes([0, 4, 0, 0])
    assert gue.Gue(gue.IPV6, gue.FINAL).pack() == bytes([0, 41, 0, 2])


def test_a_carried_packet_comes_out_as_it_went_in() -> None:
    inner = craft.tcp("203.0.113.1", 443, "198.51.100.10", 9001)
    outer = craft.carried("10.0.1.11", 50000, "10.0.1.12", gue.PORT, inner, flags=gue.FINAL)
    packet = parse(outer)
    assert packet.destination_port == gue.PORT
    payload = outer[packet.payload :]
    head = gue.unpack(payload)
    assert head.final and head.proto == gue.IPV4
    assert payload[head.inner :] == inner


def test_optional_fields_are_skipped() -> None:
    assert gue.unpack(bytes([1, 4, 0, 0]) + b"opts" + b"\x45").inner == 8


@pytest.mark.parametrize(
    "payload", [b"", b"\0\x04\0", b"\x40\x04\0\0", b"\x20\x04\0\0", b"\0\x06\0\0", b"\x02\x04\0\0\0\0"]
)
def test_others_are_malformed(payload: bytes) -> None:
    with pytest.raises(Malformed):
        gue.unpack(payload)


def test_the_numbers_are_those_of_the_data_plane() -> None:
    numbers = dict(re.findall(r"#define SU_GUE_(PORT|FINAL) (\w+)", ABI.read_text(encoding="utf-8")))
    assert int(numbers["PORT"], 0) == gue.PORT
    assert int(numbers["FINAL"], 0) == gue.FINAL
