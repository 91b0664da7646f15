# SPDX-License-Identifier: Apache-2.0
"""A fleet's tables: made and loaded into the kernel at a start, and when one binding moves.

4,096 addresses, 200,025 slices of this node's site and 64 nodes to hold them; the rest of the addresses are another
site's. What is timed is what an agent does once it has read its files: desired state, a look at the maps, the
difference, and the writes, on real maps. Its look at devices, routes and nft is not: it does not depend on the tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Final

from bench import plane
from softunicast.agent.desired import Memory, desired
from softunicast.agent.diff import Desired, Observed, diff
from softunicast.agent.facts import Facts
from softunicast.agent.observed import read_table
from softunicast.agent.operations import FillMap
from softunicast.kernel.bpf import BpfObject, Map, object_path
from softunicast.kernel.routing import Device
from softunicast.model.allocator import allocate
from softunicast.model.binding import Binding, Bindings
from softunicast.model.plan import Plan, load_plan

HOME_ADDRESSES: Final = 3_175
ADDRESSES: Final = 4_096
NODES: Final = 64
ME: Final = "lhr1"
FACTS: Final = Facts(
    7,
    {"lo": Device("lo", 1, 65536, 772, ("127.0.0.1",)), "u0": Device("u0", 2, 1600, addresses=("10.66.0.1",))},
    (),
    cgroup_root="/sys/fs/cgroup",
)
PARTS: Final = ("desired", "look", "difference", "writes")


@dataclass
class Times:
    """Seconds by part, one entry a round; `moved`: one binding from one node to another."""

    slices: int = 0
    started: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    moved: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})


def plan() -> Plan:
    nodes = "".join(f"      lhr{i}: {{underlay: 10.66.0.{i}, uplinks: [u0]}}\n" for i in range(1, NODES + 1))
    last, first = _address(HOME_ADDRESSES - 1), _address(HOME_ADDRESSES)
    return load_plan(
        f"""\
prefixes: [{{prefix: 198.18.0.0/15}}]
sites:
  lhr:
    nodes:
{nodes}  cdg:
    nodes:
      cdg1: {{underlay: 10.67.0.1, uplinks: [u0]}}
pools:
  gb: {{addresses: [198.18.0.0-{last}], site: lhr, slice_ports: 1024}}
  fr: {{addresses: [{first}-{_address(ADDRESSES - 1)}], site: cdg}}
""",
        "bench",
    )


def _address(number: int) -> str:
    return f"198.18.{number >> 8}.{number & 255}"


def one_moved(bindings: Bindings) -> Bindings:
    """Another epoch in which one slice of lhr2 is lhr3's."""
    every = list(bindings.bindings)
    at = next(i for i, one in enumerate(every) if one.node == "lhr2")
    every[at] = Binding(every[at].slice, "lhr3", bindings.epoch + 1, every[at].pool)
    return Bindings(bindings.epoch + 1, tuple(every))


@contextmanager
def _clock(seconds: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - started)


def _reach(
    wanted: Plan,
    bindings: Bindings,
    maps: Mapping[str, Map],
    last: Desired | None,
    memory: Memory,
    into: dict[str, list[float]],
) -> tuple[Desired, int]:
    """From what the maps hold to what they should: what is wanted now, and how many entries were written."""
    with _clock(into["desired"]):
        want = desired(wanted, bindings, ME, FACTS, "bench", last.state if last else None, {}, 1, memory)
    have = Observed()
    with _clock(into["look"]):
        if last:
            used = want.state.array_used
            found = {name: read_table(maps[name], used.get(name, 0)) for name in want.resources.tables}
            have = Observed(replace(last.resources, tables=found), state=last.state, ready=True)
    with _clock(into["difference"]):
        fills = [one for one in diff(want, have) if isinstance(one, FillMap)]
    with _clock(into["writes"]):
        for fill in fills:
            if fill.deletions:
                raise RuntimeError(f"map {fill.name}: nothing should be taken away")
            maps[fill.name].update_many(fill.updates)
    return want, sum(len(fill.updates) for fill in fills)


def measure(rounds: int) -> Times:
    """RuntimeError when a binding that moves writes more than its owner's word."""
    wanted = plan()
    bindings = allocate(wanted)
    after = one_moved(bindings)
    times = Times(sum(one.pool == "gb" for one in bindings.bindings))
    for _ in range(rounds):
        memory = Memory()
        sizes = {"flows": 16, "origin": 16, "slots": 32, "crowds": 16}
        with BpfObject.load(object_path("steer"), settings=plane.settings("10.66.0.1", 0), map_sizes=sizes) as loaded:
            first, _ = _reach(wanted, bindings, loaded.maps, None, memory, times.started)
            _, written = _reach(wanted, after, loaded.maps, first, memory, times.moved)
        if written != 1:
            raise RuntimeError(f"one binding moved and {written} entries were written")
    return times
