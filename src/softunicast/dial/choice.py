# SPDX-License-Identifier: Apache-2.0
"""Which slices a socket may use, and in which order. Pure.

A program says what it wants, a `Choice`: a pool, tags that pools have, or part of a slice; and who it speaks for. What
this node holds, `Holdings`, turns that into `Lane`s: slices to try one after the other.

The order is the data plane's (bpf/include/arbiter.h, su_rendezvous): the slice with the best rendezvous hash of client
and address first, then those that follow in the pool. So whoever is the same client keeps the same address, whether the
hooks choose or we do (RFC 4787 REQ-2), and when it is full goes on to the same other one.
"""

from __future__ import annotations

import difflib
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import Final

from softunicast.errors import UsageError
from softunicast.kernel.abi_util import mix
from softunicast.model.slice import Slice

WORDS: Final = struct.Struct("=4I")
MAPPED: Final = b"\0" * 10 + b"\xff\xff"


@dataclass(frozen=True, slots=True)
class Choice:
    """At most one of `pool`, `tags` and `slice`; none: the node's only pool. `client`: same number, same address."""

    pool: str | None = None
    tags: tuple[tuple[str, str], ...] = ()
    slice: Slice | None = None
    client: int = 0

    def __str__(self) -> str:
        if self.slice is not None:
            return f"slice {self.slice}"
        if self.pool is not None:
            return f"pool {self.pool}"
        return "tags " + ", ".join(f"{name}={value}" for name, value in self.tags) if self.tags else "the only pool"


@dataclass(frozen=True, slots=True)
class Held:
    """A slice of this node; `index` is its place in the map `slices`."""

    index: int
    slice: Slice
    pool: str


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a node holds. `pools` by name and number, `tags` by pool; `never`: destinations that are never sliced."""

    node: str
    pools: Mapping[str, int]
    slices: tuple[Held, ...]
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    never: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Lane:
    """Ports to stay in, and the pool they are of. `whole`: all of what this node holds there, not a part of it."""

    slice: Slice
    pool: str
    whole: bool = True

    def __str__(self) -> str:
        return str(self.slice)


def make_choice(pool: str | None, slice_: str | Slice | None, tags: Mapping[str, str], client: int = 0) -> Choice:
    """UsageError when that is none."""
    given = [name for name, value in (("pool", pool), ("slice", slice_), ("tags", tags)) if value]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)}: each says all; keep one of them")
    if isinstance(slice_, str):
        try:
            slice_ = Slice.parse(slice_)
        except ValueError as error:
            raise UsageError(f"slice {error}") from error
    return Choice(pool, tuple(sorted((name, str(value)) for name, value in tags.items())), slice_, client)


def client_of(text: str) -> int:
    """The number of a client by name: never 0, which would mean nobody."""
    return zlib.crc32(text.encode("utf-8", "surrogatepass")) or 1


def pools_of(choice: Choice, held: Holdings) -> tuple[str, ...]:
    """Pools whose slices the choice may use, of those that this node holds something of. UsageError: none."""
    mine = sorted({one.pool for one in held.slices})
    if choice.slice is not None:
        lane = _part(choice.slice, held)
        return (lane.pool,)
    if choice.pool is not None:
        if choice.pool not in held.pools:
            near = difflib.get_close_matches(choice.pool, held.pools, n=1)
            hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(held.pools)) or 'none'}"
            raise UsageError(f"pool {choice.pool}: not in the plan of node {held.node}; {hint}")
        if choice.pool not in mine:
            raise UsageError(
                f"pool {choice.pool}: node {held.node} holds no slice of it; `softunicast plan apply` gives it one"
            )
        return (choice.pool,)
    if choice.tags:
        found = tuple(
            pool for pool in mine if all(held.tags.get(pool, {}).get(name) == value for name, value in choice.tags)
        )
        if not found:
            known = sorted({f"{name}={value}" for pool in mine for name, value in held.tags.get(pool, {}).items()})
            raise UsageError(
                f"{choice}: no pool of node {held.node} has them; its pools have: {', '.join(known) or 'no tags'}"
            )
        return found
    if len(mine) != 1:
        raise UsageError(f"node {held.node} holds slices of {', '.join(mine) or 'no pool'}: say which pool, pool=...")
    return (mine[0],)


def lanes(choice: Choice, held: Holdings, version: int) -> tuple[Lane, ...]:
    """Slices of that family in the order to try them; () when there is none. UsageError as pools_of."""
    pools = pools_of(choice, held)
    if choice.slice is not None:
        return (_part(choice.slice, held),) if choice.slice.address.version == version else ()
    mine = sorted(
        (one for one in held.slices if one.pool in pools and one.slice.address.version == version),
        key=lambda one: (one.pool, one.slice.sort_key),
    )
    if not mine:
        return ()
    best = max(range(len(mine)), key=lambda at: (rendezvous(choice.client, mine[at].slice.address), -at))
    return tuple(Lane(one.slice, one.pool) for one in (*mine[best:], *mine[:best]))


def rendezvous(client: int, address: IPv4Address | IPv6Address) -> int:
    """The score of an address for a client; the highest wins."""
    packed = address.packed if address.version == 6 else MAPPED + address.packed
    a, b, c, d = WORDS.unpack(packed)
    return mix(client ^ mix(a ^ b ^ c ^ mix(d)))


def _part(part: Slice, held: Holdings) -> Lane:
    for one in held.slices:
        if one.slice.covers(part):
            return Lane(part, one.pool, part == one.slice)
    holds = ", ".join(str(one.slice) for one in held.slices) or "none"
    raise UsageError(f"slice {part}: node {held.node} does not hold it; it holds {holds}")
