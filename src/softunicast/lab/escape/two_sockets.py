# SPDX-License-Identifier: Apache-2.0
"""Step 1: what the kernel's own socket table says to two sockets that want one five-tuple.

Three ways to choose a port do not mix well: bind(2) to it, bind with SO_REUSEADDR or SO_REUSEPORT, and leaving it to
connect(2) (IP_BIND_ADDRESS_NO_PORT with IP_LOCAL_PORT_RANGE). Sources: net/ipv4/inet_connection_sock.c,
inet_hashtables.c (__inet_check_established), udp.c; ip(7).
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from softunicast.kernel import sysctl
from softunicast.wire.packet import SYN

from .notes import Notes
from .sockopts import IP_LOCAL_PORT_RANGE, answer, port_range, tcp, udp
from .stage import FIRST, LAST, SERVER, SERVER2, SHARED, Stage

NAME: Final = "sockets"
TITLE: Final = "Two sockets, one five-tuple"
TRIED: Final = (
    "Two sockets of the host take 198.51.100.10 and the same port, towards one destination or two. "
    "The kernel refuses the second where both would have the same five-tuple, but when and how depends on the style."
)
Try = Callable[[socket.socket, int, str], str]


def _bound(*options: int) -> Try:
    """Bind to the port, then connect."""

    def work(sock: socket.socket, port: int, to: str) -> str:
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        bound = answer(lambda: sock.bind((SHARED, port)))
        if bound != "works":
            return f"bind {bound}"
        connected = answer(lambda: sock.connect((to, 443)))
        return connected if connected == "works" else f"connect {connected}"

    return work


def _late(*options: int) -> Try:
    """Let connect choose, from a range of one."""

    def work(sock: socket.socket, port: int, to: str) -> str:
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        port_range(sock, port, port)
        bound = answer(lambda: sock.bind((SHARED, 0)))
        if bound != "works":
            return f"bind {bound}"
        connected = answer(lambda: sock.connect((to, 443)))
        return connected if connected == "works" else f"connect {connected}"

    return work


PLAIN: Final = _bound()
ADDR: Final = _bound(socket.SO_REUSEADDR)
PORT: Final = _bound(socket.SO_REUSEPORT)
LATE: Final = _late()
LATE_ADDR: Final = _late(socket.SO_REUSEADDR)
CASES: Final[tuple[tuple[str, Callable[[], socket.socket], Try, Try, str, str], ...]] = (
    ("TCP, plain binds, one destination", tcp, PLAIN, PLAIN, SERVER, "bind EADDRINUSE"),
    ("TCP, plain binds, two destinations", tcp, PLAIN, PLAIN, SERVER2, "bind EADDRINUSE"),
    ("TCP, SO_REUSEADDR on both, one destination", tcp, ADDR, ADDR, SERVER, "connect EADDRNOTAVAIL"),
    ("TCP, SO_REUSEADDR on both, two destinations", tcp, ADDR, ADDR, SERVER2, "works"),
    ("TCP, SO_REUSEPORT on both, one destination", tcp, PORT, PORT, SERVER, "connect EADDRNOTAVAIL"),
    ("TCP, SO_REUSEPORT on both, two destinations", tcp, PORT, PORT, SERVER2, "works"),
    ("TCP, port chosen by connect, one destination", tcp, LATE, LATE, SERVER, "connect EADDRNOTAVAIL"),
    ("TCP, port chosen by connect, two destinations", tcp, LATE, LATE, SERVER2, "works"),
    ("TCP, bind first, chosen by connect second, two destinations", tcp, ADDR, LATE, SERVER2, "connect EADDRNOTAVAIL"),
    ("TCP, chosen by connect first, bind second, two destinations", tcp, LATE, ADDR, SERVER2, "bind EADDRINUSE"),
    ("TCP, the same with SO_REUSEADDR on the first", tcp, LATE_ADDR, ADDR, SERVER2, "works"),
    ("UDP, plain binds, two destinations", udp, PLAIN, PLAIN, SERVER2, "bind EADDRINUSE"),
    ("UDP, SO_REUSEADDR on both, one destination: the same four-tuple twice", udp, ADDR, ADDR, SERVER, "works"),
    ("UDP, SO_REUSEPORT on both, one destination: the same four-tuple twice", udp, PORT, PORT, SERVER, "works"),
)


def run(notes: Notes) -> None:
    """Every style against every other that matters, then the limits of the slice itself."""
    with Stage(notes) as stage, stage.listening(), stage.tap() as world:
        for number, (what, make, first, second, to, expected) in enumerate(CASES):
            port = FIRST + 100 + number
            with stage.at("host"), make() as one, make() as other:
                before = first(one, port, SERVER)
                seen = second(other, port, to) if before == "works" else f"the first socket: {before}"
            notes.check(what, expected, seen)
        stage.fence(world)
        syns = [one for one in world.packets(out=False) if one.tcp_flags == SYN]
        notes.wire("world", syns)
        tuples = [(one.source_port, one.destination) for one in syns]
        notes.check("TCP five-tuples that went over the wire twice", 0, len(tuples) - len(set(tuples)))
        _range(notes, stage)
        _exhausted(notes, stage)


def _range(notes: Notes, stage: Stage) -> None:
    """IP_LOCAL_PORT_RANGE is clamped by, or ignored outside, ip_local_port_range."""
    with stage.at("host"):
        with tcp() as sock:
            port_range(sock, 20000, 20009)
            read = sock.getsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE)
            notes.check(
                "a range outside ip_local_port_range is read back", "20000-20009", f"{read & 65535}-{read >> 16}"
            )
            sock.bind((SHARED, 0))
            sock.connect((SERVER, 443))
            outside = 9000 <= sock.getsockname()[1] <= 9999
            notes.check(
                "and the port comes from", "the sysctl's range", "the sysctl's range" if outside else "the other"
            )
        before = sysctl.get("net.ipv4.ip_local_reserved_ports")
        stage.put("net.ipv4.ip_local_reserved_ports", f"{FIRST}-{LAST}")
        with tcp() as sock:
            port_range(sock, FIRST, LAST)
            sock.bind((SHARED, 0))
            seen = answer(lambda: sock.connect((SERVER, 443)))
            notes.check("the slice in ip_local_reserved_ports, connect chooses", "EADDRNOTAVAIL", seen)
        stage.put("net.ipv4.ip_local_reserved_ports", before or "\n")


@contextmanager
def _ten(make: Callable[[], socket.socket], to: tuple[str, int]) -> Iterator[None]:
    """All ten ports of the slice in use towards one destination."""
    with ExitStack() as stack:
        for _ in range(FIRST, LAST + 1):
            sock = stack.enter_context(make())
            port_range(sock, FIRST, LAST)
            sock.bind((SHARED, 0))
            sock.connect(to)
        yield


def _exhausted(notes: Notes, stage: Stage) -> None:
    """The eleventh of ten."""
    with stage.at("host"):
        with _ten(tcp, (SERVER, 443)), tcp() as sock:
            port_range(sock, FIRST, LAST)
            sock.bind((SHARED, 0))
            seen = answer(lambda: sock.connect((SERVER, 443)))
            notes.check("the eleventh TCP socket of ten ports, connect chooses", "EADDRNOTAVAIL", seen)
        with ExitStack() as stack:
            for port in range(FIRST, LAST + 1):
                stack.enter_context(tcp()).bind((SHARED, port))
            with tcp() as sock:
                sock.setsockopt(socket.IPPROTO_IP, IP_LOCAL_PORT_RANGE, LAST << 16 | FIRST)
                seen = answer(lambda: sock.bind((SHARED, 0)))
                notes.check("the eleventh TCP socket, bind to port 0", "EADDRINUSE", seen)
        with _ten(udp, (SERVER, 53)), udp() as sock:
            port_range(sock, FIRST, LAST)
            sock.bind((SHARED, 0))
            notes.check("the eleventh UDP socket", "EAGAIN", answer(lambda: sock.connect((SERVER, 53))))
