# SPDX-License-Identifier: Apache-2.0
"""The one file of BIRD's configuration that is ours. Pure: from what is to be announced to its text.

    protocol static softunicast4 {
            ipv4;
            route 198.51.100.0/24 unreachable { bgp_med = 0; };
    }

Two protocols, softunicast4 and softunicast6, are always in it, without routes while nothing is announced: BIRD then
withdraws what there was. The operator's own sessions export them (`export where proto = "softunicast4"`), so the file
names no neighbour and no AS, and a configuration that does not include it loads as well. While the node drains the
routes carry the MED and the community of the plan.

Sources: BIRD 2.0 user's guide, sections 5.5 (filters), 6.14 (static); RFC 4271 section 5.1.4 (MED); RFC 8326 section 4
(GRACEFUL_SHUTDOWN).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from typing import Final

from softunicast.model.address import IPNetwork

PROTOCOLS: Final = {4: "softunicast4", 6: "softunicast6"}


class Stage(Enum):
    """How the prefixes are announced."""

    ANNOUNCED = "announced"
    DRAINING = "draining"
    WITHDRAWN = "withdrawn"


@dataclass(frozen=True, slots=True)
class Announcement:
    """What BIRD is to say. `why`: for people, in the file's head."""

    node: str
    prefixes: tuple[IPNetwork, ...]
    stage: Stage
    med: int = 0
    community: str | None = None
    why: str = ""


def render(said: Announcement) -> str:
    """The file's text; the same announcement gives the same text."""
    return "".join(f"{line}\n" for line in _lines(said))


def _lines(said: Announcement) -> Iterator[str]:
    yield f"# Written by the softunicast agent of node {said.node}: changes are lost."
    yield f"# {said.stage.value}{': ' + ' '.join(said.why.split()) if said.why else ''}"
    attributes = f"bgp_med = {said.med if said.stage is Stage.DRAINING else 0};"
    if said.stage is Stage.DRAINING and said.community is not None:
        attributes += f" bgp_community.add(({said.community.replace(':', ',')}));"
    for version, name in PROTOCOLS.items():
        yield f"protocol static {name} {{"
        yield f"\tipv{version};"
        if said.stage is not Stage.WITHDRAWN:
            for prefix in sorted(prefix for prefix in said.prefixes if prefix.version == version):
                yield f"\troute {prefix} unreachable {{ {attributes} }};"
        yield "}"
