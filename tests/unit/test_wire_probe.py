# SPDX-License-Identifier: Apache-2.0
"""Probes: the numbers are those of abi.h, and what is none is refused."""

from __future__ import annotations

import pytest

from softunicast.kernel import abi
from softunicast.wire import probe
from softunicast.wire.packet import Malformed


def test_numbers_are_those_of_the_data_plane() -> None:
    assert (probe.CONTROL, probe.BYTES) == (abi.GUE_CONTROL, abi.Probe.SIZE)
    assert (probe.ASK, probe.REPLY, probe.FIT) == (abi.ProbeType.ASK, abi.ProbeType.REPLY, abi.ProbeFlag.FIT)


def test_there_and_back() -> None:
    made = probe.Probe(probe.REPLY, probe.FIT, 0xDEADBEEF)
    assert made.pack() == bytes.fromhex("20020001deadbeef") and made.fit
    assert probe.unpack(made.pack()) == made


@pytest.mark.parametrize("text", ["", "20020001deadbe", "20020001deadbeef00", "00040000deadbeef", "20030000deadbeef"])
def test_refused(text: str) -> None:
    with pytest.raises(Malformed):
        probe.unpack(bytes.fromhex(text))
