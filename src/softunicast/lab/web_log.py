# SPDX-License-Identifier: Apache-2.0
"""What the lab's web and echo servers saw, read back from their log (its lines: see
softunicast.lab.servers).
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class Seen:
    """One TCP connection as a server saw it.

    `peer` and `port` as they arrived; `paths` the requests so far (queries included); `sent_bytes` what was
    sent, heads included; `opened_s` seconds since 1970; `live` until it is closed; `error` the errno's name
    when it broke.
    """

    number: int
    peer: str
    port: int
    server: str
    server_port: int
    opened_s: float
    paths: list[str] = field(default_factory=list)
    sent_bytes: int = 0
    live: bool = True
    error: str = ""

    @property
    def path(self) -> str:
        """The first request's path, "" when none was made."""
        return self.paths[0] if self.paths else ""


def read_web_log(lines: Iterable[str]) -> list[Seen]:
    """Connections in the order they were accepted. A last line that is not whole yet is left out."""
    seen: dict[int, Seen] = {}
    for line in lines:
        if not line.endswith("\n"):
            break
        event = json.loads(line)
        number = event["id"]
        if event["event"] == "open":
            seen[number] = Seen(number, event["peer"], event["port"], event["server"], event["server_port"], event["t"])
        elif event["event"] == "request":
            seen[number].paths.append(event["path"])
        elif event["event"] == "sent":
            seen[number].sent_bytes = event["bytes"]
        elif event["event"] == "close":
            seen[number].live = False
            seen[number].error = event["error"]
    return list(seen.values())
