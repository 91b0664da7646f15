# SPDX-License-Identifier: Apache-2.0
"""egress.bpf.o under BPF_PROG_TEST_RUN: packet in -> verdict, packet out, counters and claims."""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from socket import if_nametoindex
from typing import Final

from softunicast.kernel import netns
from softunicast.kernel.abi import Claim, Flow
from softunicast.wire.packet import Packet
from tests.support.dataplane import GATEWAY, VETH_ONRAMP, Dataplane, run
from tests.support.packets import DEVICE_MAC, frame, unframe

OK, SHOT, REDIRECT, UNSPEC = 0, 2, 7, 0xFFFFFFFF
SK_BUFF_BYTES: Final = 192  # struct __sk_buff
MARK_AT, IFINDEX_AT = 8, 40
NUMBERS: Final = itertools.count()


@dataclass
class Ran:
    """What a run gave."""

    verdict: int
    data: bytes
    mark: int

    @property
    def packet(self) -> Packet:
        return unframe(self.data)


@dataclass
class Bench:
    """The data plane and two devices to run it on."""

    namespace: str
    plane: Dataplane
    uplink: int
    fish: int

    def reset(self) -> None:
        """As if just loaded: loading takes most of a second."""
        self.plane.clear()
        self.plane.fill(self.uplink)
        self.plane.add_onramp(VETH_ONRAMP, self.fish, l2=True, gateway=GATEWAY)

    def run(self, program: str, packet: bytes, *, mark: int = 0, raw: bool = False) -> Ran:
        """One packet (raw: a frame) through a program, on the device it belongs to."""
        ifindex = self.fish if program in ("su_onramp_in", "su_guard_other") else self.uplink
        context = bytearray(SK_BUFF_BYTES)
        struct.pack_into("=I", context, MARK_AT, mark)
        struct.pack_into("=I", context, IFINDEX_AT, ifindex)
        with netns.enter(self.namespace):
            done = self.plane.object.programs[program].test_run(packet if raw else frame(packet), ctx=bytes(context))
        return Ran(done.retval, done.data, struct.unpack_from("=I", done.ctx, MARK_AT)[0])

    def out(self, packet: bytes) -> Ran:
        return self.run("su_onramp_in", packet)

    def back(self, packet: bytes) -> Ran:
        return self.run("su_uplink_in", packet)

    def guard(self, packet: bytes, *, mark: int = 0) -> Ran:
        return self.run("su_guard", packet, mark=mark)

    def the_claim(self) -> tuple[Flow, Claim]:
        """The only one."""
        (item,) = self.plane.flows().items()
        return item


@contextmanager
def bench(path: Path | None = None, **settings: int) -> Iterator[Bench]:
    """A fresh one (of the object file at `path`), its tables empty: reset() fills them."""
    name = f"t-egress-bench-{os.getpid()}-{next(NUMBERS)}"
    netns.create(name)
    try:
        with netns.enter(name):
            for device in ("up0", "fish0"):
                run(f"ip link add {device} address {DEVICE_MAC} type veth peer name {device}p")
                run(f"ip link set {device} up")
            uplink, fish = if_nametoindex("up0"), if_nametoindex("fish0")
        plane = Dataplane.load(path, **settings)
        try:
            yield Bench(name, plane, uplink, fish)
        finally:
            plane.close()
    finally:
        netns.delete(name)
