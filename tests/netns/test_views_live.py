# SPDX-License-Identifier: Apache-2.0
"""The verbs that read, on real pinned maps filled by hand; no program is attached. Needs root."""

from __future__ import annotations

import json
import os
import resource
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from softunicast.agent.state import NodeState, OnrampState, SliceState
from softunicast.cli.main import run
from softunicast.egress import tables as egress_tables
from softunicast.kernel import netns, nodes
from softunicast.kernel.abi import (
    ABI_VERSION,
    NONE,
    Claim,
    Crowd,
    CrowdKey,
    Drop,
    Flow,
    Kind,
    LastDrop,
    Onramp,
    OnrampFlag,
    State,
    Stats,
)
from softunicast.kernel.abi_util import Word, addr_bytes
from softunicast.kernel.bpf import BpfObject, mount_bpffs, object_path
from softunicast.model.bindings_file import load_bindings
from softunicast.model.plan import load_plan
from softunicast.steering import tables as steering_tables
from softunicast.steering.places import places

SO_COOKIE = 57
FLOWS = 1 << 17
ONRAMP = 1 << 32 | 5
SIZES = {"flows": FLOWS, "origin": 16, "slots": 32, "crowds": 64, "owners": 1 << 17}


def packed(text: str) -> bytes:
    return addr_bytes(ip_address(text))


def now_ns() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


@dataclass
class Node:
    """A node of which only the maps are there."""

    name: str
    maps: dict[str, Any]

    def claim(
        self, local: str, port: int, remote: str, remote_port: int, kind: Kind, owner: int, *, proto: int = 6,
        index: int = 1, state: State = State.OPEN, inner: str = "", inner_port: int = 0,
    ) -> None:  # fmt: skip
        now_s = now_ns() // 10**9
        key = Flow(packed(local), packed(remote) if remote else bytes(16), port, remote_port, proto)
        value = Claim(
            word=Word(1, state, now_s).pack(),
            owner=owner,
            inner=packed(inner) if inner else bytes(16),
            inner_port=inner_port,
            kind=kind,
            slice=index,
            slot=NONE,
            born_s=now_s - 60,
        )
        self.maps["flows"].update(key.pack(), value.pack())

    def table(self, *arguments: str, capsys: pytest.CaptureFixture[str]) -> str:
        assert run([*arguments, "--node", self.name]) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    def json(self, *arguments: str, capsys: pytest.CaptureFixture[str]) -> Any:
        return json.loads(self.table(*arguments, "--json", capsys=capsys))


@pytest.fixture
def node() -> Iterator[Node]:
    """lhr1 of the plan below under another name, because a name is a folder of the whole machine."""
    name = f"t-views-{os.getpid()}"
    plan_text = f"""\
prefixes:
  - {{prefix: 198.51.100.0/24, announce: [lhr]}}
sites:
  lhr:
    nodes:
      {name}: {{underlay: 10.0.1.11}}
      z2: {{underlay: 10.0.1.12}}
pools:
  gb: {{site: lhr, slices: [{{slice: "198.51.100.10:2048-4095", node: {name}}}]}}
  ten:
    site: lhr
    slices:
      - {{slice: "198.51.100.20:9000-9009", node: {name}}}
      - {{slice: "198.51.100.20:9010-9019", node: z2}}
"""
    bindings_text = f"""\
epoch: 3
bindings:
  - {{slice: "198.51.100.10:2048-4095", node: {name}, epoch: 1, pool: gb}}
  - {{slice: "198.51.100.20:9000-9009", node: {name}, epoch: 2, pool: ten}}
  - {{slice: "198.51.100.20:9010-9019", node: z2, epoch: 3, pool: ten}}
"""
    mount_bpffs()
    plan, bindings = load_plan(plan_text, "plan.yaml"), load_bindings(bindings_text, "bindings.yaml")
    try:
        folder = nodes.run_dir(name)
        folder.mkdir(parents=True)
        nodes.plan_file(name).write_text(plan_text)
        nodes.bindings_file(name).write_text(bindings_text)
        NodeState(
            node=name,
            netns_cookie=netns.cookie(),
            abi_version=ABI_VERSION,
            settings=egress_tables.settings_bytes(plan, plan.node(name), netns.cookie(), 1, 1).hex(),
            ready=True,
            pools={"gb": 0, "ten": 1},
            places=places(plan, name),
            slices=(
                SliceState(0, "198.51.100.10:2048-4095", "gb", 1),
                SliceState(1, "198.51.100.20:9000-9009", "ten", 2),
            ),
            onramps={"vpn": OnrampState(1, "tun0", 9, 5, "")},
        ).save(nodes.node_file(name))
        with BpfObject.load(object_path("egress"), pin_dir=nodes.pin_dir(name), map_sizes=SIZES) as loaded:
            tables = egress_tables.build_tables(plan, bindings, name, {}, {})
            tables |= steering_tables.build_tables(plan, bindings, name)
            for map_name, entries in tables.items():
                for key, value in entries.items():
                    loaded.maps[map_name].update(key, value)
            loaded.maps["onramps"].update(
                (1).to_bytes(4, "little"), Onramp(flags=OnrampFlag.SET, generation=5, ifindex=9).pack()
            )
            yield Node(name, dict(loaded.maps))
    finally:
        shutil.rmtree(nodes.run_dir(name), ignore_errors=True)
        pins = nodes.pin_dir(name)
        for pin in (pins / "maps").iterdir() if (pins / "maps").exists() else ():
            pin.unlink()
        for empty in (pins / "maps", pins):
            if empty.exists():
                empty.rmdir()


def test_slices(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    for n in range(9):
        node.claim("198.51.100.20", 9000 + n, "203.0.113.1", 443, Kind.PACKET if n % 2 else Kind.SOCKET, ONRAMP)
    key = CrowdKey(packed("203.0.113.1"), 1, 443, 6, 0)
    node.maps["crowds"].update(key.pack(), Crowd(refused=12).pack())
    found = node.json("slices", capsys=capsys)
    assert found["node"] == node.name
    gb, ten = found["slices"]
    assert (gb["address"], gb["first"], gb["last"], gb["pool"], gb["crowded"]) == (
        "198.51.100.10", 2048, 4095, "gb", None,
    )  # fmt: skip
    assert ten["claims"] == {"tcp": {"socket": 5, "packet": 4}}
    assert ten["crowded"] == {
        "proto": "tcp", "remote": "203.0.113.1", "remote_port": 443,
        "used": 9, "size": 10, "used_percent": 90, "refused": 12, "full": False,
    }  # fmt: skip
    assert ten["warning"] and ten["epoch"] == 2 and ten["state"] == "live"
    text = node.table("slices", capsys=capsys)
    line = next(line for line in text.splitlines() if line.startswith("198.51.100.20:9000-9009"))
    for part in ("ten", "live", "socket 5, packet 4", "tcp 203.0.113.1:443", "9/10 90%", "!", "12"):
        assert part in line
    node.claim("198.51.100.20", 9009, "203.0.113.1", 443, Kind.SOCKET, 1)
    assert "FULL" in node.table("slices", capsys=capsys)


def test_flows(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as mine:
        mine.bind(("127.0.0.1", 0))
        mine.connect(("127.0.0.1", 9))
        cookie = int.from_bytes(mine.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8), "little")
        began_s = now_ns() // 10**9
        node.claim("198.51.100.20", 9000, "203.0.113.1", 443, Kind.SOCKET, cookie)
        node.claim("198.51.100.20", 9001, "203.0.113.2", 443, Kind.PACKET, ONRAMP, inner="10.8.0.2", inner_port=555)
        node.claim("198.51.100.10", 2048, "", 0, Kind.SOCKET, 1, proto=17, index=0)
        node.claim("198.51.100.10", 3000, "203.0.113.1", 53, Kind.PEER, 2, proto=17, index=0)
        found = {flow["local_port"]: flow for flow in node.json("flows", capsys=capsys)["flows"]}
        assert (found[9000]["owner"], found[9000]["pid"]) == (cookie, os.getpid())
        assert found[9000]["expires_s"] is None
        assert 60 <= found[9000]["age_s"] <= 61 + now_ns() // 10**9 - began_s
        assert (found[9001]["owner_name"], found[9001]["inner"], found[9001]["inner_port"]) == ("vpn", "10.8.0.2", 555)
        assert (found[2048]["remote"], found[2048]["command"]) == (None, None)
        assert (found[3000]["owner_name"], found[3000]["kind"]) == ("z2", "peer")
        text = node.table("flows", capsys=capsys)
        assert f"(pid {os.getpid()})" in text and "10.8.0.2:555" in text and "vpn" in text

    def ports(*arguments: str) -> set[int]:
        return {flow["local_port"] for flow in node.json("flows", *arguments, capsys=capsys)["flows"]}

    assert ports("--slice", "198.51.100.20") == {9000, 9001}
    assert ports("--slice", "198.51.100.20:9001-9009") == {9001}
    assert ports("--proto", "udp") == {2048, 3000}
    assert ports("--remote", "203.0.113.1") == {9000, 3000}
    assert ports("--remote", "203.0.113.0/24", "--proto", "tcp") == {9000, 9001}
    assert ports("--remote", "203.0.113.1:53") == {3000}
    assert ports("--kind", "peer") == {3000}
    assert len(ports("--limit", "2")) == 2
    assert ports("--kind", "local") == set()


def test_counters_and_drops(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    assert node.table("drops", capsys=capsys) == "nothing was dropped\n"
    counts = Stats(drops=tuple(range(48)), counters=tuple(range(100, 148)))
    node.maps["stats"].update(bytes(4), counts.pack())
    last = LastDrop(now_ns() - 5 * 10**9, Flow(packed("198.51.100.20"), packed("203.0.113.1"), 9001, 443, 6))
    node.maps["last_drops"].update(int(Drop.NO_CLAIM).to_bytes(4, "little"), last.pack())
    cpus = len(node.maps["stats"].lookup_percpu(bytes(4)))
    found = {item["name"]: item["count"] for item in node.json("counters", capsys=capsys)["counters"]}
    assert found["claim_socket"] == 100 * cpus
    drops = {item["name"]: item for item in node.json("drops", capsys=capsys)["drops"]}
    assert drops["no_claim"]["count"] == cpus
    assert drops["no_claim"]["last"]["local_port"] == 9001 and 5 <= drops["no_claim"]["last"]["ago_s"] < 60
    line = next(line for line in node.table("drops", capsys=capsys).splitlines() if line.startswith("no_claim"))
    assert "tcp 198.51.100.20:9001 203.0.113.1:443" in line and "nobody claims it" in line
    assert "claim_socket" in node.table("counters", capsys=capsys)


def test_explain(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("explain", "198.51.100.20:9001", "--from", "203.0.113.1:443")
    (at,) = node.json(*arguments, capsys=capsys)["at"]
    assert (at["node"], at["verdict"]["action"], at["verdict"]["drop"]) == (node.name, "drop", "no_claim")
    assert at["owner"] == {"node": node.name, "slice": "198.51.100.20:9000-9009", "epoch": 2, "pool": "ten"}
    node.claim("198.51.100.20", 9001, "203.0.113.1", 443, Kind.PACKET, ONRAMP, inner="10.8.0.2", inner_port=555)
    (at,) = node.json(*arguments, capsys=capsys)["at"]
    assert (at["verdict"]["action"], at["verdict"]["to"], at["claim"]["kind"]) == ("on-ramp", "10.8.0.2:555", "packet")
    text = node.table(*arguments, capsys=capsys)
    assert "verdict" in text and "vpn" in text
    (at,) = node.json("explain", "198.51.100.20:9012", "--from", "203.0.113.1:443", capsys=capsys)["at"]
    assert (at["verdict"]["action"], at["verdict"]["to"]) == ("carry", "z2")
    # The node's maps tell only of its own slices; the bindings it was given tell of the others.
    assert at["owner"] == {"node": "z2", "slice": "198.51.100.20:9010-9019", "epoch": 3, "pool": "ten"}


def test_explain_from_the_plan_alone(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    files = ("--plan", str(nodes.plan_file(node.name)), "--bindings", str(nodes.bindings_file(node.name)))
    assert run(["explain", "198.51.100.20:9012", "--from", "203.0.113.1:443", *files, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["source"] == "plan"
    actions = {at["node"]: at["verdict"]["action"] for at in document["at"]}
    assert actions == {node.name: "carry", "z2": "claim-decides"}


def test_the_node_of_this_namespace_is_the_default(node: Node, capsys: pytest.CaptureFixture[str]) -> None:
    """In a namespace of its own no node is found; where the node lives it is."""
    place = f"{node.name}-ns"
    netns.create(place)
    try:
        with netns.enter(place):
            assert run(["slices"]) == 2
            assert "no node in this network namespace" in capsys.readouterr().err
            file = nodes.node_file(node.name)
            file.write_text(
                file.read_text().replace(f'"netns_cookie": {cookie_of(file)}', f'"netns_cookie": {netns.cookie()}')
            )
            assert run(["slices", "--json"]) == 0
            assert json.loads(capsys.readouterr().out)["node"] == node.name
    finally:
        netns.delete(place)


def cookie_of(file: Path) -> int:
    return int(json.loads(file.read_text())["netns_cookie"])


def test_a_large_table_is_streamed(node: Node) -> None:
    """30,000 claims: every one is listed once, and the reader's memory does not grow with them."""
    count = 30_000
    value = Claim(word=Word(1, State.OPEN, now_ns() // 10**9).pack(), kind=Kind.PACKET, owner=ONRAMP, slice=0).pack()
    local = packed("198.51.100.10")
    for number in range(count):
        remote = packed("203.0.0.0")[:13] + number.to_bytes(3, "big")
        key = Flow(local, remote, 2048 + number % 2048, 443, 6).pack()
        node.maps["flows"].update(key, value)

    def children_kib() -> int:
        return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss

    command = [sys.executable, "-m", "softunicast.cli", "flows", "--node", node.name]
    few = subprocess.run([*command, "--limit", "10"], capture_output=True, text=True, check=True, timeout=60)
    assert len(few.stdout.splitlines()) == 11
    small_kib = children_kib()
    every = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    lines = every.stdout.splitlines()[1:]
    assert len(lines) == count == len(set(lines))
    assert children_kib() < small_kib + 16 * 1024
