# SPDX-License-Identifier: Apache-2.0
"""Tables and packets for the steering tests.

node 1 (10.0.1.11, fd00:1::11): this one, fit     2 (10.0.1.12), 3 (10.0.1.13): others     4 (fd00:1::14)
5: not in use

198.51.101.10, 2001:db8::20   site 2, whose nodes are 2 3 4, 5 (not in use), 7 (unfit)
198.51.101.11   site 3: all down      198.51.101.12   site 7, which has no nodes
198.51.101.13   site 4: one unfit node, the others down
all others      this node's site: homes of fragments are 1, 2 and 1; one unfit, one down

198.51.100.10   2,048 ports each: part 0 nobody's, then 1 2 3 1 2 3 4 5 9 ... (9: in no table)
198.51.100.20   static: 9000-9009 node 1, 9010-9019 node 2, the rest nobody's
2001:db8::10    1,024 ports each: part 0 nobody's, then 2 1 4 2 1 4 ...
"""

from __future__ import annotations

import os
import random
import shlex
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from pathlib import Path
from socket import if_nametoindex
from typing import Final

from softunicast.kernel import netns
from softunicast.kernel.abi import (
    NONE,
    Address,
    Control,
    List,
    Node,
    NodeFlag,
    Owner,
    ProbeFlag,
    Settings,
    Site,
    Uplink,
)
from softunicast.kernel.abi_util import addr_bytes, prefix_key
from softunicast.kernel.bpf import BpfObject, object_path
from softunicast.steering.oracle import Tables
from softunicast.steering.oracle_packet import checksum
from tests.support.packets import extension, fragment6, fragments, header6, routing

GUE_PORT: Final = 6080
UNDERLAYS: Final = ("10.0.1.11", "fd00:1::11")
MTU: Final = 1600
MAP_SIZES: Final = {
    "flows": 16,
    "origin": 16,
    "slots": 32,
    "crowds": 16,
    "owners": 1 << 17,
    "nodes": 16,
    "onramps": 16,
    "socks": 0,
}
IP6_TYPE: Final = b"\x86\xdd"
MACS: Final = bytes.fromhex("0200000000aa0200000000bb")
ME, OTHER, THIRD, IP6_NODE, UNUSED, DOWN, UNFIT, ABSENT = 1, 2, 3, 4, 5, 6, 7, 9
HOME, AWAY, DARK, DRAINED, NOWHERE = 1, 2, 3, 4, 7


def packed(text: str) -> bytes:
    return addr_bytes(ip_address(text))


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


def settings(*underlays: str) -> Settings:
    """Of node 1, with one underlay address or (by default) one of each family."""
    four, six = (packed(text) for text in (underlays * 2)[:2] or UNDERLAYS)
    return Settings(underlay4=four, underlay6=six, node=ME, gue_port=GUE_PORT, site=HOME)


def map_contents(uplinks: tuple[Uplink, ...] = (Uplink(99, MTU),)) -> dict[str, dict[bytes, bytes]]:
    """As steering.tables gives them: raw keys and values by map."""
    owners: dict[int, int] = {}
    for part, node in zip(range(1, 32), [1, 2, 3, 1, 2, 3, IP6_NODE, UNUSED, ABSENT] * 4, strict=False):
        owners[part] = node
    owners.update({32 + port: ME if port < 9010 else OTHER for port in range(9000, 9020)})
    v6 = 32 + 65536
    owners.update({v6 + part: (OTHER, ME, IP6_NODE)[(part - 1) % 3] for part in range(1, 64)})
    total = v6 + 64
    return {
        "addresses": {
            packed("198.51.100.10"): Address(0, 11, 1).pack(),
            packed("198.51.100.20"): Address(32, 0, 1).pack(),
            packed("2001:db8::10"): Address(v6, 10, 1).pack(),
            packed("198.51.101.10"): Address(0, 0, AWAY).pack(),
            packed("2001:db8::20"): Address(0, 0, AWAY).pack(),
            packed("198.51.101.11"): Address(0, 0, DARK).pack(),
            packed("198.51.101.12"): Address(0, 0, NOWHERE).pack(),
            packed("198.51.101.13"): Address(0, 0, DRAINED).pack(),
        },
        "owners": {u32(i): Owner(owners.get(i, NONE), 0 if owners.get(i) == ME else NONE).pack() for i in range(total)},
        "nodes": {
            u32(ME): Node(packed("10.0.1.11"), 1).pack(),
            u32(OTHER): Node(packed("10.0.1.12"), 1).pack(),
            u32(THIRD): Node(packed("10.0.1.13"), 1).pack(),
            u32(IP6_NODE): Node(packed("fd00:1::14"), 1).pack(),
            u32(UNUSED): Node(packed("10.0.1.15"), 0).pack(),
            u32(DOWN): Node(packed("10.0.1.16"), NodeFlag.SET | NodeFlag.DOWN).pack(),
            u32(UNFIT): Node(packed("10.0.1.13"), NodeFlag.SET | NodeFlag.UNFIT).pack(),
        },
        "control": {u32(0): Control(probe_flags=ProbeFlag.FIT).pack()},
        "sites": {
            u32(HOME): Site(21, 5).pack(),
            u32(AWAY): Site(10, 6).pack(),
            u32(DARK): Site(15, 3).pack(),
            u32(DRAINED): Site(18, 3).pack(),
        },
        "site_nodes": {
            u32(10 + i): u32(n)
            for i, n in enumerate(
                [
                    *(OTHER, THIRD, IP6_NODE, UNUSED, UNFIT, *(DOWN, DOWN, UNUSED), *(DOWN, UNFIT, UNUSED)),
                    *(ME, OTHER, ME, UNFIT, DOWN),
                ]
            )
        },
        "peers": {
            **{packed(f"10.0.1.{i}"): u32(i - 10) for i in (11, 12, 13)},
            **{packed(f"fd00:1::{i}"): u32(i - 10) for i in (12, 14)},
        },
        "prefixes": {
            prefix_key(list_number, ip_network(text)): u32(1)
            for list_number, text in (
                (List.INTERNAL, "10.0.1.0/24"),
                (List.INTERNAL, "fd00:1::/64"),
                (List.INTERNAL, "198.51.100.0/24"),
                (List.INTERNAL, "2001:db8::/48"),
                (List.NEVER, "192.0.2.0/24"),
            )
        },
        "uplinks": {u32(i): uplink.pack() for i, uplink in enumerate(uplinks)},
    }


def load(contents: dict[str, dict[bytes, bytes]], *underlays: str) -> BpfObject:
    """steer.bpf.o with these tables, of a node with these underlay addresses."""
    sizes = {name: size for name, size in MAP_SIZES.items() if size}
    loaded = BpfObject.load(object_path("steer"), settings=settings(*underlays).pack(), map_sizes=sizes)
    for name, entries in contents.items():
        for key, value in entries.items():
            if name != "owners" or Owner.unpack(value).node != NONE:
                loaded.maps[name].update(key, value)
    nobody = Owner(NONE, NONE).pack()
    for index in range(32 + 65536 + 64):
        if (key := u32(index)) in contents["owners"] and contents["owners"][key] == nobody:
            loaded.maps["owners"].update(key, nobody)
    return loaded


@contextmanager
def neighbourhood() -> Iterator[tuple[str, int]]:
    """A namespace, by name, and a device in it, by index, with a route and neighbours for the underlay."""
    name = f"t-steer-{os.getpid()}"
    netns.create(name)
    try:
        with netns.enter(name):
            run("ip link set lo up")
            run("ip link add up0 mtu 2000 type veth peer name up1")
            run("ip address add 10.0.1.11/24 dev up0")
            run("ip address add fd00:1::11/64 dev up0 nodad")
            run("ip link set up0 up")
            run("ip link set up1 up")
            for last in (12, 13):
                run(f"ip neigh replace 10.0.1.{last} lladdr 02:00:00:00:00:{last} dev up0 nud permanent")
            run("ip neigh replace fd00:1::14 lladdr 02:00:00:00:00:14 dev up0 nud permanent")
            for family in ("ipv4", "ipv6"):
                Path(f"/proc/sys/net/{family}/conf/lo/forwarding").write_text("1")
            ifindex = if_nametoindex("up0")
        yield name, ifindex
    finally:
        netns.delete(name)


def run(command: str) -> None:
    """In the namespace of this thread."""
    subprocess.run(shlex.split(command), check=True, capture_output=True, timeout=20)


def tables(contents: dict[str, dict[bytes, bytes]], *underlays: str) -> Tables:
    return Tables.from_maps(settings(*underlays), contents)


def ip4(source: str, target: str, proto: int, payload: bytes, **change: int) -> bytes:
    """An IPv4 packet; `change`: tos, ttl, frag (flags and offset), ident, total, options (words)."""
    options = bytes([1]) * 4 * change.get("options", 0)
    length = 20 + len(options)
    total = change.get("total", length + len(payload))
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x40 | length // 4,
        change.get("tos", 0),
        total,
        change.get("ident", 0x1234),
        change.get("frag", 0x4000),
        change.get("ttl", 60),
        proto,
        0,
        ip_address(source).packed,
        ip_address(target).packed,
    )
    head += options
    return head[:10] + struct.pack("!H", checksum(head)) + head[12:] + payload


def ip6(source: str, target: str, proto: int, payload: bytes, **change: int) -> bytes:
    first = 6 << 28 | change.get("tos", 0) << 20 | 0xABCDE
    head = struct.pack("!IHBB", first, change.get("total", len(payload)), proto, change.get("ttl", 60))
    return head + ip_address(source).packed + ip_address(target).packed + payload


def udp(source_port: int, target_port: int, payload: bytes = b"x" * 20) -> bytes:
    return struct.pack("!HHHH", source_port, target_port, 8 + len(payload), 0) + payload


def tcp(source_port: int, target_port: int, payload: bytes = b"", *, doff: int = 5, flags: int = 0x10) -> bytes:
    return struct.pack("!HHIIBBHHH", source_port, target_port, 1, 2, doff << 4, flags, 512, 0, 0) + payload


def icmp(kind: int, code: int, rest: bytes, identity: int = 0) -> bytes:
    return struct.pack("!BBHHH", kind, code, 0, identity, 0) + rest


def frame(packet: bytes, ether_type: int | None = None) -> bytes:
    kind = ether_type if ether_type is not None else {4: 0x0800, 6: 0x86DD}.get(packet[0] >> 4, 0x0800)
    return MACS + struct.pack("!H", kind) + packet


def gue(inner: bytes, source: str = "10.0.1.12", **change: int) -> bytes:
    """An encapsulated packet to this node, by the family of `source`; `change` also: version, proto, flags, check,
    length, port."""
    proto = change.pop("proto", 41 if inner[0] >> 4 == 6 else 4)
    head = struct.pack("!BBH", change.pop("version", 0), proto, change.pop("flags", 0))
    size = change.pop("length", 8 + 4 + len(inner))
    ports = struct.pack("!HHHH", 50000, change.pop("port", GUE_PORT), size, change.pop("check", 0))
    if ":" not in source:
        return ip4(source, "10.0.1.11", 17, ports + head + inner, **change)
    options = change.pop("options", 0)
    outer = ip6(source, "fd00:1::11", 17, ports + head + inner, **change)
    return header6(outer, (60, extension(60, 0)[1])) if options else outer


@dataclass
class Generator:
    """Packets near every decision there is. The same seed gives the same packets."""

    seed: int
    random: random.Random = field(init=False)
    waiting: list[bytes] = field(default_factory=list)
    """Fragments of which earlier ones have been given."""
    ident: int = 0

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def port(self, target: str) -> int:
        r = self.random
        held = (9000, 9020) if target == "198.51.100.20" else (2048, 22000)
        return r.choice([r.randrange(65536), 1023, *(r.randrange(*held) for _ in range(8))])

    def layer4(self, v6: bool, slice_address: str, remote: str) -> tuple[int, bytes]:
        r, local, other = self.random, self.port(slice_address), r_port(self.random)
        kind = r.randrange(10)
        body = r.randbytes(r.choice([0, 4, 60, 500, 1400, 1500, 1528, 1600]))
        if kind < 4:
            return 6, tcp(other, local, body, doff=r.choice([5, 5, 5, 5, 8, 4]), flags=r.randrange(64))
        if kind < 6:
            return 17, udp(other, local, body)
        echo = (128, 129) if v6 else (8, 0)
        proto = 58 if v6 else 1
        if kind == 6:
            return proto, icmp(r.choice([echo[0], echo[1], echo[1], echo[1]]), 0, body, local)
        if kind < 9:
            quoted_source = r.choice([slice_address] * 5 + [remote])
            inner_proto = r.choice([6, 17, 6, 17, proto, 47])
            inner = tcp(local, other)[:8] if inner_proto != proto else icmp(r.choice(echo), 0, b"", local)
            build = ip6 if v6 else ip4
            quote = build(quoted_source, remote, inner_proto, inner[: r.choice([8, 8, 8, 7])])
            if v6 and r.random() < 0.3:
                quote = header6(quote, *self.chain())
            error = r.choice([1, 2, 3, 4] if v6 else [3, 11, 12, 5])
            return proto, icmp(error, 0, quote[: r.choice([300, 300, 300, 21])])
        return r.choice([47, 50, 44, 132]), body

    def plain(self) -> bytes:
        r = self.random
        v6 = r.random() < 0.25
        if v6:
            target = r.choice(["2001:db8::10"] * 5 + ["2001:db8::20", "2001:db8::11"])
            remote = r.choice(["2001:db8:ffff::1"] * 5 + ["2001:db8::99"])
        else:
            away = ["198.51.101.10", "198.51.101.10", "198.51.101.11", "198.51.101.12", "198.51.101.13"]
            target = r.choice(["198.51.100.10", "198.51.100.20"] * 7 + ["203.0.113.77", "10.0.1.11", *away])
            remote = r.choice(["203.0.113.1", "192.0.2.7"] * 5 + ["10.0.1.77", "198.51.100.30", "198.51.100.20"])
        proto, body = self.layer4(v6, target, remote)
        change: dict[str, int] = {"ttl": r.choice([1, 0] + [2, 64, 255] * 8), "tos": r.randrange(256)}
        if r.random() < 0.05:
            change["total"] = r.choice([0, 19, 30, 65535])
        if not v6 and r.random() < 0.06:
            change["frag"] = r.choice([0x2000, 0x2010, 0x0010])
            change["ident"] = r.getrandbits(16)
        if not v6 and r.random() < 0.06:
            change["options"] = r.randrange(1, 11)
        packet = (ip6 if v6 else ip4)(remote, target, proto, body, **change)
        return header6(packet, *self.chain()) if v6 and r.random() < 0.25 and "total" not in change else packet

    def chain(self) -> list[tuple[int, bytes]]:
        """Extension headers, more than are followed too."""
        r = self.random
        kinds = [
            lambda: extension(r.choice([0, 60]), r.choice([0, 0, 0, 1, 3, 15, 16])),
            lambda: routing(r.choice([0, 0, 0, 1])),
            lambda: fragment6(r.getrandbits(32), r.choice([0, 0, 0, 1480]), more=r.random() < 0.3),
        ]
        return [r.choices(kinds, [6, 2, 1])[0]() for _ in range(r.choice([1, 1, 2, 3, 6, 7]))]

    def datagram(self) -> list[bytes]:
        """One in fragments, most of them in their order; of TCP some that reach into its header."""
        r = self.random
        v6 = r.random() < 0.4
        target = r.choice(
            ["2001:db8::10"] * 4 + ["2001:db8::20"]
            if v6
            else ["198.51.100.10", "198.51.100.20"] * 3 + ["198.51.101.10", "198.51.101.11", "198.51.101.12"]
        )
        remote = "2001:db8:ffff::1" if v6 else r.choice(["203.0.113.1", "192.0.2.7"])
        local, body = self.port(target), bytes(r.choice([60, 500, 1400]))
        echo, proto = ((128, 129), 58) if v6 else ((8, 0), 1)
        proto, body = r.choice(
            [(17, udp(443, local, body))] * 4
            + [(6, tcp(443, local, body))] * 2
            + [(proto, icmp(echo[1], 0, body, local))] * 3
            + [(proto, icmp(echo[0], 0, body, local)), (47, body)]
        )
        self.ident += 1
        packet = (ip6 if v6 else ip4)(remote, target, proto, body, ttl=r.choice([2, 64]), tos=r.randrange(256))
        pieces = fragments(packet, r.choice([24, 32, 512]), self.ident)[:4]
        if proto == 6 and not v6 and r.random() < 0.5:
            pieces.insert(1, ip4(remote, target, 6, bytes(16), frag=0x2001, ident=self.ident))
        if r.random() < 0.1:
            r.shuffle(pieces)
        return pieces

    def fragment(self) -> bytes:
        """The next one of a datagram, plain or in the tunnel."""
        r = self.random
        if not self.waiting:
            self.waiting = self.datagram()
        piece = self.waiting.pop(0)
        return piece if r.random() < 0.6 else gue(piece, r.choice(["10.0.1.12", "10.0.1.13"]), flags=r.choice([0, 2]))

    def encapsulated(self) -> bytes:
        r = self.random
        inner = self.plain()
        change: dict[str, int] = {"tos": r.randrange(256), "flags": r.choice([0, 0, 0, 2])}
        odd: dict[str, int] = {"version": 1, "check": 7, "flags": 4, "length": 30, "port": 6081, "options": 1}
        odd.update({"proto": 47, "total": 40, "frag": 0x2000})
        six = r.random() < 0.4
        if six:
            del odd["frag"]
        if r.random() < 0.12:
            name = r.choice(sorted(odd))
            change[name] = odd[name]
        if six:
            return gue(inner, r.choice(["fd00:1::12", "fd00:1::14"] * 8 + ["fd00:1::99"]), **change)
        return gue(inner, r.choice(["10.0.1.12", "10.0.1.13"] * 8 + ["10.0.1.99"]), **change)

    def probe(self) -> bytes:
        r = self.random
        body = struct.pack("!BBHI", 0x20, r.choice([1, 1, 1, 2, 3]), r.choice([0, 1]), r.randrange(1 << 32))
        body = body[: r.choice([8, 8, 8, 8, 7])]
        head = struct.pack("!HHHH", 40000, GUE_PORT, 8 + len(body), r.choice([0, r.randrange(1, 65536)]))
        if r.random() < 0.4:
            return ip6(r.choice(["fd00:1::14"] * 4 + ["fd00:1::99"]), "fd00:1::11", 17, head + body)
        return ip4(r.choice(["10.0.1.12"] * 4 + ["10.0.1.99"]), "10.0.1.11", 17, head + body)

    def frame(self) -> bytes:
        r = self.random
        kind = r.random()
        if kind < 0.15:
            packet = self.fragment()
        else:
            packet = self.plain() if kind < 0.5 else self.probe() if kind < 0.53 else self.encapsulated()
        whole = frame(packet, 0x0806 if r.random() < 0.01 else None)
        if r.random() < 0.05:
            # The kernel's test run refuses frames shorter than the IP header that their type announces.
            whole = whole[: r.randrange(14 + (40 if whole[12:14] == IP6_TYPE else 20), len(whole) + 1)]
        if r.random() < 0.05:
            whole += bytes(r.randrange(1, 30))
        if r.random() < 0.05:
            at = r.randrange(14, min(len(whole), 120))
            whole = whole[:at] + r.randbytes(1) + whole[at + 1 :]
        return whole


def r_port(source: random.Random) -> int:
    return source.choice([443, 53, source.randrange(65536)])
