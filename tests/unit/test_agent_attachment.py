# SPDX-License-Identifier: Apache-2.0
"""The choice between XDP and tc, by what plan, device, driver and kernel say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from softunicast.agent.attachment import choices, findings
from softunicast.agent.facts import Facts
from softunicast.agent.resources import Hook
from softunicast.kernel.entries import Entries, XdpFeature
from softunicast.kernel.routing import Device
from softunicast.model.address import parse_address
from softunicast.model.fleet import Node

CAN = XdpFeature.BASIC | XdpFeature.REDIRECT
CARD = Entries(features=CAN)
FACTS = Facts(
    7, {"eth0": Device("eth0", 2, 1500), "eth1": Device("eth1", 3, 1500), "tun0": Device("tun0", 4, 1400, 65534)}
)


def node(attach: str | dict[str, str] = "auto", *uplinks: str) -> Node:
    by_device = {"": attach} if isinstance(attach, str) else attach
    return Node("n", "s", (parse_address("10.0.0.1"),), uplinks or ("eth0",), attach=by_device)


@pytest.mark.parametrize(
    ("attach", "entries", "hook", "why"),
    [
        ("auto", CARD, Hook.XDP, "its driver can"),
        ("auto", replace(CARD, kind="veth"), Hook.INGRESS, "a veth is virtual"),
        ("auto", replace(CARD, features=None), Hook.INGRESS, "this kernel does not tell"),
        ("auto", replace(CARD, features=XdpFeature.BASIC), Hook.INGRESS, "its driver lacks XDP's REDIRECT"),
        ("auto", replace(CARD, features=XdpFeature(0)), Hook.INGRESS, "lacks XDP's BASIC and REDIRECT"),
        (
            "auto",
            replace(CARD, foreign_xdp=("cilium (id 3)",)),
            Hook.INGRESS,
            "XDP has cilium (id 3), which is not ours",
        ),
        (
            "xdp",
            replace(CARD, foreign_xdp=("cilium (id 3)",)),
            Hook.INGRESS,
            "XDP has cilium (id 3), which is not ours",
        ),
        ("xdp", replace(CARD, kind="veth"), Hook.XDP, "as the plan says"),
        ("xdp-generic", Entries(), Hook.XDP_GENERIC, "as the plan says"),
        ("tc", CARD, Hook.INGRESS, "as the plan says"),
        ({"eth0": "tc"}, CARD, Hook.INGRESS, "as the plan says"),
        ({"eth1": "tc"}, CARD, Hook.XDP, "its driver can"),
        ({"": "tc", "eth0": "auto"}, CARD, Hook.XDP, "its driver can"),
    ],
)
def test_choice(attach: str | dict[str, str], entries: Entries, hook: Hook, why: str) -> None:
    choice = choices(node(attach), replace(FACTS, entries={"eth0": entries}), {})["eth0"]
    assert choice.hook is hook
    assert why in choice.why


def test_a_card_may_hide_from_xdp_what_is_its_vlan_devices() -> None:
    devices = {**FACTS.devices, "eth0.7": Device("eth0.7", 9, 1500, below=2)}
    facts = replace(FACTS, devices=devices, entries={"eth0": CARD, "eth1": CARD, "eth0.7": replace(CARD, kind="vlan")})
    found = choices(node("auto", "eth0", "eth1", "eth0.7"), facts, {})
    assert [choice.hook for choice in found.values()] == [Hook.INGRESS, Hook.XDP, Hook.INGRESS]
    assert "it carries eth0.7" in found["eth0"].why
    assert choices(node("xdp"), facts, {})["eth0"].hook is Hook.XDP


def test_devices_without_ethernet_and_those_that_are_not_there() -> None:
    found = choices(node("xdp", "tun0", "eth9"), FACTS, {})
    assert list(found) == ["tun0"]
    assert found["tun0"].hook is Hook.INGRESS
    assert [finding.name for finding in findings(found, (), FACTS)] == ["attach"]


def test_a_refusal_is_of_one_device_and_one_hook() -> None:
    facts = replace(FACTS, entries={"eth0": CARD, "eth1": CARD})
    found = choices(node("auto", "eth0", "eth1"), facts, {(2, Hook.XDP): "busy", (3, Hook.XDP_GENERIC): "no"})
    assert [choice.hook for choice in found.values()] == [Hook.INGRESS, Hook.XDP]
    (finding,) = findings(found, (), facts)
    assert finding.name == "attach"
    assert "uplink eth0: steered at tc: the kernel refused XDP: busy; say `attach: {eth0: tc}`" in finding.message


def test_findings_name_others_programs_once() -> None:
    entries = {
        "eth0": replace(CARD, foreign_xdp=("a (id 1)",), ahead=("b (id 2)",)),
        "tun0": Entries(ahead=("c (id 3)",)),
    }
    facts = replace(FACTS, entries=entries)
    found = {
        finding.name + finding.message for finding in findings(choices(node(), facts, {}), ("eth0", "tun0"), facts)
    }
    assert len(found) == 3
    assert sum("foreign-tc" in text for text in found) == 2
