# SPDX-License-Identifier: Apache-2.0
"""For who fills in a claim by hand."""

from __future__ import annotations

from softunicast.kernel.abi import Flow


def flow_check(key: Flow) -> int:
    """su_flow_check() of word.h: numbers as a little-endian machine reads them from the key."""

    def words(raw: bytes) -> list[int]:
        return [int.from_bytes(raw[i : i + 4], "little") for i in range(0, len(raw), 4)]

    raw = key.pack()
    local, remote = words(raw[:16]), words(raw[16:32])
    ports = int.from_bytes(raw[32:34], "little") << 16 | int.from_bytes(raw[34:36], "little")
    h = local[0] ^ local[1] ^ local[2] ^ local[3]
    for part in (remote[0] ^ remote[1] ^ remote[2], remote[3], ports, key.proto):
        h = (h * 0x9E3779B1 + part) & 0xFFFFFFFF
    return h
