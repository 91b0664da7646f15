# SPDX-License-Identifier: Apache-2.0
"""From the words of a call (pool="gb", country="GB", sticky="user-7") to a Dialer; and the agent, asked when needed."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, Final

from softunicast.dial.choice import client_of, make_choice
from softunicast.dial.dialer import Dialer, Option, process_client
from softunicast.dial.ways import Way
from softunicast.errors import SoftunicastError, UsageError
from softunicast.kernel import netns
from softunicast.model.slice import Slice

MOST_KEPT: Final = 1024
Sticky = str | bool


def dialer(
    *,
    pool: str | None = None,
    slice: str | Slice | None = None,
    sticky: Sticky = True,
    node: str | None = None,
    way: str | Way | None = None,
    plain: bool = False,
    options: Sequence[Option] = (),
    **tags: str,
) -> Dialer:
    """What the words mean on this node; keep it, and use it for many sockets.

    `pool`, or tags of pools (`country="GB"`), or `slice` ("198.51.100.20:9000-9009"); none: the node's only pool.
    `sticky`: True, this process keeps one address; a text, whoever says the same text does; False, each socket its own.
    `node`: default, that of this network namespace. `way`: "tag", "agent", "bind" or "range" instead of the best.
    `plain`: where no agent ever ran, use the machine's own address. `options`: (level, name, value) for each socket.
    UsageError: that is not to be had here.
    """
    try:
        chosen = Way(way) if way is not None else None
    except ValueError as error:
        raise UsageError(f"way {way}: there are {', '.join(one.value for one in Way)}") from error
    choice = make_choice(pool, slice, tags, seed(sticky))
    return Dialer(choice, node=node, way=chosen, plain=plain, ask_agent=ask_agent, options=options)


def seed(sticky: Sticky) -> int:
    """The client's number; 0: none, each socket for itself."""
    if isinstance(sticky, str):
        return client_of(sticky)
    return process_client() if sticky else 0


_kept: dict[Any, Dialer] = {}
_lock: Final = threading.Lock()


def kept(**words: Any) -> Dialer:
    """The dialer of these words in this network namespace, made once: for calls that say them each time."""
    words["options"] = tuple(words.get("options", ()))
    key = (netns.cookie(), tuple(sorted(words.items())), seed(words.get("sticky", True)))
    with _lock:
        found = _kept.get(key)
        if found is None:
            found = dialer(**words)
            while len(_kept) >= MOST_KEPT:
                _kept.pop(next(iter(_kept))).close()
            _kept[key] = found
    return found


@cache
def _local() -> threading.local:
    return threading.local()


def ask_agent(node: str, made: socket.socket, what: Mapping[str, object]) -> None:
    """Have the node's agent put a policy on a socket. A connection a thread; a lost one is made again, once."""
    from softunicast.api.client import Client

    here = _local()
    if here.__dict__.get("pid") != os.getpid():
        # A child has its parent's connections: two would read each other's answers.
        here.__dict__.update(pid=os.getpid(), clients={})
    connections: dict[str, Client] = here.__dict__["clients"]
    for again in (False, True):
        agent = connections.get(node)
        fresh = agent is None
        if agent is None:
            agent = connections[node] = Client.of(node)
        try:
            agent.ask({"do": "tag", **what}, [made.fileno()])
        except UsageError:
            raise
        except SoftunicastError:
            with contextlib.suppress(OSError):
                connections.pop(node).close()
            if fresh or again:
                raise
        else:
            return
