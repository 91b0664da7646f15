# SPDX-License-Identifier: Apache-2.0
"""The per-CPU counters of the data plane, summed. A CPU's copy is read whole but not all at one instant."""

from __future__ import annotations

from softunicast.kernel.abi import Counter, Drop, Stats
from softunicast.kernel.maps import Map

KEY = bytes(4)


def sum_percpu(stats: Map) -> tuple[dict[Drop, int], dict[Counter, int]]:
    """Drops by reason and counters, from the map `stats`; every reason and counter is there, 0 included."""
    copies = [Stats.unpack(value) for value in stats.lookup_percpu(KEY)]
    drops = {reason: sum(copy.drops[reason] for copy in copies) for reason in Drop}
    counters = {counter: sum(copy.counters[counter] for copy in copies) for counter in Counter}
    return drops, counters
