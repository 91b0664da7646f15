# SPDX-License-Identifier: Apache-2.0
"""cgroup2 folders: where it is mounted, and the folders that `softunicast run` puts programs in.

A cgroup's id, which BPF programs see and the map `cgroups` is keyed by, is the inode number of its folder
(kernel/cgroup/cgroup.c: cgroup_id() is the kernfs node's id). It is never used twice while the machine runs. It is a
file handle, too (fs/kernfs/mount.c, kernfs_fh_to_dentry; FILEID_KERNFS), by which the folder is found again: `by_id`.
On a machine with cgroup v1 controllers ("hybrid"), cgroup2 is mounted below /sys/fs/cgroup, not at it.
"""

from __future__ import annotations

import ctypes
import errno
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from softunicast.errors import KernelError, ProbeError
from softunicast.kernel.libbpf import libc

FILEID_KERNFS: Final = 0xFE


class _Handle(ctypes.Structure):
    """struct file_handle with an id in it."""

    _fields_ = (("bytes", ctypes.c_uint), ("type", ctypes.c_int), ("id", ctypes.c_uint64))


def root() -> Path:
    """Where cgroup2 is mounted. ProbeError when it is not."""
    for line in Path("/proc/self/mounts").read_text().splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1].replace("\\040", " "))
    raise ProbeError("cgroup2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")


def of_process(pid: int | None = None) -> Path:
    """The folder of a process (default: this one). KernelError when it is gone."""
    who = "self" if pid is None else str(pid)
    try:
        lines = Path(f"/proc/{who}/cgroup").read_text().splitlines()
    except OSError as error:
        raise KernelError(f"cgroup of process {who}: {error.strerror}", errno=error.errno or 0) from error
    inner = next((line[3:] for line in lines if line.startswith("0::")), "/")
    return root() / inner.lstrip("/")


def by_id(number: int) -> Path | None:
    """The folder of the cgroup with that id; None when it is gone. KernelError: only root may ask."""
    handle = _Handle(8, FILEID_KERNFS, number)
    mount = os.open(root(), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        found = libc().open_by_handle_at(mount, ctypes.byref(handle), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        failed = ctypes.get_errno()
    finally:
        os.close(mount)
    if found < 0:
        if failed in (errno.ESTALE, errno.ENOENT):
            return None
        raise KernelError(f"cgroup {number}: {os.strerror(failed)}", errno=failed)
    try:
        return Path(f"/proc/self/fd/{found}").readlink()
    finally:
        os.close(found)


@dataclass(frozen=True, slots=True)
class CgroupDir:
    """A cgroup, there or not, by its folder."""

    path: Path

    @classmethod
    def below_root(cls, *names: str) -> CgroupDir:
        """<cgroup2>/name/name..."""
        return cls(root().joinpath(*names))

    @property
    def exists(self) -> bool:
        return self.path.is_dir()

    @property
    def id(self) -> int:
        """The cgroup's id. KernelError when there is no such cgroup."""
        try:
            return self.path.stat().st_ino
        except OSError as error:
            raise self._error("id", error) from error

    def create(self) -> bool:
        """Make it and what is missing above it; False when it was there. KernelError."""
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            return False
        except OSError as error:
            raise self._error("create", error) from error
        return True

    def remove(self) -> bool:
        """Remove it and the cgroups below it; False when it was not there.

        KernelError (EBUSY) while a process is inside; what was below and empty is gone then.
        """
        if not self.exists:
            return False
        try:
            for folder, _, _ in os.walk(self.path, topdown=False):
                Path(folder).rmdir()
        except OSError as error:
            raise self._error("remove", error) from error
        return True

    def open(self) -> int:
        """A descriptor of the folder, for attaching. The caller closes it. KernelError."""
        try:
            return os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise self._error("open", error) from error

    def add(self, pid: int = 0) -> None:
        """Move a process (0: this one) into it. Its sockets keep the cgroup they had. KernelError."""
        try:
            (self.path / "cgroup.procs").write_text(str(pid))
        except OSError as error:
            raise self._error(f"move process {pid or os.getpid()} into", error) from error

    def processes(self) -> list[int]:
        """Process ids inside, those below not counted; [] when there is no such cgroup."""
        try:
            return [int(line) for line in (self.path / "cgroup.procs").read_text().split()]
        except FileNotFoundError:
            return []

    def _error(self, verb: str, error: OSError) -> KernelError:
        return KernelError(f"{verb} cgroup {self.path}: {error.strerror}", errno=error.errno or 0)
