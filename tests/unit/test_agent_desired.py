# SPDX-License-Identifier: Apache-2.0
"""Plan, bindings and facts to desired state: pure, so no root is needed."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest

from softunicast.agent import desired as module
from softunicast.agent.desired import Memory, desired
from softunicast.agent.diff import Desired
from softunicast.agent.facts import Facts
from softunicast.agent.resources import Hook
from softunicast.agent.state import NodeState
from softunicast.agent.tables import ARRAYS
from softunicast.errors import UsageError
from softunicast.kernel import abi
from softunicast.kernel.routing import DefaultRoute, Device, NextHop, Route
from softunicast.model.allocator import allocate
from softunicast.model.binding import Bindings
from softunicast.model.plan import Plan, load_plan

TEXT = """\
prefixes: [{prefix: 198.51.100.0/24}, {prefix: "2001:db8:a::/48"}]
sites:
  lhr:
    nodes:
      lhr1:
        underlay: 10.0.1.11
        uplinks: [up0, up1]
        onramps:
          fish: {device: fish0, pool: gb, sources: [10.77.0.0/24], gateway: 10.77.0.1}
          tuna: {device: tun0, pool: gb, sources: [10.78.0.0/24], gateway: 10.78.0.1}
      lhr2: {underlay: 10.0.1.12}
pools:
  gb: {addresses: [198.51.100.10, "2001:db8:a::10", "2001:db8:a::11"], site: lhr, slice_ports: 2048}
"""
FISH = "          fish: {device: fish0, pool: gb, sources: [10.77.0.0/24], gateway: 10.77.0.1}\n"
TUNA = "          tuna: {device: tun0, pool: gb, sources: [10.78.0.0/24], gateway: 10.78.0.1}\n"
DEVICES = {
    device.name: device
    for device in (
        Device("lo", 1, 65536, 772, ("127.0.0.1",)),
        Device("up0", 2, 1500, addresses=("10.0.1.11",)),
        Device("fish0", 3, 1400),
        Device("tun0", 4, 1400, 65534),
        Device("docker0", 5, 1500),
    )
}
FACTS = Facts(
    7,
    DEVICES,
    (
        DefaultRoute(4, 100, (NextHop(2, "10.0.1.1", "up0"),)),
        DefaultRoute(4, 200, (NextHop(5, "172.17.0.9", "docker0"),)),
        DefaultRoute(6, 1024, (NextHop(2, "fe80::1", "up0"),)),
    ),
    cgroup_root="/sys/fs/cgroup",
)


def make(
    text: str = TEXT, facts: Facts = FACTS, last: NodeState | None = None, before: Bindings | None = None
) -> Desired:
    plan = load_plan(text, "plan.yaml")
    return desired(plan, allocate(plan, before), "lhr1", facts, "digest", last, {}, 100)


def test_links_by_device() -> None:
    links = make().resources.links
    on_devices = {(link.device, link.program, link.hook) for link in links.values() if link.hook is not Hook.CGROUP}
    assert on_devices == {
        ("up0", "su_guard", Hook.EGRESS),
        ("up0", "su_uplink_in", Hook.INGRESS),
        ("fish0", "su_onramp_in", Hook.INGRESS),
        ("tun0", "su_onramp_in", Hook.INGRESS),
        ("docker0", "su_guard_other", Hook.EGRESS),
    }
    assert set(module.CGROUP_HOOKS) == {name for name, link in links.items() if link.hook is Hook.CGROUP}
    assert all("." not in name for name in links)


def test_an_underlay_on_another_device_takes_in_carried_answers() -> None:
    devices = {
        **DEVICES,
        "up0": replace(DEVICES["up0"], addresses=()),
        "under0": Device("under0", 9, 1600, 1, ("10.0.1.11",)),
    }
    links = make(facts=replace(FACTS, devices=devices)).resources.links
    assert {link.program for link in links.values() if link.device == "under0"} == {"su_uplink_in", "su_guard_other"}


def test_a_second_underlay_on_another_device_too() -> None:
    devices = {**DEVICES, "under6": Device("under6", 9, 1600, 1, ("fd00:1::11",))}
    text = TEXT.replace("underlay: 10.0.1.11", 'underlay: [10.0.1.11, "fd00:1::11"]')
    links = make(text, facts=replace(FACTS, devices=devices)).resources.links
    assert {link.program for link in links.values() if link.device == "under6"} == {"su_uplink_in", "su_guard_other"}


def test_routes_only_by_uplinks_and_unreachable_last() -> None:
    routes = make().resources.routes
    assert routes == {
        Route(4, 1, (NextHop(2, "10.0.1.1", "up0"),)),
        Route(4, module.UNREACHABLE_METRIC),
        Route(6, 1, (NextHop(2, "fe80::1", "up0"),)),
        Route(6, module.UNREACHABLE_METRIC),
    }
    assert make(facts=replace(FACTS, defaults=())).resources.routes == {
        Route(4, module.UNREACHABLE_METRIC),
        Route(6, module.UNREACHABLE_METRIC),
    }


def test_routes_say_of_their_path_what_the_main_table_says() -> None:
    options = (("advmss", 1300), ("mtu", 1400))
    first, *others = FACTS.defaults
    routes = make(facts=replace(FACTS, defaults=(replace(first, options=options), *others))).resources.routes
    assert {(route.version, route.metric): route.options for route in routes if route.options} == {(4, 1): options}


def test_addresses_rules_and_notrack_are_of_the_slices_held() -> None:
    resources = make().resources
    held = {address.partition("/")[0] for address in resources.addresses}
    assert held == {rule.source for rule in resources.rules}
    assert resources.notrack is not None
    assert held == resources.notrack.v4 | resources.notrack.v6
    assert {address.partition("/")[2] for address in resources.addresses} == {"32", "128"}
    assert "198.51.100.10" in held


def test_uplinks_are_found_when_the_plan_names_none() -> None:
    text = TEXT.replace("        uplinks: [up0, up1]\n", "")
    assert make(text).state.uplinks == {"up0": 2, "docker0": 5}
    assert make(text, replace(FACTS, defaults=())).state.uplinks == {"up0": 2}


def test_zero_elements_of_arrays_are_left_out_and_bare_ip_is_told() -> None:
    devices = {name: device for name, device in DEVICES.items() if name != "fish0"}
    tables = make(facts=replace(FACTS, devices=devices)).resources.tables
    assert [int.from_bytes(key, "little") for key in tables["onramps"]] == [2]
    assert abi.Onramp.unpack(next(iter(tables["onramps"].values()))).flags == abi.OnrampFlag.SET
    assert all(any(value) for name in ARRAYS for value in tables[name].values())


def test_sysctls() -> None:
    facts = replace(FACTS, sysctls={"net/ipv4/conf/all/rp_filter": "1", "net/ipv4/conf/up0/rp_filter": "0"})
    sysctls = make(facts=facts).resources.sysctls
    assert sysctls == {
        "net/ipv4/conf/up0/arp_announce": "2",
        "net/ipv4/conf/up0/arp_ignore": "1",
        "net/ipv4/conf/up0/proxy_arp": "0",
        "net/ipv4/conf/up0/rp_filter": "2",
        "net/ipv4/conf/fish0/forwarding": "0",
        "net/ipv6/conf/fish0/forwarding": "0",
        "net/ipv4/conf/tun0/forwarding": "0",
        "net/ipv6/conf/tun0/forwarding": "0",
    }
    # Loose by now, because it was set: still wanted, or it would flap.
    last = NodeState("lhr1", 7, 1, sysctls_before={"net/ipv4/conf/up0/rp_filter": "0"})
    loose = replace(FACTS, sysctls={"net/ipv4/conf/all/rp_filter": "1", "net/ipv4/conf/up0/rp_filter": "2"})
    assert make(facts=loose, last=last).resources.sysctls["net/ipv4/conf/up0/rp_filter"] == "2"
    assert "net/ipv4/conf/up0/rp_filter" not in make().resources.sysctls


def test_generations_grow_when_device_or_policy_change_and_not_otherwise() -> None:
    first = make().state
    assert {name: ramp.generation for name, ramp in first.onramps.items()} == {"fish": 1, "tuna": 1}
    assert make(last=first).state.onramps == first.onramps
    devices = {**DEVICES, "fish0": replace(DEVICES["fish0"], ifindex=33)}
    second = make(facts=replace(FACTS, devices=devices), last=first).state
    assert {name: ramp.generation for name, ramp in second.onramps.items()} == {"fish": 2, "tuna": 1}
    third = make(TEXT.replace("10.78.0.0/24", "10.79.0.0/24").replace("10.78.0.1", "10.79.0.1"), last=first).state
    assert {name: ramp.generation for name, ramp in third.onramps.items()} == {"fish": 1, "tuna": 2}
    # An id that changes hands never meets the claims of its last holder.
    renamed = make(TEXT.replace("fish: {", "zander: {"), last=first).state
    assert renamed.onramps["tuna"] == first.onramps["tuna"]
    assert (renamed.onramps["zander"].id, renamed.onramps["zander"].generation) == (3, 2)
    # A generation is not given twice, even when the on-ramp that had it is forgotten.
    fewer = make(TEXT.replace(TUNA, ""), last=renamed).state
    without = make(TEXT.replace(TUNA, "").replace(FISH, "").replace("onramps:", "onramps: {}"), last=fewer).state
    assert without.onramps == {}
    again = make(last=without).state
    assert {ramp.generation for ramp in again.onramps.values()} == {4}, "3 was fish, in between"


def test_quotas_change_without_a_new_generation() -> None:
    first = make()
    quotas = "gateway: 10.77.0.1, quotas: {flows: 10, new_flows_per_s: 5}"
    second = make(TEXT.replace("gateway: 10.77.0.1", quotas), last=first.state)
    assert second.state.onramps == first.state.onramps
    held = abi.Onramp.unpack(second.resources.tables["onramps"][b"\1\0\0\0"])
    assert (held.max_flows, held.new_per_s) == (10, 5)


def test_lists_keep_their_numbers_when_on_ramps_come_and_go() -> None:
    first = make()
    aal = FISH.replace("fish0", "a0").replace("fish", "aal").replace("10.77.0", "10.1.0")
    more = make(TEXT.replace(FISH, aal + FISH), last=first.state)
    before, after = (one.resources.tables["prefixes"] for one in (first, more))
    assert len(set(after) - set(before)) == 2, "its list, and its network among the internal ones"
    assert set(before) <= set(after)
    fish = b"\1\0\0\0"
    assert first.resources.tables["onramps"][fish] == more.resources.tables["onramps"][fish]


def test_the_build_hash_is_of_objects_settings_and_sizes() -> None:
    base = make().build
    assert make().build == base
    assert base.map_sizes == {"flows": 131072, "origin": 131072, "slots": 262144}
    assert make(TEXT + "settings: {timers: {udp_s: 31}}\n").build.hash != base.hash
    assert make(TEXT + "settings: {flows: 5000}\n").build.map_sizes == {"flows": 5000, "origin": 5000, "slots": 16384}
    assert make(facts=replace(FACTS, netns_cookie=8)).build.hash != base.hash


def test_memory_makes_tables_once() -> None:
    plan = load_plan(TEXT, "plan.yaml")
    bindings = allocate(plan, None)
    memory = Memory()

    def again(facts: Facts) -> Desired:
        return desired(plan, bindings, "lhr1", facts, "digest", None, {}, 100, memory)

    first = again(FACTS)
    assert again(FACTS).resources.tables is first.resources.tables
    devices = {**DEVICES, "up0": replace(DEVICES["up0"], mtu=9000)}
    changed = again(replace(FACTS, devices=devices))
    assert changed.resources.tables["uplinks"] != first.resources.tables["uplinks"]


def uplinks(facts: Facts) -> dict[int, abi.Uplink]:
    table = make(facts=facts).resources.tables["uplinks"]
    return {int.from_bytes(key, sys.byteorder): abi.Uplink.unpack(value) for key, value in table.items()}


def test_uplinks_keep_their_places() -> None:
    assert uplinks(FACTS) == {0: abi.Uplink(2, 1500, abi.UplinkFlag.ONE_HOP)}
    devices = {name: device for name, device in DEVICES.items() if name != "up0"}
    second = replace(FACTS, devices={**devices, "up1": Device("up1", 9, 9000)})
    assert uplinks(second) == {1: abi.Uplink(9, 9000)}


def test_an_uplink_that_is_a_vlan_device_names_the_one_below() -> None:
    devices = {**DEVICES, "up0": replace(DEVICES["up0"], below=5)}
    assert uplinks(replace(FACTS, devices=devices))[0].below == 5


@pytest.mark.parametrize(
    ("hops", "one"),
    [
        ([NextHop(2, "10.0.1.1", "up0")], True),
        ([NextHop(2, "10.0.1.1", "up0"), NextHop(9, "10.0.9.1", "up1")], True),
        ([NextHop(2, "10.0.1.1", "up0"), NextHop(2, "10.0.1.2", "up0")], False),
        ([NextHop(2, "", "up0")], False),
        ([], False),
    ],
)
def test_an_uplink_has_one_hop_when_one_gateway_is_all_it_leads_to(hops: list[NextHop], one: bool) -> None:
    defaults = (DefaultRoute(4, 1, tuple(hops)), DefaultRoute(6, 1, (NextHop(2, "", "up0"),)))
    assert uplinks(replace(FACTS, defaults=defaults))[0].flags == (abi.UplinkFlag.ONE_HOP if one else 0)


def test_an_unknown_node_is_named() -> None:
    plan: Plan = load_plan(TEXT, "plan.yaml")
    with pytest.raises(UsageError, match="no node 'lhr9' in the plan; its nodes: lhr1, lhr2"):
        desired(plan, allocate(plan, None), "lhr9", FACTS, "digest", None, {}, 100)
