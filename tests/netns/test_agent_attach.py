# SPDX-License-Identifier: Apache-2.0
"""Where steering is attached: XDP by the plan, tc by itself on veth, others' programs left alone. Needs root."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from softunicast.kernel import netns
from softunicast.kernel.entries import attached, entries
from softunicast.kernel.links import AttachType, attach_tcx, attach_xdp
from softunicast.kernel.probe import load_trivial
from softunicast.kernel.programs import ProgramType
from tests.support.agent_node import AgentNode, agent_node

XDP_UPLINK = ("uplinks: [up0]", "uplinks: [up0]\n        attach: xdp")


@pytest.fixture
def node(tmp_path: Path) -> Iterator[AgentNode]:
    with agent_node(tmp_path) as made:
        yield made


def shown_xdp(node: AgentNode, device: str = "up0") -> dict[str, object]:
    """What ip says is attached at XDP."""
    found: dict[str, object] = json.loads(node.inside("ip", "-j", "-d", "link", "show", device))[0].get("xdp", {})
    return found


def lo_forwarding(node: AgentNode) -> list[str]:
    return node.inside("sysctl", "-n", "net.ipv4.conf.lo.forwarding", "net.ipv6.conf.lo.forwarding").split()


def test_veth_is_steered_at_tc(node: AgentNode) -> None:
    said = node.agent("--dry-run").stdout
    assert "uplink up0: steered at tc (a veth is virtual and hands over whole segments)" in said
    node.once()
    assert shown_xdp(node) == {}
    assert lo_forwarding(node) == ["0", "0"]


@pytest.mark.parametrize(("mode", "number"), [("xdp", 1), ("xdp-generic", 2)])
def test_the_plan_asks_for_xdp_and_takes_it_back(node: AgentNode, mode: str, number: int) -> None:
    untouched = lo_forwarding(node)
    node.write(("uplinks: [up0]", f"uplinks: [up0]\n        attach: {{up0: {mode}}}"))
    node.once()
    xdp = shown_xdp(node)
    assert (xdp["mode"], xdp["prog"]["name"]) == (number, "su_steer")  # type: ignore[index]
    assert lo_forwarding(node) == ["1", "1"]
    assert node.once() == 0
    with netns.enter(node.netns):
        index = socket.if_nametoindex("up0")
        assert len(attached(index, AttachType.TCX_INGRESS)) == 1
    # The other one: the kernel has room for either.
    other = {"xdp": "xdp-generic", "xdp-generic": "xdp"}[mode]
    node.write(("uplinks: [up0]", f"uplinks: [up0]\n        attach: {other}"))
    node.once()
    assert shown_xdp(node)["mode"] == 3 - number
    node.write(("uplinks: [up0]", "uplinks: [up0]\n        attach: tc"))
    node.once()
    assert shown_xdp(node) == {}
    assert lo_forwarding(node) == untouched
    assert node.once() == 0


def test_uninstall_takes_xdp_away(node: AgentNode) -> None:
    before = lo_forwarding(node)
    node.write(XDP_UPLINK)
    node.once()
    node.uninstall()
    assert shown_xdp(node) == {}
    assert lo_forwarding(node) == before


@contextmanager
def foreign(node: AgentNode, kind: ProgramType) -> Iterator[int]:
    """Somebody's program at XDP, or ahead of all at tc ingress, of up0: its id."""
    with netns.enter(node.netns), load_trivial(kind) as program:
        index = socket.if_nametoindex("up0")
        made = (
            attach_xdp(program, index, generic=False)
            if kind is ProgramType.XDP
            else attach_tcx(program, index, egress=False)
        )
        with made:
            yield program.id


def findings(node: AgentNode) -> dict[str, str]:
    lines = node.agent("--dry-run").stdout.splitlines()
    return {line.split(": ")[1]: line for line in lines if line.startswith("finding: ")}


def test_a_foreign_xdp_program_is_left_alone(node: AgentNode) -> None:
    node.write(XDP_UPLINK)
    with foreign(node, ProgramType.XDP) as number:
        node.once()
        assert shown_xdp(node)["prog"]["id"] == number  # type: ignore[index]
        assert f"su_probe (id {number}) is attached at XDP" in findings(node)["foreign-xdp"]
        assert node.once() == 0
    # It went: the place is free.
    assert node.once() > 0
    assert shown_xdp(node)["prog"]["name"] == "su_steer"  # type: ignore[index]
    assert "foreign-xdp" not in findings(node)


def test_a_foreign_tc_program_ahead_of_ours_is_told(node: AgentNode) -> None:
    with foreign(node, ProgramType.SCHED_CLS):
        # Ours goes in front of what is there.
        node.once()
        assert "foreign-tc" not in findings(node)
        with foreign(node, ProgramType.SCHED_CLS) as number:
            text = findings(node)["foreign-tc"]
            assert f"device up0: su_probe (id {number}) runs at tc before our programs" in text
            assert node.once() == 0


def test_what_the_kernel_refuses_is_told_and_tc_steers(node: AgentNode) -> None:
    """veth takes no XDP program above a page."""
    node.write(XDP_UPLINK)
    node.ip("link", "set", "up0", "mtu", "9000")
    node.inside("nsenter", f"--net=/run/netns/{node.netns}-r", "ip", "link", "set", "r0", "mtu", "9000")
    with node.daemon("--interval", "0.3") as daemon:
        (finding,) = [entry for entry in daemon.events("finding") if entry["name"] == "attach"]
        assert "uplink up0: steered at tc: the kernel refused XDP: attach su_steer to device" in finding["text"]
        assert not daemon.events("failed")
        assert daemon.terminate() == 0
    assert shown_xdp(node) == {}


def test_entries_tell_kind_features_and_order(node: AgentNode) -> None:
    with netns.enter(node.netns), load_trivial(ProgramType.SCHED_CLS) as first:
        index = socket.if_nametoindex("up0")
        with attach_tcx(first, index, egress=True), load_trivial(ProgramType.SCHED_CLS) as second:
            with attach_tcx(second, index, egress=True):
                assert attached(index, AttachType.TCX_EGRESS) == [second.id, first.id]
                found = entries(["up0", "lo", "none"], {first.id})
    assert set(found) == {"up0", "lo"}
    assert found["up0"].kind == "veth"
    assert found["up0"].features is not None
    assert found["up0"].features & 3 == 3
    assert found["up0"].ahead == (f"su_probe (id {second.id})",)
    assert attached(1 << 30, AttachType.TCX_EGRESS) == []
