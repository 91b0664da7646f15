# SPDX-License-Identifier: Apache-2.0
"""What it costs to forward a packet, by several ways.

    generator 10.77.0.2 --g0/n0-- node --u0/s0-- sink          destinations 203.0.112.0/22

Each way has three namespaces of its own. Everything from the sender (bench.blast) to the program that counts and frees
the packet at the sink's ingress runs on one CPU; its time over packets sent is what is given. `nothing` frees the
packet at the node's ingress: what sending alone costs.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from socket import if_nametoindex
from typing import Final

from bench import plane, tools
from bench.blast import Sent, blast
from bench.tools import Helpers, run, sysctl
from softunicast.kernel import netns
from softunicast.kernel.bpf import BpfObject, Program, attach_tcx, object_path

WAYS: Final = ("nothing", "redirect", "nexthop", "macs", "routing", "fish", "nft")
UNDERLAY: Final = "10.66.0.1"
ROUTER: Final = "10.66.0.254"
TARGETS: Final = IPv4Address("203.0.112.0")
ONE_FLOW: Final = 150_000
NEW_FLOWS: Final = 256 * 120
CROWDED_WAYS: Final = ("nothing", "routing", "fish", "nft")
CROWDED_TARGETS: Final = 96
CROWDED_LEVELS: Final = (0, 50, 90, 99)
CROWDED_NEW: Final = 12
RULES: Final = (
    "table ip bench {\n chain out {\n type nat hook postrouting priority srcnat;\n"
    f'oifname "u0" meta l4proto {{ tcp, udp, icmp }} snat to {plane.SLICE}:{plane.FIRST}-{plane.LAST}\n }}\n}}\n'
)


@dataclass
class Path3:
    """The three namespaces of one way, and the counter at the end."""

    way: str
    generator: str
    node: str
    sink: str
    bare: BpfObject
    uplink: int
    client: int
    macs: dict[str, str] = field(default_factory=dict)

    def send(
        self,
        count: int,
        targets: int,
        ports: int,
        first: IPv4Address = TARGETS,
        source: int = 2,
        *,
        syn: bool = False,
    ) -> Sent:
        ends = raw(self.macs["g0"]), raw(self.macs["n0"])
        with netns.enter(self.generator):
            client = IPv4Address("10.77.0.0") + source
            return blast(self.bare, if_nametoindex("g0"), *ends, client, first, targets, ports, count, syn=syn)


@contextmanager
def path(way: str, helpers: Helpers) -> Iterator[Path3]:
    """Namespaces, devices, routes, and what a way needs that stays through all rounds."""
    stem = f"bench-{os.getpid()}-{way}"
    generator, node, sink = f"{stem}-g", f"{stem}-n", f"{stem}-s"
    with tools.namespaces(generator, node, sink), ExitStack() as undo:
        with netns.enter(node):
            run(f"ip link add n0 type veth peer name g0 netns {generator}")
            run(f"ip link add u0 mtu 1600 type veth peer name s0 netns {sink}")
            macs = {"n0": mac("n0"), "u0": mac("u0")}
            uplink, client = if_nametoindex("u0"), if_nametoindex("n0")
            run("ip address add 10.77.0.1/24 dev n0")
            run(f"ip address add {UNDERLAY}/24 dev u0")
            run("ethtool -K n0 gro on")
            run("ip link set n0 up")
            run("ip link set u0 up")
            sysctl("net/ipv4/ip_forward", int(way in ("routing", "nft", "nft-drop")))
        with netns.enter(generator):
            macs["g0"] = mac("g0")
            run("ip link set g0 up")
        with netns.enter(sink):
            macs["s0"] = mac("s0")
            run("ip link set s0 mtu 1600 up")
        with netns.enter(node):
            run(f"ip neigh replace {ROUTER} lladdr {macs['s0']} dev u0 nud permanent")
            run(f"ip route add default via {ROUTER}")
        constants = plane.u32(uplink) + raw(macs["s0"]) + raw(macs["u0"]) + IPv4Address(ROUTER).packed
        bare = undo.enter_context(BpfObject.load(helpers.bare, settings=constants))
        found = Path3(way, generator, node, sink, bare, uplink, client, macs)
        with netns.enter(sink):
            undo.callback(attach_tcx(bare.programs["bare_sink"], if_nametoindex("s0"), egress=False).close)
        if name := {
            "redirect": "bare_neigh",
            "nexthop": "bare_nexthop",
            "macs": "bare_macs",
            "nothing": "bare_sink",
        }.get(way):
            with netns.enter(node):
                undo.callback(attach_tcx(bare.programs[name], client, egress=False).close)
        if way == "nft":
            (rules := Path(f"/run/netns/{stem}.nft")).write_text(RULES)
            try:
                with netns.enter(node):
                    run(f"nft -f {rules}")
            finally:
                rules.unlink()
        yield found


def mac(device: str) -> str:
    return str(json.loads(run(f"ip -json link show {device}"))[0]["address"])


def raw(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


@contextmanager
def fresh(found: Path3, sizes: Mapping[str, int] = plane.MAP_SIZES) -> Iterator[BpfObject | None]:
    """The way without any flow yet: fish loaded anew, conntrack flushed."""
    if found.way == "nft":
        with netns.enter(found.node):
            run("conntrack -F")
    if found.way != "fish":
        yield None
        return
    with netns.enter(found.node), ExitStack() as undo:
        settings = plane.settings(UNDERLAY, netns.cookie(), sizes["slots"])
        loaded = BpfObject.load(object_path("egress"), settings=settings, map_sizes=sizes)
        undo.callback(loaded.close)
        plane.fill(loaded.maps, UNDERLAY, found.uplink, "10.66.0.0/24")
        plane.add_onramp(loaded.maps, found.client, "10.77.0.1")
        for name, device, egress in (
            ("su_onramp_in", found.client, False),
            ("su_uplink_in", found.uplink, False),
            ("su_guard", found.uplink, True),
            ("su_guard_other", found.client, True),
        ):
            undo.callback(attach_tcx(loaded.programs[name], device, egress=egress).close)
        yield loaded


Rounds = dict[str, dict[str, list[Sent]]]
"""By what was sent, by way: one entry a round."""


def measure(helpers: Helpers, rounds: int) -> Rounds:
    """One flow, 1,024 flows, only new flows; by every way."""
    results: Rounds = {what: {way: [] for way in WAYS} for what in ("one", "many", "new")}
    with ExitStack() as undo:
        paths = [undo.enter_context(path(way, helpers)) for way in WAYS]
        for number in range(rounds):
            for found in paths[number % len(paths) :] + paths[: number % len(paths)]:
                with fresh(found):
                    results["new"][found.way].append(found.send(NEW_FLOWS, 256, 120))
                    found.send(1_000, 1, 1, source=3)
                    results["one"][found.way].append(found.send(ONE_FLOW, 1, 1, source=3))
                    found.send(4_096, 32, 32, source=4)
                    results["many"][found.way].append(found.send(ONE_FLOW, 32, 32, source=4))
    return results


def measure_crowded(helpers: Helpers, rounds: int) -> Rounds:
    """New flows towards destinations for which 0, 50, 90, 99 % of the ports are in use."""
    results: Rounds = {str(level): {way: [] for way in CROWDED_WAYS} for level in CROWDED_LEVELS}
    with ExitStack() as undo:
        paths = [undo.enter_context(path(way, helpers)) for way in CROWDED_WAYS]
        for _ in range(rounds):
            for found in paths:
                for number, level in enumerate(CROWDED_LEVELS):
                    with fresh(found) as loaded:
                        first = TARGETS + 256 * number
                        if loaded is not None:
                            hold(found, first, (plane.LAST - plane.UDP_FIRST + 1) * level // 100)
                        elif found.way == "nft":
                            hold(found, first, (plane.LAST - plane.FIRST + 1) * level // 100)
                        count = CROWDED_TARGETS * CROWDED_NEW
                        found.send(64, 1, 1, TARGETS + 1023, source=8)
                        results[str(level)][found.way].append(found.send(count, CROWDED_TARGETS, CROWDED_NEW, first))
    return results


def hold(found: Path3, first: IPv4Address, ports: int) -> None:
    """Have so many ports held towards each crowded target, by flows: what was lost on the way is sent again."""
    missing = CROWDED_TARGETS * ports
    for source in range(20, 60):
        if missing < CROWDED_TARGETS:
            return
        more = missing // CROWDED_TARGETS
        missing -= found.send(CROWDED_TARGETS * more, CROWDED_TARGETS, more, first, source).arrived
    print(f"bench: {found.way} would not hold {ports} ports: {missing} flows short", file=sys.stderr)


def profile(helpers: Helpers) -> dict[str, dict[str, float]]:
    """By the kernel's clock on programs: nanoseconds a run of ours and of the bare redirect, by what was sent."""
    times: dict[str, dict[str, float]] = {}
    with tools.program_clock(), path("fish", helpers) as fish, path("redirect", helpers) as redirect:
        with fresh(fish) as loaded:
            if loaded is None:
                raise RuntimeError("fish did not load")
            clocked = {name: loaded.programs[name] for name in ("su_onramp_in", "su_guard")}
            for what, count, targets, ports in (("new", NEW_FLOWS, 256, 120), ("one", 50_000, 1, 1)):
                times[what] = clock(fish, clocked, count, targets, ports)
        bare = {"bare_neigh": redirect.bare.programs["bare_neigh"]}
        times["one"].update(clock(redirect, bare, 50_000, 1, 1))
    return times


def clock(found: Path3, programs: dict[str, Program], count: int, targets: int, ports: int) -> dict[str, float]:
    before = {name: tools.run_time(program) for name, program in programs.items()}
    found.send(count, targets, ports)
    after = {name: tools.run_time(program) for name, program in programs.items()}
    return {name: (after[name][0] - ns) / max(1, after[name][1] - runs) for name, (ns, runs) in before.items()}
