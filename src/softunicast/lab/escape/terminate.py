# SPDX-License-Identifier: Apache-2.0
"""Step 9: end the client's TCP connection here and go on from a socket of the host.

Then the outer flow is a socket's, which the kernel keeps apart by itself, and nothing is rewritten. The program lives
in a namespace of its own on the client's side and makes its outgoing sockets in the host's. Three ways to get hold of
connections to any address: TPROXY, redirect with SO_ORIGINAL_DST, and a local route to everything (AnyIP). The price
stands at the end: the client's handshake is done before anybody knows whether there is a port.

Sources: Documentation/networking/tproxy.rst, net/ipv4/netfilter.
"""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from softunicast.kernel.conntrack import Conntrack
from softunicast.wire.packet import ACK, RST, SYN, Packet

from .notes import Notes
from .sockopts import IP_TRANSPARENT, SO_ORIGINAL_DST, answer, port_range, tcp
from .stage import FIRST, LAST, SERVER, SHARED, Stage, wait

NAME: Final = "terminate"
TITLE: Final = "Terminating TCP"
TRIED: Final = (
    "A program in a namespace of its own takes the client's connections by TPROXY, by redirect, by a local route to "
    "everything, and goes on from sockets of the host bound to the slice. 20 MB by each; then eleven at once."
)
BYTES: Final = 20_000_000
PORT: Final = 7000
TPROXY: Final = f"""\
table ip ended {{
  chain pre {{
    type filter hook prerouting priority mangle
    iifname "c0" meta l4proto tcp tproxy to :{PORT} meta mark set 1 accept
  }}
}}
"""
REDIRECT: Final = f"""\
table ip ended {{
  chain pre {{
    type nat hook prerouting priority dstnat
    iifname "c0" meta l4proto tcp redirect to :{PORT}
  }}
}}
"""


class Relay:
    """Takes connections at a listening socket and goes on from sockets of the host, a thread each way."""

    def __init__(self, stage: Stage, listener: socket.socket, *, redirected: bool) -> None:
        self._stage = stage
        self._listener = listener
        self._redirected = redirected
        self._socks: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    @contextmanager
    def running(self) -> Iterator[None]:
        self._start(self._accept)
        try:
            yield
        finally:
            self._listener.shutdown(socket.SHUT_RDWR)
            for sock in list(self._socks):
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)
            for thread in list(self._threads):
                thread.join()
            for sock in self._socks:
                sock.close()

    def _start(self, work: object, *arguments: object) -> None:
        thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was shut down
            while True:
                near, _ = self._listener.accept()
                self._socks.append(near)
                self._join(near)

    def _join(self, near: socket.socket) -> None:
        place = near.getsockname()
        if self._redirected:
            data = near.getsockopt(socket.IPPROTO_IP, SO_ORIGINAL_DST, 16)
            place = (socket.inet_ntoa(data[4:8]), int.from_bytes(data[2:4], "big"))
        with self._stage.at("host"):
            far = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            port_range(far, FIRST, LAST)
            far.bind((SHARED, 0))
            far.connect(place)
        except OSError:
            far.close()
            near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            near.close()
            self._socks.remove(near)
            return
        self._socks.append(far)
        self._start(self._copy, near, far)
        self._start(self._copy, far, near)

    @staticmethod
    def _copy(source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 20):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def run(notes: Notes) -> None:
    """Three ways with a file; then, where no TIME_WAIT of theirs has a port, eleven clients at once."""
    with _place(notes) as stage:
        with _way(stage, "tproxy"):
            _file(notes, stage, "TPROXY")
        with _way(stage, "redirect"):
            _file(notes, stage, "redirect and SO_ORIGINAL_DST")
        with _way(stage, "anyip"):
            _file(notes, stage, "AnyIP and IP_TRANSPARENT")
        with stage.at("host"), Conntrack() as table:
            notes.check("conntrack entries in the host's namespace", 0, len(table.entries()))
    with _place(notes) as stage, _way(stage, "tproxy"):
        _eleven(notes, stage)


@contextmanager
def _place(notes: Notes) -> Iterator[Stage]:
    """The client behind the program's namespace."""
    with Stage(notes, more=("proxy",)) as stage, stage.web():
        stage.batch(
            stage.of("proxy"),
            f"link add c0 type veth peer name p0 netns {stage.client}",
            "address add 10.9.0.1/24 dev c0",
            "link set c0 up",
        )
        stage.batch(
            stage.client,
            "address add 10.9.0.2/24 dev p0",
            "link set p0 up",
            "route replace default via 10.9.0.1",
        )
        yield stage


@contextmanager
def _way(stage: Stage, name: str) -> Iterator[None]:
    """Set up one way to take connections, and a relay behind it."""
    with ExitStack() as stack:
        local = "route add local 0.0.0.0/0 dev lo table 100"
        commands = {
            "tproxy": ("ip rule add fwmark 1 lookup 100", f"ip {local}"),
            "redirect": (),
            "anyip": ("ip rule add iif c0 lookup 100", f"ip {local}"),
        }[name]
        for command in commands:
            stage.run("proxy", command)
            stack.callback(stage.run, "proxy", command.replace(" add ", " del "))
        if name != "anyip":
            stage.nft(TPROXY if name == "tproxy" else REDIRECT, "proxy")
            stack.callback(stage.run, "proxy", "nft delete table ip ended")
        with stage.at("proxy"):
            listener = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if name != "redirect":
                listener.setsockopt(socket.IPPROTO_IP, IP_TRANSPARENT, 1)
            listener.bind(("0.0.0.0", 80 if name == "anyip" else PORT))
            listener.listen(64)
        stack.enter_context(Relay(stage, listener, redirected=name == "redirect").running())
        yield


def _curl(stage: Stage, *arguments: str) -> bytes:
    words = stage.words("client", ["curl", "-sS", "-m", "30", *arguments])
    return subprocess.run(words, capture_output=True, check=False, timeout=60).stdout


def _file(notes: Notes, stage: Stage, way: str) -> None:
    line = b"escape\n"
    wanted = (line * (BYTES // len(line) + 1))[:BYTES]
    notes.command("client", f"curl http://{SERVER}/bytes/{BYTES}")
    got = _curl(stage, f"http://{SERVER}/bytes/{BYTES}?token=escape")
    notes.check(f"{way}: 20 MB arrive", "intact", "intact" if got == wanted else f"{len(got)} bytes")
    address, _, port = _curl(stage, f"http://{SERVER}/").decode().split()[-1].partition(":")
    inside = address == SHARED and FIRST <= int(port) <= LAST
    notes.check(
        f"{way}: the server saw", "a port of the slice", "a port of the slice" if inside else f"{address}:{port}"
    )


def _eleven(notes: Notes, stage: Stage) -> None:
    """Ten hold their connections; the next client's handshake works, and then it is cut."""
    with ExitStack() as stack:
        read, write = os.pipe()
        stack.callback(os.close, read)
        os.set_blocking(read, False)
        for _ in range(10):
            stack.enter_context(
                stage.popen("client", ["curl", "-sSN", "-m", "240", f"http://{SERVER}/hold"], stdout=write)
            )
        os.close(write)
        said = bytearray()

        def ten() -> bool:
            with contextlib.suppress(BlockingIOError):
                said.extend(os.read(read, 65536))
            return said.count(b"\n") == 10

        wait(ten, "ten connections are held")
        with stage.tap("client", "p0") as tap, stage.at("client"), tcp() as sock:
            sock.settimeout(10)
            # The RST may overtake the program's own waking up from connect(2).
            said_so = {answer(lambda: sock.connect((SERVER, 80))), answer(lambda: sock.recv(1))}
            port = sock.getsockname()[1]
            seen = [one for one in tap.packets() if port in (one.source_port, one.destination_port)]
        notes.wire("client", seen)
        notes.check(
            "an eleventh client's connection", "SYN, SYN-ACK, ACK, RST", ", ".join(_kind(one) for one in seen[:4])
        )
        notes.check("and what its program gets", "ECONNRESET", "ECONNRESET" if "ECONNRESET" in said_so else said_so)


def _kind(packet: Packet) -> str:
    if packet.tcp_flags & RST:
        return "RST"
    return {SYN: "SYN", SYN | ACK: "SYN-ACK", ACK: "ACK"}.get(packet.tcp_flags, str(packet))
