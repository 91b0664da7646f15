# SPDX-License-Identifier: Apache-2.0
"""Where TCP ends, as values: what a device's alias says, what the terminator is told, what is done about it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softunicast.agent.diff import Desired, Observed, diff
from softunicast.agent.operations import MakeTerminus, RemoveTerminus, SaveState
from softunicast.agent.resources import Hook
from softunicast.agent.terminus import Terminus, of_device
from softunicast.errors import KernelError
from softunicast.kernel import abi
from softunicast.kernel.routing import Device
from softunicast.proxy.terminate import PORT, Ended, Told, client_number, config_of, loads, pools_of, read
from tests.unit.test_agent_desired import FACTS, FISH, TEXT, make

ENDED = FISH.replace("gateway: 10.77.0.1}", "gateway: 10.77.0.1, strategy: terminate, mss: 1300}")
PLAN = TEXT.replace(FISH, ENDED)
PLACE = Terminus("lhr1", 1, "fish", 1340, "10.77.0.1", "", held=True)
DEVICE = Device("suterm1", 9, 1340, alias=PLACE.alias)
NAMES = st.text("abcXYZ019-_.", min_size=1, max_size=63)


@given(NAMES, st.integers(1, 1023), NAMES, st.integers(68, 65535), st.sampled_from(["", "10.0.0.1"]), st.booleans())
def test_an_alias_says_all(node: str, number: int, onramp: str, mtu: int, gateway: str, held: bool) -> None:
    node = "n" + node.replace(".", "-")[:60]
    place = Terminus(node, number, onramp, mtu, gateway, "fd00::1" if gateway else "", held)
    assert of_device(Device(place.device, 9, mtu, alias=place.alias)) == place
    assert len(place.alias.encode()) < 256


@given(st.text(max_size=60))
def test_other_aliases_say_nothing(alias: str) -> None:
    assert of_device(Device("suterm1", 9, 1500, alias=alias)) is None
    assert of_device(Device("eth0", 9, 1500, alias=PLACE.alias)) is None
    assert of_device(Device("suterm2", 9, 1500, alias=PLACE.alias)) is None


def told_of(desired: Desired) -> Told:
    return loads(desired.resources.files["terminate.json"])


def test_first_the_place_then_the_way_to_it() -> None:
    first = make(PLAN)
    assert first.resources.termini == {PLACE}
    held = abi.Onramp.unpack(first.resources.tables["onramps"][b"\1\0\0\0"])
    assert (held.flags & abi.OnrampFlag.TERMINATE, held.terminus) == (abi.OnrampFlag.TERMINATE, 0)
    then = make(PLAN, replace(FACTS, devices={**FACTS.devices, "suterm1": DEVICE}))
    held = abi.Onramp.unpack(then.resources.tables["onramps"][b"\1\0\0\0"])
    assert held.terminus == 9
    assert then.resources.tables["onramp_devices"][b"\x09\0\0\0"] == b"\1\0\0\0"
    links = {(link.program, link.hook) for link in then.resources.links.values() if link.device == "suterm1"}
    assert links == {("su_terminus_in", Hook.INGRESS), ("su_guard_other", Hook.EGRESS)}
    strange = make(PLAN, replace(FACTS, devices={**FACTS.devices, "suterm1": replace(DEVICE, alias="mine")}))
    held = abi.Onramp.unpack(strange.resources.tables["onramps"][b"\1\0\0\0"])
    assert held.terminus == 0, "a device that was made for something else leads nowhere"


def test_without_its_device_there_is_no_place() -> None:
    devices = {name: device for name, device in FACTS.devices.items() if name != "fish0"}
    gone = make(PLAN, replace(FACTS, devices=devices))
    assert gone.resources.termini == frozenset()
    assert "terminate.json" not in gone.resources.files


def test_made_before_maps_lead_there_and_removed_after() -> None:
    want = make(PLAN)
    made = diff(want, Observed())
    assert [one.terminus for one in made if isinstance(one, MakeTerminus)] == [PLACE]
    assert not isinstance(made[-1], MakeTerminus)
    mended = diff(want, Observed(replace(want.resources, termini=frozenset({replace(PLACE, mtu=1200)}))))
    assert [str(one) for one in mended if isinstance(one, MakeTerminus)] == [
        "make namespace softunicast-lhr1-1, where the TCP of on-ramp fish ends (held handshakes)"
    ]
    assert not any(isinstance(one, RemoveTerminus) for one in mended)
    without = make(TEXT)
    removed = diff(without, Observed(replace(without.resources, termini=frozenset({PLACE}))))
    assert [one.terminus for one in removed if isinstance(one, RemoveTerminus)] == [PLACE]
    assert isinstance(removed[-1], SaveState)


def test_what_the_terminator_is_told() -> None:
    told = told_of(make(PLAN))
    (ended,) = told.onramps
    assert (ended.name, ended.namespace, ended.held, ended.pool) == ("fish", "softunicast-lhr1-1", True, "gb")
    assert "198.51.100.10" in ended.addresses
    config = config_of(told, "terminate.json")
    assert {(str(one.listen), one.namespace, one.held) for one in config.listeners} == {
        (f"127.0.0.1:{PORT}", "softunicast-lhr1-1", True),
        (f"[::1]:{PORT}", "softunicast-lhr1-1", True),
    }
    (policy,) = pools_of(told, config.users["fish"])
    assert (policy.name, policy.policy.flags) == ("gb", abi.PolicyFlag.SET)
    assert policy.addresses == frozenset(ended.addresses)
    assert config.users["fish"].may_reach(ip_address("10.1.2.3")), "what is inside the agent's rules decide"
    assert config.connect_s == 130


def test_quotas_and_settings_reach_it() -> None:
    text = PLAN.replace("mss: 1300", "quotas: {flows: 7, new_flows_per_s: 9}, handshake: early")
    text += "settings: {terminate: {connect_s: 3, access_log: /var/log/ended.log}}\n"
    told = told_of(make(text))
    user = config_of(told, "x").users["fish"]
    assert (user.connections, user.connects_per_s) == (7, 9)
    assert (told.connect_s, told.access_log, told.onramps[0].held) == (3, "/var/log/ended.log", False)


def test_a_client_has_the_address_that_its_packets_have() -> None:
    """The seed as su_flow_begin makes it, by hand: 10.64.1.2 is ::ffff:10.64.1.2 there."""
    told = Told("n", 1, None, (Ended("a", 5, "ns", True, "gb", "", (), 0, 0),))
    user = config_of(told, "x").users["a"]

    def mix(word: int) -> int:  # bpf/include/word.h
        for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            word ^= word >> shift
            word = word * factor % 2**32
        return word ^ word >> 16

    words = (0, 0, 0xFFFF0000, int.from_bytes(bytes((10, 64, 1, 2)), "little"))
    assert client_number(told, user, ip_address("10.64.1.2")) == mix(words[3] ^ mix(words[2] ^ words[1] ^ 5))


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "terminate.json"
    for text in ("", "{}", '{"format": 2}', '{"format": 1, "node": "x"}'):
        path.write_text(text)
        with pytest.raises(KernelError, match=r"terminate\.json: cannot be read"):
            read(path)
