# SPDX-License-Identifier: Apache-2.0
"""How every answer travelled, from captures at both routers. Pure.

Towards the internet a router's capture has each answer as it comes in. In the rack it has it once more, in a frame from
the router to the node that the answer comes to; and whenever it is carried, in GUE (wire/gue.py), in a frame from the
node that carries it. So a packet's way is read off its frames: by which router it came in, at which node first, and how
often it was carried on, to another site or to another node of the site. Whose it is says its destination, by the
bindings. Questions of nodes to each other whether they live (wire/probe.py) are no answers and left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from softunicast.wire import gue
from softunicast.wire.packet import Malformed, parse
from softunicast.wire.pcap import read_pcap

from . import topology as facts
from .checker import Owned

NODE_OF: Final = {facts.underlay(node): node for node in facts.NODES}
IP: Final = (b"\x08\x00", b"\x86\xdd")


@dataclass(slots=True)
class Way:
    """The answers for one node: by router and by first node; how many were carried to another site, and how many on to
    another node of a site.
    """

    at_router: Counter[str] = field(default_factory=Counter)
    first_at: Counter[str] = field(default_factory=Counter)
    to_site: int = 0
    to_node: int = 0

    @property
    def answers(self) -> int:
        """All that came in."""
        return sum(self.at_router.values())


@dataclass(slots=True)
class Ways:
    """The ways by owner. `strays`: answers that are for nobody's port."""

    by_owner: dict[str, Way] = field(default_factory=lambda: {node: Way() for node in facts.NODES})
    strays: int = 0

    @property
    def answers(self) -> int:
        """All that came in, for whomever."""
        return sum(way.answers for way in self.by_owner.values())

    @property
    def carries(self) -> int:
        """How often any of them was carried."""
        return sum(way.to_site + way.to_node for way in self.by_owner.values())

    @property
    def to_site(self) -> int:
        """How many were carried to another site."""
        return sum(way.to_site for way in self.by_owner.values())

    def problems(self) -> list[str]:
        """What does not add up, a line each."""
        found = []
        for node, way in self.by_owner.items():
            if not way.answers:
                found.append(f"no answer came for {node}")
            if way.answers != sum(way.first_at.values()):
                found.append(f"{way.answers} answers for {node} came in, {sum(way.first_at.values())} came to a node")
            elsewhere = sum(count for at, count in way.first_at.items() if facts.site_of(at) != facts.site_of(node))
            if elsewhere != way.to_site:
                found.append(f"{elsewhere} answers for {node} came to another site, {way.to_site} were carried there")
        if self.strays:
            found.append(f"{self.strays} answers came for ports that are nobody's")
        return found


class Owners:
    """Whose a port is. `find` takes an address as its bytes: it is asked for every packet."""

    def __init__(self, owners: Iterable[Owned]) -> None:
        self._ports: dict[bytes, bytearray] = {}
        for one in owners:
            ports = self._ports.setdefault(one.address.packed, bytearray(65536))
            ports[one.first : one.last + 1] = bytes([1 + facts.NODES.index(one.node)]) * (one.last - one.first + 1)

    def find(self, address: bytes, port: int) -> str:
        """The node, "" for nobody."""
        ports = self._ports.get(address)
        return facts.NODES[ports[port] - 1] if ports is not None and ports[port] else ""


def read_ways(internet: Mapping[str, bytes], rack: Mapping[str, bytes], owners: Owners) -> Ways:
    """`internet`, `rack`: a router's capture on that side, by router. Raises NotPcap."""
    ways = Ways()
    for router, pcap in internet.items():
        for frame in _frames(pcap, _mac("inet", router)):
            if _for_fleet(frame[14:]):
                way = _way(ways, frame[14:], owners)
                if way is None:
                    ways.strays += 1
                else:
                    way.at_router[router] += 1
    nodes = {_mac(node, "eth0"): node for node in facts.NODES}
    for router, pcap in rack.items():
        bridge = _mac(router, "br0")
        for frame in _frames(pcap, bridge, *nodes):
            if frame[6:12] != bridge:
                _carried(ways, frame[14:], nodes[frame[6:12]], owners)
            elif frame[:6] in nodes and _for_fleet(frame[14:]):
                way = _way(ways, frame[14:], owners)
                if way is not None:
                    way.first_at[nodes[frame[:6]]] += 1
    return ways


def _mac(namespace: str, device: str) -> bytes:
    return bytes.fromhex(facts.mac(namespace, device).replace(":", ""))


def _frames(pcap: bytes, *senders: bytes) -> Iterable[bytes]:
    return (frame for _, frame, _ in read_pcap(pcap).frames() if frame[12:14] in IP and frame[6:12] in senders)


def _way(ways: Ways, data: bytes, owners: Owners) -> Way | None:
    """Whose answer a packet is, heads being enough; None: nobody's."""
    try:
        packet = parse(data, quoted=True)
        port = packet.destination_port if packet.icmp_id is None else packet.icmp_id
        if packet.is_error:
            about = parse(data[packet.payload :], quoted=True)
            port = about.source_port if about.icmp_id is None else about.icmp_id
    except Malformed:
        return None
    return ways.by_owner.get(owners.find(packet.destination.packed, port)) if port is not None else None


def _for_fleet(data: bytes) -> bool:
    if data[:1] >= b"\x60":
        return len(data) >= 40 and IPv6Address(data[24:40]) in facts.FLEET6
    return len(data) >= 20 and IPv4Address(data[16:20]) in facts.FLEET


def _carried(ways: Ways, data: bytes, by: str, owners: Owners) -> None:
    """Count a frame of a node that carries an answer on."""
    try:
        outer = parse(data, quoted=True)
        to = NODE_OF.get(str(outer.destination)) if outer.destination_port == gue.PORT else None
        if to is None:
            return
        inner = outer.payload + gue.unpack(data[outer.payload :]).inner
    except Malformed:
        return  # a probe, or what the checker will judge
    way = _way(ways, data[inner:], owners)
    if way is None:
        return
    if facts.site_of(by) == facts.site_of(to):
        way.to_node += 1
    else:
        way.to_site += 1
