# SPDX-License-Identifier: Apache-2.0
"""`softunicast terminator`: ends the TCP of on-ramps whose strategy is `terminate`. The agent starts it."""

from __future__ import annotations

from functools import partial

import click

from softunicast.agent.logs import LogFormat, logger
from softunicast.cli.arguments import log_format_option, node_option
from softunicast.cli.proxy import the_node
from softunicast.egress.tag import SocketPolicies
from softunicast.kernel import netns, nodes
from softunicast.proxy.egress import Egress
from softunicast.proxy.master import Master
from softunicast.proxy.terminate import FILE, client_number, config_of, pools_of, read


@click.command()
@node_option
@click.option("--check", is_flag=True, help="Check what the agent wrote against this machine, and leave.")
@log_format_option
def terminator(node: str | None, check: bool, log_format: LogFormat) -> None:
    """End the TCP of terminated on-ramps, and go on from slices.

    The node's agent starts it, tells it of changes (HUP) and ends it; it outlives the agent. docs/terminate.md.
    """
    name = the_node(node)
    file = nodes.run_dir(name) / FILE
    told = read(file)
    config = config_of(told, str(file))
    if check:
        for listener in config.listeners:
            with netns.enter(listener.namespace):
                pass
        click.echo(f"{file}: {len(told.onramps)} on-ramps")
        return
    egress = Egress(partial(pools_of, told), SocketPolicies(name), partial(client_number, told))
    Master(config, egress, None, logger(log_format, node=name, part="terminator"), lambda _: None).run()
