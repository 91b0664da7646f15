# SPDX-License-Identifier: Apache-2.0
"""Generic UDP Encapsulation, variant 0 without optional fields (draft-ietf-intarea-gue-09 section 3).

    0                   1                   2                   3
    |Ver|C|  Hlen   |  Proto/ctype  |             Flags             |

Ver 0, C 0 (data), Hlen 0 (32-bit words of optional fields), Proto 4 (IPv4) or 41 (IPv6). Bit 0x0002 of Flags
is ours: FINAL, the receiver owns the packet or drops it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

from .packet import Malformed

PORT: Final = 6080
FINAL: Final = 0x0002
HEADER_BYTES: Final = 4
IPV4, IPV6 = 4, 41


@dataclass(frozen=True, slots=True)
class Gue:
    """A header. `proto`: 4 or 41; `flags` in host order; `inner`: offset of the carried packet behind the UDP
    header.
    """

    proto: int
    flags: int = 0
    inner: int = HEADER_BYTES

    @property
    def final(self) -> bool:
        """May not be carried further."""
        return bool(self.flags & FINAL)

    def pack(self) -> bytes:
        """The four bytes behind the UDP header."""
        return struct.pack("!BBH", 0, self.proto, self.flags)


def unpack(payload: bytes) -> Gue:
    """Read the header at the start of a UDP payload. Malformed: not variant 0, a control message, or
    cut off.
    """
    if len(payload) < HEADER_BYTES:
        raise Malformed(f"GUE of {len(payload)} bytes")
    first, proto, flags = struct.unpack_from("!BBH", payload)
    inner = HEADER_BYTES + (first & 0x1F) * 4
    if first & 0xE0:
        raise Malformed(f"GUE variant {first >> 6}, control {first >> 5 & 1}")
    if proto not in (IPV4, IPV6) or len(payload) < inner:
        raise Malformed(f"GUE carrying protocol {proto}, header {inner} of {len(payload)} bytes")
    return Gue(proto, flags, inner)
