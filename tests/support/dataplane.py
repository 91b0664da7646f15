# SPDX-License-Identifier: Apache-2.0
"""The data plane without an agent: egress.bpf.o loaded with tables written by hand, and a small place to run it.

    client (10.8.0.2) --fish0/eth0--.
    tun client (10.8.1.2) --tun0-----+-- node (underlay 192.0.2.11) --up0/eth0-- world (203.0.113.1, .2, 192.0.2.1)
    stack, sockets -----------------'

Slices of the tests: 198.51.100.20:9000-9009 is this node's (node 1), 9010-9019 node 2's.
"""

from __future__ import annotations

import os
import shlex
import struct
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address, ip_network
from pathlib import Path
from socket import if_nametoindex
from typing import Any, Final

from softunicast.kernel import netns, tun
from softunicast.kernel.abi import (
    NONE,
    Address,
    Claim,
    Control,
    Counter,
    Drop,
    Flow,
    List,
    Node,
    Onramp,
    OnrampFlag,
    Owner,
    Policy,
    PolicyFlag,
    Pool,
    Settings,
    Site,
    Slice,
    SliceFlag,
    Stats,
    Tenant,
    Uplink,
    UplinkFlag,
)
from softunicast.kernel.abi_util import addr_bytes, prefix_key
from softunicast.kernel.bpf import BpfObject, attach_tcx, object_path

ME: Final = 1
OTHER: Final = 2
POOL: Final = 1
MARK: Final = 0x00100000
UNDERLAY: Final = "192.0.2.11"
SLICE: Final = "198.51.100.20"
SERVER: Final = "203.0.113.1"
UNDERLAY6: Final = "fd00:1::11"
CLIENT: Final = "10.8.0.2"
GATEWAY: Final = "10.8.0.1"
TUN_CLIENT: Final = "10.8.1.2"
TUN_GATEWAY: Final = "10.8.1.1"
SERVER6: Final = "2001:db8:f::1"
SLICE6: Final = "2001:db8:1::20"
CLIENT6: Final = "2001:db8:8::2"
GATEWAY6: Final = "2001:db8:8::1"
TUN_CLIENT6: Final = "2001:db8:8:1::2"
VETH_ONRAMP: Final = 1
TUN_ONRAMP: Final = 2
SOURCES: Final = List.FIRST_FREE
BYPASS: Final = List.FIRST_FREE + 1
MAP_SIZES: Final = {"flows": 1024, "origin": 1024, "slots": 2048, "crowds": 64, "owners": 1 << 18, "nodes": 16}
COPIER: Final = """
import os, sys
source, target = int(sys.argv[1]), int(sys.argv[2])
while True:
    packet = os.read(source, 65536)
    try:
        os.write(target, packet)
    except OSError:
        continue  # the device is down for a moment
"""
POLICY: Final = Policy(flags=PolicyFlag.SET, pool=POOL, tenant=7)
SETTINGS: Final = Settings(
    site=1,
    full_ns=1_000_000,
    underlay4=addr_bytes(ip_address(UNDERLAY)),
    underlay6=addr_bytes(ip_address(UNDERLAY6)),
    node=ME,
    mark=MARK,
    mask=MARK,
    slots=MAP_SIZES["slots"],
    tcp_transitory_s=240,
    tcp_established_s=7440,
    tcp_linger_s=240,
    sock_linger_s=60,
    sock_reuse_s=1,
    udp_s=300,
    icmp_s=60,
    gue_port=6080,
    answer_ping=1,
)


def packed(address: str) -> bytes:
    return addr_bytes(ip_address(address))


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


@dataclass
class Dataplane:
    """One loaded egress.bpf.o. Close it when done; nothing is pinned."""

    object: BpfObject
    slices: list[Slice] = field(default_factory=list)
    bases: dict[str, int] = field(default_factory=dict)

    @classmethod
    def load(cls, path: Path | None = None, **settings: Any) -> Dataplane:
        """With the usual settings, but for those named."""
        chosen = replace(SETTINGS, **settings)
        return cls(BpfObject.load(path or object_path("egress"), settings=chosen.pack(), map_sizes=MAP_SIZES))

    def close(self) -> None:
        self.object.close()

    def put(self, name: str, key: bytes, value: bytes) -> None:
        self.object.maps[name].update(key, value)

    def add_slice(
        self,
        address: str,
        first: int,
        last: int,
        *,
        node: int = ME,
        udp_exact_first: int = 0,
        flags: int = SliceFlag.LIVE,
    ) -> int:
        """Give ports of an address (shift 0) to a node; its index in `slices` when that is this one, else NONE."""
        base = self.bases.setdefault(address, len(self.bases) << 16)
        self.put("addresses", packed(address), Address(base, 0, 1).pack())
        index = NONE
        if node == ME:
            index = len(self.slices)
            limit = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 10**15
            one = Slice(packed(address), first, last, udp_exact_first or first, flags, POOL, 1, limit)
            self.slices.append(one)
            self.write_slices()
        for port in range(first, last + 1):
            self.put("owners", u32(base + port), Owner(node, index).pack())
        return index

    def set_site(self, *nodes: int) -> None:
        """This node's site has these nodes: where fragments of one datagram meet."""
        for place, node in enumerate(nodes):
            self.put("site_nodes", u32(place), u32(node))
        self.put("sites", u32(SETTINGS.site), Site(0, len(nodes)).pack())

    def write_slices(self) -> None:
        for index, one in enumerate(self.slices):
            self.put("slices", u32(index), one.pack())
        v4 = [i for i, one in enumerate(self.slices) if one.addr[:12] == packed("0.0.0.0")[:12]]
        v6 = [i for i in range(len(self.slices)) if i not in v4]
        for place, index in enumerate(v4 + v6):
            self.put("pool_slices", u32(place), u32(index))
        self.put("pools", u32(POOL), Pool(0, len(v4), len(v4), len(v6)).pack())

    def add_prefix(self, number: int, network: str) -> None:
        self.put("prefixes", prefix_key(number, ip_network(network)), u32(1))

    def add_onramp(
        self, number: int, ifindex: int, *, l2: bool, gateway: str, policy: Policy = POLICY, generation: int = 5,
        max_flows: int = 0, new_per_s: int = 0, udp: int = 0, mss: int = 0, mtu: int = 0,
    ) -> None:  # fmt: skip
        """`udp`: flags for mapping and filtering."""
        flags = OnrampFlag.SET | (OnrampFlag.L2 if l2 else 0) | udp
        limits = (max_flows, new_per_s, mss, mtu)
        ramp = Onramp(flags, generation, ifindex, SOURCES, packed(gateway), packed(GATEWAY6), policy, *limits)
        self.put("onramps", u32(number), ramp.pack())
        self.put("onramp_devices", u32(ifindex), u32(number))

    def set_ready(self, ready: bool = True) -> None:
        self.put("control", u32(0), Control(int(ready), 0, 0).pack())

    def fill(self, uplink: int, mtu: int = 1600) -> None:
        """The usual tables, but for on-ramps."""
        self.add_slice(SLICE, 9000, 9009)
        self.add_slice(SLICE, 9010, 9019, node=OTHER)
        self.put("nodes", u32(ME), Node(packed(UNDERLAY), 1).pack())
        self.put("nodes", u32(OTHER), Node(packed("192.0.2.12"), 1).pack())
        self.put("peers", packed("192.0.2.12"), u32(OTHER))
        self.set_site(ME)
        self.put("uplinks", u32(0), Uplink(uplink, mtu, UplinkFlag.ONE_HOP).pack())
        self.add_prefix(List.NEVER, "127.0.0.0/8")
        self.add_prefix(List.NEVER, "192.0.2.0/24")
        self.add_prefix(List.INTERNAL, "192.0.2.0/24")
        self.add_prefix(List.INTERNAL, "198.51.100.0/24")
        self.add_prefix(SOURCES, "10.8.0.0/16")
        self.add_prefix(SOURCES, "2001:db8:8::/48")
        self.set_ready()

    def stats(self) -> Stats:
        """Summed over CPUs."""
        each = [Stats.unpack(one) for one in self.object.maps["stats"].lookup_percpu(u32(0))]
        drops = tuple(sum(column) for column in zip(*(one.drops for one in each), strict=True))
        counters = tuple(sum(column) for column in zip(*(one.counters for one in each), strict=True))
        return Stats(drops, counters)

    def drops(self) -> dict[Drop, int]:
        """Reasons that occurred."""
        return {Drop(i): n for i, n in enumerate(self.stats().drops) if n}

    def count(self, counter: Counter) -> int:
        return self.stats().counters[counter]

    def flows(self) -> dict[Flow, Claim]:
        return {Flow.unpack(k): Claim.unpack(v) for k, v in self.object.maps["flows"].items()}

    def clear(self) -> None:
        """Forget all: flows, counters, tables. fill() starts again."""
        maps = self.object.maps
        mine = ("flows", "origin", "crowds", "permits", "addresses", "peers", "prefixes", "onramp_devices", "uses")
        for name in mine:
            for key in list(maps[name].keys()):
                maps[name].delete(key)
        maps["stats"].update(u32(0), Stats().pack())
        for number in (VETH_ONRAMP, TUN_ONRAMP):
            self.put("onramps", u32(number), Onramp().pack())
        for number in (0, POLICY.tenant):
            maps["tenants"].update(u32(number), Tenant().pack())
        for index in range(len(self.slices)):
            self.put("slices", u32(index), Slice().pack())
        for base in self.bases.values():
            for port in range(9000, 9100):
                self.put("owners", u32(base + port), Owner(0, 0).pack())
        self.slices.clear()
        self.bases.clear()


def run(command: str) -> str:
    """In the namespace of this thread."""
    done = subprocess.run(shlex.split(command), check=False, capture_output=True, timeout=20, text=True)
    if done.returncode:
        raise AssertionError(f"{command}: {done.stderr.strip()}")
    return done.stdout


def sysctl(name: str, value: int) -> None:
    Path("/proc/sys/net", *name.split(".")).write_text(str(value))


@dataclass
class Place:
    """The namespaces above, by name, and what is in them."""

    node: str
    world: str
    client: str
    tun: str
    uplink: int
    veth: int
    tun_ifindex: int

    def of(self, who: str) -> str:
        return {"node": self.node, "world": self.world, "client": self.client, "tun": self.tun}[who]


@contextmanager
def namespaces(*names: str) -> Iterator[None]:
    """Made, and deleted whatever happens."""
    with ExitStack() as stack:
        for name in names:
            netns.create(name)
            stack.callback(netns.delete, name)
        for name in names:
            with netns.enter(name):
                run("ip link set lo up")
        yield


@contextmanager
def place() -> Iterator[Place]:
    """The topology of the drawing, without the data plane. The node's tun0 is joined to a TUN in the client's
    namespace, as a VPN server would: what one is sent, the other receives."""
    stem = f"t-egress-{os.getpid()}"
    node, world, client, tunnel = (f"{stem}-{who}" for who in ("node", "world", "client", "tun"))
    with namespaces(node, world, client, tunnel), ExitStack() as stack:
        with netns.enter(node):
            run(f"ip link add up0 mtu 1600 type veth peer name eth0 netns {world}")
            run(f"ip link add fish0 type veth peer name eth0 netns {client}")
            run(f"ip address add {UNDERLAY}/24 dev up0")
            run(f"ip address add {SLICE}/32 dev lo")
            run(f"ip address add {GATEWAY}/24 dev fish0")
            run("ip link set up0 up")
            run("ip link set fish0 up")
            run("ip address add 2001:db8:2::11/64 dev up0 nodad")
            run(f"ip address add {GATEWAY6}/64 dev fish0 nodad")
            run("ip route add default via 192.0.2.1")
            run("ip route add default via 2001:db8:2::1")
            sysctl("ipv4.ip_forward", 0)
            near = tun.open_tun("tun0")
            stack.callback(os.close, near)
            run(f"ip address add {TUN_GATEWAY}/32 dev tun0")
            run("ip link set tun0 up")
            run("ip route add 10.8.1.0/24 dev tun0")
            run("ip route add 2001:db8:8:1::/64 dev tun0")
            indexes = [if_nametoindex(name) for name in ("up0", "fish0", "tun0")]
        with netns.enter(world):
            sysctl("ipv4.icmp_ratelimit", 0)  # the kernel would answer six unreachables a peer, then one a second
            run("ip address add 192.0.2.1/24 dev eth0")
            run("ip address add 2001:db8:2::1/64 dev eth0 nodad")
            for address in (SERVER, "203.0.113.2", SERVER6):
                run(f"ip address add {address} dev lo")
            run("ip link set eth0 mtu 1600 up")
            run(f"ip route add 198.51.100.0/24 via {UNDERLAY}")
            run("ip route add 2001:db8:1::/48 via 2001:db8:2::11")
        with netns.enter(client):
            run(f"ip address add {CLIENT}/24 dev eth0")
            run(f"ip address add {CLIENT6}/64 dev eth0 nodad")
            run("ip link set eth0 up")
            run(f"ip route add default via {GATEWAY}")
            run(f"ip route add default via {GATEWAY6}")
        with netns.enter(tunnel):
            far = tun.open_tun("eth0")
            stack.callback(os.close, far)
            run(f"ip address add {TUN_CLIENT}/32 dev eth0")
            run(f"ip address add {TUN_CLIENT6}/128 dev eth0 nodad")
            run("ip link set eth0 up")
            run("ip route add default dev eth0")
            run("ip -6 route add default dev eth0")
        stack.enter_context(joined(near, far))
        yield Place(node, world, client, tunnel, *indexes)


@contextmanager
def joined(near: int, far: int) -> Iterator[None]:
    """What one descriptor gives the other gets, both ways, by two child processes."""
    children = [
        subprocess.Popen(["python3", "-c", COPIER, str(a), str(b)], pass_fds=(a, b))
        for a, b in ((near, far), (far, near))
    ]
    try:
        yield
    finally:
        for child in children:
            with suppress(ProcessLookupError):
                child.kill()
            child.wait(5)


@contextmanager
def running(where: Place, **settings: Any) -> Iterator[Dataplane]:
    """The data plane of `where`'s node, filled and attached."""
    plane = Dataplane.load(**settings)
    with ExitStack() as stack:
        stack.callback(plane.close)
        plane.fill(where.uplink)
        plane.add_onramp(VETH_ONRAMP, where.veth, l2=True, gateway=GATEWAY)
        plane.add_onramp(TUN_ONRAMP, where.tun_ifindex, l2=False, gateway=TUN_GATEWAY)
        programs = plane.object.programs
        with netns.enter(where.node):
            for ifindex, name, egress in (
                (where.veth, "su_onramp_in", False),
                (where.tun_ifindex, "su_onramp_in", False),
                (where.uplink, "su_uplink_in", False),
                (where.uplink, "su_guard", True),
                (where.veth, "su_guard_other", True),
                (where.tun_ifindex, "su_guard_other", True),
            ):
                stack.callback(attach_tcx(programs[name], ifindex, egress=egress).close)
        yield plane
