# SPDX-License-Identifier: Apache-2.0
"""Ten thousand clients of a proxy, and an echo server that takes them all.

    python crowd.py PORT        serves on all addresses; prints "ready"

`Crowd` opens its connections in waves, each answered before the next one comes, so that no listener's queue overflows.
"""

from __future__ import annotations

import contextlib
import resource
import select
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager

WAVE = 500
READ_BYTES = 65536


def more_descriptors() -> int:
    """As many as this process may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


@contextmanager
def many_descriptors() -> Iterator[int]:
    """In the block, and for processes that are started in it."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        yield more_descriptors()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


class Crowd:
    """Clients of the SOCKS5 proxy at `port` of the loopback; `sockets` are open, the first `served` have been answered.
    The n-th one asks for the n-th target, round and round."""

    def __init__(self, port: int, targets: list[tuple[str, int]], patience_s: float) -> None:
        self._proxy = ("127.0.0.1", port)
        self._targets = targets
        self._patience_s = patience_s
        self.sockets: list[socket.socket] = []
        self.served = 0

    def come(self, count: int) -> None:
        """So many more, all of which ask."""
        for _ in range(count):
            address, port = self._targets[len(self.sockets) % len(self._targets)]
            one = socket.create_connection(self._proxy, self._patience_s)
            self.sockets.append(one)
            where = socket.inet_aton(address) + port.to_bytes(2, "big")
            one.sendall(b"\x05\x01\x00\x05\x01\x00\x01" + where)

    def be_served(self, count: int) -> None:
        """The next ones must get their answers."""
        for one in self.sockets[self.served : self.served + count]:
            answer = b""
            while len(answer) < 12:
                data = one.recv(12 - len(answer))
                assert data, f"client {self.served} was sent away: {answer!r}"
                answer += data
            assert answer[:4] == b"\x05\x00\x05\x00", f"client {self.served}: {answer!r}"
            self.served += 1

    def come_and_be_served(self, count: int) -> None:
        for at in range(0, count, WAVE):
            wave = min(WAVE, count - at)
            self.come(wave)
            self.be_served(wave)

    def talk(self, at: int) -> None:
        """There and back, by one of them."""
        data = b"client %d says so\n" % at * 500
        self.sockets[at].sendall(data)
        back = b""
        while len(back) < len(data):
            back += self.sockets[at].recv(READ_BYTES)
        assert back == data, f"client {at} got other bytes than it sent"

    def silent(self, first: int) -> bool:
        """Nothing has come to those from `first` on, no end either."""
        poll = select.poll()
        for one in self.sockets[first:]:
            poll.register(one, select.POLLIN | select.POLLHUP)
        return not poll.poll(0)

    def leave(self, first: int, last: int) -> None:
        """They shut, see that the origin does, and close."""
        going = self.sockets[first : last + 1]
        for one in going:
            one.shutdown(socket.SHUT_WR)
        for one in going:
            assert one.recv(1) == b""
            one.close()

    def close(self) -> None:
        for one in self.sockets:
            one.close()


def serve(port: int) -> None:
    """Everything comes back; who shuts is answered by a FIN."""
    more_descriptors()
    listener = socket.create_server(("", port), backlog=4096)
    listener.setblocking(False)
    epoll = select.epoll()
    epoll.register(listener, select.EPOLLIN)
    clients: dict[int, socket.socket] = {}
    print("ready", flush=True)
    while True:
        for fd, _ in epoll.poll():
            if fd == listener.fileno():
                with contextlib.suppress(BlockingIOError):
                    while True:
                        one, _ = listener.accept()
                        one.settimeout(60)
                        clients[one.fileno()] = one
                        epoll.register(one, select.EPOLLIN)
                continue
            try:
                data = clients[fd].recv(READ_BYTES)
                if data:
                    clients[fd].sendall(data)
            except OSError:
                data = b""
            if not data:
                clients.pop(fd).close()


if __name__ == "__main__":
    serve(int(sys.argv[1]))
