# SPDX-License-Identifier: Apache-2.0
"""Where the fragments of one datagram meet, su_steer_home of owner.h: asked of a node's maps, or of a plan's.

The choice is the oracle's, which the programs are compared with; here only what it needs is looked up.
"""

from __future__ import annotations

from sys import byteorder
from typing import Protocol

from softunicast.kernel.abi import Control, Drop, Node, ProbeFlag, Settings, Site
from softunicast.steering.oracle import Tables, fragment_hash


class Lookup(Protocol):
    """A map's one operation that is needed here; a kernel.bpf.Map has it."""

    def lookup(self, key: bytes, /) -> bytes | None: ...


class Maps(Protocol):
    """Maps by name; a kernel.nodes.NodeMaps is one."""

    def __getitem__(self, name: str, /) -> Lookup: ...


def fragment_home(
    maps: Maps, source: bytes, target: bytes, ident: int, proto: int, *, site: int, node: int, live: bool
) -> int | Drop:
    """The home, at the target's `site`, as `node` sees it; a plan (not `live`) takes each node to be fit."""
    raw = maps["sites"].lookup(_u32(site))
    at = Site.unpack(raw) if raw is not None else Site()
    members, nodes = {}, {}
    for place in range(at.first, at.first + at.count):
        raw = maps["site_nodes"].lookup(_u32(place))
        if raw is None:
            continue
        members[place] = int.from_bytes(raw, byteorder)
        known = maps["nodes"].lookup(_u32(members[place]))
        if known is not None:
            nodes[members[place]] = Node.unpack(known)
    flags = int(ProbeFlag.FIT)
    if live:
        control = maps["control"].lookup(_u32(0))
        flags = Control.unpack(control).probe_flags if control is not None else 0
    tables = Tables(Settings(node=node), {}, {}, {site: at}, members, nodes, frozenset(), (), (), flags)
    return tables.site_node(site, fragment_hash(source, target, ident, proto))


def _u32(number: int) -> bytes:
    return number.to_bytes(4, byteorder)
