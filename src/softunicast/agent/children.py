# SPDX-License-Identifier: Apache-2.0
"""Processes that serve beside the agent and outlive it: the terminator, the proxy. Started, told of changes, ended.

A child holds a lock on a file of the run folder, by a descriptor that it was born with and knows nothing of; its pid
stands in the file. So the next agent finds it, whatever became of this one, and who is dead holds nothing.

    wanted, not there      start it (one that ended by itself not twice within REST_S)
    wanted, there, told otherwise, or by an earlier agent      HUP: program and configuration anew, no connection broken
    there, not wanted      TERM
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from softunicast.errors import KernelError

REST_S: Final = 2.0
LOOK_S: Final = 1.0
WRITE_S: Final = 5.0
NAMES: Final = ("terminator", "proxy")
GONE: Final = ""
"""What one is told that is not wanted any more."""
_SHELL: Final = 'echo $$ > "$0"; exec "$@"'


@dataclass(frozen=True, slots=True)
class Wanted:
    """A child that should run. `arguments` of `softunicast`; another `mark`: it is told."""

    arguments: tuple[str, ...]
    mark: str


def lock_path(folder: Path, name: str) -> Path:
    return folder / f"{name}.pid"


def running(folder: Path, name: str) -> int | None:
    """The pid of a child that lives; None: there is none. KernelError: it lives, and nobody knows its pid."""
    path = lock_path(folder, name)
    deadline = time.monotonic() + WRITE_S
    while True:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return None
        except BlockingIOError:
            text = os.pread(fd, 32, 0).decode(errors="replace").strip()
            if text.isdecimal():
                return int(text)
        finally:
            os.close(fd)
        if time.monotonic() > deadline:
            raise KernelError(f"{path}: the {name} lives, and its pid is not there; end it by hand")
        time.sleep(0.01)  # it was born a moment ago, and is about to write it


def start(folder: Path, name: str, arguments: tuple[str, ...]) -> subprocess.Popen[bytes]:
    """Start one, which hears HUP once it is ready to. KernelError: one lives already, or it cannot be started."""
    path = lock_path(folder, name)
    command = [sys.executable, "-m", "softunicast.cli", *arguments]
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(fd, 0)
        return subprocess.Popen(
            ["/bin/sh", "-c", _SHELL, str(path), *command],
            pass_fds=(fd,),
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise KernelError(f"start the {name}: {error.strerror}", errno=error.errno or 0) from error
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
        os.close(fd)


def end(folder: Path, name: str, timeout_s: float = 10.0) -> bool:
    """End one: TERM, and KILL when that does not help. False: there was none."""
    pid = running(folder, name)
    if pid is None:
        return False
    deadline = time.monotonic() + timeout_s
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        while running(folder, name) is not None and time.monotonic() < deadline:
            time.sleep(0.02)
        deadline += 2.0
        if running(folder, name) is None:
            break
    lock_path(folder, name).unlink(missing_ok=True)
    return True


@dataclass(slots=True)
class Children:
    """Keeps them as wanted. `tick()` gives when to look again, by `clock`."""

    folder: Path
    log: Any
    clock: Callable[[], float] = time.monotonic
    _wanted: dict[str, Wanted] = field(default_factory=dict)
    _told: dict[str, str] = field(default_factory=dict)
    _started_s: dict[str, float] = field(default_factory=dict)
    _mine: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def follow(self, wanted: Mapping[str, Wanted]) -> None:
        """These, and no others, from now on."""
        self._wanted = dict(wanted)
        self.tick()

    def tick(self) -> float:
        """Look after all; KernelError of the last that failed."""
        self._mine[:] = [child for child in self._mine if child.poll() is None]
        for name in NAMES:
            self._look(name, self._wanted.get(name))
        return self.clock() + LOOK_S

    def _look(self, name: str, wanted: Wanted | None) -> None:
        pid = running(self.folder, name)
        if wanted is None:
            if pid is not None and self._told.get(name) != GONE:
                self._told[name] = GONE
                self._started_s.pop(name, None)
                self._signal(name, pid, signal.SIGTERM)
        elif pid is None:
            now_s = self.clock()
            if now_s - self._started_s.get(name, -REST_S) < REST_S:
                return
            if self._told.get(name, GONE) != GONE:
                self.log.error("it ended and is started again", child=name)
            self._started_s[name] = now_s
            self._told[name] = wanted.mark
            self._mine.append(start(self.folder, name, wanted.arguments))
            self.log.info("started", child=name, pid=self._mine[-1].pid)
        elif self._told.get(name) != wanted.mark:
            self._told[name] = wanted.mark
            self._signal(name, pid, signal.SIGHUP)

    def _signal(self, name: str, pid: int, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
            self.log.info("told", child=name, pid=pid, signal=number.name)
