# SPDX-License-Identifier: Apache-2.0
"""On-ramps of a plan's nodes: device, pool, the clients' networks."""

from __future__ import annotations

import dataclasses
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, TypeVar

from softunicast.model.address import IPAddress, IPNetwork, contains, overlaps, parse_address
from softunicast.model.document import Path
from softunicast.model.fleet import WILDCARD_PORTS, Filtering, MappingBehaviour, Node, Onramp, Pool
from softunicast.model.shape import OnrampShape
from softunicast.model.slice import Slice, parts_of

if TYPE_CHECKING:
    from softunicast.model.reading import PlanReader

Word = TypeVar("Word", bound=Enum)

WIDEST = {4: 8, 6: 16}
"""Shortest prefix of a client network: its addresses are never answers' sources, so it is not the world."""


def read_onramps(reader: PlanReader, node: Node, pools: dict[str, Pool]) -> Node:
    """The node with its on-ramps."""
    path: Path = ("sites", node.site, "nodes", node.name, "onramps")
    onramps: dict[str, Onramp] = {}
    devices: dict[str, str] = {}
    for name, shape in reader.shape.sites[node.site].nodes[node.name].onramps.items():
        at = (*path, name)
        onramp = _Reader(reader, node, at, shape, pools).read(name)
        if onramp.device in node.uplinks:
            reader.document.fail((*at, "device"), f"{onramp.device} is an uplink", "an on-ramp has a device of its own")
        if onramp.device in devices:
            reader.document.fail(
                (*at, "device"),
                f"{onramp.device} is on-ramp {devices[onramp.device]}'s",
                "one device, one on-ramp",
            )
        devices[onramp.device] = name
        onramps[name] = onramp
    return dataclasses.replace(node, onramps=dict(sorted(onramps.items())))


class _Reader:
    def __init__(self, reader: PlanReader, node: Node, path: Path, shape: OnrampShape, pools: dict[str, Pool]) -> None:
        self._reader, self._document = reader, reader.document
        self._node, self._path, self._shape, self._pools = node, path, shape, pools

    def read(self, name: str) -> Onramp:
        shape = self._shape
        device = self._reader.device((*self._path, "device"), name if shape.device is None else shape.device)
        pool = self._pool()
        sources = self._sources()
        if shape.gateway is not None and shape.gateway4 is not None:
            self._document.fail((*self._path, "gateway"), "is gateway4 by another name", "keep one of them")
        key, text = ("gateway4", shape.gateway4) if shape.gateway is None else ("gateway", shape.gateway)
        gateway4, gateway6 = self._gateway(key, text, 4), self._gateway("gateway6", shape.gateway6, 6)
        if shape.tenant is not None and not 0 < len(shape.tenant) <= 63:
            self._document.fail((*self._path, "tenant"), "is empty or longer than 63 characters", "write a short name")
        mapping, filtering = self._udp(pool)
        return Onramp(
            name,
            device,
            pool.name,
            sources,
            gateway4 if isinstance(gateway4, IPv4Address) else None,
            gateway6 if isinstance(gateway6, IPv6Address) else None,
            self._reader.networks((*self._path, "bypass"), shape.bypass),
            shape.tenant,
            self._slice(pool),
            mapping,
            filtering,
            shape.mss,
        )

    def _udp(self, pool: Pool) -> tuple[MappingBehaviour, Filtering]:
        """Mapping and filtering of UDP. An endpoint-independent mapping lets everybody in unless told otherwise."""
        mapping = self._word("mapping", MappingBehaviour, self._shape.mapping)
        if mapping is not MappingBehaviour.ENDPOINT_INDEPENDENT:
            filtering = self._word("filtering", Filtering, self._shape.filtering)
            if filtering not in (None, Filtering.ADDRESS_AND_PORT_DEPENDENT):
                self._document.fail(
                    (*self._path, "filtering"),
                    f"{filtering.value} filtering wants endpoint-independent mapping",
                    "add `mapping: endpoint-independent`, or remove it",
                )
            return MappingBehaviour.ADDRESS_AND_PORT_DEPENDENT, Filtering.ADDRESS_AND_PORT_DEPENDENT
        fraction = self._reader.shape.settings.udp_wildcard_fraction
        if not any(int(size * fraction) for size in self._sizes(pool) if size >= WILDCARD_PORTS):
            self._document.fail(
                (*self._path, "mapping"),
                f"no slice of pool {pool.name} has UDP ports for it",
                f"give it slices of at least {WILDCARD_PORTS} ports and settings.udp_wildcard_fraction more than 0",
            )
        filtering = self._word("filtering", Filtering, self._shape.filtering)
        return mapping, filtering or Filtering.ENDPOINT_INDEPENDENT

    def _word(self, key: str, words: type[Word], text: str | None) -> Word | None:
        if text is None:
            return None
        known = [word.value for word in words]
        if text not in known:
            self._document.fail(
                (*self._path, key), f"{text!r} is none of these: {', '.join(known)}", "write one of them"
            )
        return words(text)

    @staticmethod
    def _sizes(pool: Pool) -> list[int]:
        """Ports of the pool's slices."""
        sizes = [1 << pool.shift_of(address) for address in pool.addresses]
        return sizes + [static.slice.last - static.slice.first + 1 for static in pool.slices]

    def _pool(self) -> Pool:
        mine = [pool for pool in self._pools.values() if self._node.name in pool.nodes]
        if self._shape.pool is None:
            if len(mine) == 1:
                return mine[0]
            names = ", ".join(pool.name for pool in mine) or "none"
            self._document.fail(
                self._path, f"names no pool, and {self._node.name} has these: {names}", "add `pool: NAME`"
            )
        path = (*self._path, "pool")
        self._reader.unknown(path, "pool", self._shape.pool, list(self._pools))
        pool = self._pools[self._shape.pool]
        if pool not in mine:
            self._document.fail(
                path, f"{self._node.name} is not among the nodes of pool {pool.name}", "name a pool it is in"
            )
        return pool

    def _sources(self) -> tuple[IPNetwork, ...]:
        path = (*self._path, "sources")
        sources = self._reader.networks(path, self._shape.sources)
        if not sources:
            self._document.fail(path, "no source is allowed", "name the clients' networks, such as 10.1.0.0/24")
        for source in sources:
            if source.prefixlen < WIDEST[source.version]:
                self._document.fail(
                    path,
                    f"{source} is wider than /{WIDEST[source.version]}",
                    "name the clients' own networks",
                )
            for prefix in self._reader.prefixes:
                if overlaps(source, prefix.network):
                    self._document.fail(
                        path,
                        f"{source} overlaps the fleet's prefix {prefix.network}",
                        "clients have inner addresses",
                    )
            for node in self._reader.nodes.values():
                for underlay in node.underlays:
                    if contains(source, underlay):
                        self._document.fail(
                            path,
                            f"{source} holds {node.name}'s underlay {underlay}",
                            "clients must not be able to be a node",
                        )
        return sources

    def _gateway(self, key: str, text: str | None, version: int) -> IPAddress | None:
        if text is None:
            return None
        path = (*self._path, key)
        address = self._reader.parsed(path, parse_address, text)
        if address.version != version:
            other = "gateway6" if version == 4 else "gateway4"
            self._document.fail(path, f"{address} is IPv{address.version}", f"write it as `{other}`")
        for prefix in self._reader.prefixes:
            if contains(prefix.network, address):
                self._document.fail(
                    path, f"{address} is within the fleet's prefix {prefix.network}", "use an inner address"
                )
        return address

    def _slice(self, pool: Pool) -> Slice | None:
        if self._shape.slice is None:
            return None
        path = (*self._path, "slice")
        wanted = self._reader.parsed(path, Slice.parse, self._shape.slice)
        given = next((static for static in pool.slices if static.slice.covers(wanted)), None)
        if given is not None and given.node != self._node.name:
            self._document.fail(path, f"{given.slice} is {given.node}'s", f"name a slice of {self._node.name}")
        if given is None and wanted.address not in pool.addresses:
            self._document.fail(path, f"{wanted} is not of pool {pool.name}", "name a range of the pool's own slices")
        parts = () if given else parts_of(wanted.address, pool.shift_of(wanted.address))
        if given is None and not any(part.covers(wanted) for part in parts):
            self._document.fail(
                path,
                f"{wanted} lies in no single slice of pool {pool.name}",
                f"stay within one part of {1 << pool.shift_of(wanted.address)} ports",
            )
        return wanted
