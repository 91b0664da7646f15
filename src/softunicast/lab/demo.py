# SPDX-License-Identifier: Apache-2.0
"""The demonstration: four servers, two sites, one prefix, before your eyes.

Both sites announce the fleet's prefixes, and the internet sends all answers to one of them. On each server a program
under `softunicast run`, and client hosts behind it, download, resolve a name and ping over IPv4 and IPv6, all at once.
What is shown comes from the other side: the servers' logs, the captures at both routers. The checker's zero is proved
by a packet put behind the guard, which it must find. Then a site is cut off while everybody has flows, and comes back.
Exit status 1 names what was not as told; the lab is taken down whatever happens.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from rich.console import Console
from rich.text import Text

from softunicast.errors import SoftunicastError
from softunicast.kernel import nodes, stats
from softunicast.kernel.abi import Counter, Drop

from . import topology as facts
from .capture import Capture, lab_owners
from .demo_actors import ACTORS, Witnesses, act, dns_seen, folder, judge, pings_seen, web_seen
from .demo_map import map_lines
from .demo_outcome import Outcome, deeds_table, show_bill, show_sums, ways_table
from .demo_ways import Owners, read_ways
from .inject import inject_behind_guard
from .lab import Lab
from .scenarios import fail_site

ADDRESS: Final = "198.51.100.10"  # where the packet behind the guard comes from
QUIET_S: Final = 0.5
SETTLE_S: Final = 5.0
LEAST_WIDTH: Final = 100  # columns; a narrower terminal folds the lines rather than losing an address


@contextmanager
def step(console: Console, what: str) -> Iterator[None]:
    """A line with the time it took."""
    began_s = time.monotonic()
    console.print(f"{what} ...", end=" ")
    try:
        yield
    except BaseException:
        console.print("[red]failed[/red]")
        raise
    console.print(f"{time.monotonic() - began_s:.1f} s")


Counts = tuple[dict[str, int], dict[str, int], dict[str, dict[str, int]]]
"""Carried out, carried in, drops by reason; each by node."""


def counts(lab: Lab) -> Counts:
    """The data plane's own counters: only for what no router can see."""
    out: dict[str, int] = {}
    in_: dict[str, int] = {}
    dropped: dict[str, dict[str, int]] = {}
    for node in facts.NODES:
        with nodes.open_maps(lab.node(node).plan_name) as maps:
            drops, counters = stats.sum_percpu(maps["stats"])
        out[node], in_[node] = counters[Counter.CARRIED_OUT], counters[Counter.CARRIED_IN]
        dropped[node] = {Drop(reason).name: number for reason, number in drops.items() if number}
    return out, in_, dropped


def settled(lab: Lab) -> Counts:
    """The same when they stand still: nodes are read one after the other, and a FIN and its ACK may come late."""
    deadline_s = time.monotonic() + SETTLE_S
    before = counts(lab)
    while True:
        time.sleep(QUIET_S)
        now = counts(lab)
        if now == before or time.monotonic() > deadline_s:
            return now
        before = now


def everybody(console: Console, lab: Lab, outcome: Outcome) -> None:
    """Everybody does everything, between captures at both sides of both routers; then it is judged."""
    with folder() as name:
        out, in_, dropped = counts(lab)
        with Capture(lab, "internet") as internet, Capture(lab, "rack") as rack:
            with step(console, f"{len(ACTORS)} parties download, resolve a name and ping, over IPv4 and IPv6, at once"):
                said = act(lab, Path(name))
            now_out, now_in, now_dropped = settled(lab)
        with step(console, "Reading what both routers and the servers saw"):
            outcome.internet, outcome.rack = internet.report(), rack.report()
            owners = Owners(lab_owners(lab))
            routers = facts.ROUTERS.values()
            outcome.ways = read_ways(
                {router: internet.data_at(router) for router in routers},
                {router: rack.data_at(router) for router in routers},
                owners,
            )
            witnesses = Witnesses(web_seen(lab), dns_seen(lab), pings_seen(internet.data), owners)
            for deed, printed in said:
                judge(deed, printed, witnesses, Path(name))
                outcome.deeds.append(deed)
    for node in facts.NODES:
        outcome.carried_out[node] = now_out[node] - out[node]
        outcome.carried_in[node] = now_in[node] - in_[node]
        fresh = {why: number - dropped[node].get(why, 0) for why, number in now_dropped[node].items()}
        outcome.drops[node] = {why: number for why, number in fresh.items() if number}


def control(lab: Lab, outcome: Outcome) -> None:
    """One packet behind the guard: the checker must report exactly it."""
    with Capture(lab, "internet") as capture:
        inject_behind_guard(lab.node("lhr1"), ADDRESS)
    outcome.control = capture.report()


def head(console: Console, text: str) -> None:
    """Begin a chapter."""
    console.print()
    console.print(Text(text, style="bold"))


def demonstrate(prefix: str = "demo", *, keep: bool = False, console: Console | None = None) -> int:
    """Run it all. 0: everything was as told; 1: it was not, and what is printed. `keep` leaves the lab up.

    SoftunicastError when the lab cannot be brought up; then nothing is left behind.
    """
    out = console if console is not None else Console(highlight=False)
    out.width = max(out.width, LEAST_WIDTH)
    lab = Lab(prefix)
    outcome = Outcome()
    out.print(facts.DRAWING, markup=False)
    try:
        with step(out, "Building it: BIRD on seven hosts, an agent on each of four servers"):
            lab.up()
        head(out, "Who owns what: a letter is 1,024 ports of its node, · is nobody's")
        for row in map_lines(lab_owners(lab)):
            out.print(row)
        out.print()
        everybody(out, lab, outcome)
        with step(out, "A packet is put behind the guard, to test the checker"):
            control(lab, outcome)
        out.print()
        out.print(deeds_table(outcome.deeds))
        out.print()
        out.print(ways_table(outcome.ways))
        out.print(Text("The internet's best path leads to cdg: what is lhr's comes in at the wrong site.", style="dim"))
        out.print()
        show_sums(out, outcome)
        head(out, "Now cdg, which all answers come to, is cut off, while every server and client has flows")
        outcome.cut = fail_site(lab, lambda line: out.print(f"  {line}", markup=False))
        out.print("  What it cost, by the node whose flows they are:")
        show_bill(out, outcome.cut)
        wrong = outcome.wrong()
        if wrong:
            _autopsy(out, lab)
    except SoftunicastError:
        _autopsy(out, lab)
        raise
    finally:
        if keep:
            out.print(f"The lab stays up; softunicast lab down --prefix {prefix}")
        else:
            lab.down()
    for line in wrong:
        out.print(Text("not as told: ", style="bold red").append(line, style="default"))
    out.print()
    out.print("[bold]Not as told.[/bold]" if wrong else "[bold green]All as told.[/bold green]")
    return 1 if wrong else 0


def _autopsy(out: Console, lab: Lab) -> None:
    """What the agents said, when something went wrong."""
    for node in facts.NODES:
        words = lab.log(f"agent-{node}").splitlines()[-5:]
        for line in words:
            out.print(Text(f"agent {node}: {line}", style="dim"))
