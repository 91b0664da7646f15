# SPDX-License-Identifier: Apache-2.0
"""Who speaks BGP to whom in the lab: BIRD 2 in the internet, on both routers and on every node.

    inet   AS 65000   sends a default route, and the feed when there is one; takes the fleet's prefixes
    r1 r2  AS 65001   one AS, iBGP over the backbone; r1 prepends towards the internet, so that the best path is r2's
    nodes  AS 65101.. announce the fleet's prefixes to their site's router, as their agents say (docs/bgp.md)

A router prefers what its own nodes announce (eBGP before iBGP, RFC 4271 section 9.1.2.2) and spreads over all of
them (`merge paths`); without any, it hands on to the other site over the backbone. One session carries both
families. BFD (RFC 5880) notices within a second that a neighbour is gone; it is not quicker, so that a machine under
load does not lose its neighbours. Configuration: the BIRD 2.0 manual.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from softunicast.announce.bird_conf import Announcement, Stage, render

from . import topology as facts

INTERNET_AS: Final = 65000
FLEET_AS: Final = 65001
NODE_AS: Final = {node: 65101 + number for number, node in enumerate(facts.NODES)}
SPEAKERS: Final = ("inet", "r1", "r2", *facts.NODES)
BFD: Final = "min rx interval 200 ms; min tx interval 200 ms; multiplier 4"
TIMERS: Final = (
    "bfd on; connect delay time 1; connect retry time 2; error wait time 1, 4; hold time 30; keepalive time 10;"
)
FIRST_OF_FEED: Final = int(IPv4Address("16.0.0.0"))


def config_path(folder: Path, name: str) -> Path:
    """A speaker's configuration."""
    return folder / f"bird-{name}.conf"


def feed_path(folder: Path) -> Path:
    """The generated table that the internet sends; empty when none is wanted."""
    return folder / "feed.conf"


def feed_text(routes: int) -> str:
    """`routes` different /24s from 16.0.0.0 on (BIRD: protocol static), none of them in use in the lab."""
    return "".join(f"route {IPv4Address(FIRST_OF_FEED + 256 * number)}/24 blackhole;\n" for number in range(routes))


def config(folder: Path, name: str) -> str:
    """bird.conf of a speaker of the lab whose files are in `folder`."""
    if name == "inet":
        body = _internet(folder)
    elif name in facts.ROUTERS.values():
        body = _router(name)
    else:
        body = _node(folder, name)
    return "".join(f"{line}\n" for line in (*_head(name), *body))


def _head(name: str) -> Iterator[str]:
    number = SPEAKERS.index(name) + 1
    yield "# Written by `softunicast lab`."
    yield f"router id 10.255.0.{number};"
    yield "log stderr all;"
    yield "protocol device { scan time 5; }"
    yield f'protocol bfd {{ interface "*" {{ {BFD}; }}; }}'


def _family(version: int) -> str:
    return f"ipv{version}"


def _kernel() -> Iterator[str]:
    for version in (4, 6):
        yield (
            f"protocol kernel kernel{version} {{ merge paths on; "
            f"{_family(version)} {{ import none; export where source = RTS_BGP || preference < 10; }}; }}"
        )


def _fleet(version: int) -> str:
    return str(facts.FLEET if version == 4 else facts.FLEET6)


def _internet(folder: Path) -> Iterator[str]:
    yield from _kernel()
    for version, every in ((4, "0.0.0.0/0"), (6, "::/0")):
        yield f"protocol static default{version} {{ {_family(version)}; route {every} blackhole; }}"
    # BIRD's `include` wants a line of its own.
    yield from ("protocol static feed { ipv4;", f'include "{feed_path(folder)}";', "}")
    for router, address, neighbour in (("r1", "192.0.2.2", "192.0.2.1"), ("r2", "192.0.2.6", "192.0.2.5")):
        channels = " ".join(
            f"{_family(version)} {{ import all; export where source = RTS_STATIC; next hop self; }};"
            for version in (4, 6)
        )
        yield (
            f"protocol bgp {router} {{ local {address} as {INTERNET_AS}; neighbor {neighbour} as {FLEET_AS}; "
            f"{TIMERS} {channels} }}"
        )


def _router(name: str) -> Iterator[str]:
    site = next(site for site, router in facts.ROUTERS.items() if router == name)
    rack, line = (1, 0) if site == "lhr" else (2, 4)
    yield from _kernel()
    for version in (4, 6):
        # Without any node the fleet must not follow the default route back to the internet.
        yield (
            f"protocol static nobody{version} {{ {_family(version)} {{ preference 1; }}; "
            f"route {_fleet(version)} unreachable; }}"
        )
        yield f"function ours{version}() {{ return source = RTS_BGP && net = {_fleet(version)}; }}"
        prepend = "" if site == facts.BEST_SITE else f"bgp_path.prepend({FLEET_AS}); bgp_path.prepend({FLEET_AS}); "
        yield (
            f"filter to_internet{version} {{ if ! ours{version}() then reject; "
            f"bgp_path.delete([65101..65199]); {prepend}accept; }}"
        )
    yield (
        f"protocol bgp inet {{ local 192.0.2.{line + 1} as {FLEET_AS}; neighbor 192.0.2.{line + 2} as {INTERNET_AS}; "
        f"{TIMERS} " + " ".join(f"{_family(v)} {{ import all; export filter to_internet{v}; }};" for v in (4, 6)) + " }"
    )
    other = "r2" if name == "r1" else "r1"
    mine, theirs = ("10.9.0.1", "10.9.0.2") if name == "r1" else ("10.9.0.2", "10.9.0.1")
    yield (
        f"protocol bgp {other} {{ local {mine} as {FLEET_AS}; neighbor {theirs} as {FLEET_AS}; direct; {TIMERS} "
        + " ".join(f"{_family(v)} {{ import all; export where source = RTS_BGP; next hop self; }};" for v in (4, 6))
        + " }"
    )
    for node in facts.SITES[site]:
        channels = " ".join(f"{_family(v)} {{ import where net = {_fleet(v)}; export none; }};" for v in (4, 6))
        yield (
            f"protocol bgp {node} {{ local 10.0.{rack}.1 as {FLEET_AS}; "
            f"neighbor {facts.underlay(node)} as {NODE_AS[node]}; {TIMERS} {channels} }}"
        )


def _node(folder: Path, name: str) -> Iterator[str]:
    rack = 1 if facts.site_of(name) == "lhr" else 2
    # As docs/bgp.md has it: a pattern, so that BIRD starts before the agent has written the file.
    yield f'include "{facts.bird_include(folder, name)}*";'
    yield 'filter fleet { if proto ~ "softunicast?" then { bgp_med = bgp_med; accept; } reject; }'
    channels = " ".join(f"{_family(v)} {{ import none; export filter fleet; }};" for v in (4, 6))
    yield (
        f"protocol bgp uplink {{ local {facts.underlay(name)} as {NODE_AS[name]}; "
        f"neighbor 10.0.{rack}.1 as {FLEET_AS}; {TIMERS} {channels} }}"
    )


def announced_without_agent(name: str) -> str:
    """What stands in a node's include file in a lab without agents: what a fit node's agent writes."""
    return render(Announcement(name, (facts.FLEET, facts.FLEET6), Stage.ANNOUNCED))
