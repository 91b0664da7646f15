# SPDX-License-Identifier: Apache-2.0
"""The agent from nothing to a node and back: what it sets, that a restart sets nothing, that nothing stays.

Needs root. `dump` is independent of the project: bpftool, ip, nft, tc and /proc/sys.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.agent.daemon import Agent, Options
from softunicast.agent.logs import logger
from softunicast.kernel import netns
from tests.support.agent_node import AgentNode, agent_node
from tests.support.dump import PINS, RUN, differences
from tests.support.wait import wait_until


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AgentNode]:
    with agent_node(tmp_path) as made:
        yield made


def test_dry_run_prints_operations_and_changes_nothing(node: AgentNode) -> None:
    before = node.dump()
    done = node.agent("--dry-run")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "address 198.51.100.10/32 on lo" in lines
    assert any(line.startswith("attach su_guard at tc egress of up0") for line in lines)
    assert lines.index("open: fish may claim") > lines.index("adopt living sockets (TCP, UDP)")
    assert differences(before, node.dump()) == []
    assert not (PINS / node.name).exists()
    assert not (RUN / node.name).exists()


def test_everything_is_set(node: AgentNode) -> None:
    node.once()
    found = node.dump()
    on_lo = {entry["local"] for entry in found["addresses"][0]["addr_info"]}
    assert {"198.51.100.10", "198.51.100.20"} <= on_lo
    assert {rule["src"] for rule in found["rules"][0] if rule.get("table") == "1717"} == {
        "198.51.100.10",
        "198.51.100.20",
    }
    routes = [route for route in found["routes"][0] if route.get("table") == "1717"]
    assert {route.get("type", "unicast") for route in routes} == {"unicast", "unreachable"}
    assert found["sysctls"]["net/ipv4/conf/up0/arp_announce"] == "2"
    assert found["sysctls"]["net/ipv4/conf/up0/arp_ignore"] == "1"
    assert found["sysctls"]["net/ipv4/conf/fish0/forwarding"] == "0"
    assert "notrack" in json.dumps(found["nft"])
    roles = [name.rpartition("-")[0] or name for name in found["links"]]
    assert len(roles) == len(set(roles))
    hooks = {f"su_{name}{version}" for name in ("bind", "connect", "sendmsg") for version in (4, 6)}
    assert set(roles) == hooks | {
        "guard",
        "onramp_in",
        "uplink_in",
        "su_sock_create",
        "su_sock_release",
        "su_sockops",
    }
    state = node.state()
    assert state["ready"] is True
    assert state["onramps"]["fish"]["generation"] == 1
    assert "198.51.100.20:9000-9009" in [held["slice"] for held in state["slices"]]


def test_slice_addresses_never_appear_in_arp(node: AgentNode) -> None:
    node.once()
    for address, answers in (("10.0.1.11", True), ("198.51.100.10", False)):
        router = AgentNode(node.name, f"{node.netns}-r", node.folder)
        router.ip("neigh", "flush", "dev", "r0")
        router.ip("route", "replace", f"{address}/32", "dev", "r0")
        try:
            router.inside("ping", "-c", "1", "-W", "1", address)
        except subprocess.CalledProcessError as error:
            assert not answers, error
        assert ("lladdr" in router.inside("ip", "neigh", "show", address)) is answers


def test_a_restart_changes_nothing(node: AgentNode) -> None:
    assert node.once() > 0
    before = node.dump(volatile=True)
    assert node.once() == 0
    assert differences(before, node.dump(volatile=True)) == []
    assert node.agent("--dry-run").stdout.splitlines()[0] == "nothing to do"


def test_kill_9_leaves_the_data_plane(node: AgentNode) -> None:
    with node.daemon() as daemon:
        wait_until((RUN / node.name / "announce.json").exists, 20, "the agent has judged the node")
        before = node.dump()
        daemon.kill()
    assert differences(before, node.dump()) == []
    with node.daemon() as daemon:
        assert daemon.events("ready")[0]["changed"] == 0
        assert differences(before, node.dump()) == []
        assert daemon.terminate() == 0
    assert differences(before, node.dump()) == []


def test_uninstall_leaves_nothing(node: AgentNode) -> None:
    node.inside("sysctl", "-w", "net.ipv4.conf.up0.arp_announce=1", "net.ipv4.conf.fish0.forwarding=1")
    node.ip("address", "add", "198.51.100.20/32", "dev", "lo")
    before = node.dump()
    node.once()
    planned = node.softunicast("agent", "uninstall", "--node", node.name, "--dry-run").stdout
    installed = node.dump()
    assert node.uninstall().stdout == planned
    assert differences(before, installed) != []
    # The operator's own address and sysctls are as they were.
    assert differences(before, node.dump()) == []
    assert not (PINS / node.name).exists()
    assert not (RUN / node.name).exists()
    assert node.uninstall().stdout == f"node {node.name}: nothing to remove\n"


@pytest.mark.parametrize("missing", ["node.json", "links", "progs", "maps", "broken"])
def test_uninstall_of_a_half(node: AgentNode, missing: str) -> None:
    before = node.dump()
    node.once()
    if missing == "node.json":
        (RUN / node.name / "node.json").unlink()
    elif missing == "broken":
        (RUN / node.name / "node.json").write_text("{")
    else:
        for path in (PINS / node.name / missing).iterdir():
            path.unlink()
    node.uninstall()
    after = node.dump()
    if missing in ("node.json", "broken"):
        # Nobody knows any more what the sysctls were.
        before["sysctls"] = after["sysctls"]
    assert differences(before, after) == []


def test_uninstall_after_the_namespace_is_gone(node: AgentNode) -> None:
    node.once()
    subprocess.run(["ip", "netns", "delete", node.netns], check=True, timeout=30)
    elsewhere = AgentNode(node.name, f"{node.netns}-r", node.folder)
    assert "is gone, and what was in it" in elsewhere.uninstall().stdout
    assert not (PINS / node.name).exists()
    assert not (RUN / node.name).exists()


def test_uninstall_from_another_namespace(node: AgentNode) -> None:
    before = node.dump()
    node.once()
    AgentNode(node.name, f"{node.netns}-r", node.folder).uninstall()
    assert differences(before, node.dump()) == []


def test_without_tcx_filters_do_the_same(node: AgentNode) -> None:
    """Linux 6.1 to 6.5: told not to use TCX, the agent hangs its programs on clsact."""
    before = node.dump()
    options = Options(node.name, node.plan, node.bindings_file, tcx=False)
    with netns.enter(node.netns):
        assert Agent(options, logger("json")).once() > 0
        installed = node.dump()
        assert Agent(options, logger("json")).once() == 0
        assert differences(installed, node.dump()) == []
        node.write(("{flows: 2048}", "{flows: 2048, timers: {udp_s: 77}}"))
        assert Agent(options, logger("json")).once() > 0
        assert Agent(options, logger("json")).once() == 0
        node.ip("link", "add", "new0", "type", "veth", "peer", "name", "new1")
        assert Agent(options, logger("json")).once() == 2
        node.ip("link", "del", "new0")
    hooked = {place for place, filters in installed["filters"].items() if filters}
    assert hooked == {"up0 ingress", "up0 egress", "fish0 ingress"}
    assert all(name.startswith("su_") for name in installed["links"])
    node.uninstall()
    after = node.dump()
    assert differences(before, after) == []
