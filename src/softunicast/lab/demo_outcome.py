# SPDX-License-Identifier: Apache-2.0
"""What the demonstration found out: judged (`wrong`), and shown as tables. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import topology as facts
from .checker import Report
from .demo_actors import Deed, Place, by_actor
from .demo_map import name
from .demo_ways import Ways
from .scenarios import Result, bill_text


@dataclass(slots=True)
class Outcome:
    """All that the demonstration found out. `carried_*` and `drops` are the data plane's own counters, by node."""

    deeds: list[Deed] = field(default_factory=list)
    internet: Report = field(default_factory=Report)
    rack: Report = field(default_factory=Report)
    control: Report = field(default_factory=Report)
    ways: Ways = field(default_factory=Ways)
    carried_out: dict[str, int] = field(default_factory=dict)
    carried_in: dict[str, int] = field(default_factory=dict)
    drops: dict[str, dict[str, int]] = field(default_factory=dict)
    cut: Result | None = None

    def wrong(self) -> list[str]:
        """What was not as told, a line each."""
        found = [f"{deed}: {deed.wrong}" for deed in self.deeds if deed.wrong]
        found += [f"at the routers' internet side: {problem}" for problem in self.internet.problems()]
        found += [f"in the racks: {problem}" for problem in self.rack.problems()]
        found += self.ways.problems()
        if not self.ways.to_site:
            found.append("no answer came to the wrong site, so nothing was shown")
        carried_out, carried_in = sum(self.carried_out.values()), sum(self.carried_in.values())
        if carried_out != carried_in:
            found.append(f"{carried_out} answers were carried away, {carried_in} arrived")
        if carried_out != self.ways.carries:
            found.append(f"the nodes counted {carried_out} carried answers, the racks saw {self.ways.carries}")
        if len(self.control.outside_slice) != 1:
            found.append(f"one packet was put behind the guard, the checker reported {len(self.control.outside_slice)}")
        if self.cut is None:
            found.append("no site was cut off")
        else:
            found += self.cut.wrong()
        return found


def _table(title: str) -> Table:
    return Table(
        title=title,
        title_style="bold",
        title_justify="left",
        header_style="bold",
        box=None,
        pad_edge=False,
        padding=(0, 1),
    )


def deeds_table(deeds: list[Deed]) -> Table:
    """Who did what, and as whom the internet saw them: a line an actor and family."""
    table = _table("Everybody at once, and as whom the internet saw them")
    for column in ("who", "IP", "download", "name", "ping", "address"):
        table.add_column(column, no_wrap=True)
    for column in ("tcp", "udp", "icmp"):
        table.add_column(column, justify="right", no_wrap=True)
    before = None
    for actor, version, done in by_actor(deeds):
        results = [Text(deed.wrong or deed.result, style="bold red" if deed.wrong else "") for deed in done]
        address = next((deed.seen[0] for deed in done if deed.seen), "-")
        who = Text("") if actor is before else Text(actor.title).append("")
        if who.plain:
            who.highlight_words([actor.node], name(actor.node).style)
        table.add_row(who, f"v{version}", *results, address, *(_port(deed.seen, address) for deed in done))
        before = actor
    return table


def _port(seen: Place | None, address: str) -> str:
    """A port; behind the end of its address where that is another one than the download's."""
    if seen is None or seen[0] == address:
        return "-" if seen is None else str(seen[1])
    return f".{seen[0].rpartition('.')[2]}:{seen[1]}" if "." in address else f"[{seen[0]}]:{seen[1]}"


def ways_table(ways: Ways) -> Table:
    """Answers by owner: where they came in, and how they got home."""
    table = _table("How every answer travelled")
    titles = [f"in by\n{router}" for router in facts.ROUTERS.values()]
    titles += [f"first at\n{node}" for node in facts.NODES]
    table.add_column("answers\nfor", no_wrap=True)
    for title in (*titles, "carried to\nits site", "carried to\nits node"):
        table.add_column(title, justify="right", no_wrap=True)
    for node, way in ways.by_owner.items():
        counts = [way.at_router[router] for router in facts.ROUTERS.values()]
        counts += [way.first_at[first] for first in facts.NODES]
        table.add_row(name(node), *(_count(number) for number in (*counts, way.to_site, way.to_node)))
    return table


def _count(number: int) -> Text:
    return Text(f"{number:,}", style="" if number else "dim")


def show_sums(console: Console, outcome: Outcome) -> None:
    """What the routers counted, zeros first of all."""
    internet, ways = outcome.internet, outcome.ways
    share = f"{ways.to_site:,} of {ways.answers:,} answers" if ways.answers else "none"
    rows: list[tuple[str, str | Text]] = [
        ("came to the wrong site", share),
        (
            "carried to another node",
            f"{ways.carries:,} times; by the nodes' counters {sum(outcome.carried_out.values()):,}",
        ),
        ("packets at the routers", f"{internet.packets:,}, {internet.sent:,} of them out"),
        ("left outside of a slice", zero(len(internet.outside_slice) + len(internet.not_expected_source))),
        ("left in another node's slice", zero(len(outcome.rack.outside_slice))),
        ("bad checksums", zero(len(internet.bad_checksums))),
        ("lost by the captures", zero(internet.kernel_dropped + outcome.rack.kernel_dropped)),
        ("control: 1 packet put behind the guard", f"{len(outcome.control.outside_slice)} reported"),
    ]
    sums = Table.grid(padding=(0, 2))
    for title, value in rows:
        sums.add_row(title, value)
    console.print(sums)
    for node, drops in outcome.drops.items():
        if drops:
            said = ", ".join(f"{number} {why}" for why, number in drops.items())
            console.print(Text(f"dropped at {node}: {said}", style="dim"))


def zero(number: int) -> Text:
    """Green when there is nothing."""
    return Text(f"{number:,}", style="bold red" if number else "green")


def show_bill(console: Console, result: Result) -> None:
    """What the cut cost whom."""
    head, *rows = bill_text(result)
    console.print(Text(f"  {head}", style="bold"))
    for row in rows:
        line = Text(f"  {row}")
        for node in facts.NODES:
            line.highlight_words([node], name(node).style)
        console.print(line)
    for site, nodes in facts.SITES.items():
        broken = sum(result.costs[node].broken for node in nodes if node in result.costs)
        console.print(Text(f"connections broken at {site}: ").append_text(zero(broken)))
