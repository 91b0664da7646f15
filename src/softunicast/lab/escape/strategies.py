# SPDX-License-Identifier: Apache-2.0
"""Four ways to forward clients' packets under the host's own address, each whole and each put back at its end.

    snat          conntrack SNAT by nftables; the kernel does all of it
    ctnetlink     a userspace NAT that reserves each flow by a conntrack entry; local rule moved, no RST of the host
    hold          a userspace NAT that reserves each flow by a hold socket; local rule moved, no early demux
    softunicast   the agent and its BPF programs

`up` yields the program between the client's device and the host's, not yet running.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from .agent import agent
from .mover import ByConntrack, BySocket, Mover, Nat
from .reservations import NO_RST, RULES
from .stage import FIRST, LAST, SHARED, Stage
from .surgery import MARK, operated

PORTS: Final = range(FIRST, LAST + 1)


@contextmanager
def _snat(stage: Stage) -> Iterator[Mover]:
    stage.nft(RULES)
    try:
        yield Mover(stage.tun0, stage.fishtun, stage.host)
    finally:
        stage.run("host", "nft delete table ip older")


@contextmanager
def _ctnetlink(stage: Stage) -> Iterator[Mover]:
    with ExitStack() as stack:
        stack.enter_context(operated(stage, early_demux=True))
        stage.nft(NO_RST)
        stack.callback(stage.run, "host", "nft delete table ip norst")
        with stage.at("host"):
            nat = Nat(stage.tun0, stage.fishtun, stage.host, SHARED, PORTS, ByConntrack(SHARED, MARK))
        stack.callback(nat.close)
        yield nat


@contextmanager
def _hold(stage: Stage) -> Iterator[Mover]:
    with operated(stage):
        nat = Nat(stage.tun0, stage.fishtun, stage.host, SHARED, PORTS, BySocket(SHARED))
        try:
            yield nat
        finally:
            nat.close()


@contextmanager
def _softunicast(stage: Stage) -> Iterator[Mover]:
    with agent(stage):
        yield Mover(stage.tun0, stage.fishtun, stage.host)


@dataclass(frozen=True, slots=True)
class Strategy:
    """A way; what it does to an eleventh client of ten ports, to a program that binds a port in use, to one more client
    right after the ten have ended; and what is wrong with it, with the steps that show so.
    """

    name: str
    up: Callable[[Stage], AbstractContextManager[Mover]]
    eleventh: str
    program: str
    after: str
    wrong: str


STRATEGIES: Final = (
    Strategy(
        "snat",
        _snat,
        "hangs until it gives up",
        "connects, and the wire shows another port",
        "works",
        "a full slice is silent (2); the host's own sockets leave the slice unseen (3)",
    ),
    Strategy(
        "ctnetlink",
        _ctnetlink,
        "refused at once",
        "its SYN leaves under the client's five-tuple",
        "works",
        "sockets do not see the reservation; a stray RST ends it (4); the host's routing is rebuilt (7)",
    ),
    Strategy(
        "hold",
        _hold,
        "refused at once",
        "EADDRNOTAVAIL",
        "works",
        "a descriptor a flow; SNAT does not see it, strangers get its RST (5); the host's routing is rebuilt (7), "
        "early demux is off for all (8)",
    ),
    Strategy(
        "softunicast",
        _softunicast,
        "refused at once",
        "EADDRNOTAVAIL",
        "refused at once",
        "needs Linux 6.1 and BPF; a forwarded flow's port rests after its end (`tcp_linger_s`)",
    ),
)
