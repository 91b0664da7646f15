# SPDX-License-Identifier: Apache-2.0
"""A fleet's tables: made and loaded into the kernel at a start, and when one binding moves.

4,096 addresses, 200,025 slices of this node's site and 64 nodes to hold them; the rest of the addresses are another
site's. What is timed is what an agent does with its files, by its own functions on real maps: read and check them, make
what is wanted, compare it with what the maps are known to hold, write the difference; and the look at all maps by which
it makes sure once a minute and after each change. Its look at devices, routes and nft is not here: it does not depend
on the tables.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
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
from softunicast.model.binding import Binding, Bindings, check_bindings
from softunicast.model.bindings_file import dump_bindings, read_bindings
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
PARTS: Final = ("desired", "difference", "writes")


@dataclass
class Times:
    """Seconds, one entry a round. By part: a start; one binding that moves from one other node to another (`moved`),
    and to this one (`mine`). `looks`: all maps read and compared; `first`, `again`: the bindings file read and
    checked."""

    slices: int = 0
    started: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    moved: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    mine: dict[str, list[float]] = field(default_factory=lambda: {part: [] for part in PARTS})
    looks: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)
    again: list[float] = field(default_factory=list)


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


def one_moved(bindings: Bindings, taker: str) -> Bindings:
    """Another epoch in which one slice of lhr2 is the taker's."""
    every = list(bindings.bindings)
    at = next(i for i, one in enumerate(every) if one.node == "lhr2")
    every[at] = Binding(every[at].slice, taker, bindings.epoch + 1, every[at].pool)
    return Bindings(bindings.epoch + 1, tuple(every))


@contextmanager
def _clock(seconds: list[float]) -> Iterator[None]:
    started = time.perf_counter()
    yield
    seconds.append(time.perf_counter() - started)


@dataclass
class _Agent:
    """What an agent has in its hands from one file to the next."""

    plan: Plan
    maps: Mapping[str, Map]
    memory: Memory = field(default_factory=Memory)
    last: Desired | None = None

    def reach(self, bindings: Bindings, into: dict[str, list[float]]) -> int:
        """From what the maps hold to what they should; how many entries were written."""
        with _clock(into["desired"]):
            state = self.last.state if self.last else None
            want = desired(self.plan, bindings, ME, FACTS, "bench", state, {}, 1, self.memory)
        have = Observed(self.last.resources, state=self.last.state, ready=True) if self.last else Observed()
        with _clock(into["difference"]):
            fills = [one for one in diff(want, have) if isinstance(one, FillMap)]
        with _clock(into["writes"]):
            for fill in fills:
                if fill.deletions:
                    raise RuntimeError(f"map {fill.name}: nothing should be taken away")
                self.maps[fill.name].update_many(fill.updates)
        self.last = want
        return sum(len(fill.updates) for fill in fills)

    def look(self, into: list[float]) -> None:
        """Whether the maps hold what they should. RuntimeError when not."""
        assert self.last is not None
        with _clock(into):
            used = self.last.state.array_used
            found = {name: read_table(self.maps[name], used.get(name, 0)) for name in self.last.resources.tables}
            have = Observed(replace(self.last.resources, tables=found), state=self.last.state, ready=True)
            wrong = [one for one in diff(self.last, have) if isinstance(one, FillMap)]
        if wrong:
            raise RuntimeError(f"the maps are not as they should be: {', '.join(map(str, wrong))}")


def measure(rounds: int) -> Times:
    """RuntimeError when a binding that moves writes more than it should, or the maps are not as wanted after all."""
    wanted = plan()
    bindings = allocate(wanted)
    times = Times(sum(one.pool == "gb" for one in bindings.bindings))
    texts = [dump_bindings(bindings)]
    for taker in ("lhr3", ME):
        bindings = one_moved(bindings, taker)
        texts.append(dump_bindings(bindings))
    for _ in range(rounds):
        sizes = {"flows": 16, "origin": 16, "slots": 32, "crowds": 16}
        with ExitStack() as stack:
            loaded = {
                name: stack.enter_context(
                    BpfObject.load(object_path(name), settings=plane.settings("10.66.0.1", 0), map_sizes=sizes)
                )
                for name in ("steer", "egress")
            }
            agent = _Agent(wanted, loaded["egress"].maps | loaded["steer"].maps)
            with _clock(times.first):
                found = read_bindings(texts[0], "bindings.yaml")
                check_bindings(wanted, found)
            agent.reach(found.bindings, times.started)
            # A slice more stands before others of its pool: their places there are written again.
            for text, into, most in ((texts[1], times.moved, 1), (texts[2], times.mine, times.slices // NODES + 8)):
                before = found
                with _clock(times.again):
                    found = read_bindings(text, "bindings.yaml", before)
                    check_bindings(wanted, found, checked=before.bindings)
                written = agent.reach(found.bindings, into)
                if not 0 < written <= most:
                    raise RuntimeError(f"one binding moved and {written} entries were written")
            agent.look(times.looks)
    return times
