# SPDX-License-Identifier: Apache-2.0
"""The lab without agents: what is drawn is what is built, its internet works, and it goes without a trace."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softunicast.cli.main import run as softunicast
from softunicast.errors import UsageError
from softunicast.lab import build
from softunicast.lab.lab import Lab
from softunicast.lab.topology import DRAWING
from tests.support.wait import wait_until

PREFIX = f"up{os.getpid()}"


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(PREFIX, agents=False) as made:
        yield made


def links(lab: Lab, name: str) -> dict[str, dict[str, Any]]:
    """Devices of a namespace by name, as `ip` tells them."""
    done = lab.node(name).run(["ip", "-d", "-j", "address"], check=True)
    return {link["ifname"]: link for link in json.loads(done.stdout)}


def test_every_device_and_address_drawn_is_in_the_kernel_and_no_other(lab: Lab) -> None:
    found = set()
    for name in lab.topology.namespaces:
        for device, link in links(lab, name).items():
            addresses = [f"{a['local']}/{a['prefixlen']}" for a in link["addr_info"] if a["scope"] != "link"]
            kept = [address for address in addresses if address not in ("127.0.0.1/8", "::1/128")]
            if device != "lo" or kept:
                found.add((name, device, ""))
            found |= {(name, device, address) for address in kept}
    assert found == lab.topology.facts()


def test_every_line_drawn_joins_the_two_devices_it_touches(lab: Lab) -> None:
    for link in lab.topology.links:
        upper = links(lab, link.upper.namespace)[link.upper.device]
        lower = links(lab, link.lower.namespace)[link.lower.device]
        assert upper["mtu"] == lower["mtu"] == link.mtu
        assert {"UP", "LOWER_UP"} <= set(upper["flags"]) & set(lower["flags"])
        if link.tunnel:
            assert upper["linkinfo"]["info_data"]["type"] == lower["linkinfo"]["info_data"]["type"] == "tun"
        else:
            assert (upper["link_index"], lower["link_index"]) == (lower["ifindex"], upper["ifindex"])
        if not link.upper.addresses:
            assert upper["master"] == lab.topology.bridge(link.upper.namespace)


def test_neighbours_answer_over_every_line(lab: Lab) -> None:
    for link in lab.topology.links:
        for address in link.lower.addresses:
            done = lab.node(link.upper.namespace).run(["ping", "-n", "-c", "1", "-W", "2", str(address.ip)])
            assert done.returncode == 0, f"{link.upper.namespace} to {address}: {done.stdout}"


def test_the_lines_to_the_internet_have_final_checksums_and_wire_size(lab: Lab) -> None:
    for name, device in (("r1", "inet0"), ("inet", "r1"), ("r2", "inet0"), ("inet", "r2")):
        features = lab.node(name).run(["ethtool", "-k", device], check=True).stdout
        for feature in (
            "tx-checksumming",
            "tcp-segmentation-offload",
            "generic-segmentation-offload",
            "generic-receive-offload",
        ):
            assert f"{feature}: off" in features


@pytest.mark.parametrize(
    ("router", "address", "hops"),
    [
        ("r1", "198.51.100.10", {"10.0.1.11", "10.0.1.12"}),
        ("r2", "198.51.100.10", {"10.0.2.11", "10.0.2.12"}),
        ("r1", "2001:db8:100::10", {"fd00:1::11", "fd00:1::12"}),
        ("r2", "2001:db8:100::10", {"fd00:2::11", "fd00:2::12"}),
    ],
)
def test_each_router_spreads_by_flow_over_its_own_nodes(lab: Lab, router: str, address: str, hops: set[str]) -> None:
    assert set(lab.next_hops(router, "2001:db8:100::/48" if ":" in address else "198.51.100.0/24")) == hops
    chosen = set()
    for port in range(9000, 9040):
        asked = ["ip", "route", "get", address, "ipproto", "tcp", "sport", "443", "dport", str(port)]
        chosen.add(lab.node(router).run(asked, check=True).stdout.split(" via ")[1].split()[0])
    assert chosen == hops


def test_the_internet_prefers_cdg_and_knows_nothing_inside(lab: Lab) -> None:
    assert lab.next_hops("inet", "198.51.100.0/24") == ["192.0.2.5"]
    assert lab.next_hops("inet", "2001:db8:100::/48") == ["2001:db8:e:2::1"]
    offered = lab.birdc("inet", "show", "route", "for", "198.51.100.0/24", "all")
    assert "BGP.as_path: 65001 65001 65001" in offered and "BGP.as_path: 65001\n" in offered, offered
    for inside in ("10.64.1.2", "10.0.1.11", "fd64:1::2", "fd00:1::11"):
        assert lab.node("inet").run(["ip", "route", "get", inside]).returncode != 0


def test_without_its_nodes_a_site_hands_on_to_the_other(lab: Lab) -> None:
    for node in ("cdg1", "cdg2"):
        lab.birdc(node, "disable", "uplink")
    try:
        wait_until(lambda: lab.next_hops("r2", "198.51.100.0/24") == ["10.9.0.1"], 10, "r2 hands on to r1")
    finally:
        for node in ("cdg1", "cdg2"):
            lab.birdc(node, "enable", "uplink")
    lab.wait_routes()


def test_the_web_server_says_and_logs_whom_it_saw(lab: Lab) -> None:
    before = len(lab.web_log())
    url = "http://203.0.113.2:8080/bytes/100003?token=abc"
    shown = ["-w", "%{local_ip} %{local_port}", "-o", str(lab.folder / "body")]
    done = lab.node("r1").run(["curl", "-sS", *shown, url], check=True)
    address, port = done.stdout.split()
    assert (lab.folder / "body").read_bytes() == (b"abc\n" * 30000)[:100003]
    wait_until(lambda: not lab.web_log()[before].live, 5, "the connection's end in the log")
    seen = lab.web_log()[before]
    assert (seen.peer, seen.port, seen.server, seen.server_port) == (address, int(port), "203.0.113.2", 8080)
    assert seen.path == "/bytes/100003?token=abc"
    assert seen.sent_bytes > 100003
    page = lab.node("r1").run(["curl", "-sS", "--local-port", "50505", "http://203.0.113.1/"], check=True)
    assert page.stdout == "you are 192.0.2.1:50505\n"


HOLDERS = """
import socket
held = [socket.create_connection(("203.0.113.1", 443)) for _ in range(1000)]
for sock in held:
    sock.sendall(b"GET /hold HTTP/1.1\\r\\n\\r\\n")
    assert b"X-Peer" in sock.recv(4096)
print("held", flush=True)
input()
other = socket.create_connection(("203.0.113.1", 443))
other.sendall(b"GET /release HTTP/1.1\\r\\nConnection: close\\r\\n\\r\\n")
print(other.makefile().read().splitlines()[-1])
for sock in held:
    assert sock.makefile("rb").read().endswith(b"released\\n")
"""


def test_a_thousand_connections_are_held_until_released(lab: Lab) -> None:
    child = lab.node("r1").popen(
        [sys.executable, "-c", HOLDERS], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"

    def held() -> int:
        return len({seen.port for seen in lab.web_log() if seen.live and seen.path == "/hold"})

    wait_until(lambda: held() == 1000, 20, "all are in the log")
    out, _ = child.communicate("\n", timeout=30)
    assert out == "1000 released\n"
    assert child.returncode == 0
    wait_until(lambda: not any(seen.live for seen in lab.web_log()), 20, "all connections closed in the log")


ECHOES = """
import socket
for address in ("203.0.113.1", "203.0.113.2", "203.0.113.7"):
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.settimeout(5)
    udp.sendto(b"hello", (address, 7))
    data, peer = udp.recvfrom(99)
    assert peer == (address, 7)
    assert data == b"192.0.2.1:%d hello" % udp.getsockname()[1], data
    tcp = socket.create_connection((address, 7), 5)
    tcp.sendall(b"x" * 100000)
    tcp.shutdown(socket.SHUT_WR)
    answer = tcp.makefile("rb").read()
    assert answer == b"192.0.2.1:%d\\n" % tcp.getsockname()[1] + b"x" * 100000, answer[:99]
"""


def test_echoes_say_whom_they_saw(lab: Lab) -> None:
    done = lab.node("r1").run([sys.executable, "-c", ECHOES])
    assert done.returncode == 0, done.stderr


def test_names_resolve_and_the_question_is_logged(lab: Lab) -> None:
    for name, address in (("www.example", "203.0.113.2"), ("mine.any.example", "203.0.113.1")):
        done = lab.node("r1").run(["dig", "+short", "-b", "192.0.2.1#40404", "@203.0.113.53", name])
        assert done.stdout.strip() == address
        assert (name, "192.0.2.1", 40404) in lab.dns_log()


def test_the_pump_may_die_and_come_back(lab: Lab) -> None:
    ping = ["ping", "-n", "-c", "1", "-W", "1", "10.65.1.2"]
    wait_until(lambda: lab.node("lhr1").run(ping).returncode == 0, 20, "the pump carries")
    for pid in build.processes([lab.node("lhr1").netns]):
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: lab.node("lhr1").run(ping).returncode != 0, 5, "no answer without a pump")
    ends = [str(lab.node("lhr1").netns), "t1", str(lab.node("t1").netns), "tun0"]
    child = lab.node("lhr1").popen([sys.executable, "-m", "softunicast.lab.pump", *ends], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    wait_until(lambda: lab.node("lhr1").run(ping).returncode == 0, 20, "the new pump carries")


def test_entering_is_for_this_thread_and_comes_back(lab: Lab) -> None:
    with lab.enter("c1"):
        inside = Path("/proc/thread-self/ns/net").readlink()
    assert inside != Path("/proc/thread-self/ns/net").readlink()
    with pytest.raises(UsageError, match="no 'nowhere' here; there are inet, r1, r2, lhr1"):
        lab.node("nowhere")


def test_it_comes_and_goes_quickly_beside_another(lab: Lab) -> None:
    other = Lab(f"{PREFIX}b", agents=False)
    began = time.monotonic()
    try:
        other.up()
        came = time.monotonic()
        assert other.is_up() and lab.is_up()
    finally:
        going = time.monotonic()
        other.down()
    # No patience is used up on the way, neither for BGP nor for processes that do not end.
    assert came - began < 20
    assert time.monotonic() - going < 10
    assert lab.is_up()
    assert left_of(other.prefix) == []


def left_of(prefix: str) -> list[str]:
    """Namespaces, files and processes of a lab."""
    names = [path.name for path in build.NETNS_FOLDER.iterdir() if path.name.startswith(f"{prefix}-")]
    files = [str(path) for path in (build.RUN_FOLDER / prefix, build.RUN_FOLDER / f"{prefix}.lock") if path.exists()]
    marks = subprocess.run(["pgrep", "-f", f"{prefix}-|lab/{prefix}/"], capture_output=True, text=True, check=False)
    return names + files + marks.stdout.split()


MAKER = """
import os, signal, sys
from softunicast.lab.lab import Lab
lab = Lab(sys.argv[1], agents=False)
lab.up()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_maker_left_goes_with_down() -> None:
    prefix = f"{PREFIX}k"
    done = subprocess.run([sys.executable, "-c", MAKER, prefix], check=False)
    try:
        assert done.returncode == -signal.SIGKILL
        assert Lab(prefix, agents=False).is_up()
        with Lab(prefix, agents=False) as again:
            assert again.is_up()
            assert len(build.processes([again.node("inet").netns])) == 3
        assert left_of(prefix) == []
        subprocess.run([sys.executable, "-c", MAKER, prefix], check=False)
        assert left_of(prefix) != []
    finally:
        Lab(prefix, agents=False).down()
    assert left_of(prefix) == []


def test_a_lab_that_fails_to_come_up_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    lab = Lab(f"{PREFIX}f", agents=False)

    def fail() -> None:
        raise UsageError("made to fail")

    monkeypatch.setattr(lab, "_start_servers", fail)
    with pytest.raises(UsageError, match="made to fail"):
        lab.up()
    assert left_of(lab.prefix) == []


def test_the_command_line(capfd: pytest.CaptureFixture[str]) -> None:
    prefix = f"{PREFIX}c"
    try:
        assert softunicast(["lab", "status", "--prefix", prefix]) == 1
        assert softunicast(["lab", "shell", "--prefix", prefix, "c1"]) == 2
        assert "is not up; `softunicast lab up --prefix" in capfd.readouterr().err
        assert softunicast(["lab", "up", "--no-agents", "--prefix", prefix]) == 0
        assert DRAWING in capfd.readouterr().out
        assert softunicast(["lab", "up", "--no-agents", "--prefix", prefix]) == 2
        assert "is up already" in capfd.readouterr().err
        assert softunicast(["lab", "status", "--json", "--prefix", prefix]) == 0
        status = json.loads(capfd.readouterr().out)
        assert status["up"] and len(status["processes"]["inet"]) == 3
        assert softunicast(["lab", "capture", "--prefix", prefix, "nowhere"]) == 2
        capfd.readouterr()
    finally:
        assert softunicast(["lab", "down", "--prefix", prefix]) == 0
    assert left_of(prefix) == []
    assert softunicast(["lab", "up", "--prefix", "no/slash"]) == 2
    assert "letters and digits only" in capfd.readouterr().err


def test_a_shell_is_in_its_namespace(lab: Lab) -> None:
    command = [sys.executable, "-m", "softunicast.cli", "lab", "shell", "--prefix", lab.prefix, "t2"]
    done = subprocess.run(
        command, input="ip -br address show tun0; exit 3\n", capture_output=True, text=True, check=False
    )
    assert done.returncode == 3, done.stderr
    assert "10.65.2.2/24" in done.stdout
