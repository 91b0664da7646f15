# SPDX-License-Identifier: Apache-2.0
"""`softunicast drops`: which packets were dropped, why, and the last one of each."""

from __future__ import annotations

import click

from softunicast.cli.arguments import PROTOCOL_NAMES, endpoint_text, json_option, node_option
from softunicast.cli.output import Table, duration_text, note, write_json
from softunicast.cli.reading import reading
from softunicast.egress.views import DropView, read_drops
from softunicast.kernel.abi_util import addr_ip


@click.command()
@node_option
@click.option("--all", "with_zeros", is_flag=True, help="Reasons that never applied too (JSON has them always).")
@json_option
def drops(node: str | None, with_zeros: bool, as_json: bool) -> None:
    """Show which packets were dropped, and why.

    LAST PACKET is the flow of the last one, from the slice's side: slice, then remote. docs/counters.md says what
    each reason means and what to do about it.
    """
    with reading(node) as at:
        views = read_drops(at.maps["stats"], at.maps["last_drops"], at.now_ns())
        if as_json:
            write_json({"node": at.node, "drops": [view.as_json() for view in views]})
            return
        shown = [view for view in views if view.count or with_zeros]
        if not shown:
            note("nothing was dropped")
            return
        table = Table(("REASON", "COUNT", "AGO", "LAST PACKET", "MEANING"), right=("COUNT", "AGO"))
        table.write((view.name, str(view.count), ago_text(view), last_text(view), view.meaning) for view in shown)


def ago_text(view: DropView) -> str:
    return "-" if view.ago_s is None else duration_text(int(view.ago_s))


def last_text(view: DropView) -> str:
    """`tcp 198.51.100.20:9001 203.0.113.1:443`; `-` when the packet had no ports that could be read."""
    flow = view.flow
    if flow is None:
        return "-"
    local, remote = addr_ip(flow.local), addr_ip(flow.remote)
    proto = PROTOCOL_NAMES.get(flow.proto, f"protocol {flow.proto}")
    return f"{proto} {endpoint_text(local, flow.local_port)} {endpoint_text(remote, flow.remote_port)}"
