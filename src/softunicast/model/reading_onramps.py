# SPDX-License-Identifier: Apache-2.0
"""On-ramps of a plan's nodes, and those that a running agent is asked for: device, pool, the clients' networks."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, TypeVar

from softunicast.errors import PlanError
from softunicast.model.address import IPAddress, IPNetwork, contains, overlaps, parse_address
from softunicast.model.document import Document, Path, Value
from softunicast.model.fleet import (
    WILDCARD_PORTS,
    Filtering,
    Handshake,
    MappingBehaviour,
    Node,
    Onramp,
    Plan,
    Pool,
    Strategy,
)
from softunicast.model.reader import NAME, Reader
from softunicast.model.shape import OnrampShape, check_onramp_shape
from softunicast.model.slice import Slice, parts_of

if TYPE_CHECKING:
    from softunicast.model.reading import PlanReader

Word = TypeVar("Word", bound=Enum)

WIDEST = {4: 8, 6: 16}
"""Shortest prefix of a client network: its addresses are never answers' sources, so it is not the world."""


def read_onramps(reader: PlanReader, node: Node, pools: dict[str, Pool]) -> Node:
    """The node with its on-ramps."""
    path: Path = ("sites", node.site, "nodes", node.name, "onramps")
    fraction = reader.shape.settings.udp_wildcard_fraction
    onramps: dict[str, Onramp] = {}
    for name, shape in reader.shape.sites[node.site].nodes[node.name].onramps.items():
        onramps[name] = _read(reader, node, (*path, name), name, shape, Given(pools, fraction), onramps)
    return dataclasses.replace(node, onramps=dict(sorted(onramps.items())))


def read_added(plan: Plan, node: Node, name: str, keys: Mapping[str, Value]) -> Onramp:
    """An on-ramp that the plan does not have, of the keys that it would have there. `node` has all the others.

    PlanError says what is wrong, without file and line.
    """
    path: Path = ("onramps", name)
    document = Document("", {"onramps": {name: dict(keys)}})
    try:
        if NAME.fullmatch(name) is None:
            document.fail(("onramps",), f"{name[:70]!r} is no name", "use up to 63 letters, digits, `-`, `_` and `.`")
        if name in node.onramps:
            problem = f"node {node.name} has an on-ramp of this name"
            document.fail(path, problem, "choose another, or remove that one first")
        shape = check_onramp_shape(document, path, keys)
        reader = Reader(document, plan.prefixes, plan.nodes)
        given = Given(plan.pools, plan.settings.udp_wildcard_fraction)
        return _read(reader, node, path, name, shape, given, node.onramps)
    except PlanError as error:
        raise PlanError("", 0, error.message, error.remedy) from error


def with_onramps(plan: Plan, node: Node, added: Iterable[Onramp]) -> Plan:
    """The plan as if it had these on-ramps at that node, too."""
    onramps = dict(sorted({**node.onramps, **{onramp.name: onramp for onramp in added}}.items()))
    site = plan.sites[node.site]
    nodes = {**site.nodes, node.name: dataclasses.replace(node, onramps=onramps)}
    return dataclasses.replace(plan, sites={**plan.sites, site.name: dataclasses.replace(site, nodes=nodes)})


@dataclasses.dataclass(frozen=True)
class Given:
    """What an on-ramp's keys are read against: the pools, and the part of a slice's UDP ports for wildcards."""

    pools: Mapping[str, Pool]
    wildcard_fraction: float


def _read(
    reader: Reader,
    node: Node,
    path: Path,
    name: str,
    shape: OnrampShape,
    given: Given,
    others: Mapping[str, Onramp],
) -> Onramp:
    onramp = _Reader(reader, node, path, shape, given).read(name)
    if onramp.device in node.uplinks:
        reader.document.fail((*path, "device"), f"{onramp.device} is an uplink", "an on-ramp has a device of its own")
    for other in others.values():
        if other.device == onramp.device:
            reader.document.fail(
                (*path, "device"), f"{onramp.device} is on-ramp {other.name}'s", "one device, one on-ramp"
            )
    return onramp


class _Reader:
    def __init__(self, reader: Reader, node: Node, path: Path, shape: OnrampShape, given: Given) -> None:
        self._reader, self._document = reader, reader.document
        self._node, self._path, self._shape, self._given = node, path, shape, given

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
        strategy, handshake = self._tcp()
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
            shape.quotas.flows or 0,
            shape.quotas.new_flows_per_s or 0,
            strategy,
            handshake,
        )

    def _tcp(self) -> tuple[Strategy, Handshake]:
        """What becomes of TCP."""
        strategy = self._word("strategy", Strategy, self._shape.strategy) or Strategy.BPF
        handshake = self._word("handshake", Handshake, self._shape.handshake)
        if handshake is not None and strategy is not Strategy.TERMINATE:
            self._document.fail(
                (*self._path, "handshake"),
                "only TCP that is terminated has a handshake of its own",
                "add `strategy: terminate`, or remove it",
                key=True,
            )
        return strategy, handshake or Handshake.HELD

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
        if not any(int(size * self._given.wildcard_fraction) for size in self._sizes(pool) if size >= WILDCARD_PORTS):
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
        mine = [pool for pool in self._given.pools.values() if self._node.name in pool.nodes]
        if self._shape.pool is None:
            if len(mine) == 1:
                return mine[0]
            names = ", ".join(pool.name for pool in mine) or "none"
            self._document.fail(
                self._path, f"names no pool, and {self._node.name} has these: {names}", "add `pool: NAME`"
            )
        path = (*self._path, "pool")
        self._reader.unknown(path, "pool", self._shape.pool, list(self._given.pools))
        pool = self._given.pools[self._shape.pool]
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
