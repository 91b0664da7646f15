# SPDX-License-Identifier: Apache-2.0
"""Step 4: a program reserves ports by making conntrack entries itself.

The reservation is good against SNAT and against a second one, and it is cheap when messages are prebuilt. But an entry
that has seen no answer yet is deleted by the first RST of either direction, and the host itself makes that RST when
anything stray comes for a port that no socket of it has. Source: net/netfilter/nf_conntrack_proto_tcp.c
(nf_conntrack_tcp_packet: "If only reply is a RST, we can consider ourselves not to have an established connection").
"""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Callable
from typing import Final

from softunicast.errors import KernelError
from softunicast.kernel.conntrack import Conntrack, Prepared, Tuple
from softunicast.wire import craft
from softunicast.wire.packet import ACK, RST, SYN

from .notes import Notes
from .stage import FIRST, LAST, SERVER, SHARED, Stage, Tap, slice_text, syn

NAME: Final = "ctnetlink"
TITLE: Final = "Reserving through ctnetlink, and the stray RST"
TRIED: Final = (
    "A program reserves 198.51.100.10:9000 towards a server by a conntrack entry of its own (`conntrack -I`), while "
    "SNAT uses the same slice. Then something stray arrives for that port before the flow has seen its first answer."
)
RULES: Final = f"""\
table ip older {{
  chain post {{
    type nat hook postrouting priority srcnat
    ip saddr 10.8.0.0/16 meta l4proto {{ tcp, udp }} snat to {SHARED}:{FIRST}-{LAST}
  }}
}}
"""
NO_RST: Final = f"""\
table ip norst {{
  chain out {{
    type filter hook output priority -300
    ip saddr {SHARED} tcp flags & rst == rst drop
  }}
}}
"""
FLOW: Final = Tuple(socket.IPPROTO_TCP, SHARED, FIRST, SERVER, 443)
BURST: Final = 20  # short: most are over before anybody else gets the CPU
STRAY: Final = {"RST": RST, "SYN": SYN, "ACK": ACK, "SYN-ACK": SYN | ACK}


def _said(work: Callable[[], object]) -> str:
    try:
        work()
    except KernelError as error:
        return errno.errorcode.get(error.errno, str(error))
    return "made"


def run(notes: Notes) -> None:
    """What a reservation keeps out, what destroys it, what it costs."""
    with Stage(notes) as stage, stage.listening(), stage.tap() as world:
        stage.nft(RULES)
        with stage.at("host"), Conntrack() as table:
            notes.command("host", f"conntrack -I {FLOW} --state SYN_SENT")
            notes.check("a reservation", "made", _said(lambda: table.add(FLOW)))
            notes.check("the same once more", "EEXIST", _said(lambda: table.add(FLOW)))
            other = Tuple(socket.IPPROTO_TCP, "10.8.0.9", 5000, SERVER, 443)
            seen = _said(lambda: table.add(other, reply=FLOW.reverse()))
            notes.check("another flow with the same answers", "EEXIST", seen)
            missing = Tuple(socket.IPPROTO_TCP, SHARED, FIRST + 1, SERVER, 443)
            notes.check("deleting what is not there", "ENOENT", _said(lambda: table.delete(missing)))
            _snat_skips_it(notes, stage, world)
            for name, flags in STRAY.items():
                _stray(notes, stage, world, table, name, flags, "lost")
            stage.nft(NO_RST)
            for name, flags in STRAY.items():
                _stray(
                    notes, stage, world, table, name, flags, "lost" if name == "RST" else "kept", " and no RST leaves"
                )
            _cost(notes, table)


def _snat_skips_it(notes: Notes, stage: Stage, world: Tap) -> None:
    for client in range(10):
        stage.inject(syn(f"10.8.0.{2 + client}", 5000))
    stage.fence(world)
    sent = [one for one in world.packets(out=False) if one.tcp_flags == SYN]
    notes.wire("world", sent)
    ports = slice_text(one.source_port for one in sent)
    notes.check("ports that SNAT gives to ten clients beside it", slice_text(range(FIRST + 1, LAST + 1)), ports)


def _stray(
    notes: Notes, stage: Stage, world: Tap, table: Conntrack, name: str, flags: int, expected: str, more: str = ""
) -> None:
    if FLOW in table.entries():
        table.delete(FLOW)
    table.add(FLOW)
    world.forget()
    stage.from_world(craft.tcp(SERVER, 443, SHARED, FIRST, flags=flags, sequence=7, acknowledgement=1001))
    stage.fence(world)
    notes.wire("world", world.packets())
    left = table.entries().get(FLOW, "gone")
    notes.line(f"      its entry is {left}")
    seen = "lost" if left in ("gone", "CLOSE") else "kept"  # a CLOSE ends by itself, after 10 s
    notes.check(f"the reservation after a stray {name}{more}", expected, seen)


def _cost(notes: Notes, table: Conntrack) -> None:
    source, target = socket.inet_aton(SHARED), socket.inet_aton(SERVER)
    with Prepared(socket.IPPROTO_TCP) as fast:

        def both(port: int) -> None:
            if fast.add(source, FIRST, target, port) or fast.delete(source, FIRST, target, port):
                raise KernelError("escape: a reservation of a free port was refused")

        notes.figure("made and deleted, messages prebuilt", each_us(both, 2000), "µs")

    def slow(port: int) -> None:
        one = Tuple(socket.IPPROTO_TCP, SHARED, FIRST, SERVER, port)
        table.add(one)
        table.delete(one)

    notes.figure("made and deleted, messages made by pyroute2 each time", each_us(slow, 40, burst=1), "µs")


def each_us(work: Callable[[int], object], times: int, *, burst: int = BURST, first: int = 20000) -> float:
    """Microseconds of `work(first)`, `work(first + 1)` ...: the mean of the fastest of many short bursts."""
    bursts = []
    for start in range(first, first + times, burst):
        began = time.perf_counter_ns()
        for at in range(start, start + burst):
            work(at)
        bursts.append((time.perf_counter_ns() - began) / burst / 1000)
    return min(bursts)
