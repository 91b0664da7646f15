# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds of steering over an empty program, by the kernel's own clock on programs.

BPF_PROG_TEST_RUN with `repeat` does not restore the packet, so a packet that is rewritten is run once a call and the
kernel's clock on programs (bpf_stats) is read before and after; the empty program is clocked in the same way. Between
runs is a system call: caches are as warm as in a program that others use too. `repeat` (hot caches) is given where the
packet is not changed, and for encapsulation at XDP, where a program in front takes the outer headers off again
(bare_again); what that costs by itself is measured without ours and taken off. At tc nothing makes a packet what it
was: the kernel goes on holding it for encapsulated.
"""

from __future__ import annotations

import os
import random
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from ipaddress import IPv4Address
from socket import if_nametoindex
from typing import Final

from bench import blast, plane, tools
from bench.tools import Helpers, run, sysctl
from softunicast.kernel import netns
from softunicast.kernel.abi import Address, Node, Owner
from softunicast.kernel.bpf import BpfObject, Program, object_path

UNDERLAY: Final = "10.66.0.1"
PEER: Final = "10.66.0.2"
RUNS: Final = 3_000
REPEAT: Final = 200_000
SIZES: Final = (100, 200_000)
"""Slices in the tables."""
PARTS: Final = 63
"""Slices of 1,024 ports of an address."""
ENTRIES: Final = {"tc": "su_steer_tc", "xdp": "su_steer"}
CARRIED: Final = {"tc": 7, "xdp": 4}
"""TC_ACT_REDIRECT, XDP_REDIRECT."""
XDP_PASS: Final = 2
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
        sizes = {**plane.MAP_SIZES, "flows": 16, "owners": 1 << 18}
        loaded = BpfObject.load(object_path("steer"), settings=plane.settings(UNDERLAY, 0), map_sizes=sizes)
        undo.callback(loaded.close)
        plane.fill(loaded.maps, UNDERLAY, if_nametoindex("u0"), "10.66.0.0/24")
        loaded.maps["owners"].update(plane.u32(2), Owner(2, 0xFFFFFFFF).pack())
        loaded.maps["nodes"].update(plane.u32(2), Node(plane.packed(PEER), 1).pack())
        loaded.maps["peers"].update(plane.packed(PEER), plane.u32(2))
        yield loaded


def once(program: Program, frame: bytes) -> float:
    """Mean of RUNS runs of one packet each, by the kernel's clock."""
    return each_once(program, [frame] * RUNS)


def fill_up(loaded: BpfObject, slices: int) -> list[bytes]:
    """That many slices of another node; RUNS frames, each to another of them as far as there are."""
    addresses: dict[bytes, bytes] = {}
    owners: dict[bytes, bytes] = {}
    theirs = Owner(2, 0xFFFFFFFF).pack()
    for number in range(slices):
        at, part = divmod(number, PARTS)
        base = 64 * (at + 1)
        addresses[plane.packed(_nth(at))] = Address(base, 10, 1).pack()
        owners[plane.u32(base + 1 + part)] = theirs
    loaded.maps["owners"].update_many(owners)
    loaded.maps["addresses"].update_many(addresses)
    head, body = bytes(12) + b"\x08\x00", bytes(100)
    chosen = [number % slices for number in random.Random(1).sample(range(max(slices, RUNS)), RUNS)]
    return [
        head + udp("203.0.113.1", str(_nth(number // PARTS)), 443, 1024 * (1 + number % PARTS) + 7, body)
        for number in chosen
    ]


def _nth(number: int) -> IPv4Address:
    return IPv4Address("198.18.0.0") + number


def each_once(program: Program, frames: list[bytes]) -> float:
    """Mean of one run of each frame, by the kernel's clock."""
    ns, runs = tools.run_time(program)
    for frame in frames:
        program.test_run(frame)
    after_ns, after_runs = tools.run_time(program)
    return (after_ns - ns) / (after_runs - runs)


Sized = dict[str, dict[int, dict[str, list[float]]]]
"""By entry (tc, xdp), by slices in the tables: ns over an empty program, of `same` (one packet over and over) and
`another` (each packet to another slice); one entry a round."""


def measure_sizes(helpers: Helpers, rounds: int) -> Sized:
    """What encapsulating a packet costs, by how much there is in the tables."""
    sized: Sized = {entry: {size: {"same": [], "another": []} for size in SIZES} for entry in ENTRIES}
    with BpfObject.load(helpers.bare) as bare, blast.pinned(tools.MEASURED_CPU):
        for _ in range(rounds):
            for size in SIZES:
                with steering() as loaded:
                    frames = fill_up(loaded, size)
                    for entry, name in ENTRIES.items():
                        empty, program = bare.programs[f"bare_empty_{entry}"], loaded.programs[name]
                        if {program.test_run(frame).retval for frame in frames} != {CARRIED[entry]}:
                            raise RuntimeError(f"{name}: not all packets are carried with {size} slices")
                        with tools.program_clock():
                            nothing = once(empty, frames[0])
                            sized[entry][size]["same"].append(once(program, frames[0]) - nothing)
                            sized[entry][size]["another"].append(each_once(program, frames) - nothing)
    return sized


Times = dict[str, dict[str, list[float]]]
"""By entry (tc, xdp), by packet; `empty` and `empty, repeated` among them; one entry a round."""


def encapsulating_again(bare: BpfObject, program: Program, frame: bytes) -> float:
    """Nanoseconds of `program`, which puts 32 bytes in front of the frame, with hot caches."""

    def of(first: str, then: Program) -> float:
        bare.maps["measured"].update(plane.u32(0), plane.u32(then.fd))
        done = bare.programs[first].test_run(frame, repeat=REPEAT)
        if done.retval != (XDP_PASS if then is not program else CARRIED["xdp"]):
            raise RuntimeError(f"{first}, {then.name}: answers {done.retval}")
        return float(done.duration_ns)

    bare.maps["frame"].update(plane.u32(0), struct.pack("=I34s2x", len(frame), frame[:34]))
    empty = bare.programs["bare_empty_xdp"]
    unmoved = of("bare_again", empty)
    moved_once = (of("bare_again_moved", empty) - unmoved) / 2
    return of("bare_again", program) - unmoved - moved_once + empty.test_run(frame, repeat=REPEAT).duration_ns


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
                if entry == "xdp":
                    what = "to another node"
                    add(f"{what}, repeated", []).append(encapsulating_again(bare, program, frames[what]))
                add("empty, repeated", []).append(empty.test_run(frames["mine"], repeat=REPEAT).duration_ns)
                with tools.program_clock():
                    add("empty", []).append(once(empty, frames["mine"]))
                    for what, frame in frames.items():
                        add(what, []).append(once(program, frame))
    return times
