# SPDX-License-Identifier: Apache-2.0
"""What steering does with a packet, said a second time: in Python, from the same tables.

The data plane (bpf/steer.bpf.c, bpf/include/owner.h, steer.h, gue.h, parse.h) decides from a few maps and constants:

    address of this site -> `addresses` -> `owners[base + (port >> shift)]` -> `nodes` -> underlay address
    address of another   -> `addresses` -> `sites`, `site_nodes`, hash of the flow -> `nodes` -> underlay address
    outer source -> `peers`, inner source -> `prefixes`, list INTERNAL; but for what is hairpinned

`steer()` takes the same bytes and gives the verdict, the drop reason and the frame as it would leave. The
tests compare it with the programs on random packets; `explain` may use it to tell a person. It shares
no code with what it judges.

    plain, mine or a ping            PASS   as it came
    plain, another node's            CARRY  encapsulated, inner TTL less one, `final` clear
    encapsulated, mine or a ping     PASS   the inner packet, ECN by RFC 6040
    encapsulated, another node's     CARRY  outer headers anew (of that node's family), inner TTL less one, `final` set
    the same, but it came as final   DROP   FINAL_NOT_MINE
    no address of the fleet          PASS   as it came
    a probe of another node          ANSWER at tc
    a plain fragment                 CARRY  to its home, unless that is here; then as the flow of its first one, at tc
    an encapsulated fragment         as the flow of its first one, at tc

XDP keeps no state: fragments at home, and those in the tunnel, PASS there as they came, for tc behind.

Sources: RFC 791, 8200, 792, 4443 (headers), RFC 6040 (ECN), RFC 1624 (checksums), draft-ietf-intarea-gue-09.
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from sys import byteorder
from typing import Final

from softunicast.kernel.abi import (
    GUE_CONTROL,
    GUE_FINAL,
    NONE,
    Address,
    Control,
    Drop,
    List,
    Node,
    NodeFlag,
    Owner,
    Prefix,
    ProbeFlag,
    ProbeType,
    Settings,
    Site,
    Uplink,
)
from softunicast.kernel.abi_util import MAPPED
from softunicast.steering.oracle_packet import (
    ETH_IP4,
    ETH_IP6,
    ETHERNET,
    IP4_HEADER,
    IP6_HEADER,
    IP6_IN_IP,
    IPIP,
    UDP,
    Fragments,
    Packet,
    checksum,
    parse,
    update_checksum,
    with_ecn,
    with_ttl_less,
)

TAIL: Final = 12
"""UDP and GUE, behind the outer IP header of either family."""
SITE_TRIES: Final = 64
NOT_ECT, ECT1, ECT0, CE = range(4)


class Verdict(Enum):
    PASS = "pass"
    CARRY = "carry"
    ANSWER = "answer"
    DROP = "drop"


@dataclass(frozen=True, slots=True)
class Decision:
    """`frame`: as it goes on, Ethernet addresses as they came; empty for DROP. `node`: who gets it."""

    verdict: Verdict
    frame: bytes = b""
    drop: Drop = Drop.NONE
    node: int = NONE
    uncovered: bool = False
    """It came encapsulated and passed the checks of the tunnel."""


@dataclass(frozen=True, slots=True)
class Tables:
    """The contents of the maps, keys and values as the kernel has them (see bpf/include/maps.h)."""

    settings: Settings
    addresses: Mapping[bytes, Address]
    owners: Mapping[int, Owner]
    sites: Mapping[int, Site]
    site_nodes: Mapping[int, int]
    nodes: Mapping[int, Node]
    peers: frozenset[bytes]
    internal: tuple[tuple[bytes, int], ...]
    """Prefixes as (address, length in bits of the mapped address)."""
    uplinks: tuple[Uplink, ...]
    probe_flags: int = 0

    @classmethod
    def from_maps(cls, settings: Settings, maps: Mapping[str, Mapping[bytes, bytes]]) -> Tables:
        """From raw contents by map name, as `build_tables` gives them or a dump of the live maps."""
        contents = defaultdict[str, Mapping[bytes, bytes]](dict, maps)

        def array(name: str) -> Iterator[tuple[int, bytes]]:
            return ((int.from_bytes(key, byteorder), value) for key, value in contents[name].items())

        prefixes = (Prefix.unpack(key) for key in contents["prefixes"])
        internal = (p for p in prefixes if p.list == List.INTERNAL and p.prefix_len >= 32)
        return cls(
            settings,
            {key: Address.unpack(value) for key, value in contents["addresses"].items()},
            {index: Owner.unpack(value) for index, value in array("owners")},
            {index: Site.unpack(value) for index, value in array("sites")},
            {index: int.from_bytes(value, byteorder) for index, value in array("site_nodes")},
            {index: Node.unpack(value) for index, value in array("nodes")},
            frozenset(contents["peers"]),
            tuple((p.addr, p.prefix_len - 32) for p in internal),
            tuple(Uplink.unpack(value) for _, value in sorted(array("uplinks"))),
            next((Control.unpack(value).probe_flags for _, value in array("control")), 0),
        )

    def owner(self, packet: Packet, port: int) -> Owner | Drop:
        """Who holds this port (host order) of the packet's destination, an address of the fleet, or whom to ask."""
        entry = self.addresses[packet.target]
        if entry.site != self.settings.site:
            node = self.site_node(entry.site, flow_hash(packet))
            return node if isinstance(node, Drop) else Owner(node, NONE)
        owner = self.owners.get(entry.base + (port >> entry.shift))
        return owner if owner is not None and owner.node != NONE else Drop.NO_OWNER

    def home(self, packet: Packet, carried: bool) -> int | Drop | None:
        """The node where the fragments of a datagram meet, None: this one. What was carried here is at home."""
        site = self.addresses[packet.target].site
        if carried and site == self.settings.site:
            return None
        node = self.site_node(site, flow_hash(packet))
        return None if node == self.settings.node else node

    def is_fit(self, index: int, node: Node) -> bool:
        """This node counts for what it tells the others."""
        if index == self.settings.node:
            return bool(self.probe_flags & ProbeFlag.FIT)
        return not node.flags & NodeFlag.UNFIT

    def site_node(self, site: int, number: int) -> int | Drop:
        """A living node of a site by a hash, su_site_node of owner.h."""
        at = self.sites.get(site, Site())
        if not at.count:
            return Drop.NO_OWNER
        unfit: int | None = None
        for turn in range(SITE_TRIES):
            index = self.site_nodes.get(at.first + number % at.count, 0)
            node = self.nodes.get(index)
            if node is not None and node.flags & (NodeFlag.SET | NodeFlag.DOWN) == NodeFlag.SET:
                if self.is_fit(index, node):
                    return index
                unfit = index if unfit is None else unfit
            number = (number * 0x85EBCA6B + 0x9E3779B1 if turn < 4 else number + 1) & 0xFFFFFFFF
        return Drop.SITE_DOWN if unfit is None else unfit

    def is_internal(self, address: bytes) -> bool:
        number = int.from_bytes(address, "big")
        return any((number ^ int.from_bytes(net, "big")) >> (128 - bits) == 0 for net, bits in self.internal)

    def uplink(self, ifindex: int) -> Uplink | None:
        """The uplink of that index, else the first there is."""
        used = [uplink for uplink in self.uplinks if uplink.ifindex]
        return next((uplink for uplink in used if uplink.ifindex == ifindex), used[0] if used else None)


def decapsulated_ecn(inner: int, outer: int) -> int | None:
    """RFC 6040 section 4.2, figure 4; None: drop."""
    if outer == CE:
        return None if inner == NOT_ECT else CE
    return ECT1 if (inner, outer) == (ECT0, ECT1) else inner


def flow_hash(packet: Packet) -> int:
    """What all packets of a flow in one direction share, 32 bits: the lower 14 choose the outer source port, the upper
    20 are the flow label. Of a fragment that was not followed: what the fragments of its datagram share."""

    if packet.fragment:
        return fragment_hash(packet.source, packet.target, packet.ident, packet.proto)
    source_port, target_port = packet.ports or (0, 0)
    return _mixed(packet.source, packet.target, source_port << 16 | target_port, packet.proto)


def fragment_hash(source: bytes, target: bytes, ident: int, proto: int) -> int:
    """The same of what the fragments of a datagram share; in IPv6 only the first one knows the protocol."""
    return _mixed(source, target, ident, proto if target.startswith(MAPPED) else 0)


def _mixed(source: bytes, target: bytes, ports: int, proto: int) -> int:
    def fold(address: bytes) -> int:
        words: tuple[int, ...] = struct.unpack("!4I", address)
        return words[0] ^ words[1] ^ words[2] ^ words[3]

    mixed = fold(source) * 0x9E3779B1 ^ fold(target) * 0x85EBCA6B ^ ports * 0xC2B2AE35
    mixed = (mixed ^ proto) & 0xFFFFFFFF
    mixed = (mixed ^ mixed >> 16) * 0x7FEB352D & 0xFFFFFFFF
    return mixed ^ mixed >> 15


def own_underlay(settings: Settings, ip6: bool) -> bytes | None:
    """This node's underlay address of that family."""
    both = (settings.underlay4, settings.underlay6)
    return next((address for address in both if address.startswith(MAPPED) != ip6), None)


def outer_headers(tables: Tables, packet: Packet, tos: int, node: Node, final: bool) -> bytes:
    """The 32 or 52 bytes in front of an inner packet, and in front of them the Ethernet type."""
    number, length = flow_hash(packet), packet.total + TAIL
    ip6 = not node.underlay.startswith(MAPPED)
    source, target = own_underlay(tables.settings, ip6) or b"", node.underlay
    if ip6:
        first = 6 << 28 | tos << 20 | (number >> 12 or 1)
        ip = struct.pack("!HIHBB", ETH_IP6, first, length, UDP, 64) + source + target
    else:
        ip = struct.pack("!BBHHHBBH", 0x45, tos, length + IP4_HEADER, 0, 0x4000, 64, UDP, 0) + source[12:] + target[12:]
        ip = struct.pack("!H", ETH_IP4) + ip[:10] + struct.pack("!H", checksum(ip)) + ip[12:]
    udp = struct.pack("!HHHH", 49152 | number & 0x3FFF, tables.settings.gue_port, length, 0)
    return ip + udp + struct.pack("!BBH", 0, IP6_IN_IP if packet.ip6 else IPIP, GUE_FINAL if final else 0)


def where(tables: Tables, packet: Packet) -> Owner | Drop | None:
    """The owner; a reason to drop; None: the packet stays on this node (not the fleet's, or a ping). No fragment, or
    one that was followed."""
    if packet.target not in tables.addresses:
        return None
    if packet.echo_request:
        return None
    if packet.error:
        if packet.quoted is None or packet.quoted[0] != packet.target:
            return Drop.ERROR_UNKNOWN
        port = packet.quoted[1]
    elif packet.ports is None:
        return Drop.PROTOCOL
    else:
        port = packet.ports[1]
    return tables.owner(packet, port)


def is_hairpin(tables: Tables, inner: Packet) -> bool:
    """From one client's mapping to another's, or an error about that: of UDP, its source an address of the fleet."""
    return (inner.quoted[2] if inner.quoted else inner.proto) == UDP and inner.source in tables.addresses


def uncover(tables: Tables, outer: Packet) -> tuple[Packet, int, bool] | Drop:
    """The inner packet (of a frame of its own), its ECN field and whether it is final; or why not."""
    frame, head = outer.frame, IP6_HEADER if outer.ip6 else IP4_HEADER
    if outer.source not in tables.peers:
        return Drop.STRANGER
    if outer.options or outer.fragment or len(frame) < ETHERNET + head + TAIL:
        return Drop.GUE_MALFORMED
    length, check, version, proto, flags = struct.unpack_from("!HHBBH", frame, ETHERNET + head + 4)
    if version or proto not in (IPIP, IP6_IN_IP) or flags & ~GUE_FINAL or check:
        return Drop.GUE_MALFORMED
    if outer.total < head + TAIL or length != outer.total - head or outer.total > len(frame) - ETHERNET:
        return Drop.GUE_MALFORMED
    ether_type = ETH_IP4 if proto == IPIP else ETH_IP6
    plain = frame[:12] + struct.pack("!H", ether_type) + frame[ETHERNET + head + TAIL :]
    inner = parse(plain, ETHERNET, ether_type)
    if inner is None or inner.malformed or not inner.total or inner.total > length - TAIL:
        return Drop.MALFORMED
    if inner.target not in tables.addresses:
        return Drop.INNER_NOT_SLICE
    if tables.is_internal(inner.source) and not is_hairpin(tables, inner):
        return Drop.INNER_INTERNAL
    ecn = decapsulated_ecn(inner.tos & 3, outer.tos & 3)
    return Drop.ECN if ecn is None else (inner, ecn, bool(flags & GUE_FINAL))


def is_probe(packet: Packet) -> bool:
    """A control message to our end of the tunnel, whole and without options."""
    return (
        not packet.options
        and not packet.fragment
        and len(packet.frame) >= packet.layer4 + 16
        and packet.frame[packet.layer4 + 8] == GUE_CONTROL
    )


def answer_probe(tables: Tables, packet: Packet) -> Decision:
    """What tc does with a probe."""
    frame, l4 = packet.frame, packet.layer4
    if packet.source not in tables.peers:
        return Decision(Verdict.DROP, drop=Drop.STRANGER)
    if frame[l4 + 9] == ProbeType.REPLY:
        return Decision(Verdict.PASS, frame)
    if frame[l4 + 9] != ProbeType.ASK:
        return Decision(Verdict.DROP, drop=Drop.GUE_MALFORMED)
    ends = ETHERNET + (8 if packet.ip6 else 12)
    size = 16 if packet.ip6 else 4
    addresses = frame[ends + size : ends + 2 * size] + frame[ends : ends + size]
    source, target, length, check, kind, flags = struct.unpack_from("!6H", frame, l4)
    answer = (GUE_CONTROL << 8 | ProbeType.REPLY, tables.probe_flags)
    if check:
        check = update_checksum(update_checksum(check, kind, answer[0]), flags, answer[1]) or 0xFFFF
    udp = struct.pack("!6H", target, source, length, check, *answer)
    head = frame[6:12] + frame[:6] + frame[12:ends] + addresses + frame[ends + 2 * size : l4]
    return Decision(Verdict.ANSWER, head + udp + frame[l4 + 12 :])


def carry(tables: Tables, packet: Packet, owner: Owner, ecn: int, uncovered: bool, ifindex: int) -> Decision:
    """To another node. `packet` is plain by now, its ECN field still as it came."""
    node, uplink = tables.nodes.get(owner.node), tables.uplink(ifindex)

    def dropped(reason: Drop) -> Decision:
        return Decision(Verdict.DROP, drop=reason, uncovered=uncovered)

    if uplink is None:
        return dropped(Drop.ENCAP)
    if packet.ttl <= 1:
        return dropped(Drop.TTL)
    if node is None or not node.flags & 1:
        return dropped(Drop.NO_OWNER)
    ip6 = not node.underlay.startswith(MAPPED)
    if own_underlay(tables.settings, ip6) is None:
        return dropped(Drop.ENCAP)
    if not packet.total or packet.total > len(packet.frame) - ETHERNET:
        return dropped(Drop.MALFORMED)
    if packet.total + (IP6_HEADER if ip6 else IP4_HEADER) + TAIL > uplink.mtu:
        return dropped(Drop.TOO_BIG)
    inner = with_ttl_less(with_ecn(packet.frame[ETHERNET:], packet.ip6, ecn), packet.ip6)
    outer = outer_headers(tables, packet, packet.tos & ~3 | ecn, node, final=uncovered)
    return Decision(Verdict.CARRY, packet.frame[:12] + outer + inner, node=owner.node, uncovered=uncovered)


def steer(
    tables: Tables,
    frame: bytes,
    *,
    ifindex: int = 0,
    xdp: bool = False,
    fragments: Fragments | None = None,
    now_ns: int = 0,
) -> Decision:
    """What happens to an Ethernet frame (14 bytes and a packet, not segmented) that came in by `ifindex`. XDP leaves
    probes, and fragments whose ports are to be known, to tc. `fragments` is what is remembered of them."""
    packet = parse(frame, ETHERNET, int.from_bytes(frame[12:14], "big"))
    if packet is None:
        return Decision(Verdict.PASS, frame)
    if packet.malformed:
        ours = packet.target in tables.addresses
        return Decision(Verdict.DROP, drop=Drop.MALFORMED) if ours else Decision(Verdict.PASS, frame)
    ecn, uncovered, final = packet.tos & 3, False, False
    ends = (tables.settings.underlay4, tables.settings.underlay6)
    to_tunnel = packet.target in ends and packet.proto == UDP
    if to_tunnel and packet.ports is not None and packet.ports[1] == tables.settings.gue_port:
        if is_probe(packet):
            return Decision(Verdict.PASS, frame) if xdp else answer_probe(tables, packet)
        result = uncover(tables, packet)
        if isinstance(result, Drop):
            return Decision(Verdict.DROP, drop=result)
        packet, ecn, final = result
        uncovered = True
    owner: Owner | Drop | None
    home: int | Drop | None = None
    if packet.fragment and packet.target in tables.addresses:
        home = tables.home(packet, uncovered)
        if home is None:
            if xdp:
                return Decision(Verdict.PASS, frame)
            home = (Fragments() if fragments is None else fragments).follow(packet, now_ns)
    if isinstance(home, int):
        owner = home if isinstance(home, Drop) else Owner(home, NONE)
    else:
        owner = where(tables, packet)
    if isinstance(owner, Drop):
        return Decision(Verdict.DROP, drop=owner, uncovered=uncovered)
    if owner is None or owner.node == tables.settings.node:
        plain = packet.frame[:ETHERNET] + with_ecn(packet.frame[ETHERNET:], packet.ip6, ecn)
        return Decision(Verdict.PASS, plain, uncovered=uncovered)
    if final:
        return Decision(Verdict.DROP, drop=Drop.FINAL_NOT_MINE, uncovered=uncovered)
    return carry(tables, packet, owner, ecn, uncovered, ifindex)
