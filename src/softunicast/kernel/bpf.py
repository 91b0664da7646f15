# SPDX-License-Identifier: Apache-2.0
"""BPF objects: from an ELF file to maps and programs in the kernel.

An object is loaded once and then taken apart: each map and program gets a descriptor of its own and libbpf's
bookkeeping is closed at once. What must outlive the process is pinned; bpffs is the state, no daemon is.

    claim.bpf.o --.                          .--> <pin_dir>/maps/flows    one for all objects
    egress.bpf.o --+-- BpfObject.load() -----+--> .programs["su_guard"]   pinned by whoever attaches it
    steer.bpf.o --'                          '--> .rodata.settings        constants, of each load its own

Objects share maps by name: through `pin_dir` (existing pins are reused), or without bpffs through `reuse`.
A map that exists with another key, value or size is an error and nothing is loaded.

Maps, programs and links are softunicast.kernel.maps, .programs and .links; all is exported here.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import re
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, Self

import softunicast
from softunicast.errors import KernelError
from softunicast.kernel.clsact import attach as attach_clsact
from softunicast.kernel.clsact import detach as detach_clsact
from softunicast.kernel.libbpf import captured_log, libbpf, libc
from softunicast.kernel.links import (
    AttachType,
    Link,
    LinkInfo,
    LinkType,
    attach_cgroup,
    attach_tcx,
    attach_xdp,
    run_iter,
)
from softunicast.kernel.maps import ANY, EXIST, NOEXIST, Map, MapType, possible_cpus
from softunicast.kernel.programs import Program, ProgramType, TestRun

__all__ = [
    "ANY",
    "BPFFS",
    "EXIST",
    "NOEXIST",
    "AttachType",
    "BpfObject",
    "Link",
    "LinkInfo",
    "LinkType",
    "Map",
    "MapType",
    "Program",
    "ProgramType",
    "TestRun",
    "attach_cgroup",
    "attach_clsact",
    "attach_tcx",
    "attach_xdp",
    "bpffs_mounted",
    "detach_clsact",
    "mount_bpffs",
    "object_path",
    "possible_cpus",
    "run_iter",
]

BPFFS: Final = Path("/sys/fs/bpf")
SETTINGS: Final = ".rodata.settings"
# Lines of a verifier's log that tell its way, not its verdict.
TRACE: Final = re.compile(r"\d+: |processed |;|R\d+[_ ]?\w*=|from |\(|last_idx|regs=|parent ")
NO_SIZES: Final[Mapping[str, int]] = MappingProxyType({})
NO_MAPS: Final[Mapping[str, Map]] = MappingProxyType({})


def bpffs_mounted(path: Path = BPFFS) -> bool:
    """Whether a bpffs is mounted at `path`, in this mount namespace."""
    mounts = (line.split() for line in Path("/proc/self/mounts").read_text().splitlines())
    return any(fields[1] == str(path) and fields[2] == "bpf" for fields in mounts)


def mount_bpffs(path: Path = BPFFS) -> bool:
    """Mount bpffs unless it is mounted there. True when it was this call. KernelError when it cannot be."""
    if bpffs_mounted(path):
        return False
    path.mkdir(parents=True, exist_ok=True)
    if libc().mount(b"bpf", os.fsencode(path), b"bpf", 0, None) != 0:
        number = ctypes.get_errno()
        raise KernelError(f"mount bpffs at {path}: {os.strerror(number)}", errno=number)
    return True


def object_path(name: str) -> Path:
    """Where the package carries NAME.bpf.o. KernelError when it was built without."""
    path = Path(softunicast.__file__).parent / "bpf" / f"{name}.bpf.o"
    if not path.exists():
        raise KernelError(f"{path}: no such BPF object: build it with `make -C bpf`, or install a wheel")
    return path


class BpfObject:
    """A loaded object: `maps` and `programs` by name. Closing it closes their descriptors, no more."""

    def __init__(self, path: Path, maps: dict[str, Map], programs: dict[str, Program]) -> None:
        self.path = path
        self.maps = maps
        self.programs = programs

    def __repr__(self) -> str:
        return f"<BpfObject {self.path.name}: {len(self.maps)} maps, {len(self.programs)} programs>"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all descriptors. Pinned and attached things stay. More than once is fine."""
        for owned_map in self.maps.values():
            owned_map.close()
        for program in self.programs.values():
            program.close()

    @classmethod
    def load(
        cls,
        path: Path,
        *,
        settings: bytes | None = None,
        pin_dir: Path | None = None,
        map_sizes: Mapping[str, int] = NO_SIZES,
        reuse: Mapping[str, Map] = NO_MAPS,
        programs: Collection[str] | None = None,
    ) -> BpfObject:
        """Load an object file.

        `settings` are the first bytes of its .rodata.settings. With `pin_dir` each map of its own (not
        .rodata, .bss) is pinned at pin_dir/maps/NAME, or the one pinned there is used. `map_sizes` sets
        max_entries by name; names that the object does not have are passed over, because objects share one
        set of sizes. `reuse` gives maps to use by name instead of new ones. `programs` loads only those.

        KernelError names file and program; its `.log` is all that libbpf and the verifier said. After an
        error no program is loaded; maps that were pinned before it stay pinned.
        """
        with captured_log() as log:
            native = libbpf().bpf_object__open_file(os.fsencode(path), None)
            if not native:
                raise failure(path, "open", ctypes.get_errno(), log)
            try:
                for pointer in each(native, "map"):
                    prepare_map(path, pointer, settings, pin_dir, map_sizes, reuse)
                for pointer in each(native, "program"):
                    if programs is not None and program_name(pointer) not in programs:
                        libbpf().bpf_program__set_autoload(pointer, False)
                if pin_dir is not None:
                    (pin_dir / "maps").mkdir(parents=True, exist_ok=True)
                result = libbpf().bpf_object__load(native)
                if result < 0:
                    raise failure(path, "load", -result, log)
                return take_apart(cls, path, native)
            finally:
                libbpf().bpf_object__close(native)


def each(native: int, kind: str) -> Iterator[int]:
    """libbpf's maps or programs of an object, as opaque pointers."""
    following = getattr(libbpf(), f"bpf_object__next_{kind}")
    pointer = following(native, None)
    while pointer:
        yield pointer
        pointer = following(native, pointer)


def map_name(pointer: int) -> str:
    return str(libbpf().bpf_map__name(pointer).decode())


def program_name(pointer: int) -> str:
    return str(libbpf().bpf_program__name(pointer).decode())


def prepare_map(
    path: Path,
    pointer: int,
    settings: bytes | None,
    pin_dir: Path | None,
    map_sizes: Mapping[str, int],
    reuse: Mapping[str, Map],
) -> None:
    """Before the load: constants, size, and where the map comes from."""
    name, library = map_name(pointer), libbpf()
    if library.bpf_map__is_internal(pointer):
        if settings is not None and name.endswith(SETTINGS):
            write_settings(path, pointer, settings)
        return
    result = 0
    if name in map_sizes:
        result = library.bpf_map__set_max_entries(pointer, map_sizes[name])
    if result == 0 and name in reuse:
        result = library.bpf_map__reuse_fd(pointer, reuse[name].fd)
    elif result == 0 and pin_dir is not None:
        result = library.bpf_map__set_pin_path(pointer, os.fsencode(pin_dir / "maps" / name))
    if result < 0:
        raise KernelError(f"{path.name}: map {name}: {os.strerror(-result)}", errno=-result)


def write_settings(path: Path, pointer: int, settings: bytes) -> None:
    """Put `settings` at the start of the section's initial contents."""
    size = ctypes.c_size_t()
    address = libbpf().bpf_map__initial_value(pointer, ctypes.byref(size))
    if not address or size.value < len(settings):
        sizes = f"{SETTINGS} has {size.value} bytes, the settings {len(settings)}"
        raise KernelError(f"{path.name}: {sizes}: rebuild the objects with `make -C bpf`")
    ctypes.memmove(address, settings, len(settings))


def take_apart(cls: type[BpfObject], path: Path, native: int) -> BpfObject:
    """After the load: a descriptor of its own for each map and program."""
    library = libbpf()
    loaded = cls(path, {}, {})
    try:
        for pointer in each(native, "map"):
            fd = library.bpf_map__fd(pointer)
            if fd >= 0:
                name = map_name(pointer)
                loaded.maps[name] = Map(duplicate(fd), name)
        for pointer in each(native, "program"):
            fd = library.bpf_program__fd(pointer)
            if fd >= 0:
                name = program_name(pointer)
                attach_type = int(library.bpf_program__expected_attach_type(pointer))
                section = library.bpf_program__section_name(pointer).decode()
                loaded.programs[name] = Program(duplicate(fd), name, attach_type, section)
    except BaseException:
        loaded.close()
        raise
    return loaded


def duplicate(fd: int) -> int:
    return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)


def failure(path: Path, verb: str, number: int, log: list[str]) -> KernelError:
    """One line from libbpf's many: the program, and the verifier's last word on it."""
    whole = "".join(log)
    summary = f"{verb} {path.name}: {os.strerror(number) if number else 'unknown error'}"
    refused = re.search(r"prog '([^']+)': BPF program load failed", whole)
    program = re.search(r"-- BEGIN PROG LOAD LOG --\n(.*?)-- END PROG LOAD LOG --", whole, re.S)
    mismatch = re.search(r"couldn't reuse pinned map at '([^']+)': parameter mismatch", whole)
    if mismatch:
        remedy = "uninstall the node first"
        summary = f"{verb} {path.name}: map pinned at {mismatch[1]} has another layout or size: {remedy}"
    elif refused and program:
        said = [line.strip() for line in program[1].splitlines() if line and not TRACE.match(line)]
        verdict = said[-1] if said else os.strerror(number)
        summary = f"{verb} {path.name}: program {refused[1]} refused: {verdict}"
    elif number == errno.EPERM:
        summary += " (root, or CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, is needed)"
    elif log:
        summary += f" ({log[0].strip().removeprefix('libbpf: ')})"
    return KernelError(summary, errno=number, log=whole)
