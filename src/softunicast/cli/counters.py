# SPDX-License-Identifier: Apache-2.0
"""`softunicast counters`: what the data plane counted since it was loaded."""

from __future__ import annotations

import click

from softunicast.cli.arguments import json_option, node_option
from softunicast.cli.onramp import tenant_row, tenant_table
from softunicast.cli.output import Table, note, write_json
from softunicast.cli.reading import reading
from softunicast.egress.onramp_view import read_tenants
from softunicast.egress.views import read_counters
from softunicast.kernel.abi import Tenant


@click.command()
@node_option
@click.option("--all", "with_zeros", is_flag=True, help="Counters that are 0 too (JSON has them always).")
@json_option
def counters(node: str | None, with_zeros: bool, as_json: bool) -> None:
    """Show what the data plane counted, summed over the CPUs. docs/counters.md says where each is counted."""
    with reading(node) as at:
        views = read_counters(at.maps["stats"])
        tenants = read_tenants(at.maps["tenants"], at.state.numbers.tenants)
        if as_json:
            listed = {"counters": [view.as_json() for view in views], "tenants": [view.as_json() for view in tenants]}
            write_json({"node": at.node, **listed})
            return
        shown = [view for view in views if view.count or with_zeros]
        table = Table(("COUNTER", "COUNT", "MEANING"), right=("COUNT",))
        if table.write((view.name, str(view.count), view.meaning) for view in shown) == 0:
            table.write([("-", "0", "nothing was counted yet; --all shows every counter")])
        used = [tenant_row(view) for view in tenants if view.name is not None or view.counts != Tenant()]
        if used:
            note("")
            tenant_table().write(used)
