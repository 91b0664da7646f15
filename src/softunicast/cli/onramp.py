# SPDX-License-Identifier: Apache-2.0
"""`softunicast onramp`: where clients' packets come in; ask the running agent for more of them, and give them back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from softunicast.cli.arguments import json_option, node_option
from softunicast.cli.output import Table, note, write_json
from softunicast.cli.reading import Reading, reading
from softunicast.errors import UsageError

if TYPE_CHECKING:
    from softunicast.egress.onramp_view import OnrampView


@click.group()
def onramp() -> None:
    """Add, list and remove on-ramps of this node while its agent runs. docs/onramps.md shows each kind."""


@onramp.command()
@click.argument("name")
@click.option("--device", metavar="DEVICE", help="Its device, there or to come; default: the on-ramp's name.")
@click.option("--tun", is_flag=True, help="Have the agent make the device, a TUN.")
@click.option("--tap", is_flag=True, help="Have the agent make the device, a tap.")
@click.option("--pool", metavar="POOL", help="Whose slices its flows use; default: the node's only pool.")
@click.option("--slice", "slice_", metavar="SLICE", help="Use only these ports, 198.51.100.20:9000-9009.")
@click.option("--source", "sources", multiple=True, required=True, metavar="NETWORK", help="The clients' networks.")
@click.option("--gateway", metavar="ADDRESS", help="Our IPv4 address towards the clients.")
@click.option("--gateway6", metavar="ADDRESS", help="Our IPv6 address towards the clients.")
@click.option("--tenant", metavar="NAME", help="A name that its flows are counted under.")
@click.option("--bypass", multiple=True, metavar="NETWORK", help="Destinations that are not sliced.")
@click.option("--strategy", metavar="WORD", help="What becomes of TCP: bpf (the default), or terminate.")
@click.option("--handshake", metavar="WORD", help="Of terminated TCP: held (the default), or early.")
@click.option("--max-flows", type=int, metavar="N", help="Flows that it may hold at a time.")
@click.option("--new-flows-per-s", type=int, metavar="N", help="Flows that it may begin a second.")
@node_option
def add(
    name: str,
    device: str | None,
    tun: bool,
    tap: bool,
    pool: str | None,
    slice_: str | None,
    sources: tuple[str, ...],
    gateway: str | None,
    gateway6: str | None,
    tenant: str | None,
    bypass: tuple[str, ...],
    strategy: str | None,
    handshake: str | None,
    max_flows: int | None,
    new_flows_per_s: int | None,
    node: str | None,
) -> None:
    """Add an on-ramp. It stays until it is removed, or the machine starts again."""
    if tun and tap:
        raise UsageError("onramp add: --tun and --tap: a device is one of them; keep one")
    quotas = {"flows": max_flows, "new_flows_per_s": new_flows_per_s}
    keys: dict[str, Any] = {
        "pool": pool,
        "slice": slice_,
        "sources": list(sources),
        "gateway4": gateway,
        "gateway6": gateway6,
        "tenant": tenant,
        "bypass": list(bypass) or None,
        "strategy": strategy,
        "handshake": handshake,
        "quotas": {key: value for key, value in quotas.items() if value is not None} or None,
    }
    question = {
        "do": "add",
        "name": name,
        "device": device,
        "make": "tun" if tun else "tap" if tap else None,
        "keys": {key: value for key, value in keys.items() if value is not None},
    }
    made = _ask(node, question)["onramp"]
    where = f"device {made['device']}" if made["ifindex"] else f"device {made['device']}, which is not there yet"
    note(f"on-ramp {made['name']}: {where}, pool {made['pool']}, id {made['id']}")


@onramp.command()
@click.argument("name")
@node_option
def remove(name: str, node: str | None) -> None:
    """Remove an on-ramp that was added, and its device if the agent made it. Its flows end at once."""
    gone = _ask(node, {"do": "remove", "name": name})["onramp"]
    note(f"on-ramp {gone['name']}: removed" + (f", and device {gone['device']}" if gone["made"] else ""))


@onramp.command("list")
@node_option
@json_option
def list_(node: str | None, as_json: bool) -> None:
    """Show the node's on-ramps and tenants. Needs no running agent."""
    from softunicast.egress.onramp_view import read_onramps, read_tenants

    with reading(node) as at:
        pools = {index: name for name, index in at.state.pools.items()}
        names = {number: name for name, number in at.state.numbers.tenants.items()}
        views = read_onramps(_known(at), at.maps["onramps"], at.maps["uses"], pools, names)
        tenants = read_tenants(at.maps["tenants"], at.state.numbers.tenants)
        if as_json:
            write_json(
                {
                    "node": at.node,
                    "onramps": [view.as_json() for view in views],
                    "tenants": [view.as_json() for view in tenants],
                }
            )
            return
    titles = ("ONRAMP", "DEVICE", "FROM", "POOL", "TENANT", "FLOWS", "OF", "BEGUN", "OF/S", "REFUSED")
    table = Table(titles, right=("FLOWS", "OF", "BEGUN", "OF/S", "REFUSED"))
    if table.write(map(_row, views)) == 0:
        table.write([("-", "no on-ramp", "", "", "", "", "", "", "", "")])
    note("")
    tenant_table().write(map(tenant_row, tenants))


def _row(view: OnrampView) -> tuple[str, ...]:
    return (
        view.name,
        view.device if view.attached else f"{view.device} (not there)",
        view.from_,
        view.pool or "-",
        view.tenant or "-",
        str(view.use.flows),
        str(view.max_flows or "-"),
        str(view.use.begun),
        str(view.new_flows_per_s or "-"),
        str(view.use.refused_flows + view.use.refused_new),
    )


def tenant_table() -> Table:
    titles = ("TENANT", "FLOWS", "REFUSED", "OUT PACKETS", "OUT BYTES", "IN PACKETS", "IN BYTES")
    return Table(titles, right=titles[1:])


def tenant_row(view: Any) -> tuple[str, ...]:
    """A TenantView's cells."""
    found = view.counts
    counts = (found.flows, found.refused, found.out_packets, found.out_bytes, found.in_packets, found.in_bytes)
    return (view.name or "-", *map(str, counts))


def _known(at: Reading) -> list[Any]:
    from softunicast.agent.onramp_file import load
    from softunicast.egress.onramp_view import Known
    from softunicast.kernel import nodes

    added = {one.name: one for one in load(nodes.run_dir(at.node))}
    found = []
    for name, ramp in at.state.onramps.items():
        one = added.get(name)
        from_ = "plan" if one is None else "lease" if one.leased else one.made or "added"
        found.append(Known(name, ramp.device, ramp.id, ramp.generation, from_))
    return found


def _ask(node: str | None, question: dict[str, Any]) -> dict[str, Any]:
    from softunicast.api.client import Client
    from softunicast.kernel import nodes

    with Client.of(nodes.find_node(node)) as agent:
        answer, _ = agent.ask(question)
    return answer
