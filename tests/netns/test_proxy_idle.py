# SPDX-License-Identifier: Apache-2.0
"""WebSockets that idle past every timer there is, of the proxy and of claims, and past a reload, still carry."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

from softunicast.kernel.abi import Kind, State
from tests.support.proxy_place import Place, loopback, sliced
from tests.support.sock_node import SockNode
from tests.support.wait import wait_until
from tests.support.websocket_end import PATIENCE_S, idle, seen_by, talk, websocket

SHORT = "handshake_s: 1\nconnect_s: 1\nstop_s: 1\ndns: {timeout_s: 1}"
TIMERS = ("tcp_transitory_s", "tcp_established_s", "tcp_linger_s", "sock_linger_s", "udp_s", "icmp_s")
LONGER_S = 1.5  # than each of them
BY = {"http": "connect", "socks5h": "socks5"}


def idle_twice(place: Place, meanwhile: Callable[[list[str]], None]) -> None:
    """Idle, a reload, idle again in the hands of another process; then they must still do what they are for."""
    with ExitStack() as stack:
        ends = [stack.enter_context(websocket(place, place.url(by))) for by in BY]
        flows = sorted(seen_by(there) for _, there in ends)
        for flow in flows:
            place.ours(flow)
        for here, there in ends:
            talk(here, there, "hello")
        idle([here for here, _ in ends], LONGER_S)
        meanwhile(flows)
        place.proxy.reload()
        place.proxy.wait_for("a predecessor has ended")
        idle([here for here, _ in ends], LONGER_S)
        meanwhile(flows)
        for here, there in ends:
            talk(here, there, "still there")
        assert place.proxy.status()["adopted"] == len(BY)
    entries = place.proxy.entries(len(BY))
    assert sorted(entry["protocol"] for entry in entries) == sorted(BY.values())
    for entry in entries:
        assert (entry["end"], entry["duration_s"] > 2 * LONGER_S) == ("closed", True), entry


def test_on_the_loopback(tmp_path: Path) -> None:
    with loopback(tmp_path, SHORT) as place:
        idle_twice(place, lambda _: None)


def swept(node: SockNode, flows: list[str]) -> None:
    """Claims of connections that stand outlive their timers and sweeps; that of one that ended does not."""
    with node.server(9) as server:
        other = node.tagged()
        other.connect(server.getsockname())
        other.close()

    def held() -> list[tuple[str, Kind, bool]]:
        node.sweep()
        return [(f"{one.local[0]}:{one.local[1]}", one.kind, one.state == State.LINGER) for one in node.claims()]

    those = [(flow, Kind.SOCKET, False) for flow in flows]
    wait_until(lambda: held() == those, PATIENCE_S, "claims of those that stand, and no others")


def test_out_of_a_slice(tmp_path: Path) -> None:
    with sliced(tmp_path, SHORT, dict.fromkeys(TIMERS, 1)) as place:
        node = place.node
        assert node is not None
        idle_twice(place, lambda flows: swept(node, flows))
