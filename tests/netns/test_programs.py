# SPDX-License-Identifier: Apache-2.0
"""Programs that know nothing of slices, under `softunicast run`: curl, Node.js, Go, nginx, HAProxy, dnsmasq, aioquic.
IPv4, IPv6, IPv4-mapped, MPTCP, fast open, unconnected UDP, QUIC; whom the world saw is what counts."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from softunicast.kernel import netns
from tests.support.sock_node import ADDRESS, WORLD, WORLD6, SockNode, sysctl
from tests.support.wait import wait_until
from tests.support.whoami import Dns, serving

PROGRAMS = Path(__file__).resolve().parents[1] / "support" / "programs"
QUIC = PROGRAMS.parent / "quic_end.py"
SIX = "2001:db8:51::20"
SLICES = ((ADDRESS, 9000, 9099), (SIX, 5000, 5099))
TCP_FASTOPEN = 23


@dataclass
class Place:
    node: SockNode
    dns: Dns
    folder: Path

    def command(self, *program: str) -> list[str]:
        inside = ["nsenter", f"--net=/run/netns/{self.node.name}"]
        return [*inside, sys.executable, "-m", "softunicast.cli", "run", "--pool", "ten", "--", *program]

    def say(self, *program: str) -> str:
        """What a program under the policy prints."""
        done = subprocess.run(self.command(*program), capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def plainly(self, *program: str) -> str:
        """The same outside of it: somebody at the node who asks a daemon."""
        inside = ["nsenter", f"--net=/run/netns/{self.node.name}", *program]
        return subprocess.run(inside, capture_output=True, text=True, timeout=60, check=False).stdout.strip()

    @contextlib.contextmanager
    def daemon(self, *program: str) -> Iterator[None]:
        """A program that stays."""
        log = self.folder / "daemon.log"
        with log.open("w") as stream:
            process = subprocess.Popen(self.command(*program), stdout=stream, stderr=stream)
        try:
            yield
            assert process.poll() is None, log.read_text()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(20)

    def fast_opens(self) -> int:
        """SYNs with data that were acknowledged so (TCPFastOpenActive)."""
        with netns.enter(self.node.name):
            lines = [line.split() for line in Path("/proc/net/netstat").read_text().splitlines()]
        names, values = (line for line in lines if line[0] == "TcpExt:")
        return int(values[names.index("TCPFastOpenActive")])


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Place]:
    with SockNode(pinned=True, slices=SLICES) as node:
        node.attach_guard()
        sysctl(node.world, "net.ipv4.tcp_fastopen", "3")
        four, six = node.server(80), node.server(80, WORLD6)
        four.setsockopt(socket.IPPROTO_TCP, TCP_FASTOPEN, 16)
        dns = Dns(node.server(53, kind=socket.SOCK_DGRAM), WORLD)
        try:
            with serving([four, six]):
                yield Place(node, dns, tmp_path)
        finally:
            dns.close()
        drops = node.drops()
        assert not drops.keys() & {"GUARD_FOREIGN", "GUARD_LEAK", "SLICE_FULL"}, drops


def in_slice(said: str) -> bool:
    host, _, port = said.rpartition(":")
    return (host == ADDRESS and int(port) in range(9000, 9100)) or (
        host == f"[{SIX}]" and int(port) in range(5000, 5100)
    )


def asked_from_slices(at: Place) -> bool:
    return bool(at.dns.seen) and all(in_slice(f"{host}:{port}") for host, port in at.dns.seen)


def test_curl(at: Place) -> None:
    assert in_slice(at.say("curl", "-s", f"http://{WORLD}/"))
    assert in_slice(at.say("curl", "-s", f"http://[{WORLD6}]/"))
    assert in_slice(at.say("curl", "-s", f"http://[::ffff:{WORLD}]/"))
    for _ in range(2):
        assert in_slice(at.say("curl", "-s", "--tcp-fastopen", f"http://{WORLD}/"))
    assert at.fast_opens() == 1, "the second one had a cookie"


def test_mptcp(at: Place) -> None:
    assert in_slice(at.say("mptcpize", "run", "curl", "-s", f"http://{WORLD}/"))
    with netns.enter(at.node.name):
        counted = Path("/proc/net/netstat").read_text()
    names, values = (line.split() for line in counted.splitlines() if line.startswith("MPTcpExt:"))
    assert values[names.index("MPCapableSYNTX")] == "1", "the program really asked for it"


def test_quic(at: Place) -> None:
    """aioquic sends from an unconnected AF_INET6 socket, to an IPv4-mapped address or an IPv6 one."""
    for address, port in ((WORLD, "4433"), (WORLD6, "4434")):
        serve = [sys.executable, str(QUIC), "serve", address, port, str(at.folder)]
        outside = ["nsenter", f"--net=/run/netns/{at.node.world}"]
        with subprocess.Popen([*outside, *serve], stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None and server.stdout.readline() == "ready\n"
            told = json.loads(at.say(sys.executable, str(QUIC), "fetch", address, port, "100000"))
            server.kill()
        assert (told["bytes"], told["right"]) == (100_000, True)
        host, _, number = told["seen"].rpartition(":")
        assert in_slice(f"[{host.strip('[]')}]:{number}" if ":" in host else told["seen"]), told


def check_client(said: str, at: Place) -> None:
    lines = dict(line.split(" ", 1) for line in said.splitlines())
    assert {"v4", "v6", "mapped", "udp", "dns"} == lines.keys()
    assert all(in_slice(lines[name]) for name in ("v4", "v6", "mapped")), lines
    assert lines["mapped"].startswith(ADDRESS), "as IPv4, on the wire"
    assert (lines["udp"], lines["dns"]) == ("answered", WORLD)
    assert asked_from_slices(at)


def test_node_js(at: Place) -> None:
    check_client(at.say("node", str(PROGRAMS / "client.js"), WORLD, WORLD6), at)


def test_go(at: Place) -> None:
    program = at.folder / "client"
    environment = {**os.environ, "GOCACHE": str(at.folder / "cache"), "GOFLAGS": "-mod=mod", "GO111MODULE": "off"}
    command = ["go", "build", "-o", str(program), str(PROGRAMS / "client.go")]
    built = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert built.returncode == 0, built.stderr
    check_client(at.say(str(program), WORLD, WORLD6), at)


NGINX = """
daemon off; user root; worker_processes 2; pid {folder}/pid; error_log stderr;
events {{}}
http {{
  access_log off;
  resolver {world} ipv6=off;
  server {{
    listen 127.0.0.1:8080;
    location /four {{ proxy_pass http://{world}:80/; }}
    location /six {{ proxy_pass http://[{world6}]:80/; }}
    location /name {{ set $origin web.example; proxy_pass http://$origin:80/; }}
  }}
}}
"""


def test_nginx(at: Place) -> None:
    config = at.folder / "nginx.conf"
    config.write_text(NGINX.format(folder=at.folder, world=WORLD, world6=WORLD6))
    with at.daemon("nginx", "-p", str(at.folder), "-c", str(config)):
        wait_until(lambda: in_slice(at.plainly("curl", "-s", "http://127.0.0.1:8080/four")), 20, "nginx answers")
        assert in_slice(at.plainly("curl", "-s", "http://127.0.0.1:8080/six"))
        assert in_slice(at.plainly("curl", "-s", "http://127.0.0.1:8080/name"))
    assert asked_from_slices(at)


HAPROXY = """
defaults
  mode http
  timeout connect 5s
  timeout client 5s
  timeout server 5s
listen four
  bind 127.0.0.1:8081
  server origin {world}:80
listen six
  bind 127.0.0.1:8082
  server origin {world6}:80
listen mapped
  bind 127.0.0.1:8083
  server origin ipv6@::ffff:{world}:80
"""


def test_haproxy(at: Place) -> None:
    config = at.folder / "haproxy.cfg"
    config.write_text(HAPROXY.format(world=WORLD, world6=WORLD6))
    with at.daemon("haproxy", "-db", "-f", str(config)):
        wait_until(lambda: in_slice(at.plainly("curl", "-s", "http://127.0.0.1:8081/")), 20, "HAProxy answers")
        for port in (8081, 8081, 8082, 8083):
            assert in_slice(at.plainly("curl", "-s", f"http://127.0.0.1:{port}/"))


def test_a_resolver_that_never_connects(at: Place) -> None:
    """dnsmasq sends with sendto() from a socket bound to a random port, one for all servers."""
    options = ("--no-resolv", "--no-hosts", "--no-daemon", "--conf-file=/dev/null", "--user=root", "--pid-file=")
    listen = ("--port=5353", "--listen-address=127.0.0.1", "--bind-interfaces", f"--server={WORLD}")
    with at.daemon("dnsmasq", *options, *listen):
        ask = ("dig", "+short", "+tries=1", "+time=5", "-p", "5353", "@127.0.0.1", "web.example")
        wait_until(lambda: at.plainly(*ask) == WORLD, 20, "dnsmasq answers")
    assert asked_from_slices(at)
