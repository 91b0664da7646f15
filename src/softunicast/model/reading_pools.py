# SPDX-License-Identifier: Apache-2.0
"""Pools of a plan: addresses expanded and placed within prefixes, static slices kept apart."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from softunicast.model.address import IPAddress, contains, parse_addresses, parse_network, sort_key
from softunicast.model.document import Path
from softunicast.model.fleet import DEFAULT_SLICE_PORTS, DEFAULT_SLICE_PORTS6, Pool, Site, StaticSlice
from softunicast.model.shape import PoolShape
from softunicast.model.slice import LOWEST_PORT, Slice, shift_of

if TYPE_CHECKING:
    from softunicast.model.reading import PlanReader


class PoolReader:
    """Reads all pools of a plan; knows which pool took which address."""

    def __init__(self, reader: PlanReader, sites: dict[str, Site]) -> None:
        self._reader = reader
        self._document = reader.document
        self._sites = sites
        self._taken: dict[IPAddress, str] = {}
        self._announced = {
            site: [prefix.network for prefix in reader.prefixes if site in prefix.announce] for site in sites
        }

    def read(self) -> dict[str, Pool]:
        """All pools, sorted by name."""
        return dict(sorted((name, self._pool(name, shape)) for name, shape in self._reader.shape.pools.items()))

    def _pool(self, name: str, shape: PoolShape) -> Pool:
        path: Path = ("pools", name)
        self._reader.unknown((*path, "site"), "site", shape.site, list(self._sites))
        nodes = self._nodes(path, shape)
        shift, shift6 = self._shift(path, shape)
        addresses = self._addresses(path, name, shape, nodes)
        slices = self._slices(path, name, shape, nodes)
        if not addresses and not slices:
            self._document.fail(
                path, "has neither addresses nor slices", "add `addresses: 198.51.100.10` or `slices: [...]`"
            )
        if not addresses:
            for key in ("slice_ports", "slice_ports6"):
                if key in shape.model_fields_set:
                    self._document.fail((*path, key), "means nothing without addresses", "remove it")
            return Pool(name, shape.site, nodes, slices=slices, tags=dict(shape.tags))
        return Pool(
            name,
            shape.site,
            nodes,
            addresses,
            1 << shift,
            1 << shift6,
            shift,
            shift6,
            slices,
            dict(sorted(shape.tags.items())),
        )

    def _nodes(self, path: Path, shape: PoolShape) -> tuple[str, ...]:
        of_site = self._sites[shape.site].nodes
        if shape.nodes is None:
            if not of_site:
                self._document.fail((*path, "site"), f"site {shape.site} has no nodes", "add a node to the site")
            return tuple(sorted(of_site))
        if not shape.nodes:
            self._document.fail((*path, "nodes"), "no node", "name nodes, or leave `nodes` out for all of the site")
        for at, node in enumerate(shape.nodes):
            self._node((*path, "nodes", at), node, shape.site)
            if node in shape.nodes[:at]:
                self._document.fail((*path, "nodes", at), f"{node} is named twice", "keep one of them")
        return tuple(sorted(shape.nodes))

    def _node(self, path: Path, node: str, site: str) -> None:
        self._reader.unknown(path, "node", node, list(self._reader.nodes))
        home = self._reader.nodes[node].site
        if home != site:
            self._document.fail(path, f"{node} is of site {home}, the pool of {site}", "name a node of the pool's site")

    def _shift(self, path: Path, shape: PoolShape) -> tuple[int, int]:
        shifts = []
        for key, default in (("slice_ports", DEFAULT_SLICE_PORTS), ("slice_ports6", DEFAULT_SLICE_PORTS6)):
            given: int | None = getattr(shape, key)
            ports = default if given is None else given
            try:
                shifts.append(shift_of(ports))
            except ValueError as error:
                near = 1 << max(0, min(16, (max(ports, 1)).bit_length() - 1))
                self._document.fail((*path, key), str(error), f"write {near}, for example")
        return shifts[0], shifts[1]

    def _addresses(self, path: Path, name: str, shape: PoolShape, nodes: tuple[str, ...]) -> tuple[IPAddress, ...]:
        addresses: list[IPAddress] = []
        for index, text in enumerate(shape.addresses):
            at: Path = (*path, "addresses", index)
            addresses += [
                self._take(at, name, found, shape.site) for found in self._reader.parsed(at, parse_addresses, text)
            ]
        if shape.prefix is not None:
            at = (*path, "prefix")
            network = self._reader.parsed(at, parse_network, shape.prefix)
            if network.version == 4:
                self._document.fail(at, f"{network} is IPv4", f"write `addresses: {network}`")
            count = len(nodes) if shape.count is None else shape.count
            # The first address of a prefix is the routers' (RFC 4291 section 2.6.1): a /64 gives ::1, ::2 ...
            skip = 1 if network.num_addresses > 1 else 0
            if count > network.num_addresses - skip:
                room = network.num_addresses - skip
                self._document.fail(
                    at,
                    f"{network} has room for {room}, {count} addresses are wanted",
                    "use a wider prefix, or `count`",
                )
            first = int(network.network_address) + skip
            for number in itertools.islice(itertools.count(first), count):
                addresses.append(self._take(at, name, type(network.network_address)(number), shape.site))
        elif shape.count is not None:
            self._document.fail((*path, "count"), "means nothing without `prefix`", "remove it, or add `prefix`")
        return tuple(sorted(addresses, key=sort_key))

    def _take(self, path: Path, pool: str, address: IPAddress, site: str) -> IPAddress:
        """Check that the address is announced from the site and still free; it is the pool's from now on."""
        announced = self._announced[site]
        if not any(contains(network, address) for network in announced):
            elsewhere = [p for p in self._reader.prefixes if contains(p.network, address)]
            if elsewhere:
                self._document.fail(
                    path,
                    f"{address} is within {elsewhere[0].network}, which site {site} does not announce",
                    f"add {site} to its `announce`",
                )
            self._document.fail(path, f"{address} is within no prefix of the plan", "add its prefix to `prefixes`")
        if address in self._taken:
            owner = self._taken[address]
            whose = "this pool" if owner == pool else f"pool {owner}"
            self._document.fail(path, f"{address} is already in {whose}", "an address belongs to one pool, once")
        self._taken[address] = pool
        return address

    def _slices(self, path: Path, name: str, shape: PoolShape, nodes: tuple[str, ...]) -> tuple[StaticSlice, ...]:
        made: list[StaticSlice] = []
        mine: dict[IPAddress, list[Slice]] = {}
        for index, item in enumerate(shape.slices):
            at: Path = (*path, "slices", index)
            wanted = self._reader.parsed((*at, "slice"), Slice.parse, item.slice)
            if wanted.first < LOWEST_PORT:
                self._document.fail((*at, "slice"), f"{wanted} has ports below {LOWEST_PORT}", "begin at 1024 or above")
            self._node((*at, "node"), item.node, shape.site)
            if item.node not in nodes:
                self._document.fail((*at, "node"), f"{item.node} is not among the pool's nodes", "add it to `nodes`")
            if wanted.address not in mine:
                self._take((*at, "slice"), name, wanted.address, shape.site)
            for other in mine.setdefault(wanted.address, []):
                if wanted.overlaps(other):
                    self._document.fail((*at, "slice"), f"{wanted} overlaps {other}", "give each port once")
            mine[wanted.address].append(wanted)
            made.append(StaticSlice(wanted, item.node))
        return tuple(sorted(made, key=lambda static: static.slice.sort_key))
