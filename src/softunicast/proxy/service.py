# SPDX-License-Identifier: Apache-2.0
"""What all connections of a worker share, and what is known of one that is relayed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from softunicast.proxy.access_log import AccessLog, TcpInfo, tcp_info
from softunicast.proxy.core.messages import Endpoint, Reason
from softunicast.proxy.dns import Resolver
from softunicast.proxy.egress import Egress
from softunicast.proxy.limits import Limits
from softunicast.proxy.loop import Loop
from softunicast.proxy.policy import ProxyConfig, User
from softunicast.proxy.relay import Pipes, Relay

if TYPE_CHECKING:
    from softunicast.proxy.holds import Holds


@dataclass(slots=True)
class Counters:
    """What a worker counted since it started."""

    accepted: int = 0
    relayed: int = 0
    adopted: int = 0
    handed_over: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    datagrams_up: int = 0
    datagrams_down: int = 0
    errors: int = 0

    def fail(self, reason: Reason) -> None:
        name = reason.name.lower()
        self.failed[name] = self.failed.get(name, 0) + 1


@dataclass(slots=True)
class Service:
    """A worker's means. `holds`: SYNs that wait, by the namespace they came to."""

    loop: Loop
    config: ProxyConfig
    egress: Egress
    resolver: Resolver
    limits: Limits
    log: AccessLog
    pipes: Pipes = field(default_factory=Pipes)
    counters: Counters = field(default_factory=Counters)
    holds: dict[str, Holds] = field(default_factory=dict)

    def user(self, name: str) -> User | None:
        return self.config.users.get(name)


@dataclass(slots=True)
class Passage:
    """A relayed connection, for the log and for whoever takes it over. `peer`: the socket's other end; `client`: whom a
    PROXY header named, else the same. `started_s`: since 1970."""

    user: str
    protocol: str
    listener: str
    client: Endpoint
    target: Endpoint
    remote: Endpoint
    local: Endpoint
    pool: str
    started_s: float
    first_bytes: int = 0
    relay: Relay | None = None

    def entry(self, now_s: float) -> dict[str, Any]:
        """The log's line, while both sockets are open."""
        relay = self.relay
        assert relay is not None
        sides: dict[str, TcpInfo | None] = {
            "tcp_client": tcp_info(relay.client.sock),
            "tcp_upstream": tcp_info(relay.upstream.sock),
        }
        return {
            "user": self.user,
            "protocol": self.protocol,
            "listener": self.listener,
            "client": str(self.client),
            "target": str(self.target),
            "local": str(self.local),
            "remote": str(self.remote),
            "pool": self.pool,
            "end": relay.why,
            "duration_s": round(now_s - self.started_s, 3),
            "bytes_up": relay.up.moved + self.first_bytes,
            "bytes_down": relay.down.moved,
            **{name: info.as_json() if info else None for name, info in sides.items()},
        }
