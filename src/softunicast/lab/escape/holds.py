# SPDX-License-Identifier: Apache-2.0
"""Step 5: a program reserves a five-tuple by a socket that never speaks.

The kernel's own table then keeps other sockets off. Yet the socket is a party to the conversation: whatever comes for
the flow meets it unless it is kept away, and it answers with a RST to the server. conntrack does not know it at all.
Sources: see sockopts; net/ipv4/tcp_input.c (tcp_rcv_synsent_state_process), ping.c.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from softunicast.kernel import sysctl
from softunicast.wire import craft
from softunicast.wire.packet import ACK, FIN, PSH, RST, SYN

from .notes import Notes
from .reservations import RULES, each_us
from .sockopts import TCP_REPAIR, answer, hold, port_range, state, tcp, udp
from .stage import FIRST, PATIENCE_S, SERVER, SERVER2, SHARED, Stage, Tap, syn

NAME: Final = "hold"
TITLE: Final = "Hold sockets"
TRIED: Final = (
    "A program keeps 198.51.100.10:9000 towards a server by a TCP socket whose fast open is never used "
    "(TCP_FASTOPEN_CONNECT and NO_COOKIE), by one in TCP_REPAIR, by a connected UDP socket, by a ping socket."
)
PLACE: Final = (SHARED, FIRST)
TO: Final = (SERVER, 443)
_STRAY: Final = {
    "SYN-ACK": (SYN | ACK, b"", "RST to the server", "SYN-SENT"),
    "ACK": (ACK, b"", "RST to the server", "SYN-SENT"),
    "data": (ACK | PSH, b"data", "RST to the server", "SYN-SENT"),
    "FIN": (FIN | ACK, b"", "RST to the server", "SYN-SENT"),
    "RST": (RST, b"", "nothing", "SYN-SENT"),
    "SYN": (SYN, b"", "nothing", "SYN-RECV"),
}


def run(notes: Notes) -> None:
    """All kinds of hold, what each keeps out and what it says to strangers."""
    with Stage(notes) as stage, stage.listening() as listeners, stage.tap() as world, stage.at("host"):
        _silent(notes, stage, world)
        _strangers(notes, stage, world)
        _waiting(notes, stage, listeners[0])
        _repair(notes, stage, world)
        _others(notes, stage)
        _cost(notes)
        _snat(notes, stage, world)


def _silent(notes: Notes, stage: Stage, world: Tap) -> None:
    stage.put("net.ipv4.tcp_fastopen", 0)
    notes.check("without bit 1 of tcp_fastopen", "EOPNOTSUPP", answer(lambda: hold(PLACE, TO).close()))
    stage.put("net.ipv4.tcp_fastopen", 1)
    with hold(PLACE, TO) as held:
        stage.fence(world)
        notes.check("state of the hold after connect()", "SYN-SENT", state(held))
        notes.check("packets on the wire", 0, len(world.packets()))
        with tcp() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(PLACE)
            notes.check("another socket, the same flow", "EADDRNOTAVAIL", answer(lambda: other.connect(TO)))
        with tcp() as other:
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(PLACE)
            notes.check("another socket, another server", "works", answer(lambda: other.connect((SERVER2, 443))))
        stage.fence(world)
        world.forget()
    stage.fence(world)
    notes.check("packets when the hold is closed", 0, len(_of(world, SERVER)))


def _of(world: Tap, server: str) -> list[object]:
    return [one for one in world.packets() if server in (str(one.source), str(one.destination))]


def _strangers(notes: Notes, stage: Stage, world: Tap) -> None:
    for name, (flags, data, expected, left) in _STRAY.items():
        with hold(PLACE, TO) as held:
            world.forget()
            # From a port that nobody listens on a RST would only meet a RST: the world sends it by hand.
            stage.from_world(craft.tcp(SERVER, 443, SHARED, FIRST, data, flags=flags, sequence=7, acknowledgement=1001))
            stage.fence(world)
            said = [one for one in world.packets(out=False) if str(one.source) == SHARED]
            notes.wire("world", world.packets())
            names = {RST: "RST", RST | ACK: "RST", SYN | ACK: "SYN-ACK"}
            seen = f"{names.get(said[0].tcp_flags, said[0])} to the server" if said else "nothing"
            notes.check(f"the hold answers a stray {name} with", expected, seen)
            notes.check(f"and is after a stray {name}", left, state(held))


def _waiting(notes: Notes, stage: Stage, listener: socket.socket) -> None:
    """A TIME_WAIT has the five-tuple."""
    with tcp() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 0, 0))
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((SHARED, FIRST + 5))
        sock.connect(TO)
        peer, _ = listener.accept()
    with peer:
        peer.settimeout(PATIENCE_S)
        peer.recv(1)
    seen = stage.quiet("host", f"ss -Htn state time-wait src {SHARED}").count(f":{FIRST + 5} ")
    notes.check("TIME_WAITs on the port after a connection", 1, seen)
    with tcp() as sock:
        port_range(sock, FIRST + 5, FIRST + 5)
        sock.bind((SHARED, 0))
        notes.check("over a TIME_WAIT, chosen by connect", "EADDRNOTAVAIL", answer(lambda: sock.connect(TO)))
    notes.check("over a TIME_WAIT, a hold by bind", "works", answer(lambda: hold((SHARED, FIRST + 5), TO).close()))


def _repair(notes: Notes, stage: Stage, world: Tap) -> None:
    with tcp() as held:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
        held.bind(PLACE)
        world.forget()
        held.connect(TO)
        stage.fence(world)
        seen = f"{state(held)}, {len(world.packets())} packets"
        notes.check("TCP_REPAIR: after connect()", "ESTABLISHED, 0 packets", seen)
        stage.from_world(
            craft.tcp(SERVER, 443, SHARED, FIRST, b"data", flags=ACK | PSH, sequence=7, acknowledgement=99)
        )
        stage.fence(world)
        said = [one for one in world.packets(out=False) if str(one.source) == SHARED]
        notes.wire("world", world.packets())
        seen = "an ACK" if said and all(one.tcp_flags == ACK for one in said) else str(said)
        notes.check("TCP_REPAIR: a stray segment draws", "an ACK", seen)
        stage.from_world(craft.tcp(SERVER, 443, SHARED, FIRST, flags=RST, sequence=0))
        stage.fence(world)
        notes.check("TCP_REPAIR: after a RST with sequence number 0", "CLOSE", state(held))


def _others(notes: Notes, stage: Stage) -> None:
    with udp() as held, udp() as other:
        held.bind(PLACE)
        held.connect((SERVER, 53))
        seen = answer(lambda: other.bind(PLACE))
        notes.check("UDP hold: the same port towards another server", "EADDRINUSE", seen)
    sysctl.put("net.ipv4.ping_group_range", "1 0")
    notes.check("ping hold, ping_group_range 1 0", "EACCES", answer(lambda: _ping().close()))
    stage.put("net.ipv4.ping_group_range", "0 0")
    with _ping() as held, _ping() as other:
        held.bind(PLACE)
        held.connect((SERVER, 0))
        notes.check("ping hold: the same id for another socket", "works", answer(lambda: other.bind(PLACE)))
    with _ping() as held, _ping() as other:
        for sock in (held, other):  # which ping sockets have from birth (INET_PROTOSW_REUSE)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        held.bind(PLACE)
        held.connect((SERVER, 0))
        notes.check("the same, SO_REUSEADDR taken away from both", "EADDRINUSE", answer(lambda: other.bind(PLACE)))


def _ping() -> socket.socket:
    return socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP)


def _cost(notes: Notes) -> None:
    notes.figure("a TCP hold made and closed", each_us(lambda port: hold(PLACE, (SERVER, port)).close(), 1000), "µs")

    def datagram(port: int) -> None:
        with udp() as held:
            held.bind(PLACE)
            held.connect((SERVER, port))

    def repaired(port: int) -> None:
        with tcp() as held:
            held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            held.setsockopt(socket.IPPROTO_TCP, TCP_REPAIR, 1)
            held.bind(PLACE)
            held.connect((SERVER, port))

    def echo(_: int) -> None:
        with _ping() as held:
            held.bind(PLACE)
            held.connect((SERVER, 0))

    notes.figure("a TCP_REPAIR hold made and closed", each_us(repaired, 1000), "µs")
    notes.figure("a UDP hold made and closed", each_us(datagram, 1000), "µs")
    notes.figure("a ping hold made and closed", each_us(echo, 1000), "µs")


def _snat(notes: Notes, stage: Stage, world: Tap) -> None:
    stage.nft(RULES.replace(f"{SHARED}:{FIRST}-9009", f"{SHARED}:{FIRST}-{FIRST}"))
    with hold(PLACE, TO):
        world.forget()
        stage.inject(syn("10.8.0.2", 5000))
        stage.fence(world)
        sent = [one.source_port for one in world.packets(out=False) if one.tcp_flags == SYN]
        notes.wire("world", world.packets())
        notes.check("the port that SNAT gives to a client although it is held", FIRST, *sent)
