# SPDX-License-Identifier: Apache-2.0
"""Chains of IPv6 extension headers: where each ends, and where it is not followed."""

from __future__ import annotations

import pytest

from softunicast.wire.craft import udp
from softunicast.wire.extension import Chain, CutOff, follow
from tests.support.packets import extension, fragment6, header6, routing

PLAIN = udp("2001:db8::1", 1, "2001:db8::2", 2)


@pytest.mark.parametrize(
    ("chain", "found"),
    [
        ([], Chain(40, 17)),
        ([extension(0)], Chain(48, 17)),
        ([extension(0, 2), routing(0), extension(60)], Chain(40 + 24 + 8 + 8, 17)),
        ([extension(60, 2)] * 4 + [extension(60, 1)] * 2, Chain(168, 17)),
        ([extension(60)] * 7, Chain(88, 60)),
        ([extension(60, 16)], Chain(40, 60)),
        ([extension(0), routing(1)], Chain(48, 43)),
        ([fragment6(9)], Chain(48, 17, 40, 9)),
        ([extension(0), fragment6(9, more=True), extension(60)], Chain(64, 17, 48, 9, 0, True)),
        ([fragment6(9, 1480), extension(60)], Chain(48, 60, 40, 9, 1480)),
        ([(51, bytes(7)), extension(60)], Chain(40, 51)),
    ],
)
def test_where_it_leads(chain: list[tuple[int, bytes]], found: Chain) -> None:
    packet = header6(PLAIN, *chain)
    assert follow(packet, 40, packet[6]) == found
    assert found.is_fragment == (found.more_fragments or found.fragment_offset > 0)


def test_cut_off() -> None:
    packet = header6(PLAIN, extension(0), extension(60))
    assert follow(packet[:56], 40, packet[6]).offset == 56
    for size in (40, 47, 48, 55):
        with pytest.raises(CutOff, match="cut off"):
            follow(packet[:size], 40, packet[6])
