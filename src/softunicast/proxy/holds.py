# SPDX-License-Identifier: Apache-2.0
"""SYNs of clients that wait until their destination has answered, so that the client sees what it would see without us.

    SYN --queue--> dial ..connected..> let go: the kernel completes the handshake --accept()--> Session takes the socket
                        ..refused....> let go, marked: the kernel answers RST, or an ICMP error
                        ..no answer..> dropped: the client asks again, or gives up, by its own clock

What waits has nothing of a connection yet: a client's second SYN for it is dropped, its third finds it answered. A
SYN that cannot be read is let go, and dialed for when it is accepted. Each counts for its user's limits, and a
destination's connection that no client takes up ends by RST after `handshake_s`.

A successor of this process is given what still waits, by queueing it again.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

from softunicast.kernel import nfqueue
from softunicast.kernel.nfqueue import Verdict, Waiting
from softunicast.kernel.terminus import Mark
from softunicast.proxy.core.messages import Endpoint, Reason
from softunicast.proxy.dial import Dial, Dialed
from softunicast.proxy.loop import IN, Timer
from softunicast.proxy.policy import Listener, User
from softunicast.proxy.relay import LINGER_RESET
from softunicast.proxy.service import Service

Pair = tuple[Endpoint, Endpoint]
"""A client's address and port, and those it asked for."""
MARKS: Final = {
    Reason.HOST_UNREACHABLE: Mark.HOST_UNREACHABLE,
    Reason.NETWORK_UNREACHABLE: Mark.NO_ROUTE,
    Reason.FORBIDDEN: Mark.PROHIBITED,
}
"""What is told otherwise than by RST. A full slice is a RST, as for a packet."""


@dataclass(slots=True)
class _Held:
    """A SYN whose destination is asked. `dial` None: just beginning."""

    packet: int
    user: User
    dial: Dial | None = None


@dataclass(slots=True)
class _Answered:
    """A destination's connection, for the client whose handshake goes on."""

    user: User
    dialed: Dialed
    timer: Timer


class Holds:
    """Of one queue. `listener` says whose clients they are."""

    def __init__(self, service: Service, listener: Listener, queue: socket.socket) -> None:
        self._service = service
        self._listener = listener
        self._queue = queue
        self._waiting: dict[Pair, _Held] = {}
        self._answered: dict[Pair, _Answered] = {}
        self._hears = False

    def start(self) -> None:
        """Look at what waits from now on."""
        if self._hears:
            return
        self._hears = True
        self._service.loop.add(self._queue.fileno(), IN, self._readable)

    def take(self, client: Endpoint, target: Endpoint) -> tuple[User, Dialed] | None:
        """The connection made for a client that was accepted, whose user counts it already; None: there is none."""
        found = self._answered.pop((client, target), None)
        if found is None:
            return None
        found.timer.cancel()
        return found.user, found.dialed

    def stop(self, *, successor: bool) -> None:
        """Hear no more. What waits is for the successor to ask for, or dropped; what was answered is given up."""
        self._hears = False
        self._service.loop.remove(self._queue.fileno())
        for held in self._waiting.values():
            if held.dial is not None:
                held.dial.cancel()
            self._service.limits.end(held.user)
            nfqueue.decide(self._queue, held.packet, Verdict.QUEUE if successor else Verdict.DROP)
        self._waiting.clear()
        for pair in list(self._answered):
            self._give_up(pair)

    def _readable(self, events: int) -> None:
        for packet in nfqueue.read(self._queue):
            self._asked(packet)

    def _asked(self, packet: Waiting) -> None:
        if packet.source is None or packet.destination is None:
            nfqueue.decide(self._queue, packet.id, Verdict.ACCEPT)
            return
        pair = Endpoint(*packet.source), Endpoint(*packet.destination)
        if pair in self._answered:
            nfqueue.decide(self._queue, packet.id, Verdict.ACCEPT)
            return
        if pair in self._waiting:
            nfqueue.decide(self._queue, packet.id, Verdict.DROP)
            return
        service = self._service
        user = service.user(self._listener.anonymous or "")
        said = "its on-ramp is gone" if user is None else service.limits.begin(user, service.loop.now)
        if user is None or said is not None:
            self._log(pair, Reason.USER_LIMIT, said or "")
            nfqueue.decide(self._queue, packet.id, Verdict.ACCEPT, Mark.RESET)
            return
        held = self._waiting[pair] = _Held(packet.id, user)
        host = pair[0].host
        assert not isinstance(host, str)
        dial = Dial(
            service.loop, service.resolver, service.egress, user, host, pair[1], lambda dialed: self._over(pair, dialed)
        )
        held.dial = dial
        dial.start(service.config.connect_s)

    def _over(self, pair: Pair, dialed: Dialed) -> None:
        held = self._waiting.pop(pair)
        service = self._service
        if dialed.sock is None:
            service.limits.end(held.user)
            self._log(pair, dialed.reason, dialed.detail)
            if dialed.reason is Reason.TIMEOUT:
                nfqueue.decide(self._queue, held.packet, Verdict.DROP)
            else:
                nfqueue.decide(self._queue, held.packet, Verdict.ACCEPT, MARKS.get(dialed.reason, Mark.RESET))
            return
        service.loop.remove(dialed.sock.fileno())
        timer = service.loop.later(service.config.handshake_s, lambda: self._left(pair))
        self._answered[pair] = _Answered(held.user, dialed, timer)
        nfqueue.decide(self._queue, held.packet, Verdict.ACCEPT)

    def _left(self, pair: Pair) -> None:
        self._log(pair, Reason.RESET, "the client did not complete its handshake")
        self._give_up(pair)

    def _give_up(self, pair: Pair) -> None:
        found = self._answered.pop(pair)
        found.timer.cancel()
        self._service.limits.end(found.user)
        assert found.dialed.sock is not None
        found.dialed.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, LINGER_RESET)
        self._service.loop.close(found.dialed.sock)

    def _log(self, pair: Pair, reason: Reason, detail: str) -> None:
        service = self._service
        service.counters.fail(reason)
        if service.log.wanted:
            service.log.write(
                {
                    "user": self._listener.anonymous,
                    "protocol": "transparent",
                    "listener": self._listener.name,
                    "client": str(pair[0]),
                    "target": str(pair[1]),
                    "failed": reason.name.lower(),
                    "detail": detail,
                }
            )
