# SPDX-License-Identifier: Apache-2.0
"""An agent's node with a world behind its router, and clients that come in by on-ramps of every kind.

client namespaces, programs --- on-ramps --- node --- up0/r0 --- router 203.0.113.1 (echoes on tcp and udp 7)
"""

from __future__ import annotations

import json
import os
import selectors
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from softunicast.kernel import netns
from softunicast.wire.craft import udp
from softunicast.wire.packet import Packet, parse
from tests.support.agent_node import AgentNode, Daemon, agent_node

SERVER: Final = "203.0.113.1"
ECHO: Final = 7
POOL_ADDRESS: Final = "198.51.100.10"
PATIENCE_S: Final = 20


class Echo:
    """TCP and UDP echo of the world, in a thread. `seen`: who spoke, (protocol, address, port)."""

    def __init__(self, namespace: str) -> None:
        self.seen: list[tuple[str, str, int]] = []
        self._stop, self._wake = socket.socketpair()
        with netns.enter(namespace):
            self._tcp = socket.create_server((SERVER, ECHO), backlog=256)
            self._udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
            self._udp.bind((SERVER, ECHO))
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with selectors.DefaultSelector() as selector, ExitStack() as undo:
            for one in (self._stop, self._tcp, self._udp):
                undo.enter_context(one)
                selector.register(one, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fileobj is self._stop:
                        return
                    if key.fileobj is self._udp:
                        data, (address, port) = self._udp.recvfrom(65535)
                        self.seen.append(("udp", address, port))
                        self._udp.sendto(data, (address, port))
                    elif key.fileobj is self._tcp:
                        made, (address, port) = self._tcp.accept()
                        self.seen.append(("tcp", address, port))
                        selector.register(undo.enter_context(made), selectors.EVENT_READ)
                    else:
                        one = key.fileobj
                        assert isinstance(one, socket.socket)
                        data = b""
                        with suppress(ConnectionError):
                            data = one.recv(65535)
                        if data:
                            one.sendall(data)
                        else:
                            selector.unregister(one)
                            one.close()

    def close(self) -> None:
        self._wake.close()
        self._thread.join(PATIENCE_S)


@dataclass
class OnrampNode:
    """`with onramp_node(tmp_path) as at, at.node.daemon(): ...`"""

    node: AgentNode
    echo: Echo
    namespaces: list[str] = field(default_factory=list)

    @property
    def world(self) -> str:
        return f"{self.node.name}-r"

    def namespace(self, what: str) -> str:
        """A fresh one, gone at the end."""
        name = f"{self.node.name}-{what}"
        netns.create(name)
        self.namespaces.append(name)
        with netns.enter(name):
            run("ip", "link", "set", "lo", "up")
        return name

    def veth_client(self, what: str, device: str, address: str, gateway: str) -> str:
        """A namespace behind a veth of the node: address/24, everything by the gateway, which the node's end has."""
        name = self.namespace(what)
        self.node.ip("link", "add", device, "type", "veth", "peer", "name", "eth0", "netns", name)
        self.node.ip("address", "add", f"{gateway}/32", "dev", device)
        self.node.ip("link", "set", device, "addrgenmode", "none", "up")
        with netns.enter(name):
            run("ip", "address", "add", f"{address}/24", "dev", "eth0")
            run("ip", "link", "set", "eth0", "up")
            run("ip", "route", "add", "default", "via", gateway)
        return name

    def onramp(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.node.softunicast("onramp", *arguments)

    def add(self, *arguments: str) -> None:
        done = self.onramp("add", *arguments)
        assert done.returncode == 0, done.stderr

    def listed(self) -> dict[str, dict[str, Any]]:
        """`softunicast onramp list --json`, by name."""
        return {one["name"]: one for one in self.json("onramp", "list")["onramps"]}

    def tenants(self) -> dict[str | None, dict[str, Any]]:
        return {one["name"]: one for one in self.json("counters")["tenants"]}

    def json(self, *arguments: str) -> Any:
        done = self.node.softunicast(*arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def talk(self, namespace: str, text: bytes = b"hello", *, port: int = 0, keep: bool = False) -> socket.socket:
        """A TCP connection from that namespace to the echo, which answers."""
        with netns.enter(namespace):
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        made.settimeout(PATIENCE_S)
        if port:
            made.bind(("0.0.0.0", port))
        made.connect((SERVER, ECHO))
        self.say(made, text)
        if not keep:
            made.close()
        return made

    @staticmethod
    def say(connection: socket.socket, text: bytes) -> None:
        connection.sendall(text)
        got = b""
        while len(got) < len(text):
            part = connection.recv(65535)
            assert part, "the echo closed"
            got += part
        assert got == text


def question(source: str, port: int, text: bytes) -> bytes:
    """A UDP packet to the echo."""
    return udp(source, port, SERVER, ECHO, text)


def read_answer(fd: int, text: bytes) -> Packet:
    """The next packet from the echo out of a TUN's descriptor or a socket, with that text in it."""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while selector.select(PATIENCE_S):
            data = os.read(fd, 65535)
            packet = parse(data)
            if str(packet.source) == SERVER and data.endswith(text):
                return packet
    raise AssertionError(f"no answer with {text!r} in it")


def run(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


@contextmanager
def onramp_node(folder: Path) -> Iterator[OnrampNode]:
    """A node, its world, no agent yet."""
    with agent_node(folder) as node:
        world = f"{node.name}-r"
        with netns.enter(world):
            run("ip", "link", "set", "lo", "up")
            run("ip", "address", "add", f"{SERVER}/32", "dev", "lo")
            run("ip", "route", "add", "198.51.100.0/24", "via", "10.0.1.11")
        at = OnrampNode(node, Echo(world))
        try:
            yield at
        finally:
            at.echo.close()
            for name in at.namespaces:
                netns.delete(name)


__all__ = ["Daemon", "OnrampNode", "onramp_node"]
