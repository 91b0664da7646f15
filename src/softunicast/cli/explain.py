# SPDX-License-Identifier: Apache-2.0
"""`softunicast explain`: who owns an address and port, who claims the flow, what would happen to a packet, and why."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from softunicast.cli.arguments import (
    ENDPOINT,
    EXISTING_FILE,
    NAME,
    PROTOCOLS,
    REMOTE,
    Endpoint,
    Remote,
    json_option,
    node_option,
    protocol_number,
)
from softunicast.cli.output import Cell, Table, note, write_json
from softunicast.cli.reading import reading
from softunicast.egress import tables as egress_tables
from softunicast.egress.explain import Asked, Contents, Explanation, HeldBy, Setting
from softunicast.egress.explain import explain as explain_packet
from softunicast.egress.flow_view import Names
from softunicast.errors import PlanError, UsageError
from softunicast.kernel import nodes
from softunicast.model.binding import Bindings, check_bindings
from softunicast.model.bindings_file import load_bindings, read_bindings
from softunicast.model.owner import OwnerTable
from softunicast.model.plan import Plan, load_plan
from softunicast.steering import tables as steering_tables

STYLES = {"drop": "red", "pass": "yellow", "claim-decides": "yellow"}


@click.command()
@click.argument("local", type=ENDPOINT, metavar="ADDRESS:PORT")
@click.option("--from", "remote", type=REMOTE, required=True, metavar="ADDRESS:PORT", help="Who sent the packet.")
@click.option("--proto", type=click.Choice(PROTOCOLS), default="tcp", show_default=True, help="Its protocol.")
@click.option("--begins", is_flag=True, help="It is a TCP SYN, or an ICMP echo request; otherwise an answer.")
@click.option(
    "--fragment", type=click.IntRange(0, 0xFFFFFFFF), metavar="ID", help="It is the first fragment of this id."
)
@node_option
@click.option("--plan", "plan_file", type=EXISTING_FILE, metavar="FILE", help="From this plan, not from live maps.")
@click.option("--bindings", "bindings_file", type=EXISTING_FILE, metavar="FILE", help="The bindings that go with it.")
@click.option("--at", "at_node", type=NAME, metavar="NODE", help="With --plan: the node it comes to; default: each.")
@json_option
def explain(
    local: Endpoint,
    remote: Remote,
    proto: str,
    begins: bool,
    fragment: int | None,
    node: str | None,
    plan_file: Path | None,
    bindings_file: Path | None,
    at_node: str | None,
    as_json: bool,
) -> None:
    """Say what would happen to a packet that comes to ADDRESS:PORT, and why.

    For ICMP echo PORT is the id, and --from needs no port. From the live maps of this node (or --node), or, with
    --plan and --bindings, from what every node would have after `softunicast plan apply`; claims are not known then.
    """
    asked = packet(local, remote, proto, begins)
    if fragment is not None:
        if asked.local.version == 4 and fragment > 0xFFFF:
            raise UsageError(f"--fragment {fragment}: an IPv4 packet's id has 16 bits; give 0 to 65535")
        asked = replace(asked, fragment=fragment)
    if plan_file is None:
        if bindings_file is not None or at_node is not None:
            raise UsageError(f"{'--bindings' if bindings_file else '--at'} goes with --plan FILE; add it or leave both")
        source, found = "live", live_explanations(asked, node)
    else:
        if node is not None:
            raise UsageError("--node reads live maps and --plan does not; say --at NODE with --plan")
        if bindings_file is None:
            raise UsageError("--plan needs --bindings FILE; `softunicast plan apply` writes one")
        source, found = "plan", plan_explanations(asked, plan_file, bindings_file, at_node)
    if as_json:
        write_json({"source": source, "at": [{"node": name, **one.as_json()} for name, one in found.items()]})
        return
    for place, (name, one) in enumerate(found.items()):
        if place:
            note("")
        show(name, one)


def packet(local: Endpoint, remote: Remote, proto: str, begins: bool) -> Asked:
    """The packet asked for. UsageError when its parts do not fit together."""
    version = local.address.version
    if remote.network.num_addresses != 1:
        raise UsageError(f"--from {remote.network}: a packet comes from one address; write ADDRESS:PORT")
    address = remote.network.network_address
    if address.version != version:
        raise UsageError(f"--from {address}: IPv{address.version}, but {local.address} is IPv{version}; use one family")
    if proto == "icmp":
        return Asked(protocol_number(proto, version), local.address, local.port, address, 0, begins)
    if remote.port is None:
        raise UsageError(f"--from {address}: has no port; write ADDRESS:PORT, like {address}:443")
    if begins and proto != "tcp":
        raise UsageError("--begins: a UDP packet does not say whether it begins a flow; leave it out")
    return Asked(protocol_number(proto, version), local.address, local.port, address, remote.port, begins)


def live_explanations(asked: Asked, node: str | None) -> dict[str, Explanation]:
    """From the maps of a node that is here."""
    with reading(node) as at:
        setting = Setting(
            node=at.state.places.nodes[at.node],
            site=at.settings.site,
            names=at.names,
            timers=at.settings,
            now_s=at.now_s(),
            answer_ping=bool(at.settings.answer_ping),
        )
        found = explain_packet(at.maps, asked, setting)
        file = nodes.bindings_file(at.node)
        if file.exists():
            table = OwnerTable.build(at.plan, load_bindings(file.read_text(encoding="utf-8"), str(file)))
            found = with_owner(found, table)
        return {at.node: found}


def with_owner(found: Explanation, table: OwnerTable) -> Explanation:
    """Names the slice and its epoch, which a node's maps tell only of its own slices."""
    if found.owner is None or found.owner.slice is not None:
        return found
    binding = table.owner(found.asked.local, found.asked.local_port)
    if binding is None or binding.node != found.owner.node:
        return found
    return replace(found, owner=HeldBy(binding.node, str(binding.slice), binding.epoch, binding.pool))


def plan_explanations(
    asked: Asked, plan_file: Path, bindings_file: Path, at_node: str | None
) -> dict[str, Explanation]:
    """From what each node would have (or the one node), claims unknown."""
    plan = load_plan(read(plan_file), str(plan_file))
    given = read_bindings(read(bindings_file), str(bindings_file))
    check_bindings(plan, given)
    bindings = given.bindings
    if at_node is not None and at_node not in plan.nodes:
        raise UsageError(f"--at {at_node}: no node of {plan_file}; it has {', '.join(sorted(plan.nodes))}")
    table = OwnerTable.build(plan, bindings)
    names = [at_node] if at_node is not None else sorted(plan.nodes)
    return {name: with_owner(plan_explanation(asked, plan, bindings, name), table) for name in names}


def plan_explanation(asked: Asked, plan: Plan, bindings: Bindings, name: str) -> Explanation:
    """What that node would do."""
    tables = egress_tables.build_tables(plan, bindings, name, {}, {})
    tables |= steering_tables.build_tables(plan, bindings, name)
    meanings = egress_tables.table_names(plan, bindings, name)
    setting = Setting(
        node=plan.node_index(name),
        site=plan.site_index(plan.node(name).site),
        names=Names(
            node=name,
            nodes={index: other for other, index in meanings.nodes.items()},
            sites={plan.site_index(site): site for site in plan.sites},
            pools={index: pool for pool, index in meanings.pools.items()},
            onramps={index: onramp for onramp, index in meanings.onramps.items()},
        ),
        timers=plan.settings.timers,
        now_s=0,
        answer_ping=plan.settings.answer_ping,
        live=False,
    )
    return explain_packet({map_name: Contents(entries) for map_name, entries in tables.items()}, asked, setting)


def read(file: Path) -> str:
    """The text of a file. PlanError when it is none."""
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(str(file), 0, f"cannot be read ({error})", "give a text file") from error


def show(name: str, found: Explanation) -> None:
    """For people: where it comes in, then a line a step."""
    note(f"at {name}:")
    Table(("  STEP", "WHAT")).write(
        (f"  {step.step}", Cell(step.text, STYLES.get(found.action.value, "green") if step.step == "verdict" else ""))
        for step in found.steps
    )
