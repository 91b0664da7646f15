# SPDX-License-Identifier: Apache-2.0
"""What the node that this program runs at holds: a part of node.json, read again when the agent wrote it anew.

Readable by everybody, and there while the data plane is, with the agent running or not.
"""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Final

from softunicast.dial.choice import Held, Holdings
from softunicast.errors import KernelError, UsageError
from softunicast.kernel import nodes
from softunicast.model.slice import Slice

REMEMBERED: Final = 4096


def read_holdings(node: str, text: str) -> Holdings:
    """KernelError when that is no node.json."""
    try:
        raw = json.loads(text)
        return Holdings(
            node=node,
            pools=dict(raw["pools"]),
            slices=tuple(Held(one["index"], Slice.parse(one["slice"]), one["pool"]) for one in raw["slices"]),
            tags={pool: dict(tags) for pool, tags in raw.get("tags", {}).items()},
            never=tuple(raw.get("never", ())),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise KernelError(f"{nodes.node_file(node)}: unreadable ({error}); start the node's agent again") from error


class Here:
    """One node's holdings, as of now. `changes` counts how often they were read."""

    def __init__(self, node: str | None = None) -> None:
        """UsageError: there is no such node, or none in this network namespace."""
        self.node = nodes.find_node(node)
        self.changes = 0
        self._file = nodes.node_file(self.node)
        self._stamp: tuple[int, int] | None = None
        self.last: Holdings | None = None
        self.never = Never(())

    def holdings(self) -> Holdings:
        """As of now; `last` and `never` are of the same time. UsageError when the node was taken away meanwhile."""
        try:
            status = self._file.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if self.last is None or stamp != self._stamp:
                self.last = read_holdings(self.node, self._file.read_text(encoding="utf-8"))
                self.never = Never(self.last.never)
                self.changes += 1
                # Last: other threads believe the rest when this fits.
                self._stamp = stamp
        except FileNotFoundError as error:
            raise UsageError(f"node {self.node}: its data plane was removed; start its agent") from error
        return self.last


class Never:
    """A list of networks, and the answers given."""

    def __init__(self, networks: tuple[str, ...]) -> None:
        parsed = [ip_network(one) for one in networks]
        self._parts = [(one.version, int(one.network_address), int(one.netmask)) for one in parsed]
        self._known: dict[str, bool] = {}

    def has(self, text: str) -> bool:
        """Whether an address, as text and perhaps with a scope, is in one of them."""
        found = self._known.get(text)
        if found is None:
            address = ip_address(text.partition("%")[0])
            number, version = int(address), address.version
            found = any(of == version and number & mask == net for of, net, mask in self._parts)
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[text] = found
        return found
