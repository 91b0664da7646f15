# SPDX-License-Identifier: Apache-2.0
"""The library with real sockets: every way, as root and not, crowded destinations, UDP, asyncio, anyio, no agent."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import softunicast
from softunicast.client import aio
from softunicast.client import anyio as sliced_anyio
from softunicast.client.making import client_of
from softunicast.dial.choice import rendezvous
from softunicast.dial.ports import Style, hooks_at_work, style_for
from softunicast.errors import KernelError, UsageError
from softunicast.kernel import abi, netns, nodes
from softunicast.model.slice import Slice
from tests.support.sock_node import ADDRESS, ADDRESS2, WORLD, WORLD2, WORLD6, SockNode

ROOT = Path(__file__).resolve().parents[2]
SIX = "2001:db8:51::20"
SECOND = "198.51.100.21"
SLICES = ((ADDRESS, 9000, 9009), (SECOND, 9000, 9001), (ADDRESS2, 40000, 40001), (SIX, 5000, 5009))
WAYS = ("tag", "bind", "range")


@pytest.fixture
def node() -> Iterator[SockNode]:
    """Pool ten: twelve ports of two addresses and ten of an IPv6 one, GB. Pool other: two ports, FR."""
    with SockNode(pinned=True, slices=SLICES) as made, netns.enter(made.name):
        yield made


@pytest.fixture
def bare() -> Iterator[SockNode]:
    """The same without hooks."""
    with SockNode(pinned=True, slices=SLICES, hooks=False) as made, netns.enter(made.name):
        yield made


def name(made: socket.socket) -> tuple[str, int]:
    host, port = made.getsockname()[:2]
    return host, port


def inside(made: socket.socket, *slices: tuple[str, int, int]) -> bool:
    host, port = name(made)
    return any(host == address and first <= port <= last for address, first, last in slices)


@pytest.mark.parametrize("way", WAYS)
def test_every_way_leads_into_the_pool(node: SockNode, way: str) -> None:
    server, server6 = node.server(), node.server(address=WORLD6)
    by = softunicast.dialer(pool="ten", way=way)
    with softunicast.connect((WORLD, 443), by=by, timeout=5) as made:
        assert inside(made, *SLICES[:2])
        assert server.accept()[1] == name(made), "and the world sees it"
        assert [(held.local, held.kind) for held in node.alive()] == [(name(made), abi.Kind.SOCKET)]
    with softunicast.connect((WORLD6, 443), by=by, timeout=5) as six:
        assert inside(six, SLICES[3])
        assert server6.accept()[1][:2] == name(six)


@pytest.mark.parametrize("way", WAYS)
def test_all_ports_of_all_slices_and_then_an_error_that_names_them(node: SockNode, way: str) -> None:
    node.server()
    by = softunicast.dialer(pool="ten", way=way, sticky="someone")
    made = [softunicast.connect((WORLD, 443), by=by, timeout=5) for _ in range(12)]
    assert len({name(one) for one in made}) == 12
    with pytest.raises(softunicast.SliceFull) as refused:
        softunicast.connect((WORLD, 443), by=by, timeout=5)
    assert refused.value.errno == errno.EADDRNOTAVAIL
    assert refused.value.remote == (WORLD, 443)
    assert sorted(refused.value.slices) == [f"{ADDRESS}:9000-9009", f"{SECOND}:9000-9001"]
    node.server(444)
    softunicast.connect((WORLD, 444), by=by, timeout=5).close()
    for one in made:
        one.close()


@pytest.mark.parametrize("way", WAYS)
def test_same_user_same_address_whichever_way(node: SockNode, way: str) -> None:
    addresses = {ADDRESS, SECOND}
    seen = set()
    for number, user in enumerate(map("user-{}".format, range(5))):
        node.server(443 + number)
        by = softunicast.dialer(pool="ten", way=way, sticky=user)
        best = max(addresses, key=lambda one: rendezvous(client_of(user), Slice.parse(f"{one}:1-1").address))
        for _ in range(2):
            with softunicast.connect((WORLD, 443 + number), by=by, timeout=5) as made:
                assert name(made)[0] == best, "the hooks' order is ours"
        seen.add(best)
    assert seen == addresses


def test_by_tags_exact_slice_and_only_pool(node: SockNode) -> None:
    node.server()
    with softunicast.connect((WORLD, 443), country="FR", timeout=5) as made:
        assert inside(made, SLICES[2])
    for way in WAYS:
        with softunicast.connect((WORLD, 443), slice=f"{ADDRESS}:9003-9003", way=way, timeout=5) as made:
            assert name(made) == (ADDRESS, 9003)
            with pytest.raises(softunicast.SliceFull, match="9003-9003: no port is left"):
                softunicast.connect((WORLD, 443), slice=f"{ADDRESS}:9003-9003", way=way, timeout=5)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def test_a_crowded_address_of_a_name_leads_to_its_next(node: SockNode, monkeypatch: pytest.MonkeyPatch) -> None:
    node.server()
    second = node.server(address=WORLD2)

    def both(host: str, port: int, *_: Any, **__: Any) -> list[Any]:
        assert host == "world"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port)) for one in (WORLD, WORLD2)]

    monkeypatch.setattr(socket, "getaddrinfo", both)
    by = softunicast.dialer(pool="other")
    first = [softunicast.connect(("world", 443), by=by, timeout=5) for _ in range(2)]
    third = softunicast.connect(("world", 443), by=by, timeout=5)
    assert {one.getpeername()[0] for one in first} == {WORLD}
    assert third.getpeername()[0] == WORLD2
    assert second.accept()[1] == name(third)
    for one in (*first, third):
        one.close()


def test_a_pool_without_ipv6_refuses_it(node: SockNode) -> None:
    with pytest.raises(softunicast.FamilyMissing, match="pool other: no IPv6 on this node") as refused:
        softunicast.connect((WORLD6, 443), pool="other", timeout=5)
    assert refused.value.errno == errno.ENETUNREACH


def test_refused_and_silent_destinations(node: SockNode) -> None:
    for way in WAYS:
        with pytest.raises(ConnectionRefusedError, match=f"{WORLD}:445"):
            softunicast.connect((WORLD, 445), pool="ten", way=way, timeout=5)
    subprocess.run(["ip", "-n", node.world, "route", "add", "blackhole", "198.51.100.0/24", "metric", "0"], check=False)
    subprocess.run(["ip", "-n", node.world, "route", "replace", "blackhole", "198.51.100.0/24"], check=True)
    with pytest.raises(softunicast.DialTimeout) as late:
        softunicast.connect((WORLD, 445), pool="ten", timeout=0.3)
    assert late.value.remote == (WORLD, 445) and late.value.after_s >= 0.3 and late.value.slices


def test_local_destinations_are_reached_plainly(node: SockNode) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for way in WAYS:
            with softunicast.connect(server.getsockname(), pool="ten", way=way, timeout=5) as made:
                assert name(made)[0] == "127.0.0.1"


@pytest.mark.parametrize("way", WAYS)
def test_connected_udp(node: SockNode, way: str) -> None:
    server = node.server(53, kind=socket.SOCK_DGRAM)
    by = softunicast.dialer(pool="other", way=way)
    first, second = (softunicast.create_datagram((WORLD, 53), by=by) for _ in range(2))
    assert {name(first)[1], name(second)[1]} == {40000, 40001}
    with pytest.raises(softunicast.SliceFull) as refused:
        softunicast.create_datagram((WORLD, 53), by=by)
    assert refused.value.protocol == "udp"
    first.send(b"question")
    _, whence = server.recvfrom(100)
    assert whence == name(first)
    server.sendto(b"answer", whence)
    first.settimeout(5)
    assert first.recv(100) == b"answer"
    first.close()
    second.close()


@pytest.mark.parametrize("way", WAYS)
def test_unconnected_udp_reaches_everybody(node: SockNode, way: str) -> None:
    node.attach_guard()
    servers = [node.server(53, address, socket.SOCK_DGRAM) for address in (WORLD, WORLD2)]
    with softunicast.create_datagram(pool="ten", way=way) as made:
        made.settimeout(5)
        for server in servers:
            made.sendto(b"question", server.getsockname())
            _, whence = server.recvfrom(100)
            assert whence[0] in (ADDRESS, SECOND) and whence[1] in range(9000, 9010)
            server.sendto(b"answer", whence)
            assert made.recvfrom(100) == (b"answer", server.getsockname())


def test_asyncio(node: SockNode) -> None:
    server = node.server()
    udp = node.server(53, kind=socket.SOCK_DGRAM)

    async def talk() -> None:
        reader, writer = await softunicast.open_connection(WORLD, 443, pool="ten", timeout=5)
        host, port = writer.get_extra_info("sockname")
        accepted, whence = await asyncio.to_thread(server.accept)
        assert whence == (host, port) and host in (ADDRESS, SECOND)
        with accepted:
            accepted.sendall(b"hello\n")
            assert await reader.readline() == b"hello\n"
        writer.close()
        with pytest.raises(ConnectionRefusedError):
            await softunicast.open_connection(WORLD, 445, pool="ten", timeout=5)
        made = [await aio.connect((WORLD, 443), country="FR") for _ in range(2)]
        with pytest.raises(softunicast.SliceFull):
            await aio.connect((WORLD, 443), country="FR")
        for one in made:
            one.close()
        transport, _ = await aio.create_datagram_endpoint(asyncio.DatagramProtocol, (WORLD, 53), pool="ten")
        transport.sendto(b"x")
        _, whence = await asyncio.to_thread(udp.recvfrom, 10)
        assert whence == transport.get_extra_info("sockname")
        transport.close()

    asyncio.run(talk())


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_anyio(node: SockNode, backend: str) -> None:
    server = node.server()
    udp = node.server(53, kind=socket.SOCK_DGRAM)

    async def talk() -> None:
        stream = await sliced_anyio.open_connection(WORLD, 443, pool="ten", timeout=5)
        accepted, whence = server.accept()
        with accepted:
            assert whence[0] in (ADDRESS, SECOND)
            accepted.sendall(b"hello")
            assert await stream.receive() == b"hello"
        await stream.aclose()
        with pytest.raises(ConnectionRefusedError):
            await sliced_anyio.open_connection(WORLD, 445, pool="ten", timeout=5)
        made = [await sliced_anyio.connect((WORLD, 443), country="FR") for _ in range(2)]
        with pytest.raises(softunicast.SliceFull):
            await sliced_anyio.connect((WORLD, 443), country="FR")
        for one in made:
            one.close()
        connected = await sliced_anyio.create_datagram((WORLD, 53), pool="ten")
        await connected.send(b"x")  # type: ignore[arg-type]
        assert udp.recvfrom(10)[1][0] in (ADDRESS, SECOND)
        await connected.aclose()

    anyio.run(talk, backend=backend)


def test_without_hooks_a_range_the_kernel_would_ignore_is_not_relied_on(bare: SockNode, caplog: Any) -> None:
    """FINDINGS.md 1: IP_LOCAL_PORT_RANGE outside of ip_local_port_range is silently ignored."""
    bare.server()
    assert not hooks_at_work(ADDRESS, 4, [])
    assert style_for(Slice.parse(f"{ADDRESS}:9000-9009"), hooks=False, option=True) is Style.EXPLICIT
    assert style_for(Slice.parse(f"{ADDRESS2}:40000-40001"), hooks=False, option=True) is Style.NO_PORT
    for pool, count, slices in (("ten", 12, SLICES[:2]), ("other", 2, SLICES[2:3])):
        by = softunicast.dialer(pool=pool)
        made = [softunicast.connect((WORLD, 443), by=by, timeout=5) for _ in range(count)]
        assert all(inside(one, *slices) for one in made) and len({name(one) for one in made}) == count
        with pytest.raises(softunicast.SliceFull):
            softunicast.connect((WORLD, 443), by=by, timeout=5)
        for one in made:
            one.close()
    assert "the hooks of node" in caplog.text and "are not at work" in caplog.text
    assert caplog.text.count("are not at work") == 2, "once a dialer, not once a socket"


@pytest.mark.parametrize("kernel_range", ["32768 60999", "1024 60999"])
def test_ipv6_without_hooks(bare: SockNode, kernel_range: str) -> None:
    """Port after port, and by IP_LOCAL_PORT_RANGE on an AF_INET6 socket."""
    Path("/proc/sys/net/ipv4/ip_local_port_range").write_text(kernel_range)
    bare.server(address=WORLD6)
    by = softunicast.dialer(pool="ten")
    made = [softunicast.connect((WORLD6, 443), by=by, timeout=5) for _ in range(10)]
    assert {name(one) for one in made} == {(SIX, port) for port in range(5000, 5010)}
    with pytest.raises(softunicast.SliceFull):
        softunicast.connect((WORLD6, 443), by=by, timeout=5)
    for one in made:
        one.close()


def test_a_mapped_address_is_ipv4_on_the_wire(node: SockNode) -> None:
    server = node.server()
    for way in WAYS:
        with softunicast.connect((f"::ffff:{WORLD}", 443), pool="ten", way=way, timeout=5) as made:
            assert made.family == socket.AF_INET and server.accept()[1] == name(made)


def test_reserved_ports_are_no_obstacle(bare: SockNode) -> None:
    Path("/proc/sys/net/ipv4/ip_local_reserved_ports").write_text("40000-40001")
    bare.server()
    with softunicast.connect((WORLD, 443), pool="other", timeout=5) as made:
        assert inside(made, SLICES[2])


def test_hooks_are_seen_without_privilege(node: SockNode) -> None:
    assert hooks_at_work(ADDRESS, 4, [])
    assert hooks_at_work(SIX, 6, [])
    with pytest.raises(OSError) as refused:
        hooks_at_work("192.0.2.1", 4, [])
    assert refused.value.errno == errno.EADDRNOTAVAIL


@pytest.mark.parametrize("way", ["tag", "agent", "bind"])
def test_what_hooks_do_is_refused_where_they_are_not(bare: SockNode, way: str) -> None:
    with pytest.raises(UsageError, match=f"way {way} needs the node's hooks"):
        softunicast.connect((WORLD, 443), pool="ten", way=way)
    with pytest.raises(UsageError, match=f"way {way} needs the node's hooks"):
        softunicast.create_datagram(pool="ten", way=way)


@pytest.mark.parametrize("pool", ["ten", "other"])
def test_not_root(node: SockNode, pool: str) -> None:
    """A user without any privilege: nothing but node.json and the hooks."""
    node.server()
    script = (
        "import softunicast, json\n"
        f"made = softunicast.connect(('{WORLD}', 443), pool='{pool}', timeout=5)\n"
        f"udp = softunicast.create_datagram(('{WORLD}', 53), pool='{pool}')\n"
        "print(json.dumps([made.getsockname(), udp.getsockname(), __import__('os').getuid()]))\n"
    )
    said = json.loads(as_nobody(node, script))
    slices = SLICES[:2] if pool == "ten" else SLICES[2:3]
    for host, port in said[:2]:
        assert any(host == address and first <= port <= last for address, first, last in slices)
    assert said[2] == 65534


def as_nobody(node: SockNode, script: str) -> str:
    command = [
        "nsenter",
        f"--net=/run/netns/{node.name}",
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, sys.executable, "-c", script], capture_output=True, text=True, timeout=60, env=environment
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_agent_ever_ran(bare: SockNode, caplog: Any) -> None:
    nodes.node_file(bare.name).unlink()
    bare.server()
    with pytest.raises(UsageError) as refused:
        softunicast.dialer(pool="ten")
    assert "no node in this network namespace" in str(refused.value) and 'slice="ADDRESS:FIRST-LAST"' in str(
        refused.value
    )
    by = softunicast.dialer(slice=f"{ADDRESS}:9000-9001")
    made = [softunicast.connect((WORLD, 443), by=by, timeout=5) for _ in range(2)]
    assert {name(one) for one in made} == {(ADDRESS, 9000), (ADDRESS, 9001)}
    with pytest.raises(softunicast.SliceFull):
        softunicast.connect((WORLD, 443), by=by, timeout=5)
    assert "used without an agent" in caplog.text
    with softunicast.connect((WORLD, 443), pool="ten", plain=True, timeout=5) as plain:
        assert name(plain)[0] == "10.9.0.2"
    assert "this machine's own address is" in caplog.text
    with pytest.raises(KernelError, match=r"192\.0\.2\.1: not this machine's"):
        softunicast.connect((WORLD, 443), slice="192.0.2.1:9000-9001", timeout=5)
    for one in made:
        one.close()


def test_options_are_set_before_the_connection(node: SockNode) -> None:
    node.server()
    options = [(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 1000)]
    with softunicast.connect((WORLD, 443), pool="ten", options=options, timeout=5) as made:
        assert made.getsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG) <= 1000
