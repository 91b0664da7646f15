# SPDX-License-Identifier: Apache-2.0
"""Step 2: a slice of ten ports under nftables SNAT, and fourteen clients.

conntrack looks for a free tuple only for a limited number of tries and drops the packet when it finds none, in silence:
nobody is told. Sources: net/netfilter/nf_nat_core.c (get_unique_tuple), nf_conntrack_core.c
(__nf_conntrack_confirm).
"""

from __future__ import annotations

import errno
import socket
from typing import Final

from softunicast.errors import KernelError
from softunicast.kernel.conntrack import Conntrack
from softunicast.wire import craft
from softunicast.wire.packet import SYN

from .notes import Notes
from .sockopts import answer, tcp, udp
from .stage import FIRST, LAST, SERVER, SERVER2, SHARED, Stage, slice_text, syn

NAME: Final = "snat-full"
TITLE: Final = "A slice exhausted under SNAT"
TRIED: Final = (
    "Fourteen clients behind fishtun open connections to one server through `snat to 198.51.100.10:9000-9009`. "
    "Ten leave; the other four vanish, and nobody is told."
)
RULES: Final = f"""\
table ip older {{
  chain post {{
    type nat hook postrouting priority srcnat
    oifname "up0" meta l4proto {{ tcp, udp, icmp }} snat to {SHARED}:{FIRST}-{LAST}
  }}
}}
"""


def run(notes: Notes) -> None:
    """Fill the slice from behind and from the host itself."""
    with Stage(notes) as stage, stage.listening(), stage.tap() as world:
        try:
            stage.nft(RULES.replace(" meta l4proto { tcp, udp, icmp }", ""))
            seen = "accepted"
        except KernelError:
            seen = "refused"
        notes.check("a rule with ports and no `meta l4proto` before them", "refused", seen)
        stage.nft(RULES)
        _clients(notes, stage)
        stage.fence(world)
        out = [one for one in world.packets(out=False) if one.tcp_flags == SYN and str(one.destination) == SERVER]
        notes.wire("world", out)
        notes.check("SYNs that leave, of fourteen", 10, len(out))
        ports = slice_text(one.source_port for one in out)
        notes.check("their ports", slice_text(range(FIRST, LAST + 1)), ports)
        with stage.at("host"), Conntrack() as table:
            totals = table.statistics()
        seen = f"insert_failed {totals['insert_failed']}, drop {totals['drop']}"
        notes.check("conntrack -S", "insert_failed 4, drop 4", seen)
        stage.fence(world)
        second = [one for one in world.packets(out=False) if one.tcp_flags == SYN and str(one.destination) == SERVER2]
        notes.check("SYNs that leave to a second server, of ten", 10, len(second))
        _local(notes, stage)


def _clients(notes: Notes, stage: Stage) -> None:
    answers = [stage.inject(syn(f"10.8.0.{2 + client}", 5000)) for client in range(14)]
    notes.check("write(2) to the TUN, of fourteen times", "14 work", f"{answers.count('works')} work")
    back = [one for one in stage.received() if one.is_error or one.tcp_flags & 4]
    notes.check("RSTs and ICMP errors that clients get", 0, len(back))
    for client in range(10):
        stage.inject(syn(f"10.8.0.{2 + client}", 5000, SERVER2))


def _local(notes: Notes, stage: Stage) -> None:
    """The host's own programs under the same rule."""
    for client in range(10):
        stage.inject(craft.udp(f"10.8.0.{2 + client}", 5000, SERVER, 5353, b"x"))
        stage.inject(craft.echo(f"10.8.0.{2 + client}", SERVER, 100 + client))
    with stage.at("host"):
        with udp() as sock:
            seen = answer(lambda: sock.sendto(b"x", (SERVER, 5353)))
            notes.check("the host's own UDP socket, ten clients before it", "EPERM", seen)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
            echo = craft.echo(SHARED, SERVER, 77)[20:]
            notes.check("the host's own raw ICMP", "EPERM", answer(lambda: raw.sendto(echo, (SERVER, 0))))
        with tcp() as sock, stage.tap() as world:
            sock.setblocking(False)
            started = sock.connect_ex((SERVER, 443))
            stage.fence(world)
            left = [one for one in world.packets(out=False) if one.tcp_flags == SYN]
            seen = f"{errno.errorcode.get(started, started)}, {len(left)} SYNs leave"
            notes.check("the host's own TCP socket: no error, it waits", "EINPROGRESS, 0 SYNs leave", seen)
