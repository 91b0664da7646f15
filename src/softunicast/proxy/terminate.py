# SPDX-License-Identifier: Apache-2.0
"""What `softunicast terminator` is told: terminate.json, and the ProxyConfig that it makes. Pure.

The terminator is the proxy (master, workers, relays, handover) with transparent listeners in the namespaces where the
TCP of on-ramps ends. Each on-ramp is a user; what it may leave by is the very policy that its packets have, and the
address is chosen for a client as fish chooses it, so that a client's TCP and UDP have one (RFC 4787 REQ-2).
"""

from __future__ import annotations

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import Final

from softunicast.errors import KernelError
from softunicast.kernel import abi
from softunicast.kernel.abi_util import addr_bytes, mix
from softunicast.model.address import IPAddress, Networks
from softunicast.proxy.core.messages import Endpoint
from softunicast.proxy.egress import PoolPolicy
from softunicast.proxy.policy import Listener, ProxyConfig, User

FILE: Final = "terminate.json"
FORMAT: Final = 1
PORT: Final = 7000
"""Of the listening sockets; TPROXY leads to it from all ports."""
EVERYWHERE: Final = Networks((IPv4Network("0.0.0.0/0"), IPv6Network("::/0")))
STOP_S: Final = 1
"""Their on-ramps are gone: nobody hears what open connections say."""
HANDSHAKE_S: Final = 20
"""A client whose SYN was let in has so long to complete its handshake."""


@dataclass(frozen=True, slots=True)
class Ended:
    """An entry of terminate.json: an on-ramp for the terminator. `policy`: struct su_policy in hexadecimal; limits 0:
    none; `addresses`: those that its connections may leave from."""

    name: str
    id: int
    namespace: str
    held: bool
    pool: str
    policy: str
    addresses: tuple[str, ...]
    max_flows: int
    new_per_s: int


@dataclass(frozen=True, slots=True)
class Told:
    """terminate.json."""

    node: str
    connect_s: float
    access_log: str | None
    onramps: tuple[Ended, ...]

    def dumps(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True) + "\n"


def loads(text: str) -> Told:
    """Read terminate.json. ValueError, TypeError, KeyError: it is none."""
    raw = json.loads(text)
    if raw.pop("format") != FORMAT:
        raise ValueError("another format")
    raw["onramps"] = tuple(Ended(**{**one, "addresses": tuple(one["addresses"])}) for one in raw["onramps"])
    return Told(**raw)


def read(path: Path) -> Told:
    """terminate.json. KernelError: it is not there or damaged."""
    try:
        return loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise KernelError(f"{path}: cannot be read ({error}); the node's agent writes it") from error


def config_of(told: Told, file: str) -> ProxyConfig:
    """Two listeners and a user for each on-ramp. What inner addresses there are is not asked: who may send was."""
    listeners = []
    users = {}
    for index, ended in enumerate(told.onramps):
        for host in (IPv4Address("127.0.0.1"), IPv6Address("::1")):
            listeners.append(
                Listener(
                    ended.name,
                    Endpoint(host, PORT),
                    (),
                    ended.name,
                    Networks(),
                    proxy_header=False,
                    transparent=True,
                    namespace=ended.namespace,
                    held=ended.held,
                )
            )
        users[ended.name] = User(
            ended.name,
            index,
            (ended.pool,),
            {},
            direct=False,
            digest=None,
            address_by="client",
            connections=ended.max_flows or None,
            connects_per_s=ended.new_per_s or None,
            allow=EVERYWHERE,
            send_proxy_header=None,
        )
    return ProxyConfig(
        file,
        tuple(listeners),
        users,
        workers=1,
        handshake_s=HANDSHAKE_S,
        connect_s=told.connect_s,
        stop_s=STOP_S,
        access_log=told.access_log,
    )


def pools_of(told: Told, user: User) -> Sequence[PoolPolicy]:
    """An on-ramp's one way out."""
    ended = told.onramps[user.index]
    return (PoolPolicy(ended.pool, abi.Policy.unpack(bytes.fromhex(ended.policy)), frozenset(ended.addresses)),)


def client_number(told: Told, user: User, client: IPAddress) -> int:
    """The seed of the address choice, as su_flow_begin (work.h) makes it of a client's packet."""
    _, first, second, last = struct.unpack("=4I", addr_bytes(client))
    return mix(last ^ mix(second ^ first ^ told.onramps[user.index].id)) or 1
