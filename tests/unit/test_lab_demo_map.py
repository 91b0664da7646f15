# SPDX-License-Identifier: Apache-2.0
"""The map of who owns what."""

from __future__ import annotations

from ipaddress import ip_address

from softunicast.lab.checker import Owned
from softunicast.lab.demo_map import CELLS, map_lines


def test_cells_words_and_legend() -> None:
    owners = [
        Owned(ip_address("198.51.100.10"), 4096, 6143, "lhr2"),
        Owned(ip_address("198.51.100.10"), 2048, 4095, "lhr1"),
        Owned(ip_address("198.51.100.10"), 64512, 65535, "lhr1"),
        Owned(ip_address("198.51.100.20"), 9000, 9009, "lhr1"),
        Owned(ip_address("198.51.100.20"), 9010, 9019, "lhr2"),
        Owned(ip_address("2001:db8:100::40"), 1024, 65535, "cdg2"),
    ]
    lines = [line.plain for line in map_lines(owners)]
    assert lines[1:4] == [
        f"198.51.100.10     ··AABB{'·' * (CELLS - 7)}A  lhr",
        f"{'198.51.100.20     only 9000-9009 lhr1, 9010-9019 lhr2':{18 + CELLS}}  lhr",
        f"2001:db8:100::40  ·{'D' * (CELLS - 1)}  cdg",
    ]
    assert lines[4] == "A lhr1  3 slices, ports: 3,082 of IPv4, 0 of IPv6"
    assert len(lines) == 8 and all(len(line) <= 100 for line in lines)
