# SPDX-License-Identifier: Apache-2.0
"""Step 8: with the rule moved and a hold socket there, answers vanish.

Before it asks any route, the kernel looks whether a socket has the packet's five-tuple, and takes the socket's cached
route: input. The hold is such a socket. Then the packet is input marked for fishtun, and dropped by neither rule nor
filter. Early demultiplexing is off for the whole namespace or it is on. Sources: net/ipv4/ip_input.c
(ip_rcv_finish_core), tcp_ipv4.c (tcp_v4_early_demux), udp.c.
"""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress
from typing import Final

from softunicast.kernel import sysctl
from softunicast.wire import craft
from softunicast.wire.packet import ACK, SYN

from .notes import Notes
from .sockopts import hold, udp
from .stage import FIRST, HOST, SERVER, SHARED, Stage, Tap, syn
from .surgery import changed, operated, state

NAME: Final = "early-demux"
TITLE: Final = "Early demux"
TRIED: Final = (
    "The moved rule of step 7 and a hold socket of step 5 for one and the same flow: the client's SYN leaves, "
    "the server answers."
)
MEGABYTE: Final = 1 << 20
COUNTERS: Final = f"""\
table ip count {{
  counter prerouting {{}}
  counter forward {{}}
  counter input {{}}
  chain before {{
    type filter hook prerouting priority -150
    ip saddr {SERVER} ip daddr {SHARED} counter name prerouting
  }}
  chain through {{
    type filter hook forward priority 0
    ip saddr {SERVER} ip daddr {SHARED} counter name forward
  }}
  chain inward {{
    type filter hook input priority 0
    ip saddr {SERVER} ip daddr {SHARED} counter name input
  }}
}}
"""


def run(notes: Notes) -> None:
    """TCP and UDP, with and without."""
    with Stage(notes) as stage, stage.listening(), stage.tap() as world:
        before = state(stage)
        with operated(stage, early_demux=True), stage.at("host"):
            with hold((SHARED, FIRST), (SERVER, 443)):
                seen = _tcp(notes, stage, world)
                expected = "prerouting saw it, forward no, input no; not at fishtun"
                notes.check("TCP, early demux on", expected, seen)
            with changed(stage, {"net.ipv4.tcp_early_demux": 0}), hold((SHARED, FIRST + 1), (SERVER, 443)):
                seen = _tcp(notes, stage, world, FIRST + 1)
                expected = "prerouting saw it, forward yes, input no; at fishtun"
                notes.check("TCP, tcp_early_demux=0", expected, seen)
            with udp() as held:
                held.bind((SHARED, FIRST))
                held.connect((SERVER, 53))
                notes.check("UDP, early demux on", "not at fishtun", _udp(stage, world))
                with changed(stage, {"net.ipv4.udp_early_demux": 0}):
                    notes.check("UDP, udp_early_demux=0", "at fishtun", _udp(stage, world))
        _cost(notes, stage)
        different = [name for name, value in state(stage).items() if before[name] != value]
        notes.check("what is different when all is put back", "nothing", ", ".join(different) or "nothing")


def _tcp(notes: Notes, stage: Stage, world: Tap, port: int = FIRST) -> str:
    stage.nft(COUNTERS)
    stage.received()
    world.forget()
    stage.inject(syn(SHARED, port))
    stage.fence(world)
    notes.wire("world", world.packets())
    got = [one for one in stage.received() if one.tcp_flags == SYN | ACK]
    counts = stage.counters("count")
    stage.run("host", "nft delete table ip count")
    asked = ["yes" if counts[name] else "no" for name in ("forward", "input")]
    first = "saw it" if counts["prerouting"] else "did not see it"
    return f"prerouting {first}, forward {asked[0]}, input {asked[1]}; {'at' if got else 'not at'} fishtun"


def _udp(stage: Stage, world: Tap) -> str:
    """The client's datagram leaves first: its connection has the mark then."""
    stage.inject(craft.udp(SHARED, FIRST, SERVER, 53, b"question"))
    stage.fence(world)
    stage.received()
    stage.from_world(craft.udp(SERVER, 53, SHARED, FIRST, b"answer"))
    stage.fence(world)
    return "at fishtun" if any(one.source_port == 53 for one in stage.received()) else "not at fishtun"


def _cost(notes: Notes, stage: Stage) -> None:
    """What the host's own TCP pays when nobody may demultiplex early: a megabyte to a socket of it, many times."""
    with ExitStack() as stack:
        with stage.at("host"):
            listener = stack.enter_context(socket.create_server((HOST, 5000)))
        with stage.at("world"):
            sender = stack.enter_context(socket.create_connection((HOST, 5000)))
        receiver = stack.enter_context(listener.accept()[0])
        for sock in (sender, receiver):
            sock.setblocking(False)
        times: dict[int, list[float]] = {1: [], 0: []}
        before = sysctl.get("net.ipv4.tcp_early_demux", netns=stage.host)
        for _ in range(40):
            for on, bursts in times.items():
                sysctl.put("net.ipv4.tcp_early_demux", on, netns=stage.host)
                began_ns = time.perf_counter_ns()
                _carry(sender, receiver)
                bursts.append((time.perf_counter_ns() - began_ns) / 1000)
        sysctl.put("net.ipv4.tcp_early_demux", before, netns=stage.host)
    notes.figure("a megabyte to a socket of the host, early demux on", min(times[1]), "µs")
    notes.figure("the same, early demux off", min(times[0]), "µs")


def _carry(sender: socket.socket, receiver: socket.socket) -> None:
    sent, got, data = 0, 0, bytes(1 << 16)
    while got < MEGABYTE:
        with suppress(BlockingIOError):
            while sent < MEGABYTE:
                sent += sender.send(data[: MEGABYTE - sent])
        with suppress(BlockingIOError):
            got += len(receiver.recv(1 << 20))
