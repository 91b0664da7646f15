# SPDX-License-Identifier: Apache-2.0
"""Sockets that leave by a user's pool, or do not leave.

Each upstream socket is tagged with its pool's policy before it connects (egress.tag): the hooks choose
address and port, claim the flow, or refuse it. Fail closed, twice: the hooks must be attached when the proxy starts,
and a socket whose own address after connect() is not of its pool is closed and refused as FORBIDDEN, whatever let it
through (a destination that is never sliced, an agent that was uninstalled). Only a user with `direct: true` leaves from
the node's own address.

Which pools a user has is asked again whenever the node's files change (`refresh`).
"""

from __future__ import annotations

import random
import socket
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address
from typing import Final, Protocol

from softunicast.kernel import abi
from softunicast.model.address import IPAddress
from softunicast.proxy.policy import User


@dataclass(frozen=True, slots=True)
class PoolPolicy:
    """A pool that this node holds slices of. `addresses`: of those slices, as text."""

    name: str
    policy: abi.Policy
    addresses: frozenset[str]


class Tagger(Protocol):
    """egress.tag.SocketPolicies, or a test's."""

    def tag_packed(self, fd: int, record: bytes) -> None: ...


@dataclass(frozen=True, slots=True)
class Exit:
    """A way out: a pool with the record for a socket, or (name "") the node's own address."""

    name: str
    record: bytes
    addresses: frozenset[str]


DIRECT: Final = Exit("", b"", frozenset())


@dataclass(slots=True)
class Egress:
    """`pools(user)` gives a user's pools on this node, in the order in which they are tried; `number(user, client)` is
    the seed by which a client keeps its address."""

    pools: Callable[[User], Sequence[PoolPolicy]]
    tagger: Tagger | None
    number: Callable[[User, IPAddress], int] = lambda _, client: zlib.crc32(client.packed)
    _kept: dict[str, tuple[PoolPolicy, ...]] = field(default_factory=dict)
    _exits: dict[str, tuple[Exit, ...]] = field(default_factory=dict)

    def refresh(self) -> None:
        """Ask for pools anew."""
        self._kept.clear()
        self._exits.clear()

    def exits(self, user: User, client: IPAddress) -> tuple[Exit, ...]:
        """A user's ways out; empty: this node has none of its pools. SoftunicastError when the node cannot be read."""
        if user.direct:
            return (DIRECT,)
        if user.address_by == "user":
            exits = self._exits.get(user.name)
            if exits is None:
                exits = self._exits[user.name] = self._made(user, zlib.crc32(user.name.encode()))
            return exits
        if user.address_by == "client":
            return self._made(user, self.number(user, client))
        return self._made(user, random.getrandbits(32))

    def _made(self, user: User, number: int) -> tuple[Exit, ...]:
        pools = self._kept.get(user.name)
        if pools is None:
            pools = self._kept[user.name] = tuple(self.pools(user))
        return tuple(
            Exit(one.name, abi.Sock(policy=replace(one.policy, client=number)).pack(), one.addresses) for one in pools
        )

    def open(self, family: int, kind: int, exit_: Exit) -> socket.SocketType:
        """A non-blocking socket under that policy. OSError, KernelError."""
        made = socket.SocketType(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            if exit_.record:
                assert self.tagger is not None
                self.tagger.tag_packed(made.fileno(), exit_.record)
        except BaseException:
            made.close()
            raise
        return made

    def opener(self, user: User) -> Callable[[int, int], socket.SocketType]:
        """Makes sockets of a user's first way out, for what the proxy itself asks (names)."""

        def opened(family: int, kind: int) -> socket.SocketType:
            return self.open(family, kind, self.exits(user, IPv4Address(0))[0])

        return opened

    @staticmethod
    def left_by(exit_: Exit, local: str) -> bool:
        """Is this own address of a socket one that the exit has?"""
        return not exit_.record or local in exit_.addresses
