# SPDX-License-Identifier: Apache-2.0
"""Step 3: a program binds a port, and the wire shows another.

As soon as a NAT chain exists in a namespace every new connection is checked against the table, those of the host's own
sockets too; one whose tuple somebody has is given another source port, whether or not any rule speaks of it (the
null binding). Without a NAT chain it is dropped. Sources: net/netfilter/nf_nat_core.c (nf_nat_alloc_null_binding,
get_unique_tuple), nf_conntrack_core.c.
"""

from __future__ import annotations

import socket
from contextlib import ExitStack
from functools import partial
from typing import Final

from softunicast.kernel.conntrack import Conntrack, Tuple
from softunicast.wire import craft
from softunicast.wire.packet import SYN

from .notes import Notes
from .sockopts import answer, tcp, udp
from .stage import FIRST, LAST, SERVER, SHARED, Stage, Tap, port_of, syn

NAME: Final = "silent-rewrite"
TITLE: Final = "The silent rewrite"
TRIED: Final = (
    "A client's flow has 198.51.100.10:9000 towards a server by SNAT. A program on the host binds the same address and "
    "port and connects to the same server. No rule speaks of the program."
)
RULES: Final = f"""\
table ip older {{
  chain post {{
    type nat hook postrouting priority srcnat
    ip saddr 10.8.0.0/16 meta l4proto {{ tcp, udp, icmp }} snat to {SHARED}:{FIRST}-{LAST}
  }}
}}
"""
ONLY_TRACKING: Final = """\
table ip older {
  chain post {
    type filter hook postrouting priority 0
    ct state new counter
  }
}
"""


def run(notes: Notes) -> None:
    """TCP and UDP with a NAT chain; TCP without one."""
    with Stage(notes) as stage, stage.listening(), stage.tap() as world:
        stage.nft(RULES)
        for client in range(10):
            stage.inject(syn(f"10.8.0.{2 + client}", 5000))
            stage.inject(craft.echo(f"10.8.0.{2 + client}", SERVER, FIRST + client))
            stage.inject(craft.udp(f"10.8.0.{2 + client}", 5000, SERVER, 5353, b"x"))
        stage.fence(world)
        world.forget()
        with ExitStack() as sockets, stage.at("host"):
            _tcp(notes, stage, world, sockets)
            sock = sockets.enter_context(udp())
            sock.bind((SHARED, FIRST))
            sock.connect((SERVER, 5353))
            sock.send(b"x")
            stage.fence(world)
            sent = [one for one in world.packets(out=False) if one.destination_port == 5353]
            notes.wire("world", sent)
            notes.check("UDP: getsockname()", FIRST, port_of(sock))
            notes.check("UDP: the wire", "a port outside the slice", _place(sent[-1].source_port if sent else None))
            _echo(notes, stage, world)
    with Stage(notes) as stage, stage.listening(), stage.tap() as world, stage.at("host"):
        stage.nft(ONLY_TRACKING)
        _without_nat(notes, stage, world)


def _place(port: int | None) -> str:
    if port is None:
        return "nothing"
    return "a port of the slice" if FIRST <= port <= LAST else "a port outside the slice"


def _tcp(notes: Notes, stage: Stage, world: Tap, sockets: ExitStack) -> None:
    for number in range(10):
        sock = sockets.enter_context(tcp())
        sock.bind((SHARED, FIRST + number))
        seen = answer(partial(sock.connect, (SERVER, 443)))
        if number == 0:
            notes.check("TCP: connect() of a socket bound to port 9000", "works", seen)
            notes.check("TCP: getsockname()", FIRST, port_of(sock))
            stage.fence(world)
            sent = [one for one in world.packets(out=False) if one.tcp_flags == SYN]
            notes.wire("world", sent)
            notes.check("TCP: the wire", "a port outside the slice", _place(sent[-1].source_port if sent else None))
    stage.fence(world)
    sent = [one for one in world.packets(out=False) if one.tcp_flags == SYN]
    inside = [one for one in sent if _place(one.source_port) == "a port of the slice"]
    # The clients have all ten ports towards this server, so that chance cannot choose one of them.
    notes.check("of ten such sockets, inside the slice on the wire", 0, len(inside))
    notes.check("and their SYNs", 10, len(sent))


def _echo(notes: Notes, stage: Stage, world: Tap) -> None:
    """An echo id is a port, too."""
    stage.put("net.ipv4.ping_group_range", "0 0")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as sock:
        sock.bind((SHARED, FIRST))
        world.forget()
        sock.sendto(craft.echo(SHARED, SERVER, FIRST)[20:], (SERVER, 0))
        stage.fence(world)
        sent = [one for one in world.packets(out=False) if one.is_echo_request]
        notes.wire("world", sent)
        notes.check("ping: getsockname()", FIRST, port_of(sock))
        seen = "nothing" if not sent else "its id" if sent[0].icmp_id == FIRST else "another id"
        notes.check("ping: the wire", "another id", seen)


def _without_nat(notes: Notes, stage: Stage, world: Tap) -> None:
    """The same clash where conntrack tracks and nothing translates."""
    with Conntrack() as table:
        entry = Tuple(socket.IPPROTO_TCP, "10.8.0.2", 5000, SERVER, 443)
        notes.command("host", f"conntrack -I {entry} -r {SERVER} -q {SHARED} --reply-port-dst {FIRST}")
        table.add(entry, reply=Tuple(socket.IPPROTO_TCP, SERVER, 443, SHARED, FIRST))
        with tcp() as sock:
            sock.bind((SHARED, FIRST))
            sock.setblocking(False)
            sock.connect_ex((SERVER, 443))
            stage.fence(world)
            sent = [one for one in world.packets(out=False) if one.tcp_flags == SYN]
            notes.wire("world", sent)
            notes.check("conntrack without a NAT chain: SYNs that leave", 0, len(sent))
            notes.check("drops that conntrack counts", 1, table.statistics()["drop"])
