# SPDX-License-Identifier: Apache-2.0
"""ctypes over libbpf.so.1 and bpf(2).

Why ctypes: the objects are plain ELF made by clang, libbpf relocates and loads them in some 20 ms, and the
handful of functions below is all that is needed. What Debian's libbpf (1.1) does not know yet (TCX links)
goes through bpf(2) directly, in `bpf()`.

libbpf reports through a print callback. While a thread is inside `captured_log()` its messages are
collected there, otherwise they are dropped: nothing is ever printed.

Sources: tools/lib/bpf/{bpf.h,libbpf.h}, include/uapi/linux/bpf.h (union bpf_attr).
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_long, c_size_t, c_uint32, c_uint64, c_void_p
from enum import IntEnum
from typing import Final

from softunicast.errors import ProbeError

LIBRARY: Final = "libbpf.so.1"
BPF_SYSCALL: Final = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}


class Command(IntEnum):
    """enum bpf_cmd: those used here."""

    MAP_UPDATE_ELEM = 2
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    LINK_CREATE = 28
    LINK_UPDATE = 29
    ITER_CREATE = 33
    LINK_DETACH = 34
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26


class TestRunOptions(ctypes.Structure):
    """struct bpf_test_run_opts of libbpf 1.1."""

    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class TcHook(ctypes.Structure):
    """struct bpf_tc_hook."""

    _fields_ = (("sz", c_size_t), ("ifindex", c_int), ("attach_point", c_int), ("parent", c_uint32))


class TcOptions(ctypes.Structure):
    """struct bpf_tc_opts."""

    _fields_ = (
        ("sz", c_size_t),
        ("prog_fd", c_int),
        ("flags", c_uint32),
        ("prog_id", c_uint32),
        ("handle", c_uint32),
        ("priority", c_uint32),
    )


PRINT = CFUNCTYPE(c_int, c_int, c_char_p, c_void_p)

# name: (result, arguments). Pointers to libbpf's own objects are opaque.
PROTOTYPES: Final = {
    "libbpf_set_print": (c_void_p, [PRINT]),
    "bpf_object__open_file": (c_void_p, [c_char_p, c_void_p]),
    "bpf_object__load": (c_int, [c_void_p]),
    "bpf_object__close": (None, [c_void_p]),
    "bpf_object__next_map": (c_void_p, [c_void_p, c_void_p]),
    "bpf_object__next_program": (c_void_p, [c_void_p, c_void_p]),
    "bpf_map__name": (c_char_p, [c_void_p]),
    "bpf_map__fd": (c_int, [c_void_p]),
    "bpf_map__is_internal": (ctypes.c_bool, [c_void_p]),
    "bpf_map__set_max_entries": (c_int, [c_void_p, c_uint32]),
    "bpf_map__set_pin_path": (c_int, [c_void_p, c_char_p]),
    "bpf_map__reuse_fd": (c_int, [c_void_p, c_int]),
    "bpf_map__initial_value": (c_void_p, [c_void_p, POINTER(c_size_t)]),
    "bpf_program__name": (c_char_p, [c_void_p]),
    "bpf_program__section_name": (c_char_p, [c_void_p]),
    "bpf_program__fd": (c_int, [c_void_p]),
    "bpf_program__expected_attach_type": (c_int, [c_void_p]),
    "bpf_program__set_autoload": (c_int, [c_void_p, ctypes.c_bool]),
    "bpf_map_lookup_elem": (c_int, [c_int, c_char_p, c_void_p]),
    "bpf_map_update_elem": (c_int, [c_int, c_char_p, c_char_p, c_uint64]),
    "bpf_map_delete_elem": (c_int, [c_int, c_char_p]),
    "bpf_map_get_next_key": (c_int, [c_int, c_char_p, c_void_p]),
    "bpf_prog_load": (c_int, [c_int, c_char_p, c_char_p, c_void_p, c_size_t, c_void_p]),
    "bpf_prog_test_run_opts": (c_int, [c_int, POINTER(TestRunOptions)]),
    "bpf_tc_hook_create": (c_int, [POINTER(TcHook)]),
    "bpf_tc_attach": (c_int, [POINTER(TcHook), POINTER(TcOptions)]),
    "bpf_tc_detach": (c_int, [POINTER(TcHook), POINTER(TcOptions)]),
    "bpf_tc_query": (c_int, [POINTER(TcHook), POINTER(TcOptions)]),
    "libbpf_probe_bpf_prog_type": (c_int, [c_int, c_void_p]),
    "libbpf_probe_bpf_map_type": (c_int, [c_int, c_void_p]),
    "libbpf_probe_bpf_helper": (c_int, [c_int, c_int, c_void_p]),
}

_collector = threading.local()


@functools.cache
def libc() -> ctypes.CDLL:
    """The C library, errno kept for each thread."""
    library = ctypes.CDLL(None, use_errno=True)
    library.syscall.restype = c_long
    library.vasprintf.argtypes = [POINTER(c_void_p), c_char_p, c_void_p]
    library.free.argtypes = [c_void_p]
    library.free.restype = None
    return library


@functools.cache
def libbpf() -> ctypes.CDLL:
    """The library with its prototypes set. ProbeError when it is not installed."""
    try:
        library = ctypes.CDLL(LIBRARY, use_errno=True)
    except OSError as error:
        raise ProbeError(f"{LIBRARY} not found: install it (Debian: apt-get install libbpf1)") from error
    for name, (result, arguments) in PROTOTYPES.items():
        function = getattr(library, name)
        function.restype = result
        function.argtypes = arguments
    library.libbpf_set_print(_print)
    raise_memlock()
    return library


def raise_memlock() -> None:
    """Lift RLIMIT_MEMLOCK, which kernels before 5.11 count maps against. A refusal does not matter."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except (ValueError, OSError):
        return


def collect(level: int, form: bytes, arguments: int) -> int:
    """libbpf's print callback: (level, format, va_list). A va_list arrives as a pointer everywhere."""
    lines: list[str] | None = getattr(_collector, "lines", None)
    if lines is None:
        return 0
    text = c_void_p()
    length = int(libc().vasprintf(ctypes.byref(text), form, arguments))
    if length < 0 or text.value is None:
        return 0
    # LIBBPF_DEBUG (2) is several lines a symbol; what went wrong is a warning (0) or information (1).
    if level < 2:
        lines.append(ctypes.string_at(text.value, length).decode(errors="replace"))
    libc().free(text)
    return length


_print = PRINT(collect)  # libbpf keeps the pointer: it must never be collected


@contextmanager
def captured_log() -> Iterator[list[str]]:
    """Collect what libbpf says in this thread; the list grows while the block runs."""
    before: list[str] | None = getattr(_collector, "lines", None)
    lines: list[str] = []
    _collector.lines = lines
    try:
        yield lines
    finally:
        _collector.lines = before


def bpf(command: Command, attribute: bytes | bytearray | ctypes.Array[ctypes.c_char]) -> int:
    """bpf(2). `attribute` is the start of union bpf_attr; a mutable one receives what the kernel writes.

    Returns the kernel's answer (a descriptor for most). Raises OSError; EINTR is retried.
    """
    number = BPF_SYSCALL.get(platform.machine())
    if number is None:
        raise ProbeError(f"bpf(2) has no known number on {platform.machine()}: unsupported processor")
    if isinstance(attribute, bytearray):
        area = (ctypes.c_char * len(attribute)).from_buffer(attribute)
    elif isinstance(attribute, bytes):
        area = ctypes.create_string_buffer(attribute, len(attribute))
    else:
        area = attribute
    while True:
        result = int(libc().syscall(number, c_int(command), area, c_uint32(ctypes.sizeof(area))))
        if result >= 0:
            return result
        number_of_error = ctypes.get_errno()
        if number_of_error != errno.EINTR:
            raise OSError(number_of_error, os.strerror(number_of_error), f"bpf({command.name})")


def check(result: int, what: str) -> int:
    """libbpf answers a negative errno; raise it as the OSError that belongs to it."""
    if result < 0:
        raise OSError(-result, os.strerror(-result), what)
    return result
