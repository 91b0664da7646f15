# SPDX-License-Identifier: Apache-2.0
"""`softunicast proxy` as a process: real clients on the loopback, and out of a slice in a node's namespace."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from softunicast.agent import state
from softunicast.kernel import nodes
from tests.support.proxy_node import BIG, Proxy, curl, origin
from tests.support.sock_node import ADDRESS, WORLD, WORLD6, SockNode
from tests.support.wait import wait_until

SOFTUNICAST = (sys.executable, "-m", "softunicast.cli")
DIRECT = """
listeners:
  main: {listen: "127.0.0.1:PORT", anonymous: me}
users:
  me: {direct: true, allow: [127.0.0.0/8]}
  alice: {direct: true, allow: [127.0.0.0/8], password: "se:cret"}
access_log: LOG
connect_s: 3
"""
SLICED = """
listeners: {main: {listen: "127.0.0.1:PORT", anonymous: me}}
users:
  me: {pool: ten}
  other: {pool: [ten, other], password: x}
  none: {pool: empty, password: x}
access_log: LOG
connect_s: 2
"""


@pytest.fixture
def proxy(tmp_path: Path) -> Iterator[Proxy]:
    with Proxy(DIRECT, tmp_path) as made:
        yield made


@pytest.fixture
def web() -> Iterator[int]:
    with origin() as port:
        yield port


@pytest.mark.parametrize("scheme", ["socks5", "socks5h", "http"])
def test_curl(proxy: Proxy, web: int, scheme: str, tmp_path: Path) -> None:
    for by in (("-x", f"{scheme}://127.0.0.1:{proxy.port}"), ("-px", f"http://127.0.0.1:{proxy.port}")):
        done = curl(*by, f"http://127.0.0.1:{web}/big", "-o", str(tmp_path / "big"))
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "big").read_bytes() == BIG
    first, second = proxy.entries(2)
    assert first["protocol"] == {"http": "http"}.get(scheme, "socks5")
    assert second["protocol"] == "connect"
    for entry in (first, second):
        assert entry["bytes_down"] > len(BIG)
        assert entry["remote"] == f"127.0.0.1:{web}"
        assert entry["tcp_upstream"]["bytes_received"] - entry["bytes_down"] in (0, 1), "TCP counts the FIN"
        assert entry["tcp_client"]["rtt_us"] > 0
        assert entry["end"] == "closed"


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
def test_credentials(proxy: Proxy, web: int, scheme: str) -> None:
    where = ("-x", f"{scheme}://127.0.0.1:{proxy.port}", f"http://127.0.0.1:{web}/who")
    assert curl("-U", "alice:se:cret", *where, "-f").returncode == 0
    assert proxy.entries(1)[0]["user"] == "alice"
    wrong = curl("-U", "alice:wrong", *where, "-f")
    assert wrong.returncode != 0
    assert proxy.entries(2)[1]["failed"] == "denied"


def test_a_plain_request_is_forwarded_without_what_is_the_proxys(proxy: Proxy, web: int) -> None:
    done = curl(
        *("-i", "-x", f"http://alice:se%3Acret@127.0.0.1:{proxy.port}", "-H", "X-Kept: yes"),
        *("--data-binary", "hello", f"http://127.0.0.1:{web}/"),
    )
    assert "Seen-X-Kept: yes" in done.stdout
    assert "Seen-Via: 1.1 softunicast" in done.stdout
    assert "Seen-Connection: close" in done.stdout
    assert "Proxy-Authorization" not in done.stdout
    assert done.stdout.endswith("hello")


def test_what_a_client_sends_ahead_arrives(proxy: Proxy) -> None:
    """More than the destination's socket takes, before the proxy has answered."""
    data = BIG[:60000]
    with socket.socket() as server, socket.create_connection(("127.0.0.1", proxy.port), 20) as client:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        server.bind(("127.0.0.1", 0))
        server.listen()
        port = server.getsockname()[1].to_bytes(2, "big")
        client.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port + data)
        client.shutdown(socket.SHUT_WR)
        there, _ = server.accept()
        with there:
            assert read_all(there) == data
    assert proxy.entries(1)[0]["bytes_up"] == len(data)


def test_a_half_close_passes(proxy: Proxy) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socks(proxy, server.getsockname()[1]) as client:
        there, _ = server.accept()
        with there:
            client.sendall(b"question")
            client.shutdown(socket.SHUT_WR)
            assert read_all(there) == b"question"
            there.sendall(b"answer")
            there.close()
            assert read_all(client) == b"answer"


def test_a_reset_passes_both_ways(proxy: Proxy, web: int) -> None:
    done = curl("-p", "-x", f"http://127.0.0.1:{proxy.port}", f"http://127.0.0.1:{web}/reset")
    assert (done.returncode, "eset" in done.stderr) == (56, True), done.stderr
    assert proxy.entries(1)[0]["end"] == "upstream reset"
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socks(proxy, server.getsockname()[1])
        there, _ = server.accept()
        with there:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            client.close()
            with pytest.raises(ConnectionResetError):
                there.recv(1)
    assert proxy.entries(2)[1]["end"] == "client reset"


def socks(proxy: Proxy, port: int) -> socket.socket:
    """A connection to the loopback by SOCKS5."""
    client = socket.create_connection(("127.0.0.1", proxy.port), 20)
    client.sendall(b"\x05\x01\x00\x05\x01\x00\x01\x7f\x00\x00\x01" + port.to_bytes(2, "big"))
    got = b""
    while len(got) < 12:
        got += client.recv(12 - len(got))
    assert got[:4] == b"\x05\x00\x05\x00", got
    return client


def read_all(sock: socket.socket) -> bytes:
    sock.settimeout(20)
    data = b""
    while got := sock.recv(65536):
        data += got
    return data


# Out of a slice


@pytest.fixture
def node() -> Iterator[SockNode]:
    with SockNode(pinned=True) as made:
        yield made


def test_all_ways_leave_from_the_slice(node: SockNode, tmp_path: Path) -> None:
    with origin(WORLD, 80, node.world), Proxy(SLICED, tmp_path, node.name, port=1080) as proxy:
        for scheme in (("-x", "socks5h://127.0.0.1:1080"), ("-x", "http://127.0.0.1:1080"), ("-px", "127.0.0.1:1080")):
            done = curl(*scheme, f"http://{WORLD}/who", ns=node.name)
            assert done.returncode == 0, done.stderr
            address, port = done.stdout.split()
            assert address == ADDRESS
            assert 9000 <= int(port) <= 9009
        entries = proxy.entries(3)
        assert {entry["pool"] for entry in entries} == {"ten"}
        assert all(entry["local"].startswith(f"{ADDRESS}:90") for entry in entries)


def test_ipv6_leaves_from_the_slices_address(tmp_path: Path) -> None:
    six = "2001:db8:51::20"
    slices = ((ADDRESS, 9000, 9009), (six, 9100, 9109))
    with (
        SockNode(pinned=True, slices=slices) as node,
        origin(WORLD6, 80, node.world),
        Proxy(SLICED, tmp_path, node.name, port=1080) as proxy,
    ):
        done = curl("-x", "socks5h://127.0.0.1:1080", f"http://[{WORLD6}]/who", ns=node.name)
        assert done.stdout.split()[:1] == [six], done.stderr
        assert proxy.entries(1)[0]["local"].startswith(f"[{six}]:91")


def test_refusals_are_told_as_what_they_are(node: SockNode, tmp_path: Path) -> None:
    """Refused, timed out, no IPv6 in the pool, inside, no such pool here, full; and that nothing leaked."""
    server = node.server(443)
    held: list[socket.socket] = []
    where = "http://127.0.0.1:1080"
    wanted = [
        ((where, f"http://{WORLD}:81/"), 502, "connection_refused", 5),
        ((where, "http://203.0.113.99/"), 504, "connection_timeout", 6),
        ((where, "http://[2001:db8:f::1]/"), 502, "destination_ip_unroutable", 3),
        ((where, "http://127.0.0.1:22/"), 403, "destination_ip_prohibited", 2),
        (("http://none:x@127.0.0.1:1080", f"http://{WORLD}/"), 503, "proxy_configuration_error", 1),
    ]
    with Proxy(SLICED, tmp_path, node.name, port=1080) as proxy:
        for (by, url), status, token, socks_reply in wanted:
            done = curl("-i", "-x", by, url, ns=node.name)
            assert done.stdout.startswith(f"HTTP/1.1 {status} "), (url, done.stdout)
            assert f"Proxy-Status: softunicast; error={token}; details=" in done.stdout, done.stdout
            said = curl("-v", "-x", by.replace("http:", "socks5h:"), url, ns=node.name)
            assert said.returncode == 97, said.stderr
            assert f"({socks_reply})" in said.stderr, said.stderr
        for _ in range(10):
            one = node.tagged()
            one.connect((WORLD, 443))
            held += [one, server.accept()[0]]
        full = curl("-i", "-x", where, f"http://{WORLD}:443/", ns=node.name)
        assert full.stdout.startswith("HTTP/1.1 503 ")
        assert f"pool ten has no port left towards {WORLD}:443" in full.stdout
        assert proxy.entries(11)[-1]["failed"] == "pool_full"
    for one in held:
        one.close()


def test_without_hooks_it_does_not_start(tmp_path: Path) -> None:
    with SockNode(pinned=True, hooks=False) as node:
        policy = tmp_path / "p.yaml"
        policy.write_text(SLICED.replace("PORT", "1080").replace("access_log: LOG", ""))
        command = ["nsenter", f"--net=/run/netns/{node.name}", *SOFTUNICAST, "proxy", "--policy", str(policy)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert f"softunicast: node {node.name}: its socket hooks are not attached" in done.stderr


def test_hooks_that_go_away_let_nothing_out(node: SockNode, tmp_path: Path) -> None:
    with origin(WORLD, 80, node.world), Proxy(SLICED, tmp_path, node.name, port=1080) as proxy:
        for name, link in node.links.items():
            if "connect" in name:
                nodes.link_pin(node.name, name).unlink()
                link.close()
        done = curl("-i", "-x", "http://127.0.0.1:1080", f"http://{WORLD}/who", ns=node.name)
        assert done.stdout.startswith("HTTP/1.1 403 "), done.stdout
        assert proxy.entries(1)[0]["failed"] == "forbidden"
        assert json.dumps(proxy.entries(1)).count("not reached by pool ten") == 1


def test_what_the_node_holds_no_more_is_not_used(node: SockNode, tmp_path: Path) -> None:
    """node.json changes while the proxy runs: it asks anew."""
    file = nodes.node_file(node.name)
    before = state.load(file)
    assert before is not None
    with origin(WORLD, 80, node.world), Proxy(SLICED, tmp_path, node.name, port=1080):

        def answer() -> str:
            return curl("-i", "-x", "http://127.0.0.1:1080", f"http://{WORLD}/who", ns=node.name).stdout

        assert ADDRESS in answer()
        replace(before, slices=()).save(file)
        wait_until(lambda: answer().startswith("HTTP/1.1 503 "), 20, "a refusal")
        assert f"user me: node {node.name} holds no slice of ten" in answer()
        before.save(file)
        wait_until(lambda: ADDRESS in answer(), 20, "the pool again")


def test_an_access_log_that_was_moved_away(proxy: Proxy, web: int) -> None:
    where = ("-x", f"http://127.0.0.1:{proxy.port}", f"http://127.0.0.1:{web}/who")
    assert curl(*where).returncode == 0
    moved = proxy.access.with_suffix(".1")
    proxy.entries(1)
    proxy.access.rename(moved)
    proxy.process.send_signal(signal.SIGUSR1)
    wait_until(proxy.access.exists, 20, "a new log")
    assert curl(*where).returncode == 0
    assert len(proxy.entries(1)) == 1
    assert len(moved.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("policy", "said"),
    [
        ("nothing.yaml", "nothing.yaml: No such file or directory; name a policy file, see docs/proxy.md"),
        ("{}", "listeners: missing ; add `listeners: "),
        (SLICED, "proxy: node "),
    ],
)
def test_what_is_wrong_is_one_line(tmp_path: Path, policy: str, said: str) -> None:
    file = tmp_path / "p.yaml"
    if "\n" in policy or policy == "{}":
        file.write_text(policy.replace("PORT", "1080").replace("access_log: LOG", ""))
    else:
        file = tmp_path / policy
    with SockNode(pinned=True) as node:
        command = [*SOFTUNICAST, "proxy", "--node", node.name, "--policy", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
