# SPDX-License-Identifier: Apache-2.0
"""The place of every experiment: a host with an address to share, a client behind it, and a world.

    client              host                                         world
      tun0 10.8.0.2 ... fishtun (unnumbered)
                        lo 198.51.100.10/32
                        up0 192.0.2.11/24 ------- veth ------ eth0 192.0.2.1/24
                                                              lo 203.0.113.1, .2

Both TUN devices are held by this process: it plays the client with made packets (`inject`), or a Mover joins the two,
as a VPN server would. The world answers by its kernel alone (listening sockets whose backlog is never accepted) or by
the lab's servers.

A capture is an AF_PACKET socket. Packets are carried within the write(2) or send(2) that starts them, so on one CPU
what was sent before a fence, a datagram each way between host and world, has been seen when the fence has. That is
how an experiment knows that something did *not* happen. The thread is pinned to one CPU for that.

Namespaces are named escape<pid>-<who>; those of makers that died are removed by the next one.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from softunicast.errors import KernelError
from softunicast.kernel import netns, nft, sysctl
from softunicast.kernel.tun import open_tun
from softunicast.lab import build
from softunicast.lab.lab import environment, wait_until
from softunicast.lab.traces import forget_node
from softunicast.wire import craft
from softunicast.wire.packet import Malformed, Packet, parse

from .notes import Notes

SHARED: Final = "198.51.100.10"
SERVER: Final = "203.0.113.1"
SERVER2: Final = "203.0.113.2"
HOST: Final = "192.0.2.11"
WORLD: Final = "192.0.2.1"
CLIENT: Final = "10.8.0.2"
FIRST: Final = 9000
LAST: Final = 9009
FENCE_PORT: Final = 9
ECHO_PORT: Final = 7
PATIENCE_S: Final = 60.0  # only a loaded machine needs it
STEM: Final = "escape"
_ETH_P_IP: Final = 0x0800
_ETH_P_ALL: Final = 0x0003
_SO_RCVBUFFORCE: Final = 33
_HOST_SYSCTLS: Final[dict[str, str | int]] = {
    "net.ipv4.ip_forward": 1,
    "net.ipv4.conf.all.rp_filter": 0,
    "net.ipv4.conf.all.send_redirects": 0,
    "net.ipv4.ip_local_port_range": "9000 9999",
    "net.ipv4.tcp_fastopen": 1,
}


def remove_leftovers() -> None:
    """Namespaces of stages whose maker was killed, what runs in them, and what agents there left."""
    for name in netns.names():
        maker = re.match(rf"{STEM}(\d+)", name)
        if maker and not Path(f"/proc/{maker[1]}").exists():
            build.stop(build.processes([netns.path_of(name)]))
            forget_node(name.partition("-")[0])
            netns.delete(name)


class Tap:
    """A capture of IPv4 packets at one device, both directions; fences are left out."""

    def __init__(self, namespace: str, device: str) -> None:
        with netns.enter(namespace):
            self._sock = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
            self._sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, 1 << 24)
            self._sock.bind((device, _ETH_P_ALL))
        self._sock.setblocking(False)
        self.place = device
        self._seen: list[tuple[bool, bytes]] = []

    def close(self) -> None:
        self._sock.close()

    def _drain(self) -> None:
        with contextlib.suppress(BlockingIOError):
            while True:
                data, (_, ethertype, kind, *_rest) = self._sock.recvfrom(65535)
                if ethertype == _ETH_P_IP:
                    self._seen.append((kind == socket.PACKET_OUTGOING, data))

    def _parsed(self, out: bool | None) -> Iterator[Packet]:
        self._drain()
        for outgoing, data in self._seen:
            if out is None or out == outgoing:
                with contextlib.suppress(Malformed):
                    yield parse(data)

    def packets(self, out: bool | None = None) -> list[Packet]:
        """What passed since the last `forget`: all, or what the device sent (True) or received (False)."""
        return [one for one in self._parsed(out) if one.destination_port != FENCE_PORT]

    def fenced(self, mark: int) -> bool:
        """Whether this fence's datagram has passed."""
        return any(one.destination_port == FENCE_PORT and one.source_port == mark for one in self._parsed(None))

    def forget(self) -> None:
        self._drain()
        self._seen.clear()


class Stage:
    """The namespaces above. Use as a context; everything goes at its end, whatever happened."""

    def __init__(self, notes: Notes, label: str = "", *, more: tuple[str, ...] = ()) -> None:
        """`label` tells stages of one process apart; `more`: further namespaces, with nothing in them."""
        self.notes = notes
        self.name = f"{STEM}{os.getpid()}{label}"
        self._names = {who: f"{self.name}-{who}" for who in ("host", "world", "client", *more)}
        self.host, self.world, self.client = (self.of(who) for who in ("host", "world", "client"))
        self._stack = ExitStack()
        self._fence = 20000
        self._sinks: dict[str, socket.socket] = {}

    def __enter__(self) -> Stage:
        remove_leftovers()
        with ExitStack() as stack:
            before = os.sched_getaffinity(0)
            stack.callback(os.sched_setaffinity, 0, before)
            os.sched_setaffinity(0, {min(before)})
            for name in self._names.values():
                netns.create(name)
                stack.callback(self._remove, name)
            self._build(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def _remove(self, name: str) -> None:
        build.stop(build.processes([netns.path_of(name)]))
        netns.delete(name)

    def _build(self, stack: ExitStack) -> None:
        for name in self._names.values():
            self.batch(name, "link set lo up")
        with netns.enter(self.host):
            self.fishtun = open_tun("fishtun")
            stack.callback(os.close, self.fishtun)
        with netns.enter(self.client):
            self.tun0 = open_tun("tun0")
            stack.callback(os.close, self.tun0)
        for fd in (self.fishtun, self.tun0):
            os.set_blocking(fd, False)
        self.batch(
            self.host,
            f"link add up0 type veth peer name eth0 netns {self.world}",
            f"address add {SHARED}/32 dev lo scope host",
            f"address add {HOST}/24 dev up0",
            "link set up0 addrgenmode none",
            "link set fishtun addrgenmode none",
            "link set up0 up",
            "link set fishtun up",
            f"route add default via {WORLD}",
            "route add 10.8.0.0/16 dev fishtun",
        )
        self.batch(
            self.world,
            *(f"address add {address}/32 dev lo" for address in (SERVER, SERVER2)),
            f"address add {WORLD}/24 dev eth0",
            "link set eth0 addrgenmode none",
            "link set eth0 up",
            f"route add 198.51.100.0/24 via {HOST}",
        )
        self.batch(
            self.client,
            f"address add {CLIENT}/16 dev tun0",
            "link set tun0 addrgenmode none",
            "link set tun0 up",
            "route add default dev tun0",
        )
        for name, value in _HOST_SYSCTLS.items():
            sysctl.put(name, value, netns=self.host)
        for name in (self.host, self.world, self.client):
            for device in ("all", "default", "lo", {self.host: "up0", self.world: "eth0"}.get(name, "tun0")):
                sysctl.put(f"net.ipv4.conf.{device}.rp_filter", 0, netns=name)
        sysctl.put("net.ipv4.conf.fishtun.rp_filter", 0, netns=self.host)
        for who, address in (("host", HOST), ("world", WORLD)):
            with self.at(who):
                sink = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            sink.bind((address, FENCE_PORT))  # without it each fence would draw an ICMP error
            self._sinks[who] = sink

    # -- commands

    @staticmethod
    def batch(namespace: str, *lines: str) -> None:
        """ip(8) lines in a namespace, silently. KernelError."""
        command = ["ip", "-n", namespace, "-batch", "-"]
        done = subprocess.run(command, input="\n".join(lines) + "\n", capture_output=True, text=True, check=False)
        if done.returncode:
            raise KernelError(f"escape: {namespace}: {done.stderr.strip().splitlines()[0]}", log=done.stderr)

    def run(self, who: str, command: str, *, check: bool = True, text: str = "") -> subprocess.CompletedProcess[str]:
        """A command at `host`, `world` or `client`, shown. KernelError when it fails."""
        self.notes.command(who, command)
        for line in text.splitlines():
            self.notes.line(f"      {line}")
        words = self.words(who, shlex.split(command))
        done = subprocess.run(words, input=text, capture_output=True, text=True, check=False, timeout=60)
        if check and done.returncode:
            said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
            raise KernelError(f"escape: {who}: {command}: {said[0]}", log=done.stderr)
        return done

    def quiet(self, who: str, command: str) -> str:
        """What a command prints, not shown. KernelError when it fails."""
        words = self.words(who, shlex.split(command))
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60)
        if done.returncode:
            raise KernelError(f"escape: {who}: {command}: {done.stderr.strip()}")
        return done.stdout

    def counters(self, table: str, who: str = "host") -> dict[str, int]:
        """Packets counted by the named counters of a table."""
        with self.at(who):
            listed = nft.list_table("ip", table) or []
        return {entry["counter"]["name"]: int(entry["counter"]["packets"]) for entry in listed if "counter" in entry}

    def nft(self, script: str, who: str = "host") -> None:
        """Apply an nft script, shown."""
        self.run(who, "nft -f -", text=script)

    def put(self, name: str, value: str | int) -> str:
        """Set a sysctl of the host, shown; gives the value before."""
        self.notes.command("host", f"sysctl -w {shlex.quote(f'{name}={value}'.strip())}")
        return sysctl.put(name, value, netns=self.host)

    def words(self, who: str, command: list[str]) -> list[str]:
        """A command line that runs there."""
        return build.entering(netns.path_of(self.of(who)), command)

    def of(self, who: str) -> str:
        """A namespace's name."""
        return self._names[who]

    def at(self, who: str) -> contextlib.AbstractContextManager[None]:
        """Be there: sockets made inside stay there."""
        return netns.enter(self.of(who))

    # -- packets

    @contextmanager
    def tap(self, who: str = "world", device: str = "eth0") -> Iterator[Tap]:
        """A capture at an Ethernet device, by default the world's end of the wire."""
        made = Tap(self.of(who), device)
        try:
            yield made
        finally:
            made.close()

    def inject(self, packet: bytes) -> str:
        """A packet comes out of the host's fishtun, as if its holder had written it; `works` or an errno."""
        from .sockopts import answer

        return answer(lambda: os.write(self.fishtun, packet))

    def from_world(self, packet: bytes) -> None:
        """The world sends a made packet towards the host."""
        with self.at("world"), socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.sendto(packet, (str(parse(packet).destination), 0))

    def received(self) -> list[Packet]:
        """What the host sent into fishtun since the last time: what its holder reads."""
        found = []
        with contextlib.suppress(BlockingIOError):
            while True:
                with contextlib.suppress(Malformed):
                    found.append(parse(os.read(self.fishtun, 65535)))
        return [packet for packet in found if packet.version == 4]

    def fence(self, *taps: Tap) -> None:
        """Return when all that was under way between host and world has been seen by these captures."""
        self._fence += 1
        for who, target in (("host", WORLD), ("world", HOST), ("host", WORLD)):
            with self.at(who), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(("", self._fence))
                sock.sendto(b"fence", (target, FENCE_PORT))
        for tap in taps:
            wait(partial(tap.fenced, self._fence), f"a fence at {tap.place}")

    def drained(self) -> None:
        """Return when the world has taken all that this CPU has on its way there, without a capture."""
        sink = self._sinks["world"]
        sink.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            while True:
                sink.recv(64)
        sink.settimeout(PATIENCE_S)
        self._sinks["host"].sendto(b"fence", (WORLD, FENCE_PORT))
        sink.recv(64)

    # -- servers

    @contextmanager
    def listening(self, *places: tuple[str, int]) -> Iterator[list[socket.socket]]:
        """The world's kernel takes connections there."""
        with ExitStack() as stack:
            made = []
            with self.at("world"):
                for place in places or ((SERVER, 443), (SERVER2, 443)):
                    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                    sock.bind(place)
                    sock.listen(256)
                    made.append(sock)
            yield made

    @contextmanager
    def popen(self, who: str, command: list[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
        """A program somewhere; killed at the end if it still runs."""
        with subprocess.Popen(self.words(who, command), env=environment(), **options) as child:
            try:
                yield child
            finally:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()

    @contextmanager
    def web(self) -> Iterator[None]:
        """The lab's web server at both addresses of the world, port 80, and its echo server at the first."""
        places = ",".join(f"{address}:80" for address in (SERVER, SERVER2))
        with tempfile.TemporaryDirectory(prefix="softunicast-escape-") as folder:
            arguments = ["--log", f"{folder}/web.jsonl", "--web", places, "--echo", f"{SERVER}:{ECHO_PORT}"]
            command = [sys.executable, "-m", "softunicast.lab.servers", *arguments]
            with self.popen("world", command, stdout=subprocess.PIPE) as child:
                if child.stdout is None or child.stdout.readline() != b"ready\n":
                    raise KernelError("escape: the web server did not start")
                yield


def syn(source: str, port: int, destination: str = SERVER, to: int = 443) -> bytes:
    """The first packet of a client's connection."""
    return craft.tcp(source, port, destination, to, sequence=1000)


def slice_text(ports: Iterable[int | None]) -> str:
    """Ports in few words: `9000-9009, each once` when they are that."""
    found = sorted(port or 0 for port in ports)
    if found and found == list(range(found[0], found[-1] + 1)):
        return f"{found[0]}-{found[-1]}, each once"
    return ", ".join(map(str, found)) or "none"


def wait(condition: Callable[[], bool], what: str) -> None:
    """KernelError when it does not come true."""
    wait_until(condition, what, patience_s=PATIENCE_S)


def port_of(sock: socket.socket) -> int:
    """The port getsockname(2) says."""
    return int(sock.getsockname()[1])
