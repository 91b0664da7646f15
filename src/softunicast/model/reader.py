# SPDX-License-Identifier: Apache-2.0
"""What everything that reads a part of a plan has in common: how texts become values, and how mistakes are told."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from softunicast.model.address import IPNetwork, network_key, parse_network
from softunicast.model.document import Document, Path
from softunicast.model.fleet import Node, Prefix

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
DEVICE: Final = re.compile(r"[^\s/:]{1,15}")

_T = TypeVar("_T")


class Reader:
    """A document that is read, and what is known of the fleet so far."""

    def __init__(self, document: Document, prefixes: tuple[Prefix, ...] = (), nodes: dict[str, Node] | None = None):
        self.document = document
        self.prefixes = prefixes
        self.nodes = {} if nodes is None else nodes

    def parsed(self, path: Path, parse: Callable[[str], _T], text: str) -> _T:
        """`parse(text)`; its ValueError becomes a PlanError at `path`."""
        try:
            return parse(text)
        except ValueError as error:
            self.document.fail(path, str(error))

    def networks(self, path: Path, texts: Sequence[str]) -> tuple[IPNetwork, ...]:
        """A list of prefixes, sorted, each once."""
        found = {self.parsed((*path, index), parse_network, text) for index, text in enumerate(texts)}
        return tuple(sorted(found, key=network_key))

    def unknown(self, path: Path, kind: str, name: str, known: Sequence[str], *, key: bool = False) -> None:
        """Fail unless `name` is one of `known`."""
        if name not in known:
            self.document.fail(
                path, f"no {kind} {name[:63]!r}", f"there are: {', '.join(sorted(known)) or 'none'}", key=key
            )

    def device(self, path: Path, name: str) -> str:
        """A name that Linux takes for a device."""
        if DEVICE.fullmatch(name) is None or name in (".", ".."):
            self.document.fail(
                path, f"{name[:40]!r} is no device name", "use at most 15 characters, no space, `/` or `:`"
            )
        return name
