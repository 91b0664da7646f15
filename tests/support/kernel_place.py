# SPDX-License-Identifier: Apache-2.0
"""Places for tests of softunicast.kernel, each with a name of its own and gone afterwards. Needs root."""

from __future__ import annotations

import contextlib
import itertools
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from softunicast.kernel import netns
from softunicast.kernel.bpf import BPFFS, mount_bpffs
from softunicast.kernel.cgroup import CgroupDir

ROOT = Path(__file__).resolve().parents[2]
numbers = itertools.count()


def unique() -> str:
    """A name that no other test run uses now."""
    return f"t-kern-{os.getpid()}-{next(numbers)}"


def compile_bpf(source: Path, target: Path) -> Path:
    """Compile as bpf/Makefile does. AssertionError shows what clang says."""
    command = ["clang", "-O2", "-g", "-target", "bpf", "-mcpu=v3", "-Wall", "-Werror"]
    command += [f"-I/usr/include/{platform.machine()}-linux-gnu", f"-I{ROOT / 'bpf/include'}"]
    done = subprocess.run([*command, "-c", str(source), "-o", str(target)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return target


@contextmanager
def namespace() -> Iterator[str]:
    """A network namespace, not entered."""
    name = unique()
    netns.create(name)
    try:
        yield name
    finally:
        netns.delete(name)


def ip(*arguments: str) -> None:
    """`ip` in the namespace this thread is in."""
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=30)


@contextmanager
def pin_folder() -> Iterator[Path]:
    """A folder in bpffs. What is pinned in it goes with it."""
    mount_bpffs()
    folder = BPFFS / unique()
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


@contextmanager
def cgroup() -> Iterator[CgroupDir]:
    """A cgroup at the top."""
    made = CgroupDir.below_root(unique())
    made.create()
    try:
        yield made
    finally:
        with contextlib.suppress(FileNotFoundError):
            made.remove()


def fork(work: Callable[[], int]) -> int:
    """The process id of a child that exits with what `work` gives, 255 when it raises. The caller waits for it."""
    child = os.fork()
    if child == 0:
        status = 255
        try:
            status = work()
        finally:
            os._exit(status)  # whatever happens, the child runs no more of the tests
    return child


def open_descriptors() -> dict[int, str]:
    """This process's descriptors and what they are."""
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found[int(entry.name)] = str(entry.readlink())
    return found
