# SPDX-License-Identifier: Apache-2.0
"""node.json: round trip, atomic writing, and what is no node file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from softunicast.agent.state import NodeState, OnrampState, SliceState, load, loads, write_atomically
from softunicast.errors import KernelError
from softunicast.steering.places import Block, Places, SiteList

STATE = NodeState(
    node="lhr1",
    netns_cookie=1 << 40,
    abi_version=1,
    build_hash="ab",
    bindings_epoch=3,
    ready=True,
    pools={"gb": 0, "ten": 1},
    places=Places(
        {"lhr1": 1, "lhr2": 2}, {"lhr": 1, "cdg": 2}, {"198.51.100.10": Block(0, 32)}, {"cdg": SiteList(0, ("cdg1",))}
    ),
    slices=(SliceState(0, "198.51.100.20:9000-9009", "ten", 2), SliceState(4, "[2001:db8::1]:1024-65535", "gb", 3)),
    onramps={"fish": OnrampState(1, "fish0", 7, 2, "f00")},
    uplinks={"up0": 2},
    sysctls_before={"net/ipv4/conf/up0/arp_ignore": "0"},
    addresses_added=("198.51.100.20/32",),
    started_s=5,
)


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "lhr1" / "node.json"
    assert load(path) is None
    STATE.save(path)
    assert load(path) == STATE
    assert json.loads(path.read_text())["netns_cookie"] == 1 << 40


def test_names_of_indices() -> None:
    assert STATE.pool_name(1) == "ten"
    assert STATE.pool_name(9) is None
    assert STATE.node_name(2) == "lhr2"
    assert STATE.onramp_name(1) == "fish"
    held = STATE.slice_at(4)
    assert held is not None
    assert held.pool == "gb"
    assert STATE.slice_at(1) is None


def test_unknown_fields_of_a_newer_version_are_passed_over() -> None:
    raw = {**json.loads(STATE.dumps()), "shoe_size": 44}
    assert loads(json.dumps(raw), Path("node.json")) == STATE


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"format": 2}', '{"format": 1}', "null"])
def test_what_is_no_node_file_is_named_with_a_way_out(text: str) -> None:
    with pytest.raises(KernelError, match=r"run/node[.]json: .*agent uninstall"):
        loads(text, Path("run/node.json"))


def test_writing_is_atomic_and_leaves_equal_files_alone(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "plan.yaml"
    assert write_atomically(path, "one")
    before = path.stat()
    assert not write_atomically(path, "one")
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    assert write_atomically(path, "two")
    assert path.read_text() == "two"
    assert path.stat().st_ino != before.st_ino
    assert [entry.name for entry in path.parent.iterdir()] == ["plan.yaml"]
