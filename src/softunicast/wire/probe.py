# SPDX-License-Identifier: Apache-2.0
"""The question of one node to another whether it lives: a GUE control message (bpf/include/abi.h, struct su_probe).

    0                   1                   2                   3
    |0 0|1| hlen 0  | 1 ask, 2 reply|  flags: 1 fit                 |
    |                     sequence, echoed                          |

It is the UDP payload, sent to the tunnel's port of the other node from any port. Network byte order.
Source: draft-ietf-intarea-gue-09 section 3.2 (C bit: control message).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from .packet import Malformed

CONTROL: Final = 0x20
ASK: Final = 1
REPLY: Final = 2
FIT: Final = 1
BYTES: Final = 8
_FORM: Final = struct.Struct("!BBHI")


@dataclass(frozen=True, slots=True)
class Probe:
    """`type`: ASK or REPLY; `flags`: FIT in a reply; `sequence`: 32 bits."""

    type: int
    flags: int
    sequence: int

    @property
    def fit(self) -> bool:
        """The node that replies steers and wants to be asked."""
        return bool(self.flags & FIT)

    def pack(self) -> bytes:
        """Eight bytes."""
        return _FORM.pack(CONTROL, self.type, self.flags, self.sequence)


def unpack(payload: bytes) -> Probe:
    """Read a UDP payload. Malformed: not eight bytes, or no control message of ours."""
    if len(payload) != BYTES:
        raise Malformed(f"a probe of {len(payload)} bytes")
    first, kind, flags, sequence = _FORM.unpack(payload)
    if first != CONTROL or kind not in (ASK, REPLY):
        raise Malformed(f"no probe: first byte {first:#x}, type {kind}")
    return Probe(kind, flags, sequence)
