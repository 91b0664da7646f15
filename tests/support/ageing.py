# SPDX-License-Identifier: Apache-2.0
"""Move time for programs that read the kernel's clock: all that their maps remember becomes so much older.

Every time in the maps is one of the boot clock and is only ever compared with now, so that a second more of age is a
second that passed. Nobody else may be at the maps meanwhile.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from softunicast.kernel.bpf import Map

NS: Final = 1_000_000_000
SECONDS_AT: Final = {"flows": (0, 48), "origin": (24,), "slots": (40,)}
"""Words of 32 bits: last seen (the lower half of a claim's word) and born_s, checked_s, look_s."""


def older(value: bytes, places: tuple[int, ...], seconds: int) -> bytes:
    out = bytearray(value)
    for at in places:
        struct.pack_into("=I", out, at, (struct.unpack_from("=I", out, at)[0] - seconds) & 0xFFFFFFFF)
    return bytes(out)


def age(maps: Mapping[str, Map], seconds: int) -> None:
    """As if the clock moved on by so much."""
    for name, places in SECONDS_AT.items():
        maps[name].update_many({key: older(value, places, seconds) for key, value in maps[name].items()})
    frags = maps["frags"]
    for key, value in list(frags.items()):
        learned_ns = struct.unpack_from("=Q", value)[0] - seconds * NS
        frags.update(key, struct.pack("=Q", learned_ns & (1 << 64) - 1) + value[8:])
    for key, value in list(maps["crowds"].items()):
        full = (max(0, until_ns - seconds * NS) for until_ns in struct.unpack_from("=QQ", value))
        maps["crowds"].update(key, struct.pack("=QQ", *full) + value[16:])
