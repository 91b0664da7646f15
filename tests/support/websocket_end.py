# SPDX-License-Identifier: Apache-2.0
"""A WebSocket (RFC 6455, by the library `websockets`) from a client through a proxy to an origin, both ends at hand.

No end pings: what keeps the connection alive while it idles is nothing but what is in between.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from queue import Queue
from threading import Thread

import pytest
from websockets.sync.client import ClientConnection, connect
from websockets.sync.server import ServerConnection, serve

from softunicast.kernel import netns
from tests.support.proxy_place import Place

PATIENCE_S = 60


@contextmanager
def websocket(place: Place, by: str) -> Iterator[tuple[ClientConnection, ServerConnection]]:
    """`by`: the proxy's URL. Both ends of one that stands."""
    served: Queue[ServerConnection] = Queue()
    over: Queue[None] = Queue()

    def keep(there: ServerConnection) -> None:
        served.put(there)
        over.get()

    with netns.enter(place.origin_ns):
        listener = socket.create_server((place.origin, 0))
    with serve(keep, sock=listener, ping_interval=None, open_timeout=PATIENCE_S) as server:
        thread = Thread(target=server.serve_forever, daemon=True)
        thread.start()
        where = f"ws://{place.origin}:{listener.getsockname()[1]}/"
        try:
            with netns.enter(place.ns):
                here = connect(where, proxy=by, ping_interval=None, open_timeout=PATIENCE_S)
            with here:
                yield here, served.get(timeout=PATIENCE_S)
        finally:
            over.put(None)
            server.shutdown()
            thread.join(PATIENCE_S)


def idle(clients: Sequence[ClientConnection], for_s: float) -> None:
    """So long nothing comes to any, neither a message nor an end (which would be ConnectionClosed)."""
    for here in clients:
        with pytest.raises(TimeoutError):
            here.recv(timeout=for_s)
        for_s = 0


def talk(here: ClientConnection, there: ServerConnection, what: str) -> None:
    """A message each way, the origin's first."""
    there.send(f"{what}?")
    assert here.recv(timeout=PATIENCE_S) == f"{what}?"
    here.send(what * 10_000)
    assert there.recv(timeout=PATIENCE_S) == what * 10_000


def seen_by(there: ServerConnection) -> str:
    """The client's address and port, as the origin sees them."""
    return "{}:{}".format(*there.remote_address[:2])
