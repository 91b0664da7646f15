# SPDX-License-Identifier: Apache-2.0
"""Puts sockets into slices: a `Dialer` knows a choice, the node, and the way; its `tries` are what a connect() is of.

Safe for several threads, as long as they are in one network namespace. Python's own objects are all it shares.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import TYPE_CHECKING, Final

from softunicast.dial import ports
from softunicast.dial.choice import Choice, Held, Holdings, Lane
from softunicast.dial.choice import lanes as lanes_of
from softunicast.dial.here import Here, Never
from softunicast.dial.tries import Remote, Route, Tries
from softunicast.dial.ways import AskAgent, Grounds, Way, policies
from softunicast.errors import FamilyMissing, SliceFull, SoftunicastError, UsageError
from softunicast.model.slice import Slice

if TYPE_CHECKING:
    from softunicast.kernel import abi

    Policies = list[tuple[abi.Policy, tuple[Lane, ...]]]

LOG: Final = logging.getLogger("softunicast")
LOCAL: Final = ("127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10", "224.0.0.0/4", "ff00::/8")
Option = tuple[int, int, int | bytes]


def process_client() -> int:
    """A number for this process: it keeps one address for as long as it lives."""
    return _SEED ^ os.getpid() or 1


_SEED: Final = random.SystemRandom().getrandbits(32)


class Dialer:
    """`choice.client` 0: each socket is a client of its own. `way`: None, the best to be had.

    `plain`: where no agent ever ran, go out by the machine's own address instead of refusing, and say so once.
    """

    def __init__(
        self,
        choice: Choice,
        *,
        node: str | None = None,
        way: Way | None = None,
        plain: bool = False,
        ask_agent: AskAgent | None = None,
        options: Sequence[Option] = (),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """UsageError: what is chosen is not to be had here."""
        self.choice = choice
        self.way = way
        self._ask_agent = ask_agent
        self._options = tuple(options)
        self._clock = clock
        self._here: Here | None = None
        self._alone: Holdings | None = None
        self._never = Never(LOCAL)
        self._said: set[str] = set()
        self._known: dict[int, tuple[Holdings, tuple[Lane, ...]]] = {}
        self._made: tuple[tuple[Lane, ...], Policies] | None = None
        try:
            self._here = Here(node)
        except UsageError as error:
            self._alone = self._without_node(error, named=node is not None, plain=plain)
        self._grounds = Grounds(self._here.node if self._here else None, clock)
        self.plain = self._here is None and self._alone is None
        if not self.plain:
            for version in (4, 6):
                lanes_of(choice, self.holdings(), version)

    def _without_node(self, error: UsageError, *, named: bool, plain: bool) -> Holdings | None:
        chosen = self.choice.slice
        if chosen is not None and not named and self.way in (None, Way.RANGE):
            self._say(
                f"{chosen}: used without an agent, by the kernel's own port choice ({error}): nothing keeps forwarded "
                "packets and other programs off its ports"
            )
            return Holdings("", {"": 0}, (Held(0, chosen, ""),))
        if plain:
            self._say(f"{self.choice}: not used, this machine's own address is ({error})")
            return None
        raise UsageError(
            f'{self.choice}: {error}; or name ports of an address that this machine has, slice="ADDRESS:FIRST-LAST"'
        ) from error

    def _say(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            LOG.warning("%s", text)

    def close(self) -> None:
        """Give descriptors back; sockets are not concerned."""
        self._grounds.close()

    def holdings(self) -> Holdings:
        """What can be chosen from, as of now."""
        if self._here is not None:
            return self._here.holdings()
        assert self._alone is not None
        return self._alone

    def lanes(self, version: int) -> tuple[Lane, ...]:
        """The slices of that family (4, 6) in the order to try them; not sticky: another order for each socket."""
        return self._lanes(self.holdings(), version)[1]

    def never_sliced(self, address: str) -> bool:
        """Whether that destination is reached plainly, whatever is chosen."""
        if self._here is not None:
            self._here.holdings()
        return self._plainly(address)

    def _plainly(self, address: str) -> bool:
        never = self._here.never if self._here is not None else self._never
        return never.has(address)

    def tries(self, remotes: Sequence[Remote], kind: socket.SocketKind, timeout_s: float | None = None) -> Tries:
        """The tries of one connect()."""
        return Tries([unmapped(one) for one in remotes], kind, self._routes, timeout_s, self._clock)

    def way_of(self, lane: Lane, *, connected: bool = True) -> Way:
        """How a socket for that lane gets there now. UsageError: not the way that was asked for. KernelError."""
        hooks, _ = self._grounds.about(lane, self._held())
        if self.way is not None:
            if not hooks and self.way is not Way.RANGE:
                raise UsageError(
                    f"{lane}: way {self.way.value} needs the node's hooks, which are not at work; start its agent"
                )
            return self.way
        if hooks and self._here is not None:
            if self._grounds.socks(self._here.changes) is not None:
                return Way.TAG
            if not connected and self._ask_agent is not None:
                return Way.AGENT
        if not hooks and self._here is not None:
            self._say(
                f"{lane}: the hooks of node {self._here.node} are not at work; by the kernel's own port choice, which "
                "keeps off other sockets only. See `softunicast agent --once`, and its log"
            )
        return Way.BIND if hooks else Way.RANGE

    def _held(self) -> Holdings:
        """The holdings as they were last read."""
        return (self._here.last if self._here is not None else None) or self.holdings()

    def _lanes(self, held: Holdings, version: int) -> tuple[Choice, tuple[Lane, ...]]:
        if not self.choice.client:
            choice = replace(self.choice, client=random.getrandbits(32) or 1)
            return choice, lanes_of(choice, held, version)
        known = self._known.get(version)
        if known is None or known[0] is not held:
            known = self._known[version] = (held, lanes_of(self.choice, held, version))
        return self.choice, known[1]

    def _routes(self, remote: Remote, kind: socket.SocketKind) -> Iterator[Route]:
        if self.plain:
            yield Route(partial(self._socket, remote.family, kind))
            return
        held = self.holdings()
        if self._plainly(remote.sockaddr[0]):
            yield Route(partial(self._socket, remote.family, kind))
            return
        choice, found = self._lanes(held, 6 if remote.family == socket.AF_INET6 else 4)
        if not found:
            raise FamilyMissing(remote.end, str(choice), "tcp" if kind == socket.SOCK_STREAM else "udp")
        way = self.way_of(found[0])
        if way in (Way.TAG, Way.AGENT):
            yield from self._by_policy(choice, found, remote.family, kind, way)
            return
        for lane in found:
            yield from self._by_port(lane, remote.family, kind)

    def _by_policy(
        self, choice: Choice, found: tuple[Lane, ...], family: socket.AddressFamily, kind: socket.SocketKind, way: Way
    ) -> Iterator[Route]:
        for policy, covered in self._policies(choice, found):

            def make(policy: abi.Policy = policy, lane: Lane = covered[0]) -> socket.socket:
                return self._tagged(self._socket(family, kind), policy, lane, way)

            yield Route(make, tuple(lane.slice for lane in covered), blocking=way is Way.AGENT)

    def _policies(self, choice: Choice, found: tuple[Lane, ...]) -> Policies:
        if choice is not self.choice:
            return policies(choice, self._held(), found)
        # One tuple: another thread may be after the other family's.
        known = self._made
        if known is None or known[0] is not found:
            known = self._made = (found, policies(choice, self._held(), found))
        return known[1]

    def _by_port(self, lane: Lane, family: socket.AddressFamily, kind: socket.SocketKind) -> Iterator[Route]:
        hooks, style = self._grounds.about(lane, self._held())
        if style is ports.Style.NO_PORT:
            yield Route(partial(self._bound, family, kind, lane.slice, style, 0, hooks), (lane.slice,))
            return
        left = lane.slice.size
        for port in ports.ports_of(lane.slice, random.getrandbits(32)):
            left -= 1
            make = partial(self._bound, family, kind, lane.slice, style, port, hooks)
            yield Route(make, (lane.slice,), more=left > 0)

    def _tagged(self, made: socket.socket, policy: abi.Policy, lane: Lane, way: Way) -> socket.socket:
        try:
            if way is Way.AGENT:
                if self._here is None or self._ask_agent is None:
                    raise UsageError(f"{lane}: no agent to ask in this network namespace; start it")
                whole = None if self.choice.slice is None else str(lane)
                self._ask_agent(self._here.node, made, {"pool": lane.pool, "slice": whole, "client": policy.client})
                return made
            socks = self._grounds.socks(self._here.changes) if self._here else None
            if socks is None:
                raise UsageError(f"{lane}: way tag is root's, where a node's agent has run; use another way")
            from softunicast.egress.tag import tag

            tag(socks, made.fileno(), policy)
        except BaseException:
            made.close()
            raise
        return made

    def _bound(
        self,
        family: socket.AddressFamily,
        kind: socket.SocketKind,
        part: Slice,
        style: ports.Style,
        port: int,
        hooks: bool,
    ) -> socket.socket:
        made = self._socket(family, kind)
        try:
            ports.prepare(made, part, style, port, hooks=hooks)
        except BaseException:
            made.close()
            raise
        return made

    def _socket(self, family: socket.AddressFamily, kind: socket.SocketKind) -> socket.socket:
        made = socket.socket(family, kind)
        try:
            for level, name, value in self._options:
                made.setsockopt(level, name, value)
        except BaseException:
            made.close()
            raise
        return made

    def datagram(self, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
        """A UDP socket that may send anywhere without connect(). SliceFull: no port of its own is left."""
        kind, version = socket.SOCK_DGRAM, 6 if family == socket.AF_INET6 else 4
        if self.plain:
            return self._socket(family, kind)
        anywhere = ("::" if version == 6 else "0.0.0.0", 0)
        choice, found = self._lanes(self.holdings(), version)
        if not found:
            raise FamilyMissing(anywhere, str(choice), "udp")
        way = self.way_of(found[0], connected=False)
        if way in (Way.TAG, Way.AGENT):
            policy, covered = self._policies(choice, found)[0]
            try:
                return self._tagged(self._socket(family, kind), policy, covered[0], way)
            except (SoftunicastError, OSError) as error:
                if self.way is not None or way is Way.TAG:
                    raise
                self._say(f"{error}: unconnected UDP has a port of its own instead, towards everybody")
        for lane in found:
            hooks, _ = self._grounds.about(lane, self._held())
            made = self._socket(family, kind)
            try:
                ports.prepare_unconnected(
                    made, lane.slice, option=self._grounds.option, random=random.getrandbits(32), hooks=hooks
                )
            except OSError:
                made.close()
            else:
                return made
        raise SliceFull(anywhere, tuple(map(str, found)), "udp")


def unmapped(remote: Remote) -> Remote:
    """An IPv4-mapped address as the IPv4 that it is."""
    if remote.family == socket.AF_INET6:
        mapped = getattr(ip_address(remote.sockaddr[0].partition("%")[0]), "ipv4_mapped", None)
        if mapped is not None:
            return Remote(socket.AF_INET, (str(mapped), remote.sockaddr[1]))
    return remote
