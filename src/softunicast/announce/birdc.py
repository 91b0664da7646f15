# SPDX-License-Identifier: Apache-2.0
"""BIRD's control socket, as its client birdc speaks it.

A command is a line; the reply is lines "NNNN-text" and a last one "NNNN text", " text" goes on with the code before it.
Codes: 0xxx done, 1xxx a table, 8xxx refused at run time, 9xxx a mistake in the command. The daemon greets with 0001.

Source: BIRD 2.0 programmer's documentation, section 2.11 (command line interface); nest/cli.c, doc/reply_codes.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from softunicast.errors import KernelError

TIMEOUT_S: Final = 1.0
REFUSED: Final = 8000


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a reply: its code and its text."""

    code: int
    text: str


class Birdc:
    """A connection to BIRD. Context manager. Every method raises KernelError that names the socket."""

    def __init__(self, path: str, timeout_s: float = TIMEOUT_S) -> None:
        self._path = path
        self._rest = b""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self._socket.settimeout(timeout_s)
        try:
            self._socket.connect(path)
            self.version = self._reply()[-1].text
        except OSError as error:
            self._socket.close()
            raise KernelError(f"BIRD does not answer at {path}: {error.strerror or error}") from error
        except KernelError:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def command(self, text: str) -> list[Line]:
        """Say a command, a line without its end. KernelError with BIRD's words when it refuses."""
        try:
            self._socket.sendall(f"{text}\n".encode())
            found = self._reply()
        except OSError as error:
            raise KernelError(f"BIRD at {self._path}: `{text}`: {error.strerror or error}") from error
        if found[-1].code >= REFUSED:
            raise KernelError(f"BIRD at {self._path} refuses `{text}`: {found[-1].text.strip()}")
        return found

    def configure(self) -> None:
        """Read the configuration again. Has it a mistake, BIRD goes on with what it had: KernelError with the place."""
        self.command("configure")

    def protocols(self) -> list[tuple[str, str, str, str]]:
        """(name, kind, up or down ..., info) of every protocol, from `show protocols`."""
        found = []
        for line in self.command("show protocols"):
            parts = line.text.split(None, 5)
            # name, kind, table, state, since (one word or two), info
            if line.code == 1002 and len(parts) >= 4:
                since = 6 if len(parts) > 5 and ":" in parts[5][:9] else 5
                info = line.text.split(None, since)[since] if len(line.text.split(None, since)) > since else ""
                found.append((parts[0], parts[1], parts[3], info.strip()))
        return found

    def routes(self, protocol: str) -> int:
        """How many routes a protocol has brought in."""
        lines = [line.text.split() for line in self.command(f"show route protocol {protocol} count")]
        # "2 of 3 routes for 3 networks in table master4", a line a table
        return sum(int(words[0]) for words in lines if words[1:2] == ["of"])

    def _reply(self) -> list[Line]:
        found: list[Line] = []
        while True:
            line = self._line()
            if line[:1] in (" ", "+"):
                found.append(Line(found[-1].code if found else 0, line[1:]))
                continue
            if len(line) < 5 or not line[:4].isdigit():
                raise KernelError(f"BIRD at {self._path} says {line[:60]!r}: is it the control socket of BIRD 2?")
            found.append(Line(int(line[:4]), line[5:]))
            if line[4] == " ":
                return found

    def _line(self) -> str:
        while b"\n" not in self._rest:
            more = self._socket.recv(65536)
            if not more:
                raise KernelError(f"BIRD at {self._path} hung up")
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        return line.decode(errors="replace")
