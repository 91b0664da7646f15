# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds of steering over an empty program, by the kernel's own clock on programs.

BPF_PROG_TEST_RUN with `repeat` does not restore the packet, so a packet that is rewritten is run once a call and the
kernel's clock on programs (bpf_stats) is read before and after; the empty program is clocked in the same way. Between
runs is a system call: caches are as warm as in a program that others use too. `repeat` (hot caches) is given
where the packet is not changed.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from socket import if_nametoindex
from typing import Final

from bench import blast, plane, tools
from bench.tools import Helpers, run, sysctl
from softunicast.kernel import netns
from softunicast.kernel.abi import Node, Owner
from softunicast.kernel.bpf import BpfObject, Program, object_path

UNDERLAY: Final = "10.66.0.1"
PEER: Final = "10.66.0.2"
RUNS: Final = 3_000
REPEAT: Final = 200_000
ENTRIES: Final = {"tc": "su_steer_tc", "xdp": "su_steer"}
PACKETS: Final = ("no address of the fleet", "mine", "to another node", "out of the tunnel")


def udp(source: str, target: str, source_port: int, target_port: int, body: bytes) -> bytes:
    """An IP packet."""
    head = struct.pack(
        "!BBHHHBBH4s4s",
        0x45,
        0,
        28 + len(body),
        0,
        0x4000,
        64,
        17,
        0,
        IPv4Address(source).packed,
        IPv4Address(target).packed,
    )
    check = blast.sum16(head)
    check = ~((check & 0xFFFF) + (check >> 16)) & 0xFFFF
    head = head[:10] + struct.pack("!H", check) + head[12:]
    return head + struct.pack("!HHHH", source_port, target_port, 8 + len(body), 0) + body


def packets() -> dict[str, bytes]:
    """Frames of the four cases, 100 bytes of payload."""
    ethernet, body = bytes(12) + b"\x08\x00", bytes(100)
    mine = udp("203.0.113.1", str(plane.SLICE), 443, plane.FIRST + 10, body)
    return {
        "no address of the fleet": ethernet + udp("203.0.113.1", "203.0.113.200", 443, 5000, body),
        "mine": ethernet + mine,
        "to another node": ethernet + udp("203.0.113.1", str(plane.SLICE), 443, 2 * 2048 + 10, body),
        "out of the tunnel": ethernet + udp(PEER, UNDERLAY, 50000, 6080, struct.pack("!BBH", 0, 4, 0) + mine),
    }


@contextmanager
def steering() -> Iterator[BpfObject]:
    """steer.bpf.o in a namespace (entered) where the peer has a route and a neighbour."""
    name = f"bench-{os.getpid()}-steer"
    with tools.namespaces(name), netns.enter(name), ExitStack() as undo:
        run("ip link add u0 mtu 1600 type veth peer name u1")
        run(f"ip address add {UNDERLAY}/24 dev u0")
        run("ip link set u0 up")
        run("ip link set u1 up")
        run(f"ip neigh replace {PEER} lladdr 02:00:00:00:00:02 dev u0 nud permanent")
        sysctl("net/ipv4/conf/lo/forwarding", 1)
        loaded = BpfObject.load(
            object_path("steer"), settings=plane.settings(UNDERLAY, 0), map_sizes={**plane.MAP_SIZES, "flows": 16}
        )
        undo.callback(loaded.close)
        plane.fill(loaded.maps, UNDERLAY, if_nametoindex("u0"), "10.66.0.0/24")
        loaded.maps["owners"].update(plane.u32(2), Owner(2, 0xFFFFFFFF).pack())
        loaded.maps["nodes"].update(plane.u32(2), Node(plane.packed(PEER), 1).pack())
        loaded.maps["peers"].update(plane.packed(PEER), plane.u32(2))
        yield loaded


def once(program: Program, frame: bytes) -> float:
    """Mean of RUNS runs of one packet each, by the kernel's clock."""
    ns, runs = tools.run_time(program)
    for _ in range(RUNS):
        program.test_run(frame)
    after_ns, after_runs = tools.run_time(program)
    return (after_ns - ns) / (after_runs - runs)


Times = dict[str, dict[str, list[float]]]
"""By entry (tc, xdp), by packet; `empty` and `empty, repeated` among them; one entry a round."""


def measure(helpers: Helpers, rounds: int) -> Times:
    times: Times = {entry: {} for entry in ENTRIES}
    with BpfObject.load(helpers.bare) as bare, steering() as loaded, blast.pinned(tools.MEASURED_CPU):
        for _ in range(rounds):
            for entry, name in ENTRIES.items():
                empty, program, frames = bare.programs[f"bare_empty_{entry}"], loaded.programs[name], packets()
                add = times[entry].setdefault
                for what, frame in frames.items():
                    if what in ("no address of the fleet", "mine"):
                        add(f"{what}, repeated", []).append(program.test_run(frame, repeat=REPEAT).duration_ns)
                add("empty, repeated", []).append(empty.test_run(frames["mine"], repeat=REPEAT).duration_ns)
                with tools.program_clock():
                    add("empty", []).append(once(empty, frames["mine"]))
                    for what, frame in frames.items():
                        add(what, []).append(once(program, frame))
    return times
