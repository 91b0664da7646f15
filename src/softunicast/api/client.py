# SPDX-License-Identifier: Apache-2.0
"""A local program's end: ask a node's agent for on-ramps. Needs nothing of the agent but its socket.

with Client.of("lhr1") as agent:
    tun = agent.tun({"pool": "gb", "sources": ["10.64.9.0/24"]})
    os.write(tun.fd, packet)
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

from softunicast.api.protocol import MAX_BYTES, pack, socket_path, unpack
from softunicast.errors import KernelError, UsageError

TIMEOUT_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class OwnTun:
    """A TUN that is yours until you close `fd`, and what the agent says of it (docs/api.md)."""

    fd: int
    onramp: Mapping[str, Any]

    def close(self) -> None:
        os.close(self.fd)


class Client:
    """A connection to an agent; good for any number of questions, one at a time. Context manager."""

    def __init__(self, path: Path) -> None:
        """KernelError when nobody answers there."""
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self._socket.settimeout(TIMEOUT_S)
        try:
            self._socket.connect(str(path))
        except PermissionError as error:
            self._socket.close()
            raise UsageError(f"{path}: not allowed; ask as root, or as a member of the agent's --group") from error
        except OSError as error:
            self._socket.close()
            raise KernelError(f"{path}: {error.strerror}; start the node's agent", errno=error.errno or 0) from error

    @classmethod
    def of(cls, node: str) -> Self:
        """That of a node's agent on this machine."""
        return cls(socket_path(node))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._socket.close()

    def ask(self, question: Mapping[str, Any], descriptors: Sequence[int] = ()) -> tuple[dict[str, Any], list[int]]:
        """The answer and the descriptors that came with it, which the caller closes. UsageError (nothing was changed)
        or KernelError, in the agent's words, when it refuses."""
        try:
            socket.send_fds(self._socket, [pack(question)], descriptors)
            data, received, _, _ = socket.recv_fds(self._socket, MAX_BYTES, 1)
        except OSError as error:
            raise KernelError(f"the agent: {error.strerror or error}; see its log", errno=error.errno or 0) from error
        if not data:
            raise KernelError("the agent ended before it answered; start it and ask again")
        answer = unpack(data)
        if not answer.get("ok"):
            kind = UsageError if answer.get("exit_status") == 2 else KernelError
            raise kind(str(answer.get("error", "the agent refused")))
        return answer, received

    def tun(self, keys: Mapping[str, Any], *, name: str | None = None, tap: bool = False) -> OwnTun:
        """A TUN (or tap) of one's own; `keys` as those of an on-ramp in a plan."""
        answer, received = self.ask({"do": "tun", "name": name, "tap": tap, "keys": dict(keys)})
        return OwnTun(received[0], answer["onramp"])

    def hand_over(self, end: socket.socket, keys: Mapping[str, Any], *, name: str | None = None) -> dict[str, Any]:
        """One end of an AF_UNIX SOCK_SEQPACKET pair becomes an on-ramp, a record is a packet; close yours to end it."""
        answer, _ = self.ask({"do": "socket", "name": name, "keys": dict(keys)}, [end.fileno()])
        return dict(answer["onramp"])
