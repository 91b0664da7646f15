# SPDX-License-Identifier: Apache-2.0
"""A running `softunicast proxy`, and an origin of many talents for its clients to reach.

`Proxy(policy, tmp_path)` runs the real command, on the host's loopback or inside a SockNode's namespace, and waits
until it serves; `close()` ends it by TERM and requires that it ended well and told of no mistake of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from softunicast.kernel import netns
from tests.support.wait import wait_until

BIG = bytes(range(256)) * 4096
PATIENCE_S = 60
PAGE = """<!doctype html><title>origin</title><link rel=stylesheet href=page.css>
<body>page for WHO;<script src=page.js></script>
<script>document.body.append(getComputedStyle(document.body, "::after").content)</script>"""


class Proxy:
    """See the module."""

    def __init__(self, policy: str, folder: Path, ns: str | None = None, port: int = 0) -> None:
        self.port = port or free_port()
        self.policy = folder / "proxy.yaml"
        self.access = folder / "access.log"
        self.errors = folder / "proxy.log"
        self.write_policy(policy)
        enter = ["nsenter", f"--net=/run/netns/{ns}"] if ns else []
        command = [*enter, sys.executable, "-m", "softunicast.cli", "proxy", "--policy", str(self.policy)]
        with self.errors.open("wb") as errors:
            self.process = subprocess.Popen([*command, "--log-format", "json"], stderr=errors)
        self.wait_for("serving")

    def write_policy(self, policy: str) -> None:
        """PORT and LOG stand for this proxy's."""
        self.policy.write_text(policy.replace("PORT", str(self.port)).replace("LOG", str(self.access)))

    def told(self, event: str) -> list[dict[str, Any]]:
        """Lines of the program's own log."""
        lines = self.errors.read_text().splitlines()
        said = [json.loads(line) for line in lines if line.startswith("{")]
        return [one for one in said if one["event"] == event]

    def wait_for(self, event: str, times: int = 1) -> None:
        def there() -> bool:
            assert self.process.poll() is None, self.errors.read_text()
            return len(self.told(event)) >= times

        wait_until(there, PATIENCE_S, f"{event!r} in the proxy's log")

    def reload(self) -> None:
        """HUP, and wait until the next image serves and its predecessors' processes are told to go."""
        before = len(self.told("serving"))
        self.process.send_signal(signal.SIGHUP)
        self.wait_for("serving", before + 1)

    def entries(self, count: int) -> list[dict[str, Any]]:
        """Lines of the access log, once there are so many; 0: those that are there."""

        def read() -> list[dict[str, Any]]:
            # A line that is being written has no end yet.
            lines = self.access.read_text().rpartition("\n")[0].splitlines() if self.access.exists() else []
            return [json.loads(line) for line in lines] if len(lines) >= count else []

        if not count:
            return read()
        return wait_until(read, PATIENCE_S, f"{count} lines in the access log")

    def status(self) -> dict[str, Any]:
        """What the only worker counts."""
        before = len(self.told("status"))
        for _ in range(6):
            self.process.send_signal(signal.SIGUSR2)
            # A worker that could not answer in time is asked again.
            with contextlib.suppress(AssertionError):
                wait_until(lambda: len(self.told("status")) > before, 10, "status")
                return self.told("status")[-1]
        raise AssertionError(self.errors.read_text())

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(PATIENCE_S)
        said = self.errors.read_text()
        assert code == 0, said
        assert "mistake of ours" not in said, said
        assert "worker failed" not in said, said

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None:
            self.close()
        else:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(PATIENCE_S)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


class Origin(BaseHTTPRequestHandler):
    """GET /who: the client's address as text. /big: BIG. /page: a page, and a script and a style of its own that say
    who asked for them. /reset: a RST in mid-answer. POST: the body again."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        if self.path == "/reset":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.flush()
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            self.close_connection = True
            os.dup2(os.open(os.devnull, os.O_RDWR), self.connection.fileno())  # the last descriptor: RST
            return
        who = "{} {}".format(*self.client_address[:2])
        said = {
            "/big": (BIG, "application/octet-stream"),
            "/page": (PAGE.replace("WHO", who).encode(), "text/html"),
            "/page.js": (f"document.body.append('script for {who};')".encode(), "text/javascript"),
            "/page.css": (f"body::after {{ content: 'style for {who};' }}".encode(), "text/css"),
        }
        self._answer(*said.get(self.path, (who.encode(), "text/plain")))

    def do_POST(self) -> None:
        self._answer(self.rfile.read(int(self.headers["Content-Length"])))

    def _answer(self, body: bytes, kind: str = "application/octet-stream") -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name in ("Via", "X-Kept", "Proxy-Authorization", "Connection"):
            if self.headers[name]:
                self.send_header(f"Seen-{name}", self.headers[name])
        self.end_headers()
        self.wfile.write(body)


class _Server(ThreadingHTTPServer):
    """Threads, many waiting clients, either version of IP."""

    daemon_threads = True
    request_queue_size = 512

    def handle_error(self, *_: object) -> None:
        """Clients leave when they like."""


class _Server6(_Server):
    address_family = socket.AF_INET6


@contextmanager
def origin(
    address: str = "127.0.0.1", port: int = 0, ns: str | None = None, tls: tuple[Path, Path] | None = None
) -> Iterator[int]:
    """An HTTP server; its port. `tls`: HTTPS, with that certificate and key."""
    with netns.enter(ns):
        kind = _Server6 if ":" in address else _Server
        server = kind((address, port), Origin)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        # The handshake is the handler's own business: a slow client must not keep others waiting.
        server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def curl(*arguments: str, ns: str | None = None, timeout_s: float = 30) -> subprocess.CompletedProcess[str]:
    enter = ["nsenter", f"--net=/run/netns/{ns}"] if ns else []
    command = [*enter, "curl", "-sS", "--max-time", str(timeout_s), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s + 30, check=False)
