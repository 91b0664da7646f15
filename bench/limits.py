# SPDX-License-Identifier: Apache-2.0
"""What a node does at its limits: a million flows at once, and a flood that it refuses.

The flows are made by their first packets, through the programs, as any others; what is counted is the memory that the
kernel says each map takes (memlock in /proc/self/fdinfo).

The flood: SYNs to a destination towards which every port of the slice is in use. Each is answered by a RST, which
the generator frees at its ingress. A plain drop is what the kernel's own means cost: nftables in the forward chain, and
the cheapest there is, a tc program that frees the packet at the node's ingress.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import if_nametoindex
from typing import Final

from bench import plane
from bench.blast import Sent
from bench.forward import TARGETS, Path3, fresh, path
from bench.tools import Helpers, run
from softunicast.kernel import netns
from softunicast.kernel.bpf import BpfObject, Map, attach_tcx

FLOWS: Final = 1_000_000
PORTS: Final = 1_000
ROOM: Final = 1 << 20
SIZES: Final = {**plane.MAP_SIZES, "flows": ROOM, "origin": ROOM, "slots": 2 * ROOM}
PER_FLOW: Final = ("flows", "origin", "slots")
FLOOD: Final = 100_000
FLOOD_WAYS: Final = ("nothing", "nft-drop", "fish")
FLOOD_TARGET: Final = TARGETS + 7
DROP_RULES: Final = (
    "table ip bench {\n chain f {\n type filter hook forward priority filter;\n tcp flags syn drop\n }\n}\n"
)


@dataclass(frozen=True)
class Million:
    """Bytes by map; `others`: all further maps."""

    flows: int
    by_map: dict[str, int]
    others: int

    @property
    def total(self) -> int:
        return sum(self.by_map.values()) + self.others

    @property
    def per_flow(self) -> float:
        return sum(self.by_map.values()) / self.flows


def memlock(held: Map) -> int:
    """Bytes that the kernel counts for a map."""
    lines = Path(f"/proc/self/fdinfo/{held.fd}").read_text().splitlines()
    return int(next(line.split(":")[1] for line in lines if line.startswith("memlock")))


def fill_million(found: Path3) -> Sent:
    """FLOWS new flows, 1,000 to each of 1,000 destinations."""
    return found.send(FLOWS, FLOWS // PORTS, PORTS)


def measure_million(helpers: Helpers) -> Million:
    """RuntimeError when they do not all live at once."""
    with path("fish", helpers) as found:
        with fresh(found, SIZES) as loaded:
            if loaded is None:
                raise RuntimeError("fish did not load")
            sent = fill_million(found)
            alive = len(loaded.maps["flows"])
            if sent.arrived != FLOWS or alive != FLOWS:
                raise RuntimeError(f"of {FLOWS} flows {sent.arrived} were forwarded and {alive} live")
            sizes = {name: memlock(held) for name, held in loaded.maps.items()}
    by_map = {name: sizes.pop(name) for name in PER_FLOW}
    return Million(alive, by_map, sum(sizes.values()))


@contextmanager
def refusing(found: Path3) -> Iterator[None]:
    """The way with a destination towards which it lets nothing more through."""
    with ExitStack() as undo:
        with netns.enter(found.generator):
            undo.callback(attach_tcx(found.bare.programs["bare_sink"], if_nametoindex("g0"), egress=False).close)
        loaded: BpfObject | None = undo.enter_context(fresh(found))
        if loaded is not None:
            held = found.send(2_048, 1, 2_048, FLOOD_TARGET, 3, syn=True).arrived
            if held != plane.LAST - plane.FIRST + 1:
                raise RuntimeError(f"of {plane.LAST - plane.FIRST + 1} ports {held} were taken")
        yield


def measure_flood(helpers: Helpers, rounds: int) -> dict[str, list[Sent]]:
    """SYNs, each refused (or dropped); `arrived` are RSTs."""
    results: dict[str, list[Sent]] = {way: [] for way in FLOOD_WAYS}
    with ExitStack() as undo:
        paths = {way: undo.enter_context(path(way, helpers)) for way in FLOOD_WAYS}
        for way, found in paths.items():
            if way == "nft-drop":
                with netns.enter(found.node):
                    run(f"nft '{DROP_RULES}'")
            undo.enter_context(refusing(found))
        for number in range(rounds):
            for way, found in list(paths.items())[number % 3 :] + list(paths.items())[: number % 3]:
                results[way].append(found.send(FLOOD, 1, 50_000, FLOOD_TARGET, 4, syn=True))
    return results
