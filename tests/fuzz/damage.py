# SPDX-License-Identifier: Apache-2.0
"""Break frames: what every fuzzer and random test here does to a packet before it sends it."""

from __future__ import annotations

import random
from typing import Final

ETHERNET: Final = 14


def damaged(frame: bytes, source: random.Random) -> bytes:
    """A frame with zero to four things wrong with it, most of them in the headers."""
    whole = bytearray(frame)
    for _ in range(source.choice([0, 1, 1, 2, 4])):
        at = source.randrange(12, min(len(whole), 160))
        kind = source.randrange(6)
        if kind == 0:
            whole[at] = source.choice([0, 1, 4, 6, 17, 43, 44, 50, 51, 58, 60, 255])
        elif kind == 1:
            whole[at] ^= 1 << source.randrange(8)
        elif kind == 2:
            whole[at : at + 2] = source.choice([0, 1, 20, 40, 0x2000, 0x1FFF, 65535]).to_bytes(2, "big")
        elif kind == 3:
            del whole[source.randrange(ETHERNET, len(whole) + 1) :]
        elif kind == 4:
            whole[at:at] = source.randbytes(source.choice([1, 4, 8, 8, 16]))
        else:
            whole[at : at + 8] = whole[ETHERNET + 20 : ETHERNET + 28]
        if len(whole) <= ETHERNET:
            whole += bytes(ETHERNET + 1 - len(whole))
    return bytes(whole)
