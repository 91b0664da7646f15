# SPDX-License-Identifier: Apache-2.0
"""`softunicast flows`: one line for each claim, who holds it and for how long yet."""

from __future__ import annotations

import itertools
import re
import subprocess
from collections.abc import Iterator, Mapping
from typing import Any

import click

from softunicast.cli.arguments import (
    KINDS,
    PLACE,
    PROTOCOLS,
    REMOTE,
    Place,
    Remote,
    endpoint_text,
    json_option,
    node_option,
    protocol_number,
)
from softunicast.cli.output import Cell, Row, Table, duration_text, note, write_json_stream
from softunicast.cli.reading import Reading, reading
from softunicast.egress.flow_view import FlowFilter, FlowView, address_of, read_flows
from softunicast.kernel import netns
from softunicast.kernel.abi import Claim, Flow, Kind

TITLES = ("PROTO", "LOCAL", "REMOTE", "KIND", "STATE", "AGE", "IDLE", "EXPIRES", "OWNER", "INNER")
RIGHT = ("AGE", "IDLE", "EXPIRES")

# ss -e shows a socket's cookie as sk:HEX, ss -p its users as users:(("name",pid=1,fd=2),...).
COOKIE = re.compile(r"\bsk:([0-9a-f]+)\b")
USER = re.compile(r'\("((?:[^"\\]|\\.)*)",pid=(\d+)')
SS = ("ss", "-H", "-t", "-u", "-M", "-a", "-n", "-e", "-p")

Users = Mapping[int, tuple[str, int]]


@click.command()
@node_option
@click.option("--slice", "place", type=PLACE, metavar="ADDRESS[:FIRST-LAST]", help="Only flows from there.")
@click.option("--proto", type=click.Choice(PROTOCOLS), help="Only that protocol.")
@click.option("--remote", type=REMOTE, metavar="ADDRESS[:PORT]", help="Only towards there; or a network.")
@click.option("--kind", type=click.Choice(KINDS), help="Only claims of that kind.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many lines.")
@json_option
def flows(
    node: str | None,
    place: Place | None,
    proto: str | None,
    remote: Remote | None,
    kind: str | None,
    limit: int | None,
    as_json: bool,
) -> None:
    """Show who holds which flow.

    A flow is listed as it is on the wire; INNER is what the client behind an on-ramp (or this node's own stack)
    uses. The list is read while it changes: each line is true at some instant. EXPIRES is when the claim is free
    for others unless a packet comes; "-" means that it ends with its socket.
    """
    with reading(node) as at:
        wanted = flow_filter(place, proto, remote, kind)
        views = read_flows(at.maps["flows"], at.names, at.now_s(), at.settings, wanted)
        shown = itertools.islice(views, limit)
        users = {} if kind not in (None, "socket") else socket_users(at)
        if as_json:
            write_json_stream({"node": at.node}, "flows", (flow_json(view, users) for view in shown))
        elif Table(TITLES, right=RIGHT).write(flow_row(view, users) for view in shown) == 0:
            note("no flows")


def flow_filter(place: Place | None, proto: str | None, remote: Remote | None, kind: str | None) -> FlowFilter | None:
    """All conditions that were given; None when there is none."""
    if place is None and proto is None and remote is None and kind is None:
        return None
    numbers = None if proto is None else {protocol_number(proto, version) for version in (4, 6)}
    kind_number = None if kind is None else int(Kind[kind.upper()])

    def wanted(flow: Flow, claim: Claim) -> bool:
        if kind_number is not None and claim.kind != kind_number:
            return False
        if numbers is not None and flow.proto not in numbers:
            return False
        if place is not None and not place.holds(address_of(flow.local), flow.local_port):
            return False
        return remote is None or remote.holds(address_of(flow.remote), flow.remote_port)

    return wanted


def socket_users(at: Reading) -> Users:
    """Cookie -> program's name and process id, when this is the node's namespace and `ss` can be had; else nothing.

    Sockets that their programs closed already have no users, and are not in it.
    """
    if at.state.netns_cookie != netns.cookie():
        return {}
    try:
        listing = subprocess.run(SS, capture_output=True, text=True, check=False, timeout=20, errors="replace")
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return {}
    return dict(parse_ss(listing.stdout))


def parse_ss(text: str) -> Iterator[tuple[int, tuple[str, int]]]:
    """Cookie, and name and id of the first process that has the socket, from the lines of `ss -e -p`."""
    for line in text.splitlines():
        cookie, user = COOKIE.search(line), USER.search(line)
        if cookie and user:
            yield int(cookie[1], 16), (user[1], int(user[2]))


def flow_json(view: FlowView, users: Users) -> dict[str, Any]:
    """The view's keys, and `command` and `pid` of a socket's program (null: not known)."""
    command, pid = users.get(view.owner, (None, None)) if view.kind == "socket" else (None, None)
    return view.as_json() | {"command": command, "pid": pid}


def flow_row(view: FlowView, users: Users) -> Row:
    """A line of the table."""
    icmp = view.proto.startswith("icmp")
    if view.remote is None or view.remote_port is None:
        remote = "*"
    else:
        remote = str(view.remote) if icmp else endpoint_text(view.remote, view.remote_port)
    inner = "-"
    if view.inner is not None and view.inner_port is not None:
        inner = endpoint_text(view.inner, view.inner_port)
    return (
        view.proto,
        endpoint_text(view.local, view.local_port),
        remote,
        view.kind,
        Cell(view.state, "yellow" if view.state == "linger" else ""),
        duration_text(view.born_ago_s),
        duration_text(view.idle_s),
        "expired" if view.expires_s == 0 else duration_text(view.expires_s),
        owner_text(view, users),
        inner,
    )


def owner_text(view: FlowView, users: Users) -> str:
    """`curl (pid 4711)`, the on-ramp's or node's name, or a socket's cookie."""
    if view.kind != "socket":
        return view.owner_name
    if view.owner in users:
        command, pid = users[view.owner]
        return f"{command} (pid {pid})"
    return f"socket {view.owner:#x}"
