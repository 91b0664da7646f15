# SPDX-License-Identifier: Apache-2.0
"""Servers of the world that say as whom they see a client: HTTP on listeners that are there, and DNS."""

from __future__ import annotations

import contextlib
import http.server
import socket
import socketserver
import threading
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any


class Whoami(http.server.BaseHTTPRequestHandler):
    """`address:port` of the client, an IPv6 one in brackets."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        host, port = self.client_address[:2]
        said = (f"[{host}]:{port}" if ":" in host else f"{host}:{port}").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(said)))
        self.end_headers()
        self.wfile.write(said)

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Web(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """On a listener that is there already."""

    daemon_threads = True

    def __init__(self, listener: Any) -> None:
        super().__init__(("", 0), Whoami, bind_and_activate=False)
        self.socket.close()
        self.socket = listener

    def handle_error(self, *_: object) -> None:
        """Clients here go away in the middle of things."""


@contextlib.contextmanager
def serving(listeners: Sequence[socket.socket]) -> Iterator[None]:
    """A web server on each, a thread each."""
    for one in listeners:
        one.settimeout(None)
    servers = [Web(one) for one in listeners]
    threads = [threading.Thread(target=one.serve_forever, args=(0.05,)) for one in servers]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        for one in servers:
            one.shutdown()
            one.server_close()
        for thread in threads:
            thread.join()


class Dns:
    """Answers every question for an A record with `address`. `seen`: who asked."""

    def __init__(self, made: socket.socket, address: str) -> None:
        self.seen: list[tuple[str, int]] = []
        self._socket, self._address = made, ip_address(address).packed
        self._socket.settimeout(None)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                question, whence = self._socket.recvfrom(4096)
                if not question:
                    return
                self.seen.append(whence[:2])
                self._socket.sendto(self._answer(question), whence)

    def _answer(self, question: bytes) -> bytes:
        end = question.index(b"\0", 12) + 5
        wants_a = question[end - 4 : end - 2] == b"\0\1"
        head = question[:2] + b"\x81\x80\0\1" + (b"\0\1" if wants_a else b"\0\0") + b"\0\0\0\0"
        record = b"\xc0\x0c\0\1\0\1\0\0\0\0\0\4" + self._address
        return head + question[12:end] + (record if wants_a else b"")

    def close(self) -> None:
        """Ends the thread: an empty datagram to itself."""
        self._socket.sendto(b"", self._socket.getsockname())
        self._thread.join(5)
