# SPDX-License-Identifier: Apache-2.0
"""Whom an endpoint-independent mapping lets in: what bpf/include/permit.h says, said again (RFC 4787 section 5)."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from typing import Final, Protocol

from softunicast.egress.flow_view import ONRAMP_SHIFT, Timers
from softunicast.kernel.abi import Claim, Flow, Onramp, OnrampFlag, Permit
from softunicast.kernel.abi_util import addr_bytes

UDP: Final = 17
_MASK: Final = 0xFFFFFFFF
_FACTOR: Final = 0x9E3779B1


class Lookup(Protocol):
    """A map's one operation that is needed here; a kernel.bpf.Map has it."""

    def lookup(self, key: bytes) -> bytes | None: ...


class Asker(Protocol):
    """Where a packet comes from, and the outer address and port it came to."""

    @property
    def local(self) -> IPv4Address | IPv6Address: ...
    @property
    def local_port(self) -> int: ...
    @property
    def remote(self) -> IPv4Address | IPv6Address: ...
    @property
    def remote_port(self) -> int: ...


def mapping_hash(claim: Claim) -> int:
    """su_origin_check() of work.h for the mapping of a client's claim: on-ramp, inner address and port, no remote."""
    words = [int.from_bytes(claim.inner[at : at + 4], "little") for at in range(0, 16, 4)]
    port = int.from_bytes(claim.inner_port.to_bytes(2, "big"), "little")
    value = claim.owner >> ONRAMP_SHIFT ^ words[0] ^ words[1] ^ words[2]
    for part in (words[3], 0, port << 16, UDP):
        value = (value * _FACTOR + part) & _MASK
    return value


def permitted(permits: Lookup, onramp: Onramp, claim: Claim, asked: Asker, now_s: int, timers: Timers) -> bool:
    """Whether the filter of that mapping lets a packet from that remote in."""
    if not onramp.flags & (OnrampFlag.ADF | OnrampFlag.APDF):
        return True
    port = asked.remote_port if onramp.flags & OnrampFlag.APDF else 0
    key = Flow(addr_bytes(asked.local), addr_bytes(asked.remote), asked.local_port, port, UDP)
    raw = permits.lookup(key.pack())
    if raw is None:
        return False
    permit = Permit.unpack(raw)
    return permit.who == mapping_hash(claim) and (now_s - permit.sent_s) & _MASK < timers.udp_s
