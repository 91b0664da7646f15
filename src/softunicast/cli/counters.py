# SPDX-License-Identifier: Apache-2.0
"""`softunicast counters`: what the data plane counted since it was loaded."""

from __future__ import annotations

import click

from softunicast.cli.arguments import json_option, node_option
from softunicast.cli.output import Table, write_json
from softunicast.cli.reading import reading
from softunicast.egress.views import read_counters


@click.command()
@node_option
@click.option("--all", "with_zeros", is_flag=True, help="Counters that are 0 too (JSON has them always).")
@json_option
def counters(node: str | None, with_zeros: bool, as_json: bool) -> None:
    """Show what the data plane counted, summed over the CPUs. docs/counters.md says where each is counted."""
    with reading(node) as at:
        views = read_counters(at.maps["stats"])
        if as_json:
            write_json({"node": at.node, "counters": [view.as_json() for view in views]})
            return
        shown = [view for view in views if view.count or with_zeros]
        table = Table(("COUNTER", "COUNT", "MEANING"), right=("COUNT",))
        if table.write((view.name, str(view.count), view.meaning) for view in shown) == 0:
            table.write([("-", "0", "nothing was counted yet; --all shows every counter")])
