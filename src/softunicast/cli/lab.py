# SPDX-License-Identifier: Apache-2.0
"""`softunicast lab`: a fleet in network namespaces, to try things in.

`up` leaves it running until `down`; both work from the prefix alone, whoever made the lab and however that
ended.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path

import click

from softunicast.errors import UsageError
from softunicast.lab import build
from softunicast.lab.lab import Lab, environment
from softunicast.lab.topology import DRAWING, NODES, ROUTERS
from softunicast.lab.traces import traces

prefix_option = click.option(
    "--prefix",
    default="su",
    show_default=True,
    help="Of the namespaces' names; labs with different prefixes live side by side.",
)


@click.group()
def lab() -> None:
    """A fleet in network namespaces, to try things in."""


def _running(prefix: str) -> Lab:
    found = Lab(prefix, agents=False)
    if not found.is_up():
        raise UsageError(f"lab: {prefix!r} is not up; `softunicast lab up{_prefix_argument(prefix)}` first")
    return found


def _prefix_argument(prefix: str) -> str:
    return "" if prefix == "su" else f" --prefix {prefix}"


@lab.command()
@prefix_option
@click.option("--agents/--no-agents", default=True, show_default=True, help="Start an agent on each node.")
@click.option(
    "--feed",
    type=click.IntRange(0, 3_000_000),
    default=0,
    show_default=True,
    help="Routes of a generated table that the internet sends to the routers.",
)
def up(prefix: str, agents: bool, feed: int) -> None:
    """Build two sites, an internet and clients, and start them."""
    build.check_tools()
    made = Lab(prefix, agents=agents, feed=feed)
    if made.is_up():
        raise UsageError(f"lab: {prefix!r} is up already; `softunicast lab down{_prefix_argument(prefix)}` first")
    began_s = time.monotonic()
    made.up()
    click.echo(DRAWING)
    for router in ROUTERS.values() if feed else ():
        click.echo(f"{router} has {made.feed_routes(router):,} routes of the feed in its kernel")
    click.echo(f"up in {time.monotonic() - began_s:.1f} s; plan {made.plan_path}")
    argument = _prefix_argument(prefix)
    click.echo(f"try: softunicast lab shell{argument} c1        then: curl http://203.0.113.1/")
    if agents:
        click.echo(
            f"     softunicast lab shell{argument} lhr1      then: softunicast run --pool gb -- curl http://203.0.113.1/"
        )


@lab.command()
@prefix_option
def down(prefix: str) -> None:
    """Remove every trace of a lab."""
    build.check_tools(("ip", "nsenter"))
    Lab(prefix, agents=False).down()


@lab.command()
@prefix_option
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def status(prefix: str, as_json: bool) -> None:
    """Show the drawing and what runs. Exit status 1 when the lab is not up."""
    here = Lab(prefix, agents=False)
    running = here.is_up()
    programs = {
        name: [_program(pid) for pid in sorted(build.processes([path]))]
        for name, path in build.namespaces(prefix).items()
    }
    left = {name: [str(place) for place in traces(here.node(name).plan_name)] for name in NODES}
    if as_json:
        document = {
            "prefix": prefix,
            "up": running,
            "plan": str(here.plan_path),
            "processes": programs,
            "node_state": left,
        }
        click.echo(json.dumps(document, indent=2))
    else:
        if running:
            click.echo(DRAWING)
        click.echo(f"{prefix}: {'up' if running else 'not up'}")
        for name, commands in programs.items():
            for command in commands:
                click.echo(f"  {name:5} {command}")
    if not running:
        click.get_current_context().exit(1)


def _program(pid: int) -> str:
    words = build.command_line(pid)
    return f"{pid} {shlex.join(words)[:100]}" if words else f"{pid} (ended)"


@lab.command()
@prefix_option
@click.argument("node")
def shell(prefix: str, node: str) -> None:
    """Open a shell on a host (inet r1 r2 lhr1 lhr2 cdg1 cdg2 c1 t1 c2 t2 c3 t4). The status is the shell's."""
    host = _running(prefix).node(node)
    program = os.environ.get("SHELL", "/bin/sh")
    variables = {**environment(), "PS1": f"{node}# "}
    done = subprocess.run(build.entering(host.netns, [program]), env=variables, check=False)
    click.get_current_context().exit(done.returncode)


@lab.command()
@prefix_option
@click.argument("node", default="r1")
@click.option("--device", help="Default: a router's internet side (inet0), elsewhere every device.")
@click.option(
    "--write",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write a pcap file instead of text.",
)
def capture(prefix: str, node: str, device: str | None, path: Path | None) -> None:
    """Show packets on a node with tcpdump until interrupted."""
    host = _running(prefix).node(node)
    chosen = device or ("inet0" if node in ROUTERS.values() else "any")
    words = ["tcpdump", "-n", "-i", chosen, *(["-w", str(path.absolute()), "-U"] if path else ["-l"])]
    done = subprocess.run(build.entering(host.netns, words), env=environment(), stdin=sys.stdin, check=False)
    click.get_current_context().exit(done.returncode)


@lab.command()
@click.option("--prefix", default="demo", show_default=True, help="Of the lab that is made for it.")
@click.option("--keep", is_flag=True, help="Leave the lab up afterwards.")
def demo(prefix: str, keep: bool) -> None:
    """Four servers, two sites: who owns what, everybody at once, how every answer travelled; then a site is cut off.

    Exit status 1 when something was not as told.
    """
    from softunicast.lab.demo import demonstrate

    click.get_current_context().exit(demonstrate(prefix, keep=keep))


@lab.command()
@click.option("--prefix", default="scenario", show_default=True, help="Of the lab; one that is not up is made for it.")
@click.argument("name", metavar="NAME")
@click.option("--json", "as_json", is_flag=True, help="Write JSON.")
def scenario(prefix: str, name: str, as_json: bool) -> None:
    """Break something and print what it cost: fail-node, fail-site, backbone, mtu, drain, bird or flap.

    Exit status 1 when a connection broke whose owner lived.
    """
    from dataclasses import asdict

    from softunicast.lab.scenarios import SCENARIOS, bill_text

    if name not in SCENARIOS:
        raise UsageError(f"lab scenario: no scenario {name!r}; there are {', '.join(SCENARIOS)}")
    build.check_tools()
    here = Lab(prefix)
    made = not here.is_up()

    def say(line: str) -> None:
        if not as_json:
            click.echo(line)

    try:
        if made:
            here.up()
        result = SCENARIOS[name](here, say)
    finally:
        if made:
            here.down()
    if as_json:
        click.echo(json.dumps({**asdict(result), "wrong": result.wrong()}, indent=2))
    else:
        for line in (*bill_text(result), *result.facts):
            click.echo(line)
        for line in result.wrong():
            click.echo(f"not as promised: {line}")
    click.get_current_context().exit(1 if result.wrong() else 0)
