# SPDX-License-Identifier: Apache-2.0
"""One process of the proxy: accepts, serves, and hands over to its successor.

    master --control (SEQPACKET)--> worker     {"do": "give"} + fd    hand everything over, then exit
                                               {"do": "take"} + fd    be given, by a worker of another process
                                               {"do": "stop" | "status" | "reopen" | "refresh"}
           <---------------------------------- {"status": ...}, and at the end the exit status

It accepts as many clients as its descriptors allow: two each, four an association, and a share that is kept back for
the pipes of readers that stall, attempts at several addresses, and names. Then it stops accepting for a moment: those
who wait in the listener's queue are served when others have gone, rather than refused.
"""

from __future__ import annotations

import errno
import json
import os
import resource
import socket
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from ipaddress import ip_address
from types import MappingProxyType
from typing import Any, Final

from softunicast.model.address import IPAddress
from softunicast.proxy._relay import accept
from softunicast.proxy.core.messages import Endpoint, Reason
from softunicast.proxy.handover import Giver, Taker, Thing, unpack_passage
from softunicast.proxy.holds import Holds
from softunicast.proxy.loop import EXCLUSIVE, IN
from softunicast.proxy.policy import Listener, ListenerAccounts, User
from softunicast.proxy.relay import Relay
from softunicast.proxy.service import Passage, Service
from softunicast.proxy.session import Session, plain
from softunicast.proxy.udp import Association

ACCEPTS: Final = 64
REST_S: Final = 0.1
NONE: Final[Mapping[str, socket.socket]] = MappingProxyType({})
TOLD_S: Final = 60
KEPT_BACK: Final = 1024
"""Descriptors for what is not a client or its upstream; of few descriptors an eighth."""
EMPTY: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})


class Worker:
    """Runs in a loop of its own (`service.loop.run()`)."""

    def __init__(
        self,
        service: Service,
        listeners: Sequence[tuple[Listener, socket.socket]],
        control: socket.socket | None,
        log: Any,
        queues: Mapping[str, socket.socket] = NONE,
    ) -> None:
        """`log`: a structlog logger; `queues`: of SYNs that are held, by namespace."""
        self.service = service
        for listener, _ in listeners:
            if listener.held and listener.namespace in queues and listener.namespace not in service.holds:
                service.holds[listener.namespace] = Holds(service, listener, queues[listener.namespace])
        self._log = log
        self._listeners = listeners
        self._control = control
        self._sessions: set[Session] = set()
        self._passages: dict[int, Passage] = {}
        self._associations: set[Association] = set()
        self._giver: Giver | None = None
        self._takers = 0
        self._accepting = False
        self._stopping = False
        self._told_full_s = -float(TOLD_S)
        descriptors, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._descriptors = descriptors - min(KEPT_BACK, descriptors // 8)
        service.loop.on_error = self._failed
        if control is not None:
            control.setblocking(False)
            service.loop.add(control.fileno(), IN, self._told)

    def start(self) -> None:
        """Accept from now on."""
        if not self._accepting:
            self._accepting = True
            for holds in self.service.holds.values():
                holds.start()
            for listener, sock in self._listeners:
                accounts = ListenerAccounts(self.service.config, listener.anonymous)
                self.service.loop.add(sock.fileno(), IN | EXCLUSIVE, self._acceptor(listener, sock, accounts))

    def _pause(self) -> None:
        self._accepting = False
        for _, sock in self._listeners:
            self.service.loop.remove(sock.fileno())

    def _acceptor(self, listener: Listener, sock: socket.socket, accounts: ListenerAccounts) -> Any:
        family, listening = sock.family, sock.fileno()

        @lru_cache(4096)
        def let_in(host: str) -> IPAddress | None:
            """The client's address; None: it is not one of this listener's."""
            address = plain(host)
            return address if not listener.clients or address in listener.clients else None

        def come_in(events: int) -> None:
            for _ in range(ACCEPTS):
                if self._full():
                    self._rest("its descriptors are in use; raise LimitNOFILE, or workers of the policy")
                    return
                try:
                    accepted = accept(listening)
                except OSError as error:
                    if error.errno in EMPTY:
                        self._rest(os.strerror(error.errno))
                        return
                    continue
                if accepted is None:
                    return
                fd, host, port = accepted
                self.service.counters.accepted += 1
                peer = let_in(host)
                if peer is None:
                    self.service.counters.fail(Reason.DENIED)
                    os.close(fd)
                    continue
                client = socket.SocketType(family, socket.SOCK_STREAM, 0, fd)
                session = Session(self.service, listener, accounts, client, Endpoint(peer, port), self._session_over)
                self._sessions.add(session)
                try:
                    session.start()
                except OSError:
                    session.abandon()

        return come_in

    def _full(self) -> bool:
        """Do those who are here need all descriptors that clients may have?"""
        wanted = 2 * (len(self._sessions) + len(self._passages)) + 4 * len(self._associations)
        return wanted + 2 > self._descriptors

    def _rest(self, why: str) -> None:
        now = self.service.loop.now
        if now - self._told_full_s >= TOLD_S:
            self._told_full_s = now
            self._log.warning("no more connections for a moment", why=why, relaying=len(self._passages))
        self._pause()
        self.service.loop.later(REST_S, self._rested)

    def _rested(self) -> None:
        if self._giver is not None or self._stopping:
            return
        if self._full():
            self.service.loop.later(REST_S, self._rested)
        else:
            self.start()

    def _session_over(self, session: Session, result: Passage | Association | None) -> None:
        self._sessions.discard(session)
        if isinstance(result, Passage):
            self.service.counters.relayed += 1
            self._run(result)
        elif isinstance(result, Association):
            self._run(result)
        self._look_for_end()

    def _run(self, thing: Thing) -> None:
        """A connection is relayed from now on, here, or by the successor."""
        if isinstance(thing, Association):
            thing.done = self._association_over
            self._associations.add(thing)
            thing.start()
        else:
            assert thing.relay is not None
            thing.relay.done = self._relay_over
            self._passages[id(thing.relay)] = thing
            thing.relay.start()
        if self._giver is not None and (isinstance(thing, Association) or id(thing.relay) in self._passages):
            self._giver.offer(thing)

    def _relay_over(self, relay: Relay) -> None:
        passage = self._passages.pop(id(relay), None)
        if passage is None:
            return
        service = self.service
        if service.log.wanted:
            service.log.write(passage.entry(time.time()))
        service.counters.bytes_up += relay.up.moved + passage.first_bytes
        service.counters.bytes_down += relay.down.moved
        user = service.user(passage.user)
        if user is not None:
            service.limits.end(user)
        relay.close()
        if self._giver is not None:
            self._giver.forget(passage)
        self._look_for_end()

    def _association_over(self, association: Association) -> None:
        self._associations.discard(association)
        if self.service.log.wanted:
            self.service.log.write(association.entry())
        self.service.limits.end(association.user)
        association.close()
        if self._giver is not None:
            self._giver.forget(association)
        self._look_for_end()

    # What the master says

    def _told(self, events: int) -> None:
        assert self._control is not None
        try:
            data, fds, _, _ = socket.recv_fds(self._control, 65536, 4, socket.MSG_CMSG_CLOEXEC)
        except BlockingIOError:
            return
        except OSError:
            data, fds = b"", []
        if not data:
            self.service.loop.remove(self._control.fileno())
            self.stop()
            return
        what = json.loads(data)["do"]
        if what == "give":
            if self._giver is None:
                self._give(socket.socket(fileno=fds[0]))
            else:
                os.close(fds[0])
        elif what == "take":
            self._takers += 1
            Taker(self.service, socket.socket(fileno=fds[0]), self._take, self._taken)
        elif what == "stop":
            self.stop()
        elif what == "reopen":
            self.service.log.reopen()
        elif what == "refresh":
            self.service.egress.refresh()
        elif what == "status":
            self._control.send(json.dumps({"status": self.status()}).encode())

    def status(self) -> dict[str, Any]:
        """Counters, and what is here now."""
        counters = self.service.counters
        return {
            "setting_up": len(self._sessions),
            "relaying": len(self._passages),
            "associations": len(self._associations),
            **{name: getattr(counters, name) for name in counters.__slots__},
        }

    def stop(self) -> None:
        """Accept no more; end when all is over, or after `stop_s`."""
        if self._stopping:
            return
        self._stopping = True
        self._pause()
        self._stop_holding(successor=False)
        self.service.loop.later(self.service.config.stop_s, self._end)
        self._look_for_end()

    def _stop_holding(self, *, successor: bool) -> None:
        for holds in self.service.holds.values():
            holds.stop(successor=successor)

    def _give(self, sock: socket.socket) -> None:
        self._pause()
        self._stop_holding(successor=True)
        giver = self._giver = Giver(self.service, sock, self._released, self._given)
        things: list[Thing] = [*self._passages.values(), *self._associations]
        for thing in things:
            if self._giver is not giver:  # the successor is gone already
                return
            giver.offer(thing)
        self._look_for_end()

    def _released(self, thing: Thing) -> None:
        """The successor has it."""
        self.service.counters.handed_over += 1
        user = self.service.user(thing.user) if isinstance(thing, Passage) else thing.user
        if user is not None:
            self.service.limits.end(user)
        if isinstance(thing, Association):
            self._associations.discard(thing)
            thing.close()
        else:
            assert thing.relay is not None
            self._passages.pop(id(thing.relay), None)
            thing.relay.close()
        self._look_for_end()

    def _given(self, done: bool) -> None:
        self._giver = None
        if done:
            self._end()
        elif not self._stopping:
            self._log.warning("the successor left; going on")
            self.start()

    def _taken(self) -> None:
        """A predecessor has given all, or is gone."""
        self._takers -= 1
        self._look_for_end()

    def _take(self, said: dict[str, Any], fds: list[int]) -> None:
        """A connection of a predecessor's."""
        user = self.service.user(said["user"])
        if said["kind"] == "relay":
            thing: Thing = unpack_passage(said, fds, self.service, self._relay_over)
        elif user is not None:
            thing = self._unpack_association(user, said, fds)
        else:  # nobody's any more: datagrams have no egress without a user
            for fd in fds:
                os.close(fd)
            return
        if user is not None:
            self.service.limits.adopt(user)
        self.service.counters.adopted += 1
        self._run(thing)

    def _unpack_association(self, user: User, said: dict[str, Any], fds: list[int]) -> Association:
        control, inner, *outer = (socket.socket(fileno=fd) for fd in fds)
        association = Association(self.service, user, control, inner, ip_address(said["client"]), said["port"])
        association.started_s = said["started_s"]
        association.up_bytes, association.down_bytes = said["bytes"]
        association.outer = dict(zip(said["outer"], outer, strict=True))
        return association

    def _look_for_end(self) -> None:
        if self._giver is not None:
            if not self._sessions and not self._takers and self._giver.idle:
                self._giver.finish()
        elif self._stopping and not (self._sessions or self._takers or self._passages or self._associations):
            self._end()

    def _end(self) -> None:
        self.service.log.flush()
        self.service.loop.stop()

    def _failed(self, error: BaseException) -> None:
        self.service.counters.errors += 1
        self._log.error("a connection failed by a mistake of ours", error=repr(error), exc_info=error)
