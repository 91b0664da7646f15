# SPDX-License-Identifier: Apache-2.0
"""The agent's end of its unix socket.

Lives in the agent's one loop: a question is answered before anything else is done, which takes as long as a
reconciliation, and until then others wait. The file's mode says who may ask: root, and a group if the agent was started
with one. A question that is wrong, or cannot be granted, gets one line and changes nothing; the agent goes on.
"""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import selectors
import socket
import struct
from dataclasses import dataclass, field
from typing import Any, Final

from softunicast.agent.onramp_file import entry_json
from softunicast.agent.onramp_keeper import Ask, Given, Keeper
from softunicast.agent.tagger import Tagger
from softunicast.api import requests
from softunicast.api.protocol import MAX_BYTES, pack, socket_path, unpack
from softunicast.errors import KernelError, SoftunicastError, UsageError

BACKLOG: Final = 64
MAX_CONNECTIONS: Final = 256
MAX_DESCRIPTORS: Final = 1
UCRED: Final = struct.Struct("=iII")


def group_number(name: str) -> int:
    """UsageError: no such group."""
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise UsageError(f"--group {name}: no such group on this machine; make it, or name another") from error


@dataclass(slots=True)
class Server:
    """Listens for one node. `group`: the number of the group that may ask, too."""

    node: str
    log: Any
    group: int | None = None
    _keeper: Keeper | None = None
    _tagger: Tagger | None = None
    _selector: selectors.BaseSelector | None = None
    _listener: socket.socket | None = None
    _open: set[socket.socket] = field(default_factory=set)

    def open(self, keeper: Keeper, selector: selectors.BaseSelector) -> None:
        """Listen. KernelError when that cannot be. The agent's lock says that an old file is nobody's."""
        path = socket_path(self.node)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        try:
            path.unlink(missing_ok=True)
            before = os.umask(0o177)
            try:
                listener.bind(str(path))
            finally:
                os.umask(before)
            if self.group is not None:
                os.chown(path, 0, self.group)
                path.chmod(0o660)
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            raise KernelError(f"listen at {path}: {error.strerror or error}", errno=error.errno or 0) from error
        self._keeper, self._selector, self._listener = keeper, selector, listener
        self._tagger = Tagger(keeper.machine)
        selector.register(listener, selectors.EVENT_READ, self._accept)

    def close(self) -> None:
        """Stop listening; who is connected is told by the end of the connection."""
        for connection in list(self._open):
            self._drop(connection)
        if self._listener is not None and self._selector is not None:
            self._selector.unregister(self._listener)
            self._listener.close()
            self._listener = None
            socket_path(self.node).unlink(missing_ok=True)

    def _accept(self, listener: socket.socket) -> bool:
        try:
            connection, _ = listener.accept()
        except OSError:
            # It went away again, or there are no descriptors: the next one is tried when it comes.
            return False
        if len(self._open) >= MAX_CONNECTIONS or self._selector is None:
            connection.close()
            return False
        connection.setblocking(False)
        self._open.add(connection)
        self._selector.register(connection, selectors.EVENT_READ, self._ready)
        return False

    def _drop(self, connection: socket.socket) -> None:
        self._open.discard(connection)
        if self._selector is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(connection)
        connection.close()

    def _ready(self, connection: socket.socket) -> bool:
        """One record: a question, or the end."""
        try:
            data, descriptors, flags, _ = socket.recv_fds(connection, MAX_BYTES + 1, MAX_DESCRIPTORS)
        except BlockingIOError:
            return False
        except OSError:
            self._drop(connection)
            return False
        handed: socket.socket | None = None
        try:
            if not data:
                self._drop(connection)
                return False
            if len(data) > MAX_BYTES or flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC):
                self._answer(
                    connection, _refusal(UsageError(f"a message of more than {MAX_BYTES} bytes, or descriptors"))
                )
                return False
            if descriptors:
                handed = _socket(descriptors)
            self._asked(connection, data, handed)
        finally:
            if handed is not None:
                handed.close()
            for descriptor in descriptors:
                os.close(descriptor)
        return False

    def _asked(self, connection: socket.socket, data: bytes, handed: socket.socket | None) -> None:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, UCRED.size)
        pid, uid, _ = UCRED.unpack(credentials)
        given: Given | None = None
        try:
            question = requests.read(unpack(data))
            answer, given = self._do(question, uid, handed)
        except (SoftunicastError, OSError) as error:
            self.log.warning("refused", pid=pid, uid=uid, error=str(error))
            answer = _refusal(error)
        try:
            self._answer(connection, answer, given)
        finally:
            if given is not None and given.fd is not None:
                os.close(given.fd)

    def _do(
        self, question: requests.Question, uid: int, handed: socket.socket | None
    ) -> tuple[dict[str, Any], Given | None]:
        keeper, tagger = self._keeper, self._tagger
        if keeper is None or tagger is None:
            raise KernelError("the agent is not ready yet; ask again")
        match question:
            case requests.Add(name=name, device=device, make=make, keys=keys):
                ask = Ask("make" if make else "device", keys, name, device, make == "tap", uid)
            case requests.Tun(name=name, device=device, tap=tap, keys=keys):
                ask = Ask("tun", keys, name, device, tap, uid)
            case requests.Hand(name=name, device=device, keys=keys):
                ask = Ask("socket", keys, name, device, uid=uid)
            case requests.Tag(pool=pool, slice=slice_, client=client):
                tagger.tag(handed, pool, slice_, client)
                return {"ok": True}, None
            case requests.Remove(name=name):
                return {"ok": True, "onramp": entry_json(keeper.remove(name, uid))}, None
            case _:
                return {"ok": True, "onramps": [entry_json(one) for one in keeper.listed()]}, None
        given = keeper.add(ask, handed)
        return {"ok": True, "onramp": given.as_json()}, given

    def _answer(self, connection: socket.socket, answer: dict[str, Any], given: Given | None = None) -> None:
        """Who does not wait for its answer, or sends more than it reads, is not waited for."""
        try:
            descriptors = [given.fd] if given is not None and given.fd is not None else []
            socket.send_fds(connection, [pack(answer)], descriptors)
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.ECONNRESET):
                self.log.warning("answer not sent", error=str(error))
            self._drop(connection)


def _socket(descriptors: list[int]) -> socket.socket | None:
    """The socket that came with a question, which takes its descriptor; None: it is none."""
    try:
        made = socket.socket(fileno=descriptors[0])
    except OSError:
        return None
    descriptors.pop(0)
    return made


def _refusal(error: SoftunicastError | OSError) -> dict[str, Any]:
    status = error.exit_status if isinstance(error, SoftunicastError) else 1
    return {"ok": False, "error": " ".join(str(error).split()), "exit_status": status}
