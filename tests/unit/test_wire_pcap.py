# SPDX-License-Identifier: Apache-2.0
"""Capture files in every flavour, whole and cut off."""

from __future__ import annotations

import struct

import pytest

from softunicast.wire.pcap import NotPcap, read_pcap, write_pcap

FRAMES = [(1_700_000_000_123_456_789, b"a" * 60), (1_700_000_001_000_000_001, b"b" * 1514)]


def test_what_is_written_is_read() -> None:
    assert list(read_pcap(write_pcap(FRAMES)).frames()) == [(time, frame, len(frame)) for time, frame in FRAMES]


@pytest.mark.parametrize("order", ["<", ">"])
def test_microseconds_in_either_order(order: str) -> None:
    head = struct.pack(f"{order}IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
    record = struct.pack(f"{order}IIII", 5, 7, 3, 99) + b"abc"
    assert list(read_pcap(head + record).frames()) == [(5_000_007_000, b"abc", 99)]


def test_a_growing_file_ends_with_its_last_whole_record() -> None:
    data = write_pcap(FRAMES)
    for length in range(24, len(data)):
        assert len(list(read_pcap(data[:length]).frames())) == (1 if length >= 24 + 16 + 60 else 0)


@pytest.mark.parametrize("data", [b"", b"\x0a\x0d\x0d\x0a" + bytes(30), write_pcap([])[:20] + b"\x71\0\0\0"])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(NotPcap):
        read_pcap(data)
