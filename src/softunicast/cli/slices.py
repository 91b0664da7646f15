# SPDX-License-Identifier: Apache-2.0
"""`softunicast slices`: each slice of this node, who holds how much of it, and where its ports run out."""

from __future__ import annotations

from collections import Counter as Tally

import click

from softunicast.cli.arguments import endpoint_text, json_option, node_option
from softunicast.cli.output import Cell, Row, Table, note, write_json
from softunicast.cli.reading import reading
from softunicast.egress.views import WARN_PERCENT, CrowdView, SliceView, read_slices

TITLES = ("SLICE", "POOL", "EPOCH", "STATE", "TCP", "UDP", "ICMP", "HELD BY", "MOST CROWDED", "USED", "", "REFUSED")
RIGHT = ("EPOCH", "TCP", "UDP", "ICMP", "USED", "REFUSED")


@click.command()
@node_option
@json_option
def slices(node: str | None, as_json: bool) -> None:
    """Show the slices of this node and how full they are.

    MOST CROWDED is the destination that has fewest ports left, USED how many of how many it holds. "!" marks
    90 % and more, FULL that none is left; REFUSED counts those that asked in vain, as far as it is remembered.
    """
    with reading(node) as at:
        maps = at.maps
        views = read_slices(maps["slices"], maps["flows"], maps["crowds"], at.names, at.now_ns(), at.settings)
        if as_json:
            write_json({"node": at.node, "slices": [view.as_json() for view in views]})
            return
        if not views:
            note(f"{at.node} holds no slice: `softunicast plan apply` binds them, and its agent takes them up")
            return
        Table(TITLES, right=RIGHT).write(slice_row(view) for view in views)


def slice_row(view: SliceView) -> Row:
    """A line of the table."""
    totals = {proto: sum(kinds.values()) for proto, kinds in view.claims.items()}
    held_by = Tally[str]()
    for kinds in view.claims.values():
        held_by.update(kinds)
    text = ", ".join(f"{kind} {count}" for kind, count in held_by.items()) or "-"
    if view.lingering:
        text += f" ({view.lingering} lingering)"
    return (
        f"{endpoint_text(view.address, view.first)}-{view.last}",
        view.pool,
        str(view.epoch),
        Cell(view.state, "" if view.state == "live" else "yellow"),
        str(totals.get("tcp", 0)),
        str(totals.get("udp", 0)),
        str(totals.get("icmp", 0) + totals.get("icmpv6", 0)),
        text,
        destination_text(view.crowded),
        used_text(view.crowded),
        used_mark(view.crowded),
        Cell(str(view.refused), "red" if view.refused else ""),
    )


def destination_text(crowded: CrowdView | None) -> str:
    """`tcp 203.0.113.1:443`, `udp *` for wildcard claims."""
    if crowded is None:
        return "-"
    if crowded.remote is None or crowded.remote_port is None:
        return f"{crowded.proto} *"
    if crowded.proto.startswith("icmp"):
        return f"{crowded.proto} {crowded.remote}"
    return f"{crowded.proto} {endpoint_text(crowded.remote, crowded.remote_port)}"


def used_text(crowded: CrowdView | None) -> str:
    return "-" if crowded is None else f"{crowded.used}/{crowded.size} {crowded.percent}%"


def used_mark(crowded: CrowdView | None) -> Cell:
    """FULL, "!" at 90 % and more, or nothing."""
    if crowded is None or crowded.percent < WARN_PERCENT:
        return Cell("")
    return Cell("FULL", "bold red") if crowded.full else Cell("!", "bold yellow")
