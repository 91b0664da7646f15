# SPDX-License-Identifier: Apache-2.0
"""What the agent does when something changes, and what it refuses. Needs root."""

from __future__ import annotations

import json
import signal
import socket
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from softunicast.kernel import abi, netns, nodes
from softunicast.kernel.abi_util import word_state
from softunicast.kernel.bpf import Link
from softunicast.kernel.cgroup import CgroupDir
from tests.support.agent_node import AgentNode, agent_node
from tests.support.dump import PINS, RUN, differences
from tests.support.wait import wait_until


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AgentNode]:
    with agent_node(tmp_path) as made:
        yield made


def test_new_settings_replace_programs_and_keep_maps_and_links(node: AgentNode) -> None:
    node.once()
    before = node.dump()
    node.write(("{flows: 2048}", "{flows: 2048, timers: {udp_s: 77}}"))
    assert node.once() > 0
    after = node.dump()
    assert {name: entry["id"] for name, entry in before["maps"].items()} == {
        name: entry["id"] for name, entry in after["maps"].items()
    }
    for name, link in after["links"].items():
        assert link["id"] == before["links"][name]["id"], name
        assert link["prog_id"] != before["links"][name]["prog_id"], name
    assert not {entry["id"] for entry in after["programs"].values()} & {
        entry["id"] for entry in before["programs"].values()
    }
    assert node.once() == 0


def test_a_slice_more_keeps_the_indices_of_the_others(node: AgentNode) -> None:
    node.once()
    before = {held["slice"]: held["index"] for held in node.state()["slices"]}
    node.write(("addresses: [198.51.100.10]", "addresses: [198.51.100.9-198.51.100.10]"))
    node.once()
    after = {held["slice"]: held["index"] for held in node.state()["slices"]}
    assert set(before) & set(after)
    assert {text: index for text, index in after.items() if text in before} == {
        text: index for text, index in before.items() if text in after
    }
    assert len(set(after.values())) == len(after)
    with nodes.open_maps(node.name) as maps:
        for text, index in after.items():
            held = abi.Slice.unpack(maps["slices"].lookup(struct.pack("=I", index)) or b"")
            assert text.endswith(f":{held.first}-{held.last}")
    assert node.once() == 0


@pytest.mark.parametrize("what", ["abi", "epoch", "same epoch", "flows", "namespace", "state"])
def test_refuses_and_changes_nothing(node: AgentNode, what: str) -> None:
    node.once()
    file = RUN / node.name / "node.json"
    arguments: tuple[str, ...] = ("--once",)
    runner = node
    if what == "abi":
        file.write_text(json.dumps({**node.state(), "abi_version": abi.ABI_VERSION + 1}))
        expected = "agent uninstall"
    elif what == "epoch":
        file.write_text(json.dumps({**node.state(), "bindings_epoch": 7}))
        expected = "older than epoch 7"
    elif what == "same epoch":
        text = node.bindings_file.read_text()
        other = text.replace(f"node: {node.name},", f"node: {node.name}x,", 1)
        assert other != text
        node.bindings_file.write_text(other)
        expected = "under the same epoch 1"
    elif what == "flows":
        node.write(("{flows: 2048}", "{flows: 4096}"))
        expected = "map flows has room for 2048 entries"
    elif what == "namespace":
        runner = AgentNode(node.name, f"{node.netns}-r", node.folder)
        expected = "another network namespace"
    else:
        file.unlink()
        expected = "node.json is gone"
    before = node.dump()
    done = runner.agent(*arguments)
    assert done.returncode == 2, done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("softunicast: "), message
    assert expected in message, message
    assert differences(before, node.dump()) == []


def test_two_nodes_in_one_namespace(node: AgentNode) -> None:
    node.once()
    done = node.softunicast(
        "agent", "--plan", str(node.plan), "--bindings", str(node.bindings_file), "--node", f"{node.name}x", "--once"
    )
    assert done.returncode == 2
    assert f"node {node.name} runs in this network namespace already" in done.stderr
    assert not (RUN / f"{node.name}x").exists()


def test_breaking_off_halfway_keeps_the_door_closed_and_is_completed(node: AgentNode) -> None:
    obstacle = PINS / node.name / "progs" / "su_guard_new"
    obstacle.mkdir(parents=True)
    failed = node.agent("--once")
    assert failed.returncode == 1
    assert "load programs" in failed.stderr.splitlines()[-1]
    assert node.state()["ready"] is False
    obstacle.rmdir()
    path = node.folder / "bin"
    path.mkdir()
    script = '#!/bin/sh\ncase "$*" in -f*) echo refused >&2; exit 1;; esac\nexec /usr/sbin/nft "$@"\n'
    (path / "nft").write_text(script)
    (path / "nft").chmod(0o755)
    failed = node.agent("--once", path=str(path))
    assert failed.returncode == 1
    message = failed.stderr.strip().splitlines()[-1]
    assert message.startswith("softunicast: nft table inet softunicast: notrack"), message
    assert "left: mend this and run the agent again" in message
    assert node.state()["ready"] is False
    with nodes.open_maps(node.name) as maps:
        assert abi.Control.unpack(maps["control"].lookup(bytes(4)) or b"").ready == 0
    assert "guard-" in " ".join(entry.name for entry in (PINS / node.name / "links").iterdir())
    assert node.once() > 0
    assert node.state()["ready"] is True
    assert node.once() == 0


def test_findings(node: AgentNode) -> None:
    script = """
table inet filter {
 chain input {
  type filter hook input priority 0; policy drop
  ct state established,related accept
  iifname lo accept
 }
}
table ip nat {
 chain post {
  type nat hook postrouting priority srcnat
  oifname "up0" masquerade
 }
}
"""
    node.inside("nft", "-f", "-", stdin=script)
    node.inside("sysctl", "-w", "net.ipv4.ip_local_reserved_ports=9005", "net.ipv4.tcp_timestamps=0")
    node.inside("sysctl", "-w", "net.ipv4.conf.all.rp_filter=1")
    node.ip("route", "add", "default", "via", "10.0.1.2", "metric", "50")
    node.ip("link", "del", "fish0")
    found = {
        line.split(": ")[1]: line
        for line in node.agent("--dry-run").stdout.splitlines()
        if line.startswith("finding: ")
    }
    assert set(found) == {
        "ct-state-firewall",
        "nat",
        "onramp-missing",
        "reserved-ports",
        "rp-filter",
        "several-default-routes",
        "tcp-timestamps",
        "underlay-mtu",
    }
    remedy = found["ct-state-firewall"].rpartition(": ")[2]
    assert remedy == "nft insert rule inet filter input ip daddr { 198.51.100.10, 198.51.100.20 } accept"
    before = node.inside("nft", "list", "tables")
    node.inside(*remedy.split())
    assert "ct-state-firewall" in found
    assert node.inside("nft", "list", "tables") == before


def test_slices_use_the_mtu_of_the_default_route(node: AgentNode) -> None:
    """Otherwise the first datagram of each path is lost to a router's "too big"."""
    node.ip("route", "replace", "default", "via", "10.0.1.1", "mtu", "1400", "advmss", "1300")
    node.once()
    way = node.inside("ip", "route", "get", "203.0.113.1", "from", "198.51.100.10")
    assert "table 1717" in way and "mtu 1400 advmss 1300" in way
    assert node.once() == 0
    node.ip("route", "replace", "default", "via", "10.0.1.1", "mtu", "1450")
    assert node.once() == 1
    way = node.inside("ip", "route", "get", "203.0.113.1", "from", "198.51.100.10")
    assert "mtu 1450" in way and "advmss" not in way


def test_the_daemon_follows_devices_files_and_signals(node: AgentNode) -> None:
    node.ip("link", "del", "fish0")
    with node.daemon("--interval", "300") as daemon:
        assert [entry["name"] for entry in daemon.events("finding")].count("onramp-missing") == 1
        node.ip("link", "add", "fish0", "type", "veth", "peer", "name", "fish1")
        wait_until(lambda: daemon.done("su_onramp_in"), 20, "the on-ramp is attached")
        wait_until(lambda: daemon.events("finding gone"), 5, "the finding is gone")
        wait_until(lambda: node.state()["onramps"]["fish"]["generation"] == 2, 5, "its generation is written")
        assert daemon.done("su_guard_other at tc egress of fish1")
        good = node.plan.read_text()
        node.plan.write_text(good + "nonsense: 1\n")
        wait_until(lambda: daemon.events("failed"), 20, "a bad plan is told")
        assert daemon.process.poll() is None
        node.plan.write_text(good)
        node.write(("addresses: [198.51.100.10]", "addresses: [198.51.100.10-198.51.100.12]"))
        wait_until(lambda: daemon.done("address 198.51.100.12/32"), 20, "new slices are taken up")
        assert daemon.terminate() == 0
    assert node.once() == 0


def test_a_second_agent_is_refused(node: AgentNode) -> None:
    with node.daemon() as daemon:
        done = node.agent("--once")
        assert done.returncode == 2
        assert f"its agent runs already (pid {daemon.process.pid})" in done.stderr
        assert node.softunicast("agent", "uninstall", "--node", node.name).returncode == 2
        assert node.agent("--dry-run").returncode == 0


def test_a_hook_that_was_taken_away_comes_back_and_orphans_are_swept(node: AgentNode) -> None:
    with node.daemon("--interval", "0.3") as daemon, nodes.open_maps(node.name) as maps:
        with netns.enter(node.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind(("198.51.100.20", 9003))
            client.connect(("203.0.113.1", 443))
            ((flow, raw),) = list(maps["flows"].items())
            assert abi.Claim.unpack(raw).kind == abi.Kind.SOCKET
            daemon.process.send_signal(signal.SIGSTOP)
            with Link.open_pinned(nodes.link_pin(node.name, "su_sock_release")) as link:
                link.detach()
        assert maps["flows"].lookup(flow) is not None
        daemon.process.send_signal(signal.SIGCONT)

        def lingers() -> bool:
            found = maps["flows"].lookup(flow)
            return found is None or word_state(abi.Claim.unpack(found).word) == abi.State.LINGER

        wait_until(lingers, 30, "the orphan lingers")
        assert daemon.done("attach su_sock_release")
        assert daemon.done("adopt living sockets")
        assert not daemon.events("failed")


def test_a_living_socket_keeps_its_claim(node: AgentNode) -> None:
    with node.daemon("--interval", "0.2") as daemon, nodes.open_maps(node.name) as maps:
        with netns.enter(node.netns), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.bind(("198.51.100.20", 9003))
            client.connect(("203.0.113.1", 443))
            ((flow, raw),) = list(maps["flows"].items())
            # Any log line later than five sweeps would do; the reload is one.
            for turn in range(5):
                node.plan.write_text(node.plan.read_text() + f"nonsense{turn}: 1\n")
                wait_until(lambda turn=turn: len(daemon.events("failed")) > turn, 20, "the file is read")  # type: ignore[misc]
            assert maps["flows"].lookup(flow) == raw


def test_what_run_left_behind_is_swept(node: AgentNode) -> None:
    node.once()
    folder = CgroupDir(nodes.cgroup_dir(node.name).path / "run-99999999")
    folder.create()
    with nodes.open_maps(node.name) as maps:
        maps["cgroups"].update(struct.pack("=Q", folder.id), abi.Policy(flags=1).pack())
        control = abi.Control.unpack(maps["control"].lookup(bytes(4)) or b"")
        maps["control"].update(bytes(4), replace(control, policies=1).pack())

        def looks() -> int:
            return abi.Control.unpack(maps["control"].lookup(bytes(4)) or b"").policies

        with node.daemon("--interval", "0.3") as daemon:
            wait_until(lambda: not folder.exists, 30, "the empty cgroup is gone")
            wait_until(lambda: looks() == 0, 30, "hooks look no more")
            wait_until(lambda: daemon.events("swept"), 20, "it is told")
            assert list(maps["cgroups"].keys()) == []
            assert not daemon.events("failed")


def test_pins_removed_by_hand_are_made_again(node: AgentNode) -> None:
    with node.daemon("--interval", "0.5") as daemon:
        for folder in ("links", "progs", "maps"):
            for path in (PINS / node.name / folder).iterdir():
                path.unlink()
        wait_until(lambda: daemon.events("done") and daemon.done("open: fish may claim"), 60, "all is made again")
        wait_until(lambda: node.agent("--dry-run").stdout.startswith("nothing to do"), 30, "nothing is left to do")
        assert daemon.terminate() == 0
    assert node.once() == 0


def test_systemd_is_told(node: AgentNode) -> None:
    path = node.folder / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        manager.settimeout(30)
        with node.daemon(NOTIFY_SOCKET=str(path)) as daemon:
            assert manager.recv(1024).decode().splitlines() == ["READY=1", "STATUS=epoch 1"]
            assert manager.recv(1024) == b"WATCHDOG=1"
            assert manager.recv(1024) == b"STATUS=epoch 1", "it swept"
            daemon.process.send_signal(signal.SIGTERM)
            while (message := manager.recv(1024)) != b"STOPPING=1":
                # Its own addresses on lo woke it: it may look once more.
                assert message in (b"WATCHDOG=1", b"STATUS=epoch 1")
            assert daemon.process.wait(timeout=30) == 0
