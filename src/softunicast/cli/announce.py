# SPDX-License-Identifier: Apache-2.0
"""`softunicast announce`: whether this node's prefixes lead to it, why not, and taking it out of service gently."""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Any, Final

import click

from softunicast.agent.announcing import STATUS_FILE, boot_s, drain_path, drained_since, include_path
from softunicast.agent.state import write_atomically
from softunicast.announce.bird_conf import PROTOCOLS, Stage
from softunicast.announce.birdc import Birdc
from softunicast.cli.arguments import json_option, node_option
from softunicast.cli.output import note, write_json
from softunicast.errors import KernelError, UsageError
from softunicast.kernel import nodes
from softunicast.model.fleet import BirdSpeaker, Node
from softunicast.model.plan import load_plan

WATCH_S: Final = 0.2
Announced = dict[str, str]


@click.group()
def announce() -> None:
    """Announce this node's prefixes by BIRD, or take the node out of service."""


@announce.command()
@node_option
@json_option
def status(node: str | None, as_json: bool) -> None:
    """Show what is announced, why not, and what BIRD says.

    Exit status 0 while the prefixes lead to this node (also when it drains), 1 when they are withdrawn: a health check
    for daemons other than BIRD.
    """
    name = nodes.find_node(node)
    found = read_status(name)
    if as_json:
        write_json(found)
    else:
        _show(found)
    if found["stage"] == "withdrawn":
        click.get_current_context().exit(1)


@announce.command()
@node_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["stage", "exabgp"]),
    default="stage",
    show_default=True,
    help="stage: a word a line; exabgp: commands of ExaBGP's text API.",
)
def watch(node: str | None, form: str) -> None:
    """Print the stage now and whenever it changes, for daemons other than BIRD; never ends by itself.

    announced, draining, withdrawn; with --format exabgp the announcements themselves. While the agent is not running
    the stage is the last one it judged, as it is with BIRD.
    """
    name = nodes.find_node(node)
    reader = select.poll()
    reader.register(sys.stdout, 0)
    last, told = "", Announced()
    while not reader.poll(0):  # whoever reads has gone
        stage = read_stage(name)
        lines = [stage] if stage != last else []
        last = stage
        if form == "exabgp":
            now = announced(name, stage)
            lines, told = exabgp_lines(told, now), now
        for line in lines:
            click.echo(line)
        time.sleep(WATCH_S)


def read_stage(name: str) -> str:
    """What the agent last judged; withdrawn when it never did, or the node was uninstalled."""
    try:
        return str(json.loads((nodes.run_dir(name) / STATUS_FILE).read_text(encoding="utf-8"))["stage"])
    except (OSError, ValueError, KeyError, TypeError):
        return Stage.WITHDRAWN.value


def announced(name: str, stage: str) -> Announced:
    """What is to be announced: each prefix with its attributes in ExaBGP's words; nothing when withdrawn, or when the
    node has gone."""
    try:
        plan = load_plan(nodes.plan_file(name).read_text(encoding="utf-8"), "plan.yaml")
    except OSError:
        return {}
    if stage == Stage.WITHDRAWN.value:
        return {}
    node = plan.node(name)
    bird = node.bird or BirdSpeaker()
    draining = stage == Stage.DRAINING.value
    attributes = f"med {bird.drain_med if draining else 0}"
    if draining and bird.drain_community is not None:
        attributes += f" community [{bird.drain_community}]"
    return {str(prefix.network): attributes for prefix in plan.prefixes if node.site in prefix.announce}


def exabgp_lines(before: Announced, now: Announced) -> list[str]:
    """The commands that lead from the one to the other."""
    lines = [f"withdraw route {prefix} next-hop self" for prefix in before if prefix not in now]
    return lines + [
        f"announce route {prefix} next-hop self {attributes}"
        for prefix, attributes in now.items()
        if before.get(prefix) != attributes
    ]


@announce.command()
@node_option
def drain(node: str | None) -> None:
    """Announce with MED and community for a while, then withdraw; flows that live go on."""
    name = nodes.find_node(node)
    if drained_since(name) is not None:
        note(f"{name} drains already")
        return
    try:
        write_atomically(drain_path(name), json.dumps({"since_boot_s": round(boot_s(), 3)}) + "\n")
    except OSError as error:
        raise KernelError(f"write {drain_path(name)}: {error.strerror}") from error
    bird = plan_node(name).bird
    wait = f", withdrawn in {bird.drain_settle_s:g} s" if bird else ""
    note(f"{name} drains: its prefixes become the last choice{wait}; `softunicast announce undrain` takes it back")


@announce.command()
@node_option
def undrain(node: str | None) -> None:
    """Announce as usual again."""
    name = nodes.find_node(node)
    if drained_since(name) is None:
        note(f"{name} does not drain")
        return
    drain_path(name).unlink(missing_ok=True)
    note(f"{name} drains no longer: announced while it is fit")


def plan_node(name: str) -> Node:
    """The node in the agent's copy of the plan. KernelError when that is gone."""
    file = nodes.plan_file(name)
    try:
        return load_plan(file.read_text(encoding="utf-8"), str(file)).node(name)
    except OSError as error:
        raise KernelError(f"{file}: {error.strerror}; start the node's agent again") from error


def read_status(name: str) -> dict[str, Any]:
    """What the agent last judged, and what BIRD has."""
    file = nodes.plan_file(name)
    try:
        plan = load_plan(file.read_text(encoding="utf-8"), str(file))
    except OSError as error:
        raise KernelError(f"{file}: {error.strerror}; start the node's agent again") from error
    node = plan.node(name)
    path = nodes.run_dir(name) / STATUS_FILE
    try:
        judged = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"node {name}: its agent has announced nothing yet; start it, or look at its log") from error
    since_s = drained_since(name)
    found: dict[str, Any] = {
        "node": name,
        "site": node.site,
        "stage": judged["stage"],
        "reasons": judged["reasons"],
        "draining_s": None if since_s is None else round(boot_s() - since_s, 1),
        "prefixes": [str(prefix.network) for prefix in plan.prefixes if node.site in prefix.announce],
        "bird": None,
    }
    if node.bird is not None:
        found["bird"] = {"control": node.bird.control, "include": str(include_path(name, node.bird)), "error": None}
        try:
            with Birdc(node.bird.control) as bird:
                there = bird.protocols()
                ours = [name for name, *_ in there if name in PROTOCOLS.values()]
                sessions = [(name, state, info) for name, kind, state, info in there if kind == "BGP"]
                found["bird"] |= {
                    "routes": sum(bird.routes(protocol) for protocol in ours),
                    "included": bool(ours),
                    "sessions": [{"name": name, "state": state, "info": info} for name, state, info in sessions],
                }
        except KernelError as error:
            found["bird"]["error"] = str(error)
    return found


def _show(found: dict[str, Any]) -> None:
    why = f": {'; '.join(found['reasons'])}" if found["reasons"] else ""
    note(f"{found['node']} at {found['site']}: {found['stage']}{why}")
    note(f"prefixes  {', '.join(found['prefixes']) or 'none'}")
    bird = found["bird"]
    if bird is None:
        note("bird      not in the plan; this verb's exit status is for whatever announces instead")
        return
    if bird["error"]:
        note(f"bird      {bird['error']}")
        return
    if not bird["included"]:
        note(f"bird      does not include {bird['include']}: see docs/bgp.md")
        return
    note(f"bird      {bird['routes']} routes of ours, by {bird['include']}")
    for session in bird["sessions"]:
        note(f"session   {session['name']} {session['state']} {session['info']}")
