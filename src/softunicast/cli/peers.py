# SPDX-License-Identifier: Apache-2.0
"""`softunicast peers`: the other nodes, and which of them live as far as this one can tell."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import click

from softunicast.cli.arguments import json_option, node_option
from softunicast.cli.output import Cell, Row, Table, note, write_json
from softunicast.cli.reading import Reading, reading
from softunicast.kernel import abi, nodes
from softunicast.kernel.abi_util import addr_ip

TITLES = ("NODE", "SITE", "UNDERLAY", "STATE", "ANSWERED", "RTT", "INDEX")
STYLES = {"up": "green", "down": "bold red", "unfit": "yellow", "unknown": "yellow"}


@click.command()
@node_option
@json_option
def peers(node: str | None, as_json: bool) -> None:
    """Show the other nodes of the fleet and whether they live.

    STATE is what steering goes by: up, down (no answers), unfit (it answers, and says that others are better), unknown
    (not asked yet: as it was). ANSWERED and RTT are of the last question this node's agent asked; "-" when it asks
    nobody.
    """
    with reading(node) as at:
        found = read_peers(at)
        if as_json:
            write_json({"node": at.node, "peers": found})
            return
        if not found:
            note(f"{at.node} is the only node of its fleet")
            return
        Table(TITLES, right=("ANSWERED", "RTT", "INDEX")).write(_row(peer) for peer in found)


def read_peers(at: Reading) -> list[dict[str, Any]]:
    """By site and name; the map has the last word on who is down."""
    said, age_s = _file(at.node)
    found = []
    sites = {name: node.site for name, node in at.plan.nodes.items()}
    for name, index in sorted(at.state.places.nodes.items(), key=lambda item: (sites.get(item[0], ""), item[0])):
        raw = at.maps["nodes"].lookup(index.to_bytes(4, sys.byteorder))
        value = abi.Node.unpack(raw) if raw is not None else abi.Node()
        if name == at.node or not value.flags & abi.NodeFlag.SET:
            continue
        told = said.get(name, {})
        life = "up" if told.get("life") == "up" else "unknown"
        state = "down" if value.flags & abi.NodeFlag.DOWN else "unfit" if value.flags & abi.NodeFlag.UNFIT else life
        ago_s = told.get("answered_ago_s")
        found.append(
            {
                "node": name,
                "site": sites.get(name, ""),
                "underlay": str(addr_ip(value.underlay)),
                "state": state,
                "answered_ago_s": None if ago_s is None else round(ago_s + age_s, 1),
                "rtt_ms": told.get("rtt_ms"),
                "index": index,
            }
        )
    return found


def _file(node: str) -> tuple[dict[str, Any], float]:
    """peers.json and how many seconds old it is; nothing when no agent has asked yet."""
    path = nodes.run_dir(node) / "peers.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")), max(0.0, time.time() - path.stat().st_mtime)
    except (OSError, ValueError):
        return {}, 0.0


def _row(peer: dict[str, Any]) -> Row:
    ago_s, rtt_ms = peer["answered_ago_s"], peer["rtt_ms"]
    return (
        peer["node"],
        peer["site"],
        peer["underlay"],
        Cell(peer["state"], STYLES[peer["state"]]),
        "-" if ago_s is None else f"{ago_s:.1f}s ago",
        "-" if rtt_ms is None else f"{rtt_ms:.2f}ms",
        str(peer["index"]),
    )
