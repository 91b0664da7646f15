# SPDX-License-Identifier: Apache-2.0
"""docs/performance.md from what was measured. Medians over rounds; ratios are medians of each round's ratio."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from bench import carried, dialing, forward, library, limits, steering, tables
from bench.blast import Sent
from bench.dialing import Dialed, Dialing
from bench.forward import Rounds
from bench.steering import Sized, Times
from bench.tools import median, percentile, ratio, table

WAYS = {
    "nothing": "sending alone (freed at the node's ingress)",
    "macs": "bare tc redirect, MACs known",
    "nexthop": "bare tc `redirect_neigh`, next hop given",
    "redirect": "bare tc `redirect_neigh`",
    "routing": "plain routing",
    "fish": "**fish**",
    "nft": "nftables SNAT, 2,048 ports",
}
FLOOD = {
    "nothing": "freed by a tc program at the node's ingress",
    "nft-drop": "nftables `drop` in the forward chain",
    "fish": "**fish, slice full**",
}
SENT = {"one": "one flow", "many": "1,024 flows", "new": "only new flows, 256 destinations"}


@dataclass(frozen=True)
class Results:
    """All of one run."""

    rounds: int
    seconds: float
    forward: Rounds
    crowded: Rounds
    profile: dict[str, dict[str, float]]
    million: limits.Million
    flood: dict[str, list[Sent]]
    dialing: Dialing
    library: library.Costs
    steering: Times
    sized: Sized
    tables: tables.Times
    carried: carried.Carried


@dataclass(frozen=True)
class Aim:
    """`figure` is a ratio of medians, unless it names a unit."""

    text: str
    figure: str
    met: bool


def machine(others: int) -> str:
    """What a reader must know to compare."""
    cpu = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.machine(),
    )
    guest = "hypervisor" in Path("/proc/cpuinfo").read_text()
    hooks = (
        f" Other data planes had {others} connect() hooks on it meanwhile: sockets are slower for it." if others else ""
    )
    load = Path("/proc/loadavg").read_text().split()[0]
    return (
        f"{cpu}, {os.cpu_count()} CPUs{' (a virtual machine)' if guest else ''}, "
        f"Linux {platform.release().split('-')[0]}, veth only; load average at the end {load}.{hooks}"
    )


def forwarded(results: Rounds) -> str:
    rows = []
    for way, name in WAYS.items():
        cells = [name]
        for what in SENT:
            sent = results[what][way]
            cpu = [one.cpu_ns for one in sent]
            lost = sum(one.packets - one.arrived for one in sent)
            figure = f"{median(cpu):,.0f}"
            if way != "nothing":
                figure += f" ({ratio(cpu, [one.cpu_ns for one in results[what]['redirect']]):.2f})"
            figure += f" / {1e6 / median(cpu):,.0f}"
            cells.append(figure + (f", {lost:,} lost" if lost else ""))
        rows.append(cells)
    return table(["", *SENT.values()], rows)


def crowded(results: Rounds) -> str:
    rows = []
    for way in forward.CROWDED_WAYS:
        cells = [WAYS[way]]
        for level in results:
            sent = results[level][way]
            lost = sum(one.packets - one.arrived for one in sent) / sum(one.packets for one in sent)
            cells.append(f"{median([one.cpu_ns for one in sent]):,.0f}" + (f", {lost:.0%} lost" if lost else ""))
        rows.append(cells)
    return table(["CPU ns a packet", *(f"{level} % used" for level in results)], rows)


def profiled(profile: dict[str, dict[str, float]]) -> str:
    return table(
        ["ns a run, the kernel's clock included", "one flow", "only new flows"],
        [
            [f"`{name}`", f"{ns:,.0f}", f"{profile['new'][name]:,.0f}" if name in profile["new"] else ""]
            for name, ns in profile["one"].items()
        ],
    )


def memory(million: limits.Million) -> str:
    """Bytes by map."""
    rows = [[f"`{name}`", f"{size / 1e6:,.0f}", f"{size / million.flows:.0f}"] for name, size in million.by_map.items()]
    rows.append(["all maps", f"{million.total / 1e6:,.0f}", f"{million.total / million.flows:.0f}"])
    return table([f"{million.flows:,} flows", "MB", "bytes a flow"], rows)


def flooded(results: dict[str, list[Sent]]) -> str:
    base = [one.cpu_ns for one in results["nft-drop"]]
    rows = []
    for way, name in FLOOD.items():
        cpu = [one.cpu_ns for one in results[way]]
        answered = sum(one.arrived for one in results[way]) / sum(one.packets for one in results[way])
        told = f"{answered:.0%}" if way == "fish" else ""
        rows.append([name, f"{median(cpu):,.0f}", f"{ratio(cpu, base):.2f}", told])
    return table(["SYNs", "CPU ns a packet", "ratio", "told by a RST"], rows)


def forwarding(results: Rounds, what: str) -> float:
    """Fish by nftables, what sending alone costs taken off both."""
    by = {way: [one.cpu_ns for one in results[what][way]] for way in ("nothing", "fish", "nft")}
    rounds = zip(by["nothing"], by["fish"], by["nft"], strict=True)
    return median([(fish - nothing) / (nft - nothing) for nothing, fish, nft in rounds])


def dialed(results: dict[str, list[Dialed]]) -> str:
    names = {"plain": "plain socket", "kernel": "kernel's own range (`IP_LOCAL_PORT_RANGE`), slice empty"}
    rows = []
    base = [median(one.ns) for one in results["plain"]]
    for case, rounds in results.items():
        middles = [median(one.ns) for one in rounds]
        tail = median([percentile(one.ns, 99) for one in rounds])
        failed = sum(sum(one.errors.values()) for one in rounds)
        name = names.get(case, f"**in a slice, {case.removeprefix('slice ')} used**")
        rows.append(
            [name, f"{median(middles) / 1e3:.1f}", f"{ratio(middles, base):.2f}", f"{tail / 1e3:,.0f}", str(failed)]
        )
    return table(["socket, connect, close", "µs", "ratio to plain", "p99 µs", "failed"], rows)


def hooks(clocked: dict[int, dict[str, float]]) -> str:
    names = sorted({name for one in clocked.values() for name in one}, key=lambda name: -clocked[0].get(name, 0))
    return table(
        ["ns of one connection", *(f"{use} %" for use in clocked)],
        [[f"`{name}`", *(f"{one.get(name, 0):,.0f}" for one in clocked.values())] for name in names],
    )


def steered(times: Times) -> str:
    def over(entry: str, what: str, empty: str) -> str:
        mine = times[entry].get(what)
        if not mine:
            return ""
        return f"{median([a - b for a, b in zip(mine, times[entry][empty], strict=True)]):,.0f}"

    rows = []
    for what in steering.PACKETS:
        cells = [what]
        for entry in steering.ENTRIES:
            cells += [over(entry, what, "empty"), over(entry, f"{what}, repeated", "empty, repeated")]
        rows.append(cells)
    empties = [f"{median(times[e][k]):,.0f}" for e in steering.ENTRIES for k in ("empty", "empty, repeated")]
    rows.append(["(the empty program itself)", *empties])
    return table(["ns over an empty program", "tc", "tc, hot caches", "XDP", "XDP, hot caches"], rows)


def by_size(sized: Sized) -> str:
    rows = []
    for entry in sized:
        for size, by in sized[entry].items():
            figures = [f"{median(by[what]):,.0f}" for what in ("same", "another")]
            rows.append([f"{ENTRY[entry]}, {size:,} slices", *figures])
    return table(["ns over an empty program", "the same packet", "each packet to another slice"], rows)


def loading(times: tables.Times) -> str:
    def row(name: str, by: dict[str, list[float]]) -> list[str]:
        return [name, *(_ms(by[part]) for part in tables.PARTS), _ms(total(by))]

    rows = [
        row(f"start, {times.slices:,} slices", times.started),
        row("one binding moves between two other nodes", times.moved),
        row("one binding becomes this node's", times.mine),
    ]
    return table(["ms", *tables.PARTS, "together"], rows)


def _ms(seconds: list[float]) -> str:
    value = 1e3 * median(seconds)
    return f"{value:,.0f}" if value >= 100 else f"{value:,.1f}"


def total(by: dict[str, list[float]]) -> list[float]:
    """Seconds of each round, all parts."""
    return [sum(parts) for parts in zip(*by.values(), strict=True)]


ENTRY = {"tc": "tc", "xdp": "XDP"}
CARRIED = {
    "carried": "**carried** by a node of another site",
    "routed": "plainly routed along the same hops",
    "direct": "plainly routed, straight to its owner",
}


def carriage(rates: carried.Carried) -> str:
    rows = [
        [name, *(f"{median(by[way]):.1f} ({ratio(by[way], by['routed']):.2f})" for by in rates.values())]
        for way, name in CARRIED.items()
    ]
    return table(["Gbit/s (ratio)", *(f"{n} stream{'s' if n > 1 else ''}" for n in rates)], rows)


def aims(results: Results) -> list[Aim]:
    """The aims of the project and whether this run met them."""
    found = []

    def cpu(what: str, way: str) -> list[float]:
        return [one.cpu_ns for one in results.forward[what][way]]

    def add(text: str, value: float, limit: float) -> None:
        found.append(Aim(text, f"{value:.2f}", value <= limit))

    for what in ("one", "many"):
        value = ratio(cpu(what, "fish"), cpu(what, "redirect"))
        add(f"fish within 10 % of a bare `redirect_neigh`, {SENT[what]}", value, 1.10)
        value = ratio(cpu(what, "fish"), cpu(what, "macs"))
        add(f"fish within 10 % of a bare redirect that knows the MACs, {SENT[what]}", value, 1.10)
    for what in SENT:
        value = ratio(cpu(what, "fish"), cpu(what, "nft"))
        add(f"fish well under nftables (at most 0.8), {SENT[what]}", value, 0.8)
    for what in ("one", "many"):
        text = f"forwarding a known flow's packet takes at most half of nftables' CPU time, {SENT[what]}"
        add(text, forwarding(results.forward, what), 0.5)
    for level, crowd in results.crowded.items():
        value = median([one.cpu_ns for one in crowd["fish"]])
        text = f"a new forwarded flow in 2.5 µs, sending included, {level} % used"
        found.append(Aim(text, f"{value / 1e3:.2f} µs", value <= 2500))
    first, last = (results.crowded[level]["fish"] for level in ("0", "99"))
    add(
        "flat to 99 % (at most 1.25 of an empty slice)",
        ratio([a.cpu_ns for a in last], [a.cpu_ns for a in first]),
        1.25,
    )
    lost = sum(one.packets - one.arrived for crowd in results.crowded.values() for one in crowd["fish"])
    found.append(Aim("no new flow lost before the last port is taken", f"{lost} lost", lost == 0))
    million = results.million
    found.append(
        Aim("a flow in 256 bytes, all maps", f"{million.total / million.flows:.0f} B", million.per_flow <= 256)
    )
    found.append(Aim("1,000,000 flows in 1 GiB", f"{million.total / (1 << 20):,.0f} MiB", million.total <= 1 << 30))
    refused = [one.cpu_ns for one in results.flood["fish"]]
    for way in ("nft-drop", "nothing"):
        text = f"a refused SYN, slice full, at most twice a plain drop ({FLOOD[way]})"
        add(text, ratio(refused, [one.cpu_ns for one in results.flood[way]]), 2)
    base = [median(one.ns) for one in results.dialing.dialed["plain"]]
    for use in dialing.USES:
        value = ratio([median(one.ns) for one in results.dialing.dialed[f"slice {use} %"]], base)
        add(f"connect() within 15 % of a plain one, {use} % used", value, 1.15)
    few, many = steering.SIZES
    hows = {"same": "the same packet", "another": "each packet to another slice"}
    for entry, sizes in results.sized.items():
        for what, how in hows.items():
            value = median(sizes[many][what])
            text = f"encapsulating within 40 ns of an empty program, {many:,} slices, {ENTRY[entry]}, {how}"
            found.append(Aim(text, f"{value:,.0f} ns", value <= 40))
            text = f"flat: {many:,} slices cost at most 1.1 of {few}, {ENTRY[entry]}, {how}"
            add(text, ratio(sizes[many][what], sizes[few][what]), 1.1)
    starting = f"tables of {tables.ADDRESSES:,} addresses and {results.tables.slices:,} slices in 2 s"
    for text, by_part, limit_s in (
        (starting, results.tables.started, 2),
        ("one binding moves between two other nodes in 10 ms", results.tables.moved, 0.01),
        ("one binding becomes this node's in 10 ms", results.tables.mine, 0.01),
    ):
        value = median(total(by_part))
        found.append(Aim(text, f"{1e3 * value:,.1f} ms", value <= limit_s))
    for streams, by in results.carried.items():
        value = ratio(by["carried"], by["routed"])
        text = f"TCP carried through another site at 0.8 of plainly routed, streams: {streams}"
        found.append(Aim(text, f"{value:.2f}", value >= 0.8))
    return found


def markdown(results: Results) -> str:
    judged = table(
        ["aim", "measured", ""], [[aim.text, aim.figure, "met" if aim.met else "**missed**"] for aim in aims(results)]
    )
    return f"""# Performance

Written by `python -m bench --write docs/performance.md` as root (`make bench`): one run, {results.rounds} rounds,
{results.seconds:.0f} seconds. Cases are interleaved; figures are medians of rounds, ratios are medians of each round's
ratio. A machine's speed drifts and other machines differ: read the ratios, and run it yourself.

Machine: {machine(results.dialing.others)}

## Against the aims

{judged}
## A forwarded packet

Generator, node and sink are namespaces joined by veth; 60-byte UDP frames; everything from the sender to the program
that counts and frees the packet runs on one CPU. Each cell: **CPU nanoseconds a packet** (ratio to `redirect_neigh`) /
thousand packets a second of that one CPU. Fish includes its guard on the uplink.

{forwarded(results.forward)}
Where fish spends it, by the kernel's own clock on programs (some 20 ns of each figure is the clock):

{profiled(results.profile)}
## A new forwarded flow in a crowded slice

{forward.CROWDED_NEW} new flows to each of {forward.CROWDED_TARGETS} destinations, when that part of the slice's ports
is in use towards each of them; the last ones take the last free ports. A lost packet found none.

{crowded(results.crowded)}
## A million flows

{limits.FLOWS:,} flows made by their first packets, all alive, in maps with room for {limits.ROOM:,}; what the kernel
counts for each map (memlock).

{memory(results.million)}
## A flood that is refused

{limits.FLOOD:,} SYNs a round towards a destination for which every port of the slice is taken. Each is refused and
counted; clients are told by a RST, up to a limit a second (bpf/include/refuse.h).

{flooded(results.flood)}
## A socket in a slice

One connection after the other over veth, ended by a RST; {dialing.TARGETS} destinations, {dialing.EACH} connections
each a round. Of a 2,048-port slice the given part is in use towards each destination; at 99 % the measured sockets take
the last free ports.

{dialed(results.dialing.dialed)}
What the hooks take of it (the clock included, once a run; `su_sockops` runs several times a connection):

{hooks(results.dialing.clocked)}
## A connection of the Python library

`softunicast.connect()` by each way ([docs/library.md](library.md)) and close by a RST, from one Python process on one
CPU: what it adds to a plain one is Python, and a few system calls. {library.TARGETS} destinations,
{library.EACH} connections each a round.

{library.markdown(results.library)}
## Steering

One packet of 128 bytes through the programs of `steer.bpf.c` by BPF_PROG_TEST_RUN, less an empty program in the same
rounds. Between two runs is a system call, as cold as life; *hot caches*: the same packet over and over, for packets
that are not changed; at XDP for encapsulation too, where a program in front takes the outer headers off again.

{steered(results.steering)}
Encapsulating a packet of 128 bytes, by what is in the tables:

{by_size(results.sized)}
## A fleet's tables

{tables.ADDRESSES:,} addresses, of which {tables.HOME_ADDRESSES:,} are of the node's own site, which has
{tables.NODES} nodes. What an agent does once it has read its files: what it wants, the difference from what the maps
are known to hold, the writes.

{loading(results.tables)}
Before it the bindings file is read and checked, some {results.tables.slices:,} lines:
{_ms(results.tables.first)} ms the first time, {_ms(results.tables.again)} ms when one line is another. Behind it, and
once a minute, all maps are read and compared: {_ms(results.tables.looks)} ms. A reconciliation also looks at devices,
routes, nft and iptables, whatever the tables are; that is not in these figures.

## A stream through the wrong site

TCP download of {carried.SECONDS} seconds by iperf3 over veth with segmentation offload; the answers all come to a node
of another site, which carries them (underlay MTU 1600) to the client's. Sender, router, both nodes and client share
the machine's CPUs.

{carriage(results.carried)}"""
