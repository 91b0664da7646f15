# SPDX-License-Identifier: Apache-2.0
"""Every error this package raises on purpose.

    SoftunicastError            exit status 1
     +-- UsageError             exit status 2: what was asked is wrong; nothing was changed
     |    +-- PlanError         a line of a plan or bindings file
     +-- KernelError            the kernel refused
          +-- ProbeError        the kernel lacks something that is needed

`str(error)` is one clear line that names the object, the place and the next action (a ProbeError has a line
for each thing missing); the command line prints it behind "softunicast: " and exits with `error.exit_status`.
Causes are kept with `raise ... from`.
"""

from __future__ import annotations

from typing import ClassVar


class SoftunicastError(Exception):
    """Base of all errors a user may see. `message` is one line."""

    exit_status: ClassVar[int] = 1

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        return self.message


class UsageError(SoftunicastError):
    """The request is wrong: arguments, plan, or the place it was made from. Nothing was changed."""

    exit_status: ClassVar[int] = 2


class PlanError(UsageError):
    """A mistake in a plan or bindings file. `line` counts from 1; 0 means the file as a whole.

    `message` names the object ("pools.gb: ..."), `remedy` the next action; `str()` is the whole line,
    `plan.yaml:12: pools.gb: ... ; <remedy>`.
    """

    def __init__(self, file: str, line: int, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.file = file
        self.line = line
        self.remedy = remedy
        self.args = (file, line, message, remedy)

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}" if self.line else self.file
        text = f"{place}: {self.message}" if place else self.message
        return f"{text} ; {self.remedy}" if self.remedy else text


class KernelError(SoftunicastError):
    """The kernel, or a library in front of it, refused. `errno` is 0 when it gave none.

    `log` holds all that was said about it (a verifier's log, for example) and may have many lines.
    """

    def __init__(self, message: str, *, errno: int = 0, log: str = "") -> None:
        super().__init__(message)
        self.errno = errno
        self.log = log


class ProbeError(KernelError):
    """The kernel lacks something that is needed; `message` has a line for each, which names it and what to do."""
