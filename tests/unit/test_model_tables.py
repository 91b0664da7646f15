# SPDX-License-Identifier: Apache-2.0
"""What the maps are given, read back through the codec."""

from __future__ import annotations

import dataclasses
import struct
from ipaddress import IPv4Address, IPv6Network, ip_address, ip_network
from pathlib import Path

import pytest

from softunicast.egress import tables as egress
from softunicast.errors import UsageError
from softunicast.kernel import abi
from softunicast.kernel.abi_util import addr_bytes, addr_ip, key_prefix
from softunicast.model.allocator import allocate
from softunicast.model.owner import OwnerTable
from softunicast.model.plan import load_plan
from softunicast.steering import tables as steering

FULL = load_plan((Path(__file__).parents[2] / "examples/full.yaml").read_text(), "full.yaml")
BINDINGS = allocate(FULL)
IFINDEXES = {"eth0": 2, "wg0": 7, "tun0": 8}


def build(node: str = "lhr1") -> egress.Tables:
    return egress.build_tables(FULL, BINDINGS, node, IFINDEXES, {"vpn": 3, "relay": 4}, bare_ip={"wg0", "tun0"})


def u32(value: int) -> bytes:
    return struct.pack("=I", value)


def test_slices_are_this_nodes_own_in_order() -> None:
    table = build()["slices"]
    mine = [binding for binding in BINDINGS.bindings if binding.node == "lhr1"]
    assert sorted(table) == sorted(u32(index) for index in range(len(mine)))
    for index, binding in enumerate(mine):
        found = abi.Slice.unpack(table[u32(index)])
        assert (addr_ip(found.addr), found.first, found.last) == (
            binding.slice.address,
            binding.slice.first,
            binding.slice.last,
        )
        assert found.flags == abi.SliceFlag.LIVE
        assert (found.pool, found.epoch) == (FULL.pool_index(binding.pool), binding.epoch)
        assert found.claim_until_ns == 2**64 - 1


@pytest.mark.parametrize(
    ("first", "last", "fraction", "exact"),
    [(2048, 4095, 0.25, 2560), (9000, 9009, 0.25, 9000), (9000, 9063, 0.25, 9016), (9000, 9062, 0.25, 9000),
     (2048, 4095, 0.0, 2048), (1024, 65535, 0.25, 1024 + 16128)],
)  # fmt: skip
def test_udp_ports_for_wildcards(first: int, last: int, fraction: float, exact: int) -> None:
    assert egress.udp_exact_first(first, last, fraction) == exact


def test_pools_name_their_slices_by_family() -> None:
    tables = build()
    slices = [abi.Slice.unpack(tables["slices"][u32(index)]) for index in range(len(tables["slices"]))]
    seen: list[int] = []
    for name in sorted(FULL.pools):
        pool = abi.Pool.unpack(tables["pools"][u32(FULL.pool_index(name))])
        for first, count, version in ((pool.v4_first, pool.v4_count, 4), (pool.v6_first, pool.v6_count, 6)):
            for place in range(first, first + count):
                (index,) = struct.unpack("=I", tables["pool_slices"][u32(place)])
                seen.append(index)
                assert slices[index].pool == FULL.pool_index(name)
                assert addr_ip(slices[index].addr).version == version
    assert sorted(seen) == list(range(len(slices)))


def test_on_ramps() -> None:
    tables = build()
    names = egress.table_names(FULL, BINDINGS, "lhr1")
    assert names.onramps == {"relay": 1, "vpn": 2}
    assert tables["onramp_devices"] == {u32(7): u32(2), u32(8): u32(1)}
    vpn = abi.Onramp.unpack(tables["onramps"][u32(2)])
    udp = abi.OnrampFlag.EIM | abi.OnrampFlag.ADF
    assert (vpn.flags, vpn.generation, vpn.ifindex, vpn.mss) == (abi.OnrampFlag.SET | udp, 3, 7, 1360)
    assert addr_ip(vpn.gateway4) == IPv4Address("10.64.0.1")
    assert str(addr_ip(vpn.gateway6)) == "fd00:64::1"
    assert vpn.policy == abi.Policy(
        flags=abi.PolicyFlag.SET,
        pool=FULL.pool_index("gb"),
        slice=abi.NONE,
        bypass=names.list_number(FULL.node("lhr1").onramps["vpn"].bypass),
        tenant=1,
    )
    relay = abi.Onramp.unpack(tables["onramps"][u32(1)])
    assert relay.policy.flags == abi.PolicyFlag.SET | abi.PolicyFlag.RANGE
    held = names.slices[relay.policy.slice].slice
    assert (str(held), relay.policy.first, relay.policy.last) == ("198.51.100.20:9000-9009", 9000, 9004)
    assert (relay.policy.bypass, relay.gateway4) == (0, abi.NO_ADDRESS)


def test_ethernet_unless_told_otherwise() -> None:
    tables = egress.build_tables(FULL, BINDINGS, "lhr1", IFINDEXES, {})
    vpn = abi.Onramp.unpack(tables["onramps"][u32(2)])
    assert vpn.flags == abi.OnrampFlag.SET | abi.OnrampFlag.L2 | abi.OnrampFlag.EIM | abi.OnrampFlag.ADF
    relay = abi.Onramp.unpack(tables["onramps"][u32(1)])
    assert (relay.flags, relay.mss) == (abi.OnrampFlag.SET | abi.OnrampFlag.L2, 0)


def test_on_ramps_have_the_mtu_of_their_devices() -> None:
    for given, kept in ((1420, 1420), (1 << 20, 0xFFFF)):
        tables = egress.build_tables(FULL, BINDINGS, "lhr1", IFINDEXES, {}, mtus={"wg0": given})
        assert [abi.Onramp.unpack(tables["onramps"][u32(number)]).mtu for number in (1, 2)] == [0, kept]


def test_a_device_that_is_not_there_is_zeros() -> None:
    tables = egress.build_tables(FULL, BINDINGS, "lhr1", {}, {})
    assert set(tables["onramps"].values()) == {bytes(abi.Onramp.SIZE)}
    assert tables["onramp_devices"] == {}


def test_a_range_that_another_node_holds_is_refused_not_widened() -> None:
    text = (Path(__file__).parents[2] / "examples/full.yaml").read_text()
    part = next(binding for binding in BINDINGS.bindings if binding.pool == "gb" and binding.node == "lhr2").slice
    text = text.replace("tenant: vpn\n", f'tenant: vpn\n            slice: "{part}"\n')
    plan = load_plan(text, "full.yaml")
    tables = egress.build_tables(plan, BINDINGS, "lhr1", IFINDEXES, {})
    policy = abi.Onramp.unpack(tables["onramps"][u32(2)]).policy
    assert policy.flags == abi.PolicyFlag.SET | abi.PolicyFlag.RANGE
    assert policy.slice == abi.NONE


def lists(node: str = "lhr1") -> dict[int, set[str]]:
    found: dict[int, set[str]] = {}
    for key, value in build(node)["prefixes"].items():
        number, network = key_prefix(key)
        found.setdefault(number, set()).add(str(network))
        assert value == u32(1)
    return found


def test_lists() -> None:
    found = lists()
    always = {"127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32", "0.0.0.0/8", "::1/128", "::/128"}
    always |= {"fe80::/10", "ff00::/8", "10.0.1.11/32", "10.0.1.12/32", "10.0.2.11/32"}
    assert found[abi.List.NEVER] == always | {"192.0.2.0/24"}
    inner = {"10.64.0.0/16", "fd00:64::/64", "10.65.0.0/24"}
    assert found[abi.List.INTERNAL] == always | inner | {"198.51.100.0/24", "2001:db8::/48"}
    rest = [found[number] for number in sorted(found) if number >= abi.List.FIRST_FREE]
    assert rest == [{"10.65.0.0/24"}, {"10.64.0.0/16", "fd00:64::/64"}, {"192.0.2.128/25"}]
    assert min(number for number in found if number > 1) == abi.List.FIRST_FREE
    assert "192.0.2.0/24" not in lists("lhr2")[abi.List.NEVER]


def test_all_of_ipv6_is_not_ipv4() -> None:
    parts = list(egress.without_mapped(ip_network("::/0")))
    assert len(parts) == 96
    assert not any(part.overlaps(IPv6Network("::ffff:0:0/96")) for part in parts if part.version == 6)
    assert sum(part.num_addresses for part in parts) == 2**128 - 2**32
    assert list(egress.without_mapped(ip_network("fd00::/8"))) == [ip_network("fd00::/8")]
    assert list(egress.without_mapped(ip_network("0.0.0.0/0"))) == [ip_network("0.0.0.0/0")]


def test_settings() -> None:
    node = FULL.node("lhr1")
    found = abi.Settings.unpack(egress.settings_bytes(FULL, node, 4711, 2, 2))
    assert found == abi.Settings(
        netns_cookie=4711, full_ns=5_000_000, underlay4=addr_bytes(node.underlay),
        underlay6=addr_bytes(node.underlay), node=2, mark=0x20000000,
        mask=0x20000000, slots=262144, tcp_transitory_s=240, tcp_established_s=7440, tcp_linger_s=240,
        sock_linger_s=60, sock_reuse_s=1, udp_s=300, icmp_s=60, gue_port=6080, answer_ping=1, site=2,
    )  # fmt: skip
    odd = dataclasses.replace(FULL, settings=dataclasses.replace(FULL.settings, flows=100_000, answer_ping=False))
    found = abi.Settings.unpack(egress.settings_bytes(odd, node, 1, 2, 2))
    assert (found.slots, found.answer_ping) == (262144, 0)


@pytest.mark.parametrize("me", ["lhr1", "lhr2", "cdg1"])
def test_steering_finds_the_owner_of_every_port(me: str) -> None:
    tables = steering.build_tables(FULL, BINDINGS, me)
    oracle = OwnerTable.build(FULL, BINDINGS)
    slices = egress.table_names(FULL, BINDINGS, me).slices
    indices = FULL.node_indices()
    for address in FULL.address_shifts():
        entry = abi.Address.unpack(tables["addresses"][addr_bytes(address)])
        site = "cdg" if str(address) == "198.51.100.40" else "lhr"
        assert entry.site == FULL.site_index(site)
        if site != FULL.node(me).site:
            assert (entry.base, entry.shift) == (0, 0)
            known = abi.Site.unpack(tables["sites"][u32(entry.site)])
            listed = [tables["site_nodes"][u32(known.first + at)] for at in range(known.count)]
            assert listed == [u32(indices[name]) for name in sorted(FULL.sites[site].nodes)]
            continue
        for port in (0, 1023, 1024, 2047, 2048, 4095, 4096, 8999, 9000, 9009, 9010, 9019, 9020, 65535):
            found = abi.Owner.unpack(tables["owners"][u32(entry.base + (port >> entry.shift))])
            binding = oracle.owner(address, port)
            if binding is None:
                # A whole IPv6 address is one entry: its system ports are refused by the owner.
                assert found.node == abi.NONE or entry.shift == 16
                continue
            assert found.node == indices[binding.node]
            assert (found.slice == abi.NONE) == (binding.node != me)
            if binding.node == me:
                assert slices[found.slice] == binding


def test_nodes_and_peers() -> None:
    tables = steering.build_tables(FULL, BINDINGS, "lhr1")
    assert {key: abi.Node.unpack(value) for key, value in tables["nodes"].items()} == {
        u32(1): abi.Node(addr_bytes(ip_address("10.0.2.11")), 1),
        u32(2): abi.Node(addr_bytes(ip_address("10.0.1.11")), 1),
        u32(3): abi.Node(addr_bytes(ip_address("10.0.1.12")), 1),
    }
    assert tables["peers"] == {
        addr_bytes(ip_address("10.0.2.11")): u32(1),
        addr_bytes(ip_address("10.0.1.12")): u32(3),
    }


SIX = """\
prefixes: [{prefix: 198.51.100.0/24}]
sites:
  lhr:
    nodes:
      old: {underlay: 10.0.1.11}
      both: {underlay: ["fd00:1::12", 10.0.1.12]}
      also: {underlay: [10.0.1.13, "fd00:1::13"]}
pools: {gb: {site: lhr, addresses: 198.51.100.10}}
"""


def reached(me: str, text: str = SIX) -> dict[str, str]:
    """By name: the address that stands in the map `nodes` of `me`."""
    plan = load_plan(text, "plan.yaml")
    tables = steering.build_tables(plan, allocate(plan), me)
    found = {u32(index): name for name, index in plan.node_indices().items()}
    return {found[key]: str(addr_ip(abi.Node.unpack(value).underlay)) for key, value in tables["nodes"].items()}


def test_a_node_is_reached_by_its_first_address_of_a_family_that_both_have() -> None:
    assert reached("old") == {"old": "10.0.1.11", "both": "10.0.1.12", "also": "10.0.1.13"}
    assert reached("both") == {"old": "10.0.1.11", "both": "fd00:1::12", "also": "10.0.1.13"}
    six = SIX.replace("10.0.1.11", '"fd00:1::11"')
    assert reached("old", six) == {"old": "fd00:1::11", "both": "fd00:1::12", "also": "fd00:1::13"}


def test_all_addresses_of_a_node_may_carry_here_and_none_is_sliced() -> None:
    plan = load_plan(SIX, "plan.yaml")
    bindings = allocate(plan)
    peers = steering.build_tables(plan, bindings, "also")["peers"]
    assert {str(addr_ip(key)) for key in peers} == {"10.0.1.11", "fd00:1::12", "10.0.1.12"}
    names = egress.table_names(plan, bindings, "also")
    for number in (abi.List.NEVER, abi.List.INTERNAL):
        assert {ip_network("fd00:1::12/128"), ip_network("10.0.1.12/32")} <= set(names.lists[number])
    for name, four, six in (("old", "10.0.1.11", "10.0.1.11"), ("both", "10.0.1.12", "fd00:1::12")):
        found = abi.Settings.unpack(egress.settings_bytes(plan, plan.node(name), 1, 1, 1))
        assert (str(addr_ip(found.underlay4)), str(addr_ip(found.underlay6))) == (four, six)


def test_tables_are_the_same_every_time() -> None:
    assert build() == build()
    assert list(build()["prefixes"]) == list(build()["prefixes"])
    again = steering.build_tables(FULL, allocate(FULL), "lhr1")
    assert again == steering.build_tables(FULL, BINDINGS, "lhr1")


def test_names() -> None:
    names = egress.table_names(FULL, BINDINGS, "lhr1")
    assert names.pools == {"fr": 0, "gb": 1, "gb6": 2, "ten": 3}
    assert names.slice_index(names.slices[3]) == 3
    assert names.slice_index(next(binding for binding in BINDINGS.bindings if binding.node == "lhr2")) == abi.NONE
    assert names.tenants == {"vpn": 1}
    assert names.list_number(()) == 0


def test_no_such_node() -> None:
    with pytest.raises(UsageError, match="no node 'x' in the plan; its nodes: cdg1, lhr1, lhr2"):
        egress.build_tables(FULL, BINDINGS, "x", {}, {})
    with pytest.raises(UsageError, match="no node 'x' in the plan; its nodes: cdg1, lhr1, lhr2"):
        steering.build_tables(FULL, BINDINGS, "x")
