# SPDX-License-Identifier: Apache-2.0
"""What each strategy costs, measured in one run, ours beside the others.

All four are up at the same time, each in a stage of its own, and take turns. One thread plays the client's device and
hands made packets to the mover: what is timed is the way from there through the host's stack to the world's first
hook, which drops them. Every strategy pays one write(2) to fishtun in it, the two with a userspace NAT also the
rewriting in Python, which is measured by itself. Bursts are short and many, and a figure is the least of them: what
one takes that nobody else's work came between. Ratios are to ours in the same run.

Memory is counted in slab objects: a cache that grows by one object or more with each flow, in all of several trials
but one, is counted with its object's size; others are noise (slabinfo(5)). That of ours is what its maps take for each
flow they have room for.
"""

from __future__ import annotations

import re
import resource
import time
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from softunicast.wire import craft

from .agent import bytes_a_flow
from .mover import Mover, Nat
from .notes import Notes
from .stage import CLIENT, FIRST, LAST, SERVER, Stage
from .strategies import STRATEGIES, Strategy

ROUNDS: Final = 50
BURST: Final = (
    60  # short, so that most are over before anybody else gets the CPU; netdev_max_backlog has room for 1,000
)
CROWDED_ROUNDS: Final = 15
CROWDED_BURST: Final = 15
TRIALS: Final = 5
COUNTED_FLOWS: Final = 1000
FIRST_PORT: Final = 20000
CACHES: Final = re.compile(r"nf_conntrack|kmalloc-\d|TCP|tcp_|sock_inode|filp|dentry|lsm_")
OURS: Final = "softunicast"
SINK: Final = f"""\
table ip sink {{
  counter arrived {{}}
  chain pre {{
    type filter hook prerouting priority raw
    ip daddr {SERVER} tcp dport {FIRST_PORT}-65535 counter name arrived drop
    ip daddr {SERVER} udp dport {FIRST_PORT}-65535 counter name arrived drop
  }}
}}
"""


@dataclass
class Cost:
    """Of one strategy: microseconds a round, then bytes and descriptors a flow."""

    strategy: Strategy
    stage: Stage
    mover: Mover
    flow_us: list[float] = field(default_factory=list)
    last_us: list[float] = field(default_factory=list)
    packet_us: list[float] = field(default_factory=list)
    rewriting_us: float = 0.0
    memory: float = 0.0
    descriptors: float = 0.0
    next_port: int = FIRST_PORT
    sent: int = 0

    def new_flows(self, count: int) -> float:
        """Opens flows, each to a destination port of its own; microseconds for one."""
        return self._time(self._syns(count, 1))

    def last_flows(self, count: int) -> float:
        """The tenth flows of ten ports, each to a destination port of its own; microseconds for one."""
        packets = self._syns(count, LAST - FIRST + 1)
        self._time(packets[:-count])
        return self._time(packets[-count:])

    def _syns(self, count: int, clients: int) -> list[bytes]:
        """From each of so many client ports to each of `count` new destination ports, a client after the other."""
        targets = range(self.next_port, self.next_port + count)
        self.next_port += count
        return [
            craft.tcp(CLIENT, 30000 + number, SERVER, port, sequence=1) for number in range(clients) for port in targets
        ]

    def packets(self, count: int) -> float:
        """Packets of one flow; microseconds for one."""
        return self._time([craft.udp(CLIENT, 30000, SERVER, 65000, b"x" * 32)] * count)

    def _time(self, packets: list[bytes]) -> float:
        with self.stage.at("host"):
            outbound = self.mover.outbound
            began_ns = time.perf_counter_ns()
            for number, packet in enumerate(packets, 1):
                outbound(packet)
                if number % BURST == 0:
                    self.stage.drained()
            self.stage.drained()
            self.sent += len(packets)
            return (time.perf_counter_ns() - began_ns) / len(packets) / 1000


def measure(notes: Notes, seen: dict[str, dict[str, str]]) -> None:
    """All strategies in turns; the table `strategies` of the notes. `seen`: more of each one's row."""
    soft, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 65536), most))
    try:
        with ExitStack() as stack:
            costs = []
            for strategy in STRATEGIES:
                stage = stack.enter_context(Stage(Notes(0, "", "", ""), f"{strategy.name}cost"))
                stage.nft(SINK, "world")
                costs.append(Cost(strategy, stage, stack.enter_context(strategy.up(stage))))
            for cost in costs:
                cost.new_flows(10)
                cost.packets(100)
            for _ in range(ROUNDS):
                for cost in costs:
                    cost.flow_us.append(cost.new_flows(BURST))
                    cost.packet_us.append(cost.packets(BURST))
            for _ in range(CROWDED_ROUNDS):
                for cost in costs:
                    cost.last_us.append(cost.last_flows(CROWDED_BURST))
            for cost in costs:
                _count(cost)
            for cost in costs:
                arrived = cost.stage.counters("sink", "world")["arrived"]
                notes.check(f"{cost.strategy.name}: packets that arrive, of those measured", cost.sent, arrived)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, most))
    notes.tables["strategies"] = [_row(cost, costs) | seen[cost.strategy.name] for cost in costs]
    for row in notes.tables["strategies"]:
        for key, what, unit in (
            ("new_flow_us", "a new flow", "µs"),
            ("new_flow_ratio", "a new flow, ours = 1", ""),
            ("last_flow_us", "the tenth of ten", "µs"),
            ("last_flow_ratio", "the tenth of ten, ours = 1", ""),
            ("packet_us", "a packet", "µs"),
            ("packet_ratio", "a packet, ours = 1", ""),
            ("memory_bytes", "memory a flow", "B"),
        ):
            notes.figure(f"{row['strategy']}: {what}", row[key], unit)
        expected = int(row["strategy"] == "hold")
        notes.check(f"{row['strategy']}: descriptors a flow", expected, round(row["descriptors"]))


def _row(cost: Cost, costs: list[Cost]) -> dict[str, Any]:
    ours = next(one for one in costs if one.strategy.name == OURS)

    flow_us, packet_us = min(cost.flow_us), min(cost.packet_us)
    return {
        "strategy": cost.strategy.name,
        "new_flow_us": flow_us,
        "new_flow_ratio": flow_us / min(ours.flow_us),
        "last_flow_us": min(cost.last_us),
        "last_flow_ratio": min(cost.last_us) / min(ours.last_us),
        "packet_us": packet_us,
        "packet_ratio": packet_us / min(ours.packet_us),
        "packets_a_second": 1e6 / packet_us,
        "rewriting_in_python_us": cost.rewriting_us,
        "memory_bytes": cost.memory,
        "descriptors": cost.descriptors,
        "wrong": cost.strategy.wrong,
    }


def _descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


def _count(cost: Cost) -> None:
    """Memory and descriptors of flows that stay, and Python's part."""
    open_before = _descriptors()
    grown: dict[str, list[int]] = {}
    for _ in range(TRIALS):
        before = _slabs()
        cost.new_flows(COUNTED_FLOWS)
        after = _slabs()
        for name, (count, _) in after.items():
            grown.setdefault(name, []).append(count - before.get(name, (0, 0))[0])
    cost.descriptors = (_descriptors() - open_before) / (TRIALS * COUNTED_FLOWS)
    each = {name: sorted(counts)[1] / COUNTED_FLOWS for name, counts in grown.items()}
    cost.memory = sum(
        after[name][1] * round(count) for name, count in each.items() if count > 0.8 and CACHES.match(name)
    )
    if cost.strategy.name == OURS:
        cost.memory = bytes_a_flow(cost.stage.name)
    if isinstance(cost.mover, Nat):
        cost.rewriting_us = _rewriting(cost.mover)


def _rewriting(nat: Nat) -> float:
    packet = craft.udp(CLIENT, 30000, SERVER, 65000, b"x" * 32)
    flow = nat.flow(packet)
    bursts = []
    for _ in range(ROUNDS):
        began_ns = time.perf_counter_ns()
        for _ in range(BURST):
            nat.rewritten(flow, packet)
        bursts.append((time.perf_counter_ns() - began_ns) / BURST / 1000)
    return min(bursts)


def _slabs() -> dict[str, tuple[int, int]]:
    """Cache -> (objects in use, bytes each)."""
    found = {}
    for line in Path("/proc/slabinfo").read_text().splitlines()[2:]:
        name, active, _, size, *_rest = line.split()
        found[name] = (int(active), int(size))
    return found
