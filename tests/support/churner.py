# SPDX-License-Identifier: Apache-2.0
"""N ordinary TCP clients in one process, each opening connection after connection to one destination.

    python churner.py ADDRESS PORT CLIENTS SECONDS NAME

Each connection asks for bytes that carry a token of its own and looks at every one of them. A client that is refused
waits a random moment and tries again. At the end one JSON object: {"done", "wrong": streams with a foreign byte,
"errors": {name: how often}, "tokens": how many asked}.
"""

from __future__ import annotations

import errno
import json
import random
import resource
import select
import socket
import struct
import sys
import time
from collections import Counter

BYTES = 3000


class Client:
    """One connection at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.number = 0
        self.sock: socket.socket | None = None
        self.asked = False
        self.data = bytearray()
        self.token = ""
        self.until = 0.0


def main() -> None:
    address, port, clients, seconds, name = (
        sys.argv[1],
        int(sys.argv[2]),
        int(sys.argv[3]),
        float(sys.argv[4]),
        sys.argv[5],
    )
    resource.setrlimit(
        resource.RLIMIT_NOFILE, (clients + 100, max(clients + 100, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    )
    chance = random.Random(name)
    errors: Counter[str] = Counter()
    done = wrong = 0
    poll = select.epoll()
    everybody = [Client(f"{name}-{number}") for number in range(clients)]
    open_now: dict[int, Client] = {}
    end = time.monotonic() + seconds

    def close(client: Client, *, reset: bool) -> None:
        assert client.sock is not None
        open_now.pop(client.sock.fileno(), None)
        if reset:
            client.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.sock.close()
        client.sock = None

    def failed(client: Client, number: int) -> None:
        errors[errno.errorcode.get(number, str(number))] += 1
        close(client, reset=False)
        client.until = time.monotonic() + chance.uniform(0.05, 1.0)

    def begin(client: Client) -> None:
        client.number += 1
        client.token = f"{client.name}.{client.number}"
        client.data.clear()
        client.asked = False
        client.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        client.until = time.monotonic() + 10
        code = client.sock.connect_ex((address, port))
        if code not in (0, errno.EINPROGRESS):
            failed(client, code)
            return
        open_now[client.sock.fileno()] = client
        poll.register(client.sock.fileno(), select.EPOLLOUT | select.EPOLLIN)

    def turn(client: Client) -> int:
        """1: a stream is whole and right, -1: whole and wrong, 0: not yet or failed."""
        assert client.sock is not None
        if not client.asked:
            code = client.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code:
                failed(client, code)
                return 0
            request = f"GET /bytes/{BYTES}?token={client.token} HTTP/1.1\r\nHost: x\r\n\r\n"
            try:
                client.sock.send(request.encode())
            except OSError as error:
                failed(client, error.errno or 0)
                return 0
            client.asked = True
            poll.modify(client.sock.fileno(), select.EPOLLIN)
            return 0
        try:
            data = client.sock.recv(65536)
        except BlockingIOError:
            return 0
        except OSError as error:
            failed(client, error.errno or 0)
            return 0
        if not data:
            failed(client, errno.EPIPE)
            return 0
        client.data += data
        _, separator, body = bytes(client.data).partition(b"\r\n\r\n")
        if not separator or len(body) < BYTES:
            return 0
        line = f"{client.token}\n".encode()
        right = body == (line * (BYTES // len(line) + 1))[:BYTES]
        # Mostly by RST: a TIME_WAIT would hold its port for a minute. Some by FIN, so that both are seen.
        close(client, reset=chance.random() < 0.95)
        client.until = 0
        return 1 if right else -1

    while (now := time.monotonic()) < end:
        for client in everybody:
            if client.sock is None and client.until <= now:
                begin(client)
            elif client.sock is not None and client.until < now:
                errors["timeout"] += 1
                close(client, reset=True)
                client.until = now + 0.5
        for handle, _ in poll.poll(0.02):
            if handle in open_now:
                verdict = turn(open_now[handle])
                done += verdict == 1
                wrong += verdict == -1
    for client in everybody:
        if client.sock is not None:
            close(client, reset=True)
    print(json.dumps({"done": done, "wrong": wrong, "errors": errors, "tokens": sum(c.number for c in everybody)}))


if __name__ == "__main__":
    main()
