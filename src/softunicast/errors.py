# SPDX-License-Identifier: Apache-2.0
"""Every error this package raises on purpose.

    SoftunicastError            exit status 1
     +-- UsageError             exit status 2: what was asked is wrong; nothing was changed
     |    +-- PlanError         a line of a plan or bindings file
     +-- KernelError            the kernel refused
     |    +-- ProbeError        the kernel lacks something that is needed
     +-- DialError              a socket did not get where it was to go; an OSError too, with its `errno`
          +-- SliceFull         no port is left in these slices towards that destination (EADDRNOTAVAIL)
          +-- FamilyMissing     the pool has no address of the destination's family here (ENETUNREACH)
          +-- DialTimeout       not in time; a TimeoutError too

`str(error)` is one clear line that names the object, the place and the next action (a ProbeError has a line
for each thing missing); the command line prints it behind "softunicast: " and exits with `error.exit_status`.
Causes are kept with `raise ... from`.
"""

from __future__ import annotations

import errno
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


class DialError(SoftunicastError, OSError):
    """A connection through a slice that did not come to be. Programs that catch OSError catch it.

    `remote` is (address, port), `slices` the slices tried, as text, `protocol` "tcp" or "udp".
    """

    def __init__(
        self, message: str, number: int, remote: tuple[str, int], slices: tuple[str, ...] = (), protocol: str = "tcp"
    ) -> None:
        super().__init__(message)
        self.errno = number
        self.strerror = message
        self.remote = remote
        self.slices = slices
        self.protocol = protocol

    def __reduce__(self) -> tuple[object, ...]:
        # OSError would remember the message alone.
        return type(self), self._again()

    def _again(self) -> tuple[object, ...]:
        return self.message, self.errno, self.remote, self.slices, self.protocol


class SliceFull(DialError):
    """Every port of `slices` is in use towards `remote` (or they drain); other destinations may still have ports."""

    def __init__(self, remote: tuple[str, int], slices: tuple[str, ...], protocol: str = "tcp") -> None:
        full = ", ".join(slices)
        super().__init__(
            f"{full}: no port is left towards {endpoint(remote)} ({protocol}); end a connection there, give this node "
            "more slices, or see `softunicast slices`",
            errno.EADDRNOTAVAIL,
            remote,
            slices,
            protocol,
        )

    def _again(self) -> tuple[object, ...]:
        return self.remote, self.slices, self.protocol


class FamilyMissing(DialError):
    """What was chosen has no address of that family on this node: the node's own must not leak instead."""

    def __init__(self, remote: tuple[str, int], chosen: str, protocol: str = "tcp") -> None:
        family = "IPv6" if ":" in remote[0] else "IPv4"
        super().__init__(
            f"{chosen}: no {family} on this node, which {endpoint(remote)} needs; choose a pool that has",
            errno.ENETUNREACH,
            remote,
            (),
            protocol,
        )
        self.chosen = chosen

    def _again(self) -> tuple[object, ...]:
        return self.remote, self.chosen, self.protocol


class DialTimeout(DialError, TimeoutError):
    """`remote` did not answer in `after_s` seconds."""

    def __init__(
        self, remote: tuple[str, int], after_s: float, slices: tuple[str, ...] = (), protocol: str = "tcp"
    ) -> None:
        super().__init__(
            f"{endpoint(remote)}: no answer within {after_s:.3g} s; is it up? allow more time, or try another",
            errno.ETIMEDOUT,
            remote,
            slices,
            protocol,
        )
        self.after_s = after_s

    def _again(self) -> tuple[object, ...]:
        return self.remote, self.after_s, self.slices, self.protocol


def endpoint(remote: tuple[str, int]) -> str:
    """`203.0.113.1:443`, `[2001:db8::1]:443`."""
    return f"[{remote[0]}]:{remote[1]}" if ":" in remote[0] else f"{remote[0]}:{remote[1]}"
