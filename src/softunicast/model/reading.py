# SPDX-License-Identifier: Apache-2.0
"""From a plan's shape to the fleet it describes: every name resolved, every address placed, or one PlanError.

Checked in the order of the file: prefixes, sites and their nodes, pools, then the nodes' on-ramps (which name
pools), settings. What is checked is listed in docs/plan.md under "What is refused", with the exact texts.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from softunicast.model.address import (
    IPAddress,
    IPNetwork,
    contains,
    network_key,
    overlaps,
    parse_address,
    parse_network,
)
from softunicast.model.document import Document, Path
from softunicast.model.fleet import (
    ATTACH,
    BirdSpeaker,
    Node,
    Plan,
    Pool,
    Prefix,
    Probes,
    Settings,
    Site,
    Terminate,
    Timers,
)
from softunicast.model.reader import NAME, Reader
from softunicast.model.reading_onramps import read_onramps
from softunicast.model.reading_pools import PoolReader
from softunicast.model.shape import BirdShape, NodeShape, PlanShape, SettingsShape, TerminateShape

MAX_OWNERS: Final = 1 << 20
"""Entries of a site's steering table: 65536 >> shift for each address. As bpf/include/maps.h, like those below."""
MAX_ADDRESSES: Final = 4096
MAX_NODES: Final = 4095
MAX_UNDERLAYS: Final = 4096
MAX_POOLS: Final = 1024
MAX_UPLINKS: Final = 8

_FILE: Final = re.compile(r"/[^\s\"\\\x00-\x1f]{1,254}")
_SPECIAL: Final[tuple[tuple[IPNetwork, str], ...]] = (
    (IPv4Network("0.0.0.0/8"), "this network"),
    (IPv4Network("127.0.0.0/8"), "loopback"),
    (IPv4Network("169.254.0.0/16"), "link-local"),
    (IPv4Network("224.0.0.0/4"), "multicast"),
    (IPv4Network("240.0.0.0/4"), "reserved"),
    (IPv6Network("::/127"), "loopback"),
    (IPv6Network("::ffff:0:0/96"), "IPv4-mapped"),
    (IPv6Network("fe80::/10"), "link-local"),
    (IPv6Network("ff00::/8"), "multicast"),
)


class PlanReader(Reader):
    """Reads one document. Use once: `PlanReader(document, shape).read()`."""

    def __init__(self, document: Document, shape: PlanShape) -> None:
        super().__init__(document)
        self.shape = shape

    def read(self) -> Plan:
        self._names()
        if not self.shape.sites:
            self.document.fail(("sites",), "no site", "add `lhr: {nodes: {lhr1: {underlay: 10.0.1.11}}}`")
        self.prefixes = self._prefixes()
        sites = self._sites()
        self.nodes = {name: node for site in sites.values() for name, node in site.nodes.items()}
        pools = PoolReader(self, sites).read()
        sites = {name: self._with_onramps(site, pools) for name, site in sites.items()}
        settings = self._settings(self.shape.settings)
        plan = Plan(self.document.file, self.prefixes, sites, pools, settings)
        self._sizes(plan)
        return plan

    def _sizes(self, plan: Plan) -> None:
        shifts = plan.address_shifts()
        owners = max(
            (sum(65536 >> shift for shift in plan.address_shifts(site).values()) for site in plan.sites), default=0
        )
        for path, what, found, most, remedy in (
            ("sites", "nodes", len(self.nodes), MAX_NODES, "split the fleet"),
            ("pools", "pools", len(plan.pools), MAX_POOLS, "join pools"),
            ("pools", "addresses", len(shifts), MAX_ADDRESSES, "split the fleet"),
            (
                "pools",
                "steering entries at one site",
                owners,
                MAX_OWNERS,
                "use larger slice_ports, or static slices of fewer addresses",
            ),
        ):
            if found > most:
                self.document.fail((path,), f"{found} {what}, at most {most} fit", remedy)

    def _names(self) -> None:
        named: list[tuple[Path, str]] = [(("sites", name), name) for name in self.shape.sites]
        named += [(("pools", name), name) for name in self.shape.pools]
        for site, site_shape in self.shape.sites.items():
            for node, node_shape in site_shape.nodes.items():
                path: Path = ("sites", site, "nodes", node)
                named.append((path, node))
                named += [((*path, "onramps", name), name) for name in node_shape.onramps]
        for path, name in named:
            if NAME.fullmatch(name) is None:
                self.document.fail(
                    path,
                    f"{name[:70]!r} is no name",
                    "use up to 63 letters, digits, `-`, `_` and `.`, a letter or digit first",
                    key=True,
                )

    def _prefixes(self) -> tuple[Prefix, ...]:
        if not self.shape.prefixes:
            self.document.fail(("prefixes",), "no prefix", "add `- {prefix: 198.51.100.0/24}`")
        prefixes: list[Prefix] = []
        for index, shape in enumerate(self.shape.prefixes):
            path: Path = ("prefixes", index)
            network = self.parsed((*path, "prefix"), parse_network, shape.prefix)
            self._ordinary((*path, "prefix"), network)
            for other in prefixes:
                if overlaps(network, other.network):
                    self.document.fail((*path, "prefix"), f"{network} overlaps {other.network}", "keep the wider one")
            announce = tuple(sorted(self.shape.sites)) if shape.announce is None else tuple(shape.announce)
            if not announce:
                self.document.fail(
                    (*path, "announce"), "no site announces it", "name sites, or leave `announce` out for all"
                )
            for at, site in enumerate(announce):
                self.unknown((*path, "announce", at), "site", site, list(self.shape.sites))
                if site in announce[:at]:
                    self.document.fail((*path, "announce", at), f"{site} is named twice", "keep one of them")
            prefixes.append(Prefix(network, announce))
        return tuple(sorted(prefixes, key=lambda prefix: network_key(prefix.network)))

    def _ordinary(self, path: Path, network: IPNetwork) -> None:
        for special, meaning in _SPECIAL:
            if overlaps(network, special):
                self.document.fail(
                    path,
                    f"{network} is {meaning} ({special})",
                    "use addresses that the Internet routes to you",
                )

    def _sites(self) -> dict[str, Site]:
        sites: dict[str, Site] = {}
        homes: dict[str, str] = {}
        underlays: dict[IPAddress, str] = {}
        for site, shape in self.shape.sites.items():
            nodes: dict[str, Node] = {}
            for name, node_shape in shape.nodes.items():
                path: Path = ("sites", site, "nodes", name)
                if name in homes:
                    self.document.fail(
                        path, f"site {homes[name]} has a node of this name", "rename one of them", key=True
                    )
                homes[name] = site
                node = self._node(path, site, name, node_shape)
                for address in node.underlays:
                    if address in underlays:
                        self.document.fail(
                            (*path, "underlay"), f"{address} is {underlays[address]}'s", "give each node its own"
                        )
                    underlays[address] = name
                nodes[name] = node
            sites[site] = Site(site, nodes)
        if len(underlays) > MAX_UNDERLAYS:
            self.document.fail(
                ("sites",), f"{len(underlays)} underlay addresses", f"at most {MAX_UNDERLAYS} fit: one a node will do"
            )
        self._all_reach_each_other([node for site in sites.values() for node in site.nodes.values()])
        return sites

    def _all_reach_each_other(self, nodes: Sequence[Node]) -> None:
        """Any node may have to carry to any other."""
        only = {version: [node for node in nodes if node.underlay_of(10 - version) is None] for version in (4, 6)}
        if only[4] and only[6]:
            # The smaller half is what is mended sooner; of two equal ones, what comes later in the file.
            odd, others = (only[4], only[6]) if len(only[4]) < len(only[6]) else (only[6], only[4])
            mine, theirs = odd[0], others[0]
            self.document.fail(
                ("sites", mine.site, "nodes", mine.name, "underlay"),
                f"{mine.underlay} is IPv{mine.underlay.version}, {theirs.name}'s {theirs.underlay} is "
                f"IPv{theirs.underlay.version}: neither can carry to the other",
                f"give {mine.name} an IPv{theirs.underlay.version} address too: `underlay: [{mine.underlay}, ...]`",
            )

    def _node(self, path: Path, site: str, name: str, shape: NodeShape) -> Node:
        underlays = self._underlays((*path, "underlay"), shape.underlay)
        for at, device in enumerate(shape.uplinks):
            self.device((*path, "uplinks", at), device)
            if device in shape.uplinks[:at]:
                self.document.fail((*path, "uplinks", at), f"{device} is named twice", "keep one of them")
        if len(shape.uplinks) > MAX_UPLINKS:
            self.document.fail((*path, "uplinks"), f"{len(shape.uplinks)} uplinks", f"name at most {MAX_UPLINKS}")
        bypass = self.networks((*path, "bypass"), shape.bypass)
        self._attach((*path, "attach"), shape)
        return Node(
            name,
            site,
            underlays,
            tuple(shape.uplinks),
            {},
            bypass,
            shape.weight,
            self._bird((*path, "bird"), shape.bird),
            shape.attach,
        )

    def _underlays(self, path: Path, texts: Sequence[str]) -> tuple[IPAddress, ...]:
        underlays = tuple(self.parsed(path, parse_address, text) for text in texts)
        if not underlays:
            self.document.fail(path, "no address", "name the address that other nodes reach it by")
        if len({address.version for address in underlays}) < len(underlays):
            self.document.fail(
                path,
                f"{' and '.join(map(str, underlays))} are of one family",
                "name one address, or one IPv4 and one IPv6",
            )
        for underlay in underlays:
            for special, meaning in _SPECIAL:
                if contains(special, underlay):
                    self.document.fail(path, f"{underlay} is {meaning}", "use the address that other nodes reach it by")
            for prefix in self.prefixes:
                if contains(prefix.network, underlay):
                    self.document.fail(
                        path,
                        f"{underlay} is within the fleet's prefix {prefix.network}",
                        "use an address of the node's own, which no other site announces",
                    )
        return underlays

    def _bird(self, path: Path, shape: BirdShape | None) -> BirdSpeaker | None:
        if shape is None:
            return None
        for key, file in (("control", shape.control), ("include", shape.include)):
            if file is not None and _FILE.fullmatch(file) is None:
                self.document.fail(
                    (*path, key), f"{file[:60]!r} is no file's path", "write it from the root, /run/bird/bird.ctl"
                )
        community = shape.drain.community
        if community is not None and not _is_community(community):
            self.document.fail(
                (*path, "drain", "community"),
                f"{community[:40]!r} is no community",
                "write two numbers of 16 bits, 65535:0",
            )
        return BirdSpeaker(shape.control, shape.include, shape.drain.med, community, shape.drain.settle_s)

    def _attach(self, path: Path, shape: NodeShape) -> None:
        for device, mode in shape.attach.items():
            at = (*path, device) if device else path
            if mode not in ATTACH:
                self.document.fail(at, f"{mode[:40]!r} is no way to attach", f"one of {', '.join(ATTACH)}")
            if device and shape.uplinks and device not in shape.uplinks:
                self.unknown(at, "uplink", device, shape.uplinks, key=True)
            elif device:
                self.device(at, device)

    def _with_onramps(self, site: Site, pools: dict[str, Pool]) -> Site:
        return Site(site.name, {name: read_onramps(self, node, pools) for name, node in site.nodes.items()})

    def _terminate(self, shape: TerminateShape) -> Terminate:
        log = shape.access_log
        if log is not None and not log.startswith("/"):
            path = ("settings", "terminate", "access_log")
            self.document.fail(path, f"{log!r} is no absolute path", "begin it with /, such as /var/log/terminated.log")
        return Terminate(shape.connect_s, log)

    def _settings(self, shape: SettingsShape) -> Settings:
        mask = shape.mark if shape.mark_mask is None else shape.mark_mask
        if shape.mark & ~mask:
            self.document.fail(
                ("settings", "mark"),
                f"{shape.mark:#x} has bits outside mark_mask {mask:#x}",
                "widen the mask or change the mark",
            )
        return Settings(
            mark=shape.mark,
            mark_mask=mask,
            gue_port=shape.gue_port,
            answer_ping=shape.answer_ping,
            flows=shape.flows,
            full_ms=shape.full_ms,
            udp_wildcard_fraction=shape.udp_wildcard_fraction,
            timers=Timers(**shape.timers.model_dump()),
            probes=Probes(**shape.probes.model_dump()),
            terminate=self._terminate(shape.terminate),
        )


def _is_community(text: str) -> bool:
    """RFC 1997: two numbers of 16 bits."""
    parts = text.split(":")
    return len(parts) == 2 and all(part.isascii() and part.isdigit() and int(part) <= 0xFFFF for part in parts)
