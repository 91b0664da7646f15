# SPDX-License-Identifier: Apache-2.0
"""`softunicast agent`: reconcile this node's kernel with plan and bindings, once or for good; take all away
again."""

from __future__ import annotations

from pathlib import Path

import click

from softunicast.agent.daemon import Agent, Options
from softunicast.agent.logs import LogFormat, logger
from softunicast.agent.machine import Machine
from softunicast.agent.reconcile import Inputs, decide, locked
from softunicast.agent.uninstall import uninstall as take_away
from softunicast.api.server import Server, group_number
from softunicast.cli.arguments import log_format_option
from softunicast.errors import UsageError
from softunicast.kernel import nodes, probe

_FILE = click.Path(path_type=Path)


@click.group(invoke_without_command=True)
@click.option("--plan", type=_FILE, metavar="FILE", help="The plan (YAML).")
@click.option("--bindings", type=_FILE, metavar="FILE", help="The bindings, from `softunicast plan apply`.")
@click.option("--node", metavar="NAME", help="Which node of the plan this machine (namespace) is.")
@click.option("--dry-run", is_flag=True, help="Print what would be changed and what was found; change nothing.")
@click.option("--once", is_flag=True, help="Reconcile once and leave; the data plane stays.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0.1, max=3600),
    default=10.0,
    show_default=True,
    metavar="S",
    help="Seconds between two looks at the kernel when nothing happens.",
)
@click.option("--proxy", type=_FILE, metavar="FILE", help="Run `softunicast proxy` with this policy beside the agent.")
@click.option(
    "--group", metavar="NAME", help="A group whose members, too, may ask this agent for on-ramps of their own."
)
@log_format_option
@click.pass_context
def agent(
    ctx: click.Context,
    plan: Path | None,
    bindings: Path | None,
    node: str | None,
    dry_run: bool,
    once: bool,
    interval: float,
    proxy: Path | None,
    group: str | None,
    log_format: LogFormat,
) -> None:
    """Reconcile this node's kernel with plan and bindings.

    Runs as root, in the node's network namespace. Nothing changes when nothing changed; its death disturbs no
    flow.
    """
    if ctx.invoked_subcommand is not None:
        if plan or bindings or node or dry_run or once:
            raise UsageError(f"put options behind the verb: softunicast agent {ctx.invoked_subcommand} --node NAME")
        return
    given = {"--plan": plan, "--bindings": bindings, "--node": node}
    lacking = [name for name, value in given.items() if value is None]
    if plan is None or bindings is None or node is None:
        raise UsageError(f"agent: {', '.join(lacking)} missing; say --plan FILE --bindings FILE --node NAME")
    nodes.check_name(node)
    number = None if group is None else group_number(group)
    inputs = Inputs.read(plan, bindings)
    features = probe.probe()
    probe.require(features)
    tcx = any(feature.name == "TCX" and feature.present for feature in features)
    if dry_run:
        with Machine(node, tcx=tcx) as machine:
            decision = decide(machine, inputs)
        for operation in decision.operations:
            click.echo(str(operation))
        if not decision.operations:
            click.echo("nothing to do")
        for device, choice in decision.choices.items():
            click.echo(f"uplink {device}: steered at {choice}")
        for finding in decision.findings:
            click.echo(f"finding: {finding}")
        return
    log = logger(log_format)
    for feature in features:
        if not feature.present:
            log.warning("kernel lacks", feature=feature.name, needed_for=feature.needed_for, remedy=feature.remedy)
    daemon = Agent(Options(node, plan, bindings, interval, tcx, proxy), log, service=Server(node, log, number))
    if once:
        log.info("reconciled", node=node, changed=daemon.once())
    else:
        daemon.run()


@agent.command()
@click.option("--node", required=True, metavar="NAME", help="Which node to remove from this machine.")
@click.option("--dry-run", is_flag=True, help="Print what would be removed; remove nothing.")
def uninstall(node: str, dry_run: bool) -> None:
    """Remove every trace of a node: hooks, maps and their flows, addresses, rules, routes, sysctls, files."""
    nodes.check_name(node)
    if dry_run:
        count = take_away(node, dry_run=True, say=click.echo)
    else:
        with locked(node):
            count = take_away(node, dry_run=False, say=click.echo)
    if not count:
        click.echo(f"node {node}: nothing to remove")
