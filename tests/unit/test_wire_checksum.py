# SPDX-License-Identifier: Apache-2.0
"""The Internet checksum against the loop of RFC 1071 section 4.1."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from softunicast.wire.checksum import checksum, ones_sum, pseudo_sum


def rfc1071(data: bytes) -> int:
    """The sum of RFC 1071's C example, before it is complemented."""
    total = 0
    for at in range(0, len(data) - 1, 2):
        total += data[at] << 8 | data[at + 1]
    if len(data) % 2:
        total += data[-1] << 8
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=3000))
@example(b"\xff" * 1500)
@example(b"\xff\xff" * 40000)
@example(b"\xff" * 65535)
@example(b"\0" * 1500)
def test_the_sum_is_that_of_the_rfc(data: bytes) -> None:
    assert ones_sum(data) % 65535 == rfc1071(data) % 65535
    assert 0 <= ones_sum(data) < 65535


@given(st.binary(max_size=1600), st.integers(0, 65534))
def test_what_checksum_writes_makes_the_sum_vanish(data: bytes, start: int) -> None:
    padded = data + b"\0" * (len(data) % 2)
    assert (ones_sum(padded + checksum(data, start).to_bytes(2, "big")) + start) % 65535 == 0


@given(st.binary(min_size=40, max_size=1600), st.integers(0), st.integers(1, 255))
def test_a_changed_byte_shows(data: bytes, place: int, change: int) -> None:
    at = place % len(data)
    damaged = data[:at] + bytes([data[at] ^ change]) + data[at + 1 :]
    assert ones_sum(damaged) != ones_sum(data)


def test_the_rfcs_own_example() -> None:
    # RFC 1071 section 3: the words 0001 f203 f4f5 f6f7 sum to ddf2.
    assert ones_sum(bytes.fromhex("0001f203f4f5f6f7")) == 0xDDF2


@pytest.mark.parametrize(("source", "destination"), [(bytes(4), bytes(4)), (bytes(16), bytes(16))])
def test_a_pseudo_header_counts_protocol_and_length(source: bytes, destination: bytes) -> None:
    assert pseudo_sum(source, destination, 17, 8) == 25
