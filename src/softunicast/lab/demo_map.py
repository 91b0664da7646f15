# SPDX-License-Identifier: Apache-2.0
"""A map of who owns what: a line an address, its 65,536 ports from left to right. Pure.

A cell is 1,024 ports and bears the letter of the node that owns them; `·` is nobody's. Where slices are not whole cells
(those that a plan names port by port) they are told in words instead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Final

from rich.text import Text

from . import topology as facts
from .checker import Owned

CELL_PORTS: Final = 1024
CELLS: Final = 65536 // CELL_PORTS
NOBODY: Final = "·"
LETTERS: Final = dict(zip(facts.NODES, "ABCD", strict=True))
COLOURS: Final = dict(zip(facts.NODES, ("cyan", "blue", "yellow", "magenta"), strict=True))
ADDRESS_WIDTH: Final = 17


def name(node: str) -> Text:
    """A node in its colour."""
    return Text(node, style=f"bold {COLOURS[node]}")


def map_lines(owners: Iterable[Owned]) -> list[Text]:
    """The map: a scale, a line an address (IPv4 first), and whose each letter is."""
    held = sorted(owners, key=lambda one: (one.address.version, int(one.address), one.first))
    lines = [_scale()]
    for address, group in itertools.groupby(held, key=lambda one: one.address):
        slices = list(group)
        line = Text(f"{address!s:{ADDRESS_WIDTH}} ")
        whole = all(one.first % CELL_PORTS == 0 and (one.last + 1) % CELL_PORTS == 0 for one in slices)
        line.append_text(_bar(slices) if whole else _words(slices))
        line.append(f"  {facts.site_of(slices[0].node)}")
        lines.append(line)
    return [*lines, *_legend(held)]


def _scale() -> Text:
    return Text(f"{'address':{ADDRESS_WIDTH}} {'port 0':<{CELLS // 2}}{'65535':>{CELLS // 2}}  site", style="dim")


def _bar(slices: list[Owned]) -> Text:
    cells: list[str] = [""] * CELLS
    for one in slices:
        first, last = one.first // CELL_PORTS, one.last // CELL_PORTS
        cells[first : last + 1] = [one.node] * (last - first + 1)
    line = Text()
    for node, run in itertools.groupby(cells):
        line.append(LETTERS.get(node, NOBODY) * len(list(run)), style=f"bold {COLOURS[node]}" if node else "dim")
    return line


def _words(slices: list[Owned]) -> Text:
    parts = [Text.assemble(f"{one.first}-{one.last} ", name(one.node)) for one in slices]
    line = Text("only ").append_text(Text(", ").join(parts))
    line.pad_right(max(0, CELLS - len(line)))
    return line


def _legend(held: list[Owned]) -> Iterator[Text]:
    for node in facts.NODES:
        mine = [one for one in held if one.node == node]
        sums = [
            f"{sum(one.last - one.first + 1 for one in mine if one.address.version == version):,} of IPv{version}"
            for version in (4, 6)
        ]
        yield Text.assemble(
            (LETTERS[node], f"bold {COLOURS[node]}"), " ", name(node), f"  {len(mine)} slices, ports: {', '.join(sums)}"
        )
