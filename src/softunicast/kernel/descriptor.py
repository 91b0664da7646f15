# SPDX-License-Identifier: Apache-2.0
"""What maps, programs and links have in common: a descriptor that is owned, a name, and pins in bpffs."""

from __future__ import annotations

import ctypes
import os
import struct
from pathlib import Path
from typing import ClassVar, Self

from softunicast.errors import KernelError
from softunicast.kernel.libbpf import Command, bpf


class Descriptor:
    """Owns one descriptor of a BPF object. Closing it is no more than that: pins and other descriptors stay."""

    KIND: ClassVar[str]

    def __init__(self, fd: int, name: str = "") -> None:
        """Takes the descriptor over."""
        self._fd = fd
        self.name = name

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def fd(self) -> int:
        """The descriptor; ValueError after close()."""
        if self._fd < 0:
            raise ValueError(f"{self.KIND} {self.name}".rstrip() + " is closed")
        return self._fd

    @classmethod
    def open_pinned(cls, path: Path) -> Self:
        """What is pinned at `path`; its name is the file's. KernelError when it cannot be opened."""
        try:
            return cls(open_pin(path), path.name)
        except OSError as error:
            raise KernelError(f"{cls.KIND} {path}: {error.strerror}", errno=error.errno or 0) from error

    def pin(self, path: Path) -> None:
        """Pin it. Raises OSError; FileExistsError when something is pinned there."""
        pin_object(self.fd, path)

    def close(self) -> None:
        """Give the descriptor back. More than once is fine."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def object_info(fd: int, size: int) -> bytes:
    """`size` bytes of the info structure of a map, program or link. Raises OSError."""
    area = ctypes.create_string_buffer(size)
    attribute = struct.pack("=IIQ", fd, size, ctypes.addressof(area))
    bpf(Command.OBJ_GET_INFO_BY_FD, attribute)
    return area.raw


def kernel_name(field: bytes) -> str:
    """A zero-terminated name in an info structure."""
    return field.split(b"\0", 1)[0].decode()


def pin_object(fd: int, path: Path) -> None:
    """Pin at `path` in bpffs, its folder made when missing. Raises OSError, FileExistsError when taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    name = ctypes.create_string_buffer(os.fsencode(path))
    bpf(Command.OBJ_PIN, struct.pack("=QII", ctypes.addressof(name), fd, 0))


def open_pin(path: Path) -> int:
    """A descriptor for what is pinned at `path`. Raises OSError, FileNotFoundError when nothing is."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    try:
        return bpf(Command.OBJ_GET, struct.pack("=QII", ctypes.addressof(name), 0, 0))
    except OSError as error:
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error
