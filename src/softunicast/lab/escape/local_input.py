# SPDX-License-Identifier: Apache-2.0
"""Step 6: an answer for an address of the host is input, whatever the routes say.

Rule 0 looks up the table `local` before any other rule is asked. The only packets that escape are those whose
destination conntrack changes before routing. Sources: net/ipv4/route.c (ip_route_input_slow), fib_rules.c; ip-rule(8).
"""

from __future__ import annotations

import socket
from typing import Final

from softunicast.wire.packet import RST, SYN

from .notes import Notes
from .reservations import RULES
from .stage import FIRST, SERVER, SHARED, Stage, Tap, syn
from .surgery import TAKES_LOCAL, changed

NAME: Final = "local-input"
TITLE: Final = "A local address is input"
TRIED: Final = (
    "A program rewrites a client's packet to 198.51.100.10:9000 and writes it to fishtun. It leaves, and the server "
    "answers. A route and a rule of the highest priority there is say that answers for 198.51.100.10 go to fishtun."
)


def run(notes: Notes) -> None:
    """Without conntrack, then with."""
    with Stage(notes) as stage, stage.listening(), stage.tap() as world, changed(stage, TAKES_LOCAL):
        stage.run("host", f"ip route add {SHARED}/32 dev fishtun table 100")
        stage.run("host", f"ip rule add to {SHARED} lookup 100 priority 0")
        notes.line("      the kernel puts a new rule of equal priority behind those it has:")
        for line in stage.quiet("host", "ip rule").splitlines():
            notes.line(f"      {line}")
        flow = syn(SHARED, FIRST)
        _answered(
            notes, stage, world, flow, "the SYN-ACK is seen at fishtun", "no", "the host answers it with a RST", "yes"
        )
        stage.nft(RULES)
        flow = syn("10.8.0.2", 5000)
        _answered(notes, stage, world, flow, "SNAT by conntrack: at fishtun", "yes", "with a RST", "no")
        with stage.at("host"), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((SHARED, 9999))
            notes.check("all the while the address is the host's own", SHARED, sock.getsockname()[0])


def _answered(
    notes: Notes, stage: Stage, world: Tap, flow: bytes, what: str, expected: str, reset: str, expected_reset: str
) -> None:
    stage.received()
    world.forget()
    notes.command("fishtun", f"write a SYN for {SERVER}:443")
    stage.inject(flow)
    stage.fence(world)
    notes.wire("world", world.packets())
    got = [one for one in stage.received() if one.tcp_flags == SYN | 16]
    notes.check(what, expected, "yes" if got else "no")
    resets = [one for one in world.packets(out=False) if one.tcp_flags & RST]
    notes.check(reset, expected_reset, "yes" if resets else "no")
