# SPDX-License-Identifier: Apache-2.0
"""The contents of an array map in one piece. Pure.

An array has all of its elements from the start, and those that nobody wrote are zeros. So an element that is all zeros
is none here: `Elements` is the mapping from key (a 32-bit index in the machine's byte order) to value that is left
without them, kept as the bytes that the kernel keeps. A fleet's `owners` have a million elements; as one piece they are
compared, copied and changed in a millisecond, which as a dictionary they are not.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from typing import Final

_U32: Final = struct.Struct("=I")
_AT_ONCE: Final = 512
"""Elements compared in one go, where most are equal."""


class Elements(Mapping[bytes, bytes]):
    """`size` bytes an element; `data` from element 0 on, zeros at its end left out. Never changed once made."""

    __slots__ = ("data", "size")

    def __init__(self, size: int, data: bytes = b"") -> None:
        """ValueError when `data` is no whole number of elements."""
        if len(data) % size:
            raise ValueError(f"{len(data)} bytes are no whole number of elements of {size}")
        self.size = size
        self.data = data[: -(-len(data.rstrip(b"\0")) // size) * size]

    @classmethod
    def of(cls, size: int, table: Mapping[bytes, bytes]) -> Elements:
        """The same as a dictionary has. ValueError for a value of another size."""
        return cls(size).but({_U32.unpack(key)[0]: value for key, value in table.items()})

    @property
    def used(self) -> int:
        """One more than the highest index that is not all zeros."""
        return len(self.data) // self.size

    def but(self, changes: Mapping[int, bytes]) -> Elements:
        """The same with these elements, by index. ValueError for a value of another size."""
        if not changes:
            return self
        data = bytearray(self.data.ljust((max(changes) + 1) * self.size, b"\0"))
        for index, value in changes.items():
            if len(value) != self.size:
                raise ValueError(f"element {index}: {len(value)} bytes, not {self.size}")
            data[index * self.size : (index + 1) * self.size] = value
        return Elements(self.size, bytes(data))

    def differing(self, other: Elements) -> Iterator[int]:
        """Indices, ascending, of what is not the same here and there. ValueError for elements of another size."""
        if self.size != other.size:
            raise ValueError(f"elements of {self.size} and of {other.size} bytes")
        length = max(len(self.data), len(other.data))
        ours, theirs = self.data.ljust(length, b"\0"), other.data.ljust(length, b"\0")
        for start in range(0, length, _AT_ONCE * self.size):
            end = min(start + _AT_ONCE * self.size, length)
            if ours[start:end] != theirs[start:end]:
                for at in range(start, end, self.size):
                    if ours[at : at + self.size] != theirs[at : at + self.size]:
                        yield at // self.size

    def changes(self, before: Elements) -> tuple[dict[bytes, bytes], tuple[bytes, ...]]:
        """What leads from `before` to this: values to write, and keys whose elements become zeros."""
        zeros = bytes(self.size)
        updates, gone = {}, []
        for index in self.differing(before):
            value = self.element(index)
            if value == zeros:
                gone.append(_U32.pack(index))
            else:
                updates[_U32.pack(index)] = value
        return updates, tuple(gone)

    def element(self, index: int) -> bytes:
        """The bytes at an index, zeros beyond what was written."""
        return self.data[index * self.size : (index + 1) * self.size] or bytes(self.size)

    def __getitem__(self, key: bytes) -> bytes:
        value = self.element(_U32.unpack(key)[0])
        if not any(value):
            raise KeyError(key)
        return value

    def __iter__(self) -> Iterator[bytes]:
        zeros = bytes(self.size)
        for index in range(self.used):
            if self.element(index) != zeros:
                yield _U32.pack(index)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return bool(self.data)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Elements):
            return self.size == other.size and self.data == other.data
        return super().__eq__(other)

    def __repr__(self) -> str:
        return f"<Elements: {self.used} of {self.size} bytes>"
