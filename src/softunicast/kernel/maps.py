# SPDX-License-Identifier: Apache-2.0
"""BPF maps: lookup, update, delete, iteration in batches, pins.

Keys and values are bytes, exactly as in the kernel (softunicast.kernel.abi packs and unpacks). A per-CPU
value is one copy for each *possible* CPU, each rounded up to eight bytes.

Iterating a live hash is no snapshot: an entry inserted or deleted meanwhile may or may not be seen, an entry
that stays is seen. LOOKUP_BATCH walks a hash by buckets and so never sees one twice; where a map type has no
batches, get_next_key is used, which starts again from the first key when the last one vanished, so keys
already given are skipped.

Sources: kernel/bpf/syscall.c (generic_map_lookup_batch), kernel/bpf/hashtab.c, kernel/bpf/lpm_trie.c.
"""

from __future__ import annotations

import ctypes
import errno
import itertools
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Final

from softunicast.kernel.descriptor import Descriptor, kernel_name, object_info
from softunicast.kernel.elements import Elements
from softunicast.kernel.libbpf import Command, bpf, check, libbpf

ANY: Final = 0
NOEXIST: Final = 1
EXIST: Final = 2
BATCH_ENTRIES: Final = 4096
UPDATE_ENTRIES: Final = 65536
NO_BATCH: Final = frozenset({errno.EINVAL, errno.EOPNOTSUPP, 524})  # 524: the kernel's ENOTSUPP


def _address(data: bytes) -> int:
    """Where these bytes are; they must stay referenced meanwhile."""
    return ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p).value or 0


class MapType(IntEnum):
    """enum bpf_map_type: those this project loads."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    ARRAY_OF_MAPS = 12
    HASH_OF_MAPS = 13
    SK_STORAGE = 24
    RINGBUF = 27


PERCPU: Final = frozenset({MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH})


@cache
def possible_cpus() -> int:
    """How many CPUs the kernel keeps per-CPU values for; hot-pluggable ones count."""
    text = Path("/sys/devices/system/cpu/possible").read_text()
    return 1 + max(int(part.rpartition("-")[2]) for part in text.strip().split(","))


@dataclass(frozen=True, slots=True)
class MapInfo:
    """The head of struct bpf_map_info. `name` is what the kernel keeps: 15 characters."""

    type: int
    id: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    name: str


class Map(Descriptor):
    """A map, by descriptor. Closing it does not remove it: pins, programs and other descriptors keep it."""

    KIND = "map"

    def __init__(self, fd: int, name: str = "") -> None:
        """Takes the descriptor over. `name` overrides the kernel's, which is cut at 15 characters."""
        raw = object_info(fd, 80)
        kind, number, key_size, value_size, max_entries, flags = struct.unpack_from("=6I", raw)
        kept = kernel_name(raw[24:40])
        super().__init__(fd, name or kept)
        self.info = MapInfo(kind, number, key_size, value_size, max_entries, flags, kept)
        self.type = self.info.type
        self.id = self.info.id
        self.key_size = self.info.key_size
        self.value_size = self.info.value_size
        self.max_entries = self.info.max_entries
        self.percpu = self.type in PERCPU
        self._stride = (self.value_size + 7) & ~7
        self._area = self._stride * possible_cpus() if self.percpu else self.value_size

    def __repr__(self) -> str:
        return f"<Map {self.name} id {self.id}>"

    def lookup(self, key: bytes) -> bytes | None:
        """The value, None when there is none. Of a per-CPU map: all copies in a row."""
        self._check_key(key)
        area = ctypes.create_string_buffer(self._area)
        result = libbpf().bpf_map_lookup_elem(self.fd, key, area)
        if result == -errno.ENOENT:
            return None
        check(result, self.name)
        return area.raw

    def lookup_percpu(self, key: bytes) -> list[bytes]:
        """One value for each possible CPU; [] when there is no such key. ValueError for other maps."""
        if not self.percpu:
            raise ValueError(f"map {self.name} is not per CPU")
        area = self.lookup(key)
        return [] if area is None else self.split_percpu(area)

    def split_percpu(self, area: bytes) -> list[bytes]:
        """The copies in a value that lookup() or items() gave for a per-CPU map."""
        return [area[at : at + self.value_size] for at in range(0, self._area, self._stride)]

    def update(self, key: bytes, value: bytes, flags: int = ANY) -> None:
        """Insert or replace. FileExistsError under NOEXIST, FileNotFoundError under EXIST, else OSError.

        A per-CPU map takes one value, written for every CPU, or all copies as lookup() gives them.
        """
        self._check_key(key)
        if self.percpu and len(value) == self.value_size:
            value = value.ljust(self._stride, b"\0") * possible_cpus()
        if len(value) != self._area:
            raise ValueError(f"map {self.name}: a value is {self._area} bytes, not {len(value)}")
        check(libbpf().bpf_map_update_elem(self.fd, key, value, flags), self.name)

    def delete(self, key: bytes) -> bool:
        """Delete; False when it was not there. Raises OSError (EINVAL: arrays have no deletion)."""
        self._check_key(key)
        result = libbpf().bpf_map_delete_elem(self.fd, key)
        if result == -errno.ENOENT:
            return False
        check(result, self.name)
        return True

    def keys(self) -> Iterator[bytes]:
        """All keys, without reading values."""
        return self._keys()

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        """All entries, by LOOKUP_BATCH where the map has it. See the module on what is seen."""
        return self._items()

    def elements(self, count: int) -> Elements:
        """The first `count` elements of an array. ValueError for a map of another type."""
        if self.type != MapType.ARRAY:
            raise ValueError(f"map {self.name} is no array")
        count = min(count, self.max_entries)
        if count == 0:
            return Elements(self.value_size)
        cursor = ctypes.create_string_buffer(8)
        keys = ctypes.create_string_buffer(count * self.key_size)
        values = ctypes.create_string_buffer(count * self.value_size)
        places = ctypes.addressof(cursor), ctypes.addressof(keys), ctypes.addressof(values)
        attribute = bytearray(struct.pack("=QQQQIIQQ", 0, *places, count, self.fd, 0, 0))
        try:
            bpf(Command.MAP_LOOKUP_BATCH, attribute)
        except OSError as error:
            if error.errno in NO_BATCH:
                first = itertools.islice(self._items_one_by_one(), count)
                return Elements(self.value_size, b"".join(value for _, value in first))
            if error.errno != errno.ENOENT:  # that was all there is
                raise
        return Elements(self.value_size, values.raw)

    def update_many(self, entries: Mapping[bytes, bytes]) -> None:
        """Write entries, by UPDATE_BATCH where the map has it, in their order.

        ValueError for a key or value of another size, before anything is written. OSError as for update; entries
        before the one that failed are written then.
        """
        for key, value in entries.items():
            self._check_key(key)
            if len(value) != self._area:
                raise ValueError(f"map {self.name}: a value is {self._area} bytes, not {len(value)}")
        pairs = list(entries.items())
        for at in range(0, len(pairs), UPDATE_ENTRIES):
            part = pairs[at : at + UPDATE_ENTRIES]
            keys = b"".join(key for key, _ in part)
            values = b"".join(value for _, value in part)
            attribute = struct.pack("=QQQQIIQQ", 0, 0, _address(keys), _address(values), len(part), self.fd, 0, 0)
            try:
                bpf(Command.MAP_UPDATE_BATCH, bytearray(attribute))
            except OSError as error:
                if error.errno not in NO_BATCH:
                    raise
                for key, value in part:
                    self.update(key, value)

    def __len__(self) -> int:
        """Entries, counted one by one (an array: max_entries)."""
        return sum(1 for _ in self.items())

    def _check_key(self, key: bytes) -> None:
        if len(key) != self.key_size:
            raise ValueError(f"map {self.name}: a key is {self.key_size} bytes, not {len(key)}")

    def _keys(self) -> Iterator[bytes]:
        area = ctypes.create_string_buffer(max(self.key_size, 1))
        last: bytes | None = None
        seen: set[bytes] = set()
        while True:
            result = libbpf().bpf_map_get_next_key(self.fd, last, area)
            if result == -errno.ENOENT:
                return
            check(result, self.name)
            last = area.raw
            if last not in seen:
                seen.add(last)
                yield last
            elif len(seen) > self.max_entries:
                return

    def _items(self) -> Iterator[tuple[bytes, bytes]]:
        count = min(BATCH_ENTRIES, max(self.max_entries, 1))
        # A hash's cursor is a bucket number, another map's is a key.
        cursor = ctypes.create_string_buffer(max(self.key_size, 8))
        started = False
        while True:
            keys = ctypes.create_string_buffer(count * self.key_size)
            values = ctypes.create_string_buffer(count * self._area)
            attribute = bytearray(
                struct.pack(
                    "=QQQQIIQQ",
                    ctypes.addressof(cursor) if started else 0,
                    ctypes.addressof(cursor),
                    ctypes.addressof(keys),
                    ctypes.addressof(values),
                    count,
                    self.fd,
                    0,
                    0,
                )
            )
            done = False
            try:
                bpf(Command.MAP_LOOKUP_BATCH, attribute)
            except OSError as error:
                if error.errno == errno.ENOSPC:  # a bucket longer than the batch
                    count *= 2
                    continue
                if error.errno in NO_BATCH and not started:
                    yield from self._items_one_by_one()
                    return
                if error.errno != errno.ENOENT:
                    raise
                done = True
            given = int(struct.unpack_from("=I", attribute, 32)[0])
            raw_keys, raw_values = keys.raw, values.raw
            for index in range(given):
                at, value_at = index * self.key_size, index * self._area
                yield raw_keys[at : at + self.key_size], raw_values[value_at : value_at + self._area]
            if done:
                return
            started = True

    def _items_one_by_one(self) -> Iterator[tuple[bytes, bytes]]:
        for key in self._keys():
            value = self.lookup(key)
            if value is not None:
                yield key, value
