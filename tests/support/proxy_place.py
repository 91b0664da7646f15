# SPDX-License-Identifier: Apache-2.0
"""Where real clients use a proxy: the host's loopback, a slice of a SockNode, or (tests/e2e) a node of the lab.

A Place has the proxy and its clients in one namespace and an origin in another one, or all in this one. `lan()` adds
clients that know of no proxy: a namespace behind the node, whose TCP comes to the proxy's transparent listener.

    client  10.77.0.2/24 eth0 ---- tp0 10.77.0.1/24  node: TPROXY to 127.0.0.1:1082, as docs/proxy.md has it
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softunicast.kernel import netns
from tests.support.proxy_node import PATIENCE_S, Proxy
from tests.support.sock_node import ADDRESS, WORLD, SockNode, ip, sysctl
from tests.support.wait import wait_until

TRANSPARENT_PORT = 1082
SLICE_LAST = 9063
POLICY = """
listeners:
  main: {listen: "127.0.0.1:PORT", anonymous: me}
  tproxy: {listen: "127.0.0.1:1082", anonymous: me, transparent: true, clients: [10.77.0.0/24]}
users:
  me: USER
access_log: LOG
MORE
"""


@dataclass(frozen=True)
class Place:
    """`ns` of the proxy and its clients, `origin_ns` and `origin`, its address. `own`: the addresses that an origin may
    see. `node`: the SockNode, if that is where."""

    ns: str | None
    origin_ns: str | None
    origin: str
    own: frozenset[str]
    proxy: Proxy
    node: SockNode | None = None

    def url(self, scheme: str) -> str:
        """Of the proxy."""
        return f"{scheme}://127.0.0.1:{self.proxy.port}"

    def ours(self, seen: str) -> None:
        """What an origin saw, "ADDRESS PORT" or "ADDRESS:PORT", is one that connections must leave from."""
        address, _, port = seen.replace(" ", ":").rpartition(":")
        assert address in self.own, seen
        assert self.node is None or 9000 <= int(port) <= SLICE_LAST, seen

    def passed(self, port: int, count: int) -> list[dict[str, Any]]:
        """The access log's lines about an origin's port, once there are so many."""

        def lines() -> list[dict[str, Any]]:
            about = [one for one in self.proxy.entries(0) if one["target"] == f"{self.origin}:{port}"]
            return about if len(about) >= count else []

        return wait_until(lines, PATIENCE_S, f"{count} lines about port {port} in the access log")

    def run(
        self, *command: str, ns: str | None = None, environment: Mapping[str, str] | None = None, timeout_s: float = 90
    ) -> subprocess.CompletedProcess[str]:
        """A client, here or in another namespace, which must end well. `environment`: more of it."""
        whole, env = within(ns or self.ns, list(command)), {**os.environ, **(environment or {})}
        done = subprocess.run(whole, capture_output=True, text=True, timeout=timeout_s, check=False, env=env)
        assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
        return done

    @contextmanager
    def server(self, *command: str, ready: bytes) -> Iterator[None]:
        """A program of the origin's, once it has printed `ready`."""
        with subprocess.Popen(within(self.origin_ns, list(command)), stdout=subprocess.PIPE) as process:
            try:
                assert process.stdout is not None
                line = b""
                while ready not in line:
                    line = process.stdout.readline()
                    assert line, f"{command} ended"
                yield
            finally:
                process.terminate()
                process.wait(20)

    @contextmanager
    def lan(self) -> Iterator[str]:
        """The namespace of a client behind the node."""
        assert self.ns is not None
        name = f"{self.ns}l"
        netns.create(name)
        try:
            ip("link", "add", "tp0", "netns", self.ns, "type", "veth", "peer", "name", "eth0", "netns", name)
            ip("address", "add", "10.77.0.1/24", "dev", "tp0", ns=self.ns)
            ip("link", "set", "tp0", "up", ns=self.ns)
            ip("address", "add", "10.77.0.2/24", "dev", "eth0", ns=name)
            for device in ("lo", "eth0"):
                ip("link", "set", device, "up", ns=name)
            ip("route", "add", "default", "via", "10.77.0.1", ns=name)
            for place in ("all", "tp0"):
                sysctl(self.ns, f"net.ipv4.conf.{place}.rp_filter", "0")
            rules = (
                "add table ip tp; add chain ip tp in { type filter hook prerouting priority mangle; }; "
                "add rule ip tp in iifname tp0 tcp flags & (fin | syn | rst | ack) == syn "
                f"tproxy to 127.0.0.1:{TRANSPARENT_PORT} accept"
            )
            subprocess.run(within(self.ns, ["nft", rules]), check=True, timeout=20)
            ip("rule", "add", "iif", "tp0", "ipproto", "tcp", "lookup", "77", ns=self.ns)
            ip("route", "add", "local", "default", "dev", "lo", "table", "77", ns=self.ns)
            yield name
        finally:
            undoes = ("ip link del tp0", "ip rule del lookup 77", "nft delete table ip tp")
            for undo in (line.split() for line in undoes):
                subprocess.run(within(self.ns, undo), check=False, timeout=20)
            netns.delete(name)


def within(ns: str | None, command: list[str]) -> list[str]:
    return [*(["nsenter", f"--net=/run/netns/{ns}"] if ns else []), *command]


@contextmanager
def loopback(folder: Path, more: str = "") -> Iterator[Place]:
    """All on the host's loopback. `more`: lines of the policy."""
    policy = POLICY.replace("USER", "{direct: true, allow: [127.0.0.0/8]}").replace("MORE", more)
    without = "".join(line for line in policy.splitlines(keepends=True) if "tproxy" not in line)
    with Proxy(without, folder) as proxy:
        yield Place(None, None, "127.0.0.1", frozenset({"127.0.0.1"}), proxy)


@contextmanager
def sliced(folder: Path, more: str = "", timers: Mapping[str, int] | None = None) -> Iterator[Place]:
    """Out of a slice of 64 ports; nothing leaves without a claim, and no answer comes in without one."""
    policy = POLICY.replace("USER", "{pool: ten}").replace("MORE", more)
    with SockNode(pinned=True, slices=((ADDRESS, 9000, SLICE_LAST),), timers=timers) as node:
        node.attach_guard()
        with Proxy(policy, folder, node.name, port=1080) as proxy:
            yield Place(node.name, node.world, WORLD, frozenset({ADDRESS}), proxy, node)


@contextmanager
def on(ns: str, user: str, origin_ns: str, origin: str, own: frozenset[str], folder: Path) -> Iterator[Place]:
    """On a node that is there. `user`: where its users leave, as the policy says it."""
    with Proxy(POLICY.replace("USER", user).replace("MORE", ""), folder, ns, port=1080) as proxy:
        yield Place(ns, origin_ns, origin, own, proxy)


PLACES = {"loopback": loopback, "slice": sliced}
