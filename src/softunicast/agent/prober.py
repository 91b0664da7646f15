# SPDX-License-Identifier: Apache-2.0
"""Asks the other nodes whether they live, and writes what it learns into the map `nodes` (flags DOWN and UNFIT),
nowhere else.

Questions go from sockets on this node's underlay addresses to each other node's tunnel port, at the address by which it
is carried to; the programs of that node answer (bpf/include/steer.h, su_tc_probe). So it is the data plane that is
asked. When this agent dies the flags stay.
"""

from __future__ import annotations

import contextlib
import errno
import json
import selectors
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from softunicast.agent.liveness import Life, Liveness, Peer
from softunicast.agent.machine import Machine
from softunicast.errors import KernelError
from softunicast.kernel import abi
from softunicast.model.plan import Plan
from softunicast.wire import probe
from softunicast.wire.packet import Malformed

FILE: Final = "peers.json"
WRITE_S: Final = 1.0
MOST_READ: Final = 4096
FLAGS: Final = {Life.UP: abi.NodeFlag(0), Life.UNFIT: abi.NodeFlag.UNFIT, Life.DOWN: abi.NodeFlag.DOWN}


class Prober:
    """One node's. `follow` before the first `tick`; `close` at the end. `clock`: monotonic seconds."""

    def __init__(
        self, machine: Machine, log: Any, selector: selectors.BaseSelector, clock: Callable[[], float]
    ) -> None:
        self._machine, self._log, self._selector, self._clock = machine, log, selector, clock
        self._liveness = Liveness(1.0, 3)
        self._sockets: dict[str, socket.socket] = {}  # by the address they are bound to
        self._bound: tuple[str, ...] = ()
        self._port = 0
        self._lives: dict[tuple[str, int], Life] = {}  # as they are in the map, by name and index
        self._complaint = ""
        self._written_s = 0.0

    def close(self) -> None:
        for made in self._sockets.values():
            self._selector.unregister(made)
            made.close()
        self._sockets.clear()

    def follow(self, plan: Plan, indices: Mapping[str, int]) -> None:
        """The nodes of this plan, at these indices of the map `nodes`."""
        me = plan.node(self._machine.node)
        peers = (
            Peer(node.name, node.site, str(node.reached_at(me) or node.underlay), indices[node.name])
            for node in plan.nodes.values()
            if node.name != me.name
        )
        wanted = plan.settings.probes
        self._liveness.follow(peers, wanted.interval_ms / 1000, wanted.lost)
        there = [(peer.name, peer.index) for peer in self._liveness.peers.values()]
        self._lives = {key: self._lives.get(key, Life.UNKNOWN) for key in there}
        self._port = plan.settings.gue_port
        bound = tuple(map(str, me.underlays))
        if self._bound != bound:
            self.close()
            self._bound = bound

    def tick(self) -> float:
        """Read replies, ask when it is time; when to come again."""
        now_s = self._clock()
        if not self._liveness.peers or not self._open():
            return now_s + 1.0
        self._read()
        for peer in self._liveness.ask(now_s):
            question = probe.Probe(probe.ASK, 0, peer.sequence).pack()
            # No route, no buffer: as if it had been lost on the way.
            with contextlib.suppress(OSError):
                self._towards(peer.address).sendto(question, (peer.address, self._port))
        self._tell(now_s)
        return self._liveness.due_s()

    def _towards(self, address: str) -> socket.socket:
        """The socket of that address's family; OSError: it could not be opened."""
        for bound, made in self._sockets.items():
            if (":" in bound) == (":" in address):
                return made
        raise OSError(errno.EADDRNOTAVAIL, "no underlay address of that family")

    def _open(self) -> bool:
        """Open what is not open yet. False: nothing is."""
        missing = [bound for bound in self._bound if bound not in self._sockets]
        complaints = [complaint for bound in missing if (complaint := self._open_at(bound))]
        self._complain("; ".join(complaints))
        return bool(self._sockets)

    def _open_at(self, bound: str) -> str:
        """What went wrong, for people."""
        family = socket.AF_INET6 if ":" in bound else socket.AF_INET
        made = socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            made.bind((bound, 0))
        except OSError as error:
            made.close()
            return f"cannot ask other nodes from {bound}: {error.strerror}; is the address on a device?"
        self._sockets[bound] = made
        self._selector.register(made, selectors.EVENT_READ, self._readable)
        return ""

    def _complain(self, text: str) -> None:
        if text and text != self._complaint:
            self._log.warning("probes", text=text)
        self._complaint = text

    def _read(self) -> None:
        for made in self._sockets.values():
            self._read_from(made)

    def _readable(self, made: Any) -> bool:
        """Read at once: the round trip ends here, and a selector that waits for what is not read does not wait."""
        self._read_from(made)
        return False

    def _read_from(self, made: socket.socket) -> None:
        for _ in range(MOST_READ):
            try:
                payload, address = made.recvfrom(64)
            except BlockingIOError:
                return
            except OSError:  # an ICMP error about an earlier question
                continue
            with contextlib.suppress(Malformed):
                reply = probe.unpack(payload)
                if reply.type == probe.REPLY:
                    self._liveness.answered(address[0], reply.sequence, reply.fit, self._clock())

    def _tell(self, now_s: float) -> None:
        changed = False
        for peer in self._liveness.peers.values():
            key = (peer.name, peer.index)
            before = self._lives.get(key)
            if peer.life is Life.UNKNOWN or peer.life is before:
                continue
            if not self._mark(peer):
                continue
            self._lives[key] = peer.life
            changed = True
            say = self._log.info if peer.life is Life.UP else self._log.warning
            say("node", name=peer.name, site=peer.site, is_=peer.life.value, was=before.value if before else "")
        if changed or now_s - self._written_s >= WRITE_S:
            self._written_s = now_s
            self._machine.write_file(FILE, peers_text(self._liveness, now_s), lasting=False)

    def _mark(self, peer: Peer) -> bool:
        """Set or clear DOWN and UNFIT. False: the node is not in the map (yet)."""
        key = peer.index.to_bytes(4, sys.byteorder)
        nodes = self._machine.map("nodes")
        node = abi.Node.unpack(nodes.lookup(key) or bytes(abi.Node.SIZE))
        if not node.flags & abi.NodeFlag.SET:
            return False
        flags = int(abi.NodeFlag.SET | FLAGS[peer.life])
        if flags != node.flags:
            try:
                nodes.update(key, replace(node, flags=flags).pack())
            except OSError as error:
                raise KernelError(f"map nodes: {error.strerror}", errno=error.errno or 0) from error
        return True


def peers_text(liveness: Liveness, now_s: float) -> str:
    """peers.json: what `softunicast peers` shows besides the map. Seconds since the last answer, milliseconds."""
    return (
        json.dumps(
            {
                peer.name: {
                    "life": peer.life.value,
                    "unanswered": peer.unanswered,
                    "answered_ago_s": None if peer.answered_s is None else round(now_s - peer.answered_s, 3),
                    "rtt_ms": None if peer.rtt_ms is None else round(peer.rtt_ms, 3),
                }
                for peer in sorted(liveness.peers.values(), key=lambda peer: peer.name)
            },
            indent=1,
        )
        + "\n"
    )
