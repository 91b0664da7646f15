# SPDX-License-Identifier: Apache-2.0
"""Network namespaces: named ones under /run/netns (as `ip netns` keeps them), entered by setns(2).

setns moves the calling *thread* only: inside `enter()` open sockets, netlink and device links, which stay in
their namespace, then leave. /proc/sys/net follows the thread; /sys and the mounts do not change, so bpffs and
cgroups stay in sight (`ip netns exec` remounts /sys and hides them).

Sources: setns(2), namespaces(7), net/core/net_namespace.c, net/core/sock.c (SO_NETNS_COOKIE).
"""

from __future__ import annotations

import ctypes
import os
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, TypeVar

from softunicast.errors import KernelError, UsageError
from softunicast.kernel.libbpf import libc

FOLDER: Final = Path("/run/netns")
CLONE_NEWNET: Final = 0x40000000
MS_BIND, MS_REC, MS_SHARED = 0x1000, 0x4000, 1 << 20
MNT_DETACH: Final = 2
SO_NETNS_COOKIE: Final = 71
T = TypeVar("T")


def path_of(name_or_path: str | Path) -> Path:
    """/run/netns/NAME, or the path itself when it has a slash."""
    text = os.fspath(name_or_path)
    return Path(text) if "/" in text else FOLDER / text


@contextmanager
def enter(name_or_path: str | Path | None) -> Iterator[None]:
    """Be in that namespace, this thread only; None stays where it is. UsageError when there is none such.

    The way back is taken whatever happens inside. KernelError when a switch is refused.
    """
    if name_or_path is None:
        yield
        return
    path = path_of(name_or_path)
    before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        try:
            target = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise UsageError(f"network namespace {path}: there is none; see `ip netns list`") from error
        try:
            set_namespace(target, str(path))
        finally:
            os.close(target)
        try:
            yield
        finally:
            set_namespace(before, "the namespace before")
    finally:
        os.close(before)


def set_namespace(fd: int, what: str) -> None:
    """setns(2) for the calling thread. KernelError."""
    if libc().setns(fd, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise KernelError(f"enter network namespace {what}: {os.strerror(number)}", errno=number)


def create(name: str) -> None:
    """Make a named namespace, as `ip netns add` does. UsageError when the name is taken.

    Its loopback is down. After an error nothing of it is left.
    """
    path = path_of(name)
    prepare_folder()
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0))
    except FileExistsError as error:
        raise UsageError(f"network namespace {name}: already there") from error
    try:
        in_thread(lambda: unshare_at(path))
    except BaseException:
        path.unlink()
        raise


def unshare() -> None:
    """Leave for a new namespace without a name; for a thread that ends (in_thread). KernelError."""
    if libc().unshare(CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise KernelError(f"make a network namespace: {os.strerror(number)}", errno=number)


def unshare_at(path: Path) -> None:
    """Leave for a new namespace and bind it at `path`."""
    unshare()
    mount(b"/proc/thread-self/ns/net", path, MS_BIND)


def prepare_folder() -> None:
    """/run/netns, a shared mount of its own, so that names are seen in every mount namespace."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    if not any(line.split()[4] == str(FOLDER) for line in mounts):
        mount(os.fsencode(FOLDER), FOLDER, MS_BIND | MS_REC)
        mount(b"none", FOLDER, MS_SHARED | MS_REC)


def mount(source: bytes, target: Path, flags: int) -> None:
    if libc().mount(source, os.fsencode(target), b"none", ctypes.c_ulong(flags), None) != 0:
        number = ctypes.get_errno()
        raise KernelError(f"mount {target}: {os.strerror(number)}", errno=number)


def in_thread(work: Callable[[], T]) -> T:
    """What `work` gives or raises, from a thread of its own, whose namespace ends with it."""
    from concurrent.futures import ThreadPoolExecutor  # 8 ms that only this needs

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="netns") as threads:
        return threads.submit(work).result()


def delete(name: str) -> bool:
    """Remove the name; False when there was none. Processes and sockets inside keep the namespace itself."""
    path = path_of(name)
    if not path.exists():
        return False
    libc().umount2(os.fsencode(path), MNT_DETACH)
    path.unlink(missing_ok=True)
    return True


def names() -> list[str]:
    """Named namespaces, sorted."""
    return sorted(entry.name for entry in FOLDER.iterdir()) if FOLDER.exists() else []


def cookie() -> int:
    """The kernel's number of the current namespace, never used twice; what bpf_get_netns_cookie() gives."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        return int(struct.unpack("=Q", probe.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8))[0])
