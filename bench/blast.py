# SPDX-License-Identifier: Apache-2.0
"""The sender: frames of 60 bytes, UDP or SYNs of TCP, made by an XDP program and put on a device by the kernel itself.

BPF_PROG_TEST_RUN with live frames (Linux 5.18) runs `bare_blast` in this thread, pinned to one CPU, and hands its
frames to the device in batches. The other end of the veth has NAPI (GRO on), so that everything up to the last program
runs in softirqs on this CPU before the next batch: the thread's CPU time, and ksoftirqd's, is the cost of the path.
(That softirqs run in a thread's time holds where IRQ_TIME_ACCOUNTING is off, as in Debian's kernels.)
"""

from __future__ import annotations

import ctypes
import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

from bench import tools
from softunicast.kernel.bpf import BpfObject
from softunicast.kernel.libbpf import TestRunOptions, check, libbpf

LIVE_FRAMES: Final = 2
BATCH: Final = 64
LENGTH: Final = 60
PLAN: Final = struct.Struct("=IIIIIIQ4s12sI4x")


@dataclass(frozen=True)
class Sent:
    """`cpu_ns`: per packet sent; `per_s`: packets in a second of wall time; `arrived`: of `packets`."""

    packets: int
    arrived: int
    cpu_ns: float
    per_s: float


@cache
def ksoftirqd(cpu: int) -> Path:
    """Its schedstat: nanoseconds run, first."""
    for comm in Path("/proc").glob("[0-9]*/comm"):
        try:
            if comm.read_text().strip() == f"ksoftirqd/{cpu}":
                return comm.with_name("schedstat")
        except OSError:
            continue
    raise RuntimeError(f"ksoftirqd/{cpu}: not found in /proc")


@contextmanager
def pinned(cpu: int) -> Iterator[None]:
    """This thread to one CPU."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def sum16(data: bytes) -> int:
    return sum(struct.unpack(f"!{len(data) // 2}H", data))


def template(source_mac: bytes, target_mac: bytes, source: IPv4Address, syn: bool) -> tuple[bytes, int, int]:
    """A frame without target address and source port, and the sums of its two headers."""
    proto = 6 if syn else 17
    ip = struct.pack("!BBHHHBBH4s4x", 0x45, 0, LENGTH - 14, 0, 0x4000, 64, proto, 0, source.packed)
    if syn:
        l4 = struct.pack("!HHIIBBHHH", 0, 7, 1, 0, 0x50, 2, 65535, 0, 0)
    else:
        l4 = struct.pack("!HHHH", 0, 7, LENGTH - 34, 0)
    l4 = l4.ljust(LENGTH - 34, b"\0")
    pseudo = source.packed + struct.pack("!HH", proto, LENGTH - 34)
    return target_mac + source_mac + b"\x08\x00" + ip + l4, sum16(ip), sum16(l4 + pseudo)


def blast(
    bare: BpfObject,
    ifindex: int,
    source_mac: bytes,
    target_mac: bytes,
    source: IPv4Address,
    first: IPv4Address,
    targets: int,
    ports: int,
    count: int,
    *,
    syn: bool = False,
) -> Sent:
    """Send `count` frames by the device `ifindex` of this thread's namespace. `arrived` is the sink's to say."""
    frame, ip_sum, l4_sum = template(source_mac, target_mac, source, syn)
    plan = PLAN.pack(ifindex, int(first), targets, ports, ip_sum, l4_sum, 0, source.packed, frame[:12], syn)
    bare.maps["plan"].update(struct.pack("=I", 0), plan)
    data = ctypes.create_string_buffer(frame, len(frame))
    options = TestRunOptions(
        sz=ctypes.sizeof(TestRunOptions),
        data_in=ctypes.addressof(data),
        data_size_in=len(frame),
        repeat=count,
        flags=LIVE_FRAMES,
        batch_size=BATCH,
    )
    before = arrived(bare)
    with pinned(tools.MEASURED_CPU):
        softirqs = ksoftirqd(tools.MEASURED_CPU)
        soft = int(softirqs.read_text().split()[0])
        wall, mine = time.monotonic_ns(), time.thread_time_ns()
        check(libbpf().bpf_prog_test_run_opts(bare.programs["bare_blast"].fd, ctypes.byref(options)), "bare_blast")
        mine, wall = time.thread_time_ns() - mine, time.monotonic_ns() - wall
        soft = int(softirqs.read_text().split()[0]) - soft
    return Sent(count, arrived(bare) - before, (mine + soft) / count, count * 1e9 / wall)


def arrived(bare: BpfObject) -> int:
    """Frames that the sink's program has seen so far."""
    values = bare.maps["arrived"].lookup_percpu(struct.pack("=I", 0))
    return sum(int.from_bytes(value, "little") for value in values)
