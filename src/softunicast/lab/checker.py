# SPDX-License-Identifier: Apache-2.0
"""The judge at the router: reads a capture and says whether anything left outside its slice. Pure.

It shares no code with the data plane nor with the agent's tables: it is told who owns what (address, first
port, last port, node), and believes only the bytes of the capture. The rules, for a packet whose frame was
sent by one of `senders` (the router's MAC on its internet side; the nodes' MACs on the rack):

1. Its source is an address of the fleet, or one of `own` (the router's line). Anything else:
   `not_expected_source`.
2. TCP, UDP: its source port, ICMP echo request: its id, is within a slice. Seen on the rack, within a slice
   of the very
   node that sent it.
3. ICMP echo reply: a request it answers was seen coming in (pings to a slice's address are answered). ICMP
   error: the
   packet it quotes was sent to a slice. Other protocols have no ports and may not leave.
4. Later fragments follow their first one, which is judged by 2.
   What breaks 2 to 4 is `outside_slice`.
5. In both directions the checksums of IP, TCP, UDP, ICMP are right (`bad_checksums`), unless
   `checksums=False`: where
   offload is on they are not final.

A capture that lost packets, cut them, or is empty proves nothing: those are problems too. About 200,000
packets a second.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Final

from softunicast.wire.checksum import ICMPV6, ones_sum
from softunicast.wire.packet import NAMES, Malformed, Packet, checksum_errors, parse
from softunicast.wire.pcap import read_pcap

MARKER_ETHERTYPE: Final = 0x88B5  # local experimental (IEEE 802): the capture's own frames, see capture.py
IPV4_ETHERTYPE: Final = b"\x08\x00"
IPV6_ETHERTYPE: Final = b"\x86\xdd"

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, slots=True)
class Owned:
    """A slice and the node it is bound to. `first` and `last` are inclusive; ICMP echo ids count as ports."""

    address: IPv4Address | IPv6Address
    first: int
    last: int
    node: str

    def __str__(self) -> str:
        place = f"[{self.address}]" if self.address.version == 6 else str(self.address)
        return f"{place}:{self.first}-{self.last}"


@dataclass(frozen=True, slots=True)
class Finding:
    """A packet that is not as it should be. `number` counts frames of the capture from 1; `time_s` since
    1970.
    """

    number: int
    time_s: float
    why: str
    packet: str

    def __str__(self) -> str:
        return f"#{self.number} {self.packet}: {self.why}"


@dataclass(slots=True)
class Report:
    """The verdict. `packets` and `bytes` (of IP) count both directions, `sent` what `senders` sent.

    `flows` counts the packets sent by (protocol, source, source port, destination, destination port).
    """

    packets: int = 0
    bytes: int = 0
    sent: int = 0
    by_proto: Counter[str] = field(default_factory=Counter)
    by_slice: Counter[Owned] = field(default_factory=Counter)
    flows: Counter[tuple[str, str, int, str, int]] = field(default_factory=Counter)
    outside_slice: list[Finding] = field(default_factory=list)
    not_expected_source: list[Finding] = field(default_factory=list)
    bad_checksums: list[Finding] = field(default_factory=list)
    fragments: int = 0
    echo_replies: int = 0
    icmp_errors: int = 0
    other_frames: int = 0
    cut_off: int = 0
    kernel_dropped: int = 0

    def problems(self) -> list[str]:
        """What speaks against the packets or the capture, a line each; empty: all is well."""
        counts = [
            (len(self.outside_slice), "packets outside their slice", self.outside_slice),
            (len(self.not_expected_source), "packets from an unexpected source", self.not_expected_source),
            (len(self.bad_checksums), "bad checksums", self.bad_checksums),
        ]
        found = [f"{count} {what}, the first: {findings[0]}" for count, what, findings in counts if findings]
        if self.kernel_dropped:
            found.append(f"the capture itself lost {self.kernel_dropped} packets")
        if self.cut_off:
            found.append(f"{self.cut_off} packets were captured in part")
        if not self.packets:
            found.append("no packet was seen")
        return found

    @property
    def ok(self) -> bool:
        """Nothing speaks against it."""
        return not self.problems()

    def by_node(self) -> Counter[str]:
        """Packets sent from each node's slices."""
        nodes: Counter[str] = Counter()
        for owned, count in self.by_slice.items():
            nodes[owned.node] += count
        return nodes


def check(
    pcap: bytes,
    owners: Iterable[Owned],
    *,
    senders: Mapping[str, str | None],
    fleet: Iterable[Network],
    own: Iterable[Network] = (),
    ignored_destinations: Iterable[Network] = (),
    checksums: bool = True,
    kernel_dropped: int = 0,
) -> Report:
    """Judge a capture.

    `senders`: MAC address -> node whose slices it must keep to, None: any. `own`: sources besides the fleet's
    that may leave. `ignored_destinations`: sent there, a packet is not on its way to the internet (the rack
    itself). Raises NotPcap.
    """
    judge = _Judge(list(owners), senders, list(fleet), list(own), list(ignored_destinations), checksums)
    judge.report.kernel_dropped = kernel_dropped
    judge.read(pcap)
    return judge.report


def _stays_on_the_line(frame: bytes) -> bool:
    """IPv6 that is no traffic: link-local, without source, multicast, neighbour discovery (hop limit 255, RFC 4861)."""
    source, destination = frame[22:38], frame[38:54]
    if source[:2] == b"\xfe\x80" or destination[:2] == b"\xfe\x80" or destination[:1] == b"\xff":
        return True
    return not any(source) or (frame[20] == ICMPV6 and frame[21] == 255 and 133 <= frame[54] <= 137)


class _Judge:
    def __init__(
        self,
        owners: list[Owned],
        senders: Mapping[str, str | None],
        fleet: list[Network],
        own: list[Network],
        ignored: list[Network],
        checksums: bool,
    ) -> None:
        self.report = Report()
        self._owners = owners
        self._fleet, self._own, self._ignored = fleet, own, ignored
        self._checksums = checksums
        self._senders = {bytes.fromhex(mac.replace(":", "")): node for mac, node in senders.items()}
        # address -> for each port, 1 + the index of its owner; 0: nobody's
        self._ports: dict[bytes, array[int]] = {}
        for index, owned in enumerate(owners, 1):
            ports = self._ports.setdefault(owned.address.packed, array("H", bytes(131072)))
            ports[owned.first : owned.last + 1] = array("H", [index]) * (owned.last - owned.first + 1)
        self._packets_of = [0] * (len(owners) + 1)
        self._flows: dict[tuple[int, bytes], int] = {}
        self._protos = [0] * 256
        self._asked: set[tuple[bytes, bytes, int]] = set()
        self._first_fragments: set[tuple[bytes, bytes, int, int]] = set()
        self._now: tuple[int, int] = (0, 0)

    def read(self, pcap: bytes) -> None:
        report, senders, ports_of, flows, protos = (
            self.report,
            self._senders,
            self._ports,
            self._flows,
            self._protos,
        )
        packets_of, checksums = self._packets_of, self._checksums
        number = packets = total_bytes = sent = 0
        from_bytes = int.from_bytes
        for number, (time_ns, frame, wire) in enumerate(read_pcap(pcap).frames(), 1):
            proto = frame[23] if len(frame) >= 42 else 0
            plain = frame[12:15] == b"\x08\x00\x45" and proto in (6, 17) and not frame[20] & 0x3F and not frame[21]
            if not plain or (frame[16] << 8 | frame[17]) < 28:
                self._now = (number, time_ns)
                self._slow(frame, wire)
                continue
            # The road of nearly all packets: IPv4 without options, TCP or UDP, no fragment.
            length = frame[16] << 8 | frame[17]
            packets += 1
            total_bytes += length
            protos[proto] += 1
            if len(frame) < 14 + length:
                report.cut_off += 1
            elif checksums:
                rest = ones_sum(
                    frame[26 : 14 + length]
                )  # addresses and segment: all but protocol and length of the sum
                if (rest + proto + length - 20) % 65535 or from_bytes(frame[14:34], "big") % 65535:
                    self._now = (number, time_ns)
                    self._judge_checksums(frame[14:])
            mac = frame[6:12]
            if mac in senders:
                sent += 1
                ports = ports_of.get(frame[26:30])
                slot = ports[frame[34] << 8 | frame[35]] if ports is not None else 0
                if slot and (senders[mac] is None or senders[mac] == self._owners[slot - 1].node):
                    packets_of[slot] += 1
                    key = (proto, frame[26:38])
                    flows[key] = flows.get(key, 0) + 1
                else:
                    self._now = (number, time_ns)
                    self._judge_sent(parse(frame[14:], quoted=True), senders[mac])
        report.packets += packets
        report.bytes += total_bytes
        report.sent += sent
        self._settle()

    def _settle(self) -> None:
        report = self.report
        for proto, count in enumerate(self._protos):
            if count:
                report.by_proto[NAMES.get(proto, str(proto))] += count
        for slot, count in enumerate(self._packets_of):
            if slot and count:
                report.by_slice[self._owners[slot - 1]] += count
        for (proto, raw), count in self._flows.items():
            source, destination = str(IPv4Address(raw[:4])), str(IPv4Address(raw[4:8]))
            ports = int.from_bytes(raw[8:10], "big"), int.from_bytes(raw[10:12], "big")
            report.flows[NAMES[proto], source, ports[0], destination, ports[1]] += count

    def _slow(self, frame: bytes, wire: int) -> None:
        """Everything but plain TCP and UDP over IPv4."""
        report = self.report
        kind = frame[12:14]
        if int.from_bytes(kind, "big") == MARKER_ETHERTYPE:
            return
        if kind not in (IPV4_ETHERTYPE, IPV6_ETHERTYPE):
            report.other_frames += 1
            return
        if kind == IPV6_ETHERTYPE and _stays_on_the_line(frame):
            report.other_frames += 1
            return
        report.packets += 1
        sender = frame[6:12]
        try:
            packet = parse(frame[14:], quoted=len(frame) < wire)
        except Malformed as error:
            report.bad_checksums.append(self._finding(f"malformed: {error}", f"{len(frame)} bytes"))
            return
        report.bytes += packet.length
        self._protos[packet.proto] += 1
        report.fragments += packet.is_fragment
        if len(frame) < wire:
            report.cut_off += 1
        elif self._checksums:
            self._judge_checksums(frame[14:])
        if sender in self._senders:
            report.sent += 1
            self._judge_sent(packet, self._senders[sender])
        elif packet.is_echo_request and packet.icmp_id is not None:
            self._asked.add((packet.source.packed, packet.destination.packed, packet.icmp_id))

    def _judge_checksums(self, data: bytes) -> None:
        try:
            wrong = checksum_errors(data)
        except Malformed as error:
            self.report.bad_checksums.append(self._finding(f"malformed: {error}", f"{len(data)} bytes"))
            return
        if wrong:
            self.report.bad_checksums.append(self._finding(f"wrong checksum: {', '.join(wrong)}", str(parse(data))))

    def _judge_sent(self, packet: Packet, node: str | None) -> None:
        if any(packet.destination in network for network in self._ignored):
            return
        if any(packet.source in network for network in self._fleet):
            why = self._why_outside(packet, node)
            if why:
                self.report.outside_slice.append(self._finding(why, str(packet)))
        elif not any(packet.source in network for network in self._own):
            self.report.not_expected_source.append(self._finding("not an address of the fleet", str(packet)))

    def _why_outside(self, packet: Packet, node: str | None) -> str:
        """Why a packet with a source of the fleet may not leave; "": it may."""
        fragment = (packet.source.packed, packet.destination.packed, packet.proto, packet.ident)
        if packet.fragment_offset:
            return "" if fragment in self._first_fragments else "a later fragment whose first was not seen"
        port = packet.source_port
        if packet.is_echo_request:
            port = packet.icmp_id
        if port is not None:
            why = self._why_not(packet.source, port, node, count=True)
            if not why:
                place = str(packet.destination), packet.destination_port or 0
                self.report.flows[(NAMES[packet.proto], str(packet.source), port, *place)] += 1
        elif packet.is_echo_reply:
            self.report.echo_replies += 1
            asked = (packet.destination.packed, packet.source.packed, packet.icmp_id) in self._asked
            why = "" if asked else "an echo reply that nobody asked for"
        elif packet.is_error:
            self.report.icmp_errors += 1
            why = self._why_no_error(packet)
        else:
            why = "a protocol without ports"
        if packet.is_fragment and not why:
            self._first_fragments.add(fragment)
        return why

    def _why_not(self, address: IPv4Address | IPv6Address, port: int, node: str | None, *, count: bool) -> str:
        ports = self._ports.get(address.packed)
        slot = ports[port] if ports is not None else 0
        if not slot:
            return f"{port} is in no slice of {address}"
        owned = self._owners[slot - 1]
        if node is not None and owned.node != node:
            return f"sent by {node}, but {owned} is {owned.node}'s"
        if count:
            self._packets_of[slot] += 1
        return ""

    def _why_no_error(self, packet: Packet) -> str:
        quoted = packet.quoted
        if quoted is None:
            return "an ICMP error that quotes no packet"
        port = quoted.destination_port if quoted.destination_port is not None else quoted.icmp_id
        if quoted.destination != packet.source or port is None:
            return "an ICMP error about a packet that was not sent to its source"
        return self._why_not(quoted.destination, port, None, count=False)

    def _finding(self, why: str, packet: str) -> Finding:
        number, time_ns = self._now
        return Finding(number, time_ns / 1e9, why, packet)
