# SPDX-License-Identifier: Apache-2.0
"""A good plan: defaults, indices, and that what the documentation shows is true."""

from __future__ import annotations

import re
from ipaddress import ip_address, ip_network
from pathlib import Path

import pytest

from softunicast.errors import PlanError, UsageError
from softunicast.model import shape
from softunicast.model.allocator import allocate
from softunicast.model.binding import check_bindings
from softunicast.model.bindings_file import load_bindings
from softunicast.model.document import load_document, path_text
from softunicast.model.plan import Plan, Settings, load_plan
from softunicast.model.slice import Slice

ROOT = Path(__file__).parents[2]
SMALL = (
    "prefixes: [{prefix: 198.51.100.0/24}]\nsites: {lhr: {nodes: {lhr1: {underlay: 10.0.1.11%s}}}}\npools: {gb: %s}\n"
)


def small(node: str = "", pool: str = "{site: lhr, addresses: 198.51.100.10}") -> Plan:
    return load_plan(SMALL % (node, pool), "plan.yaml")


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.yaml")), ids=lambda path: str(path.name))
def test_examples_are_good(path: Path) -> None:
    plan = load_plan(path.read_text(), path.name)
    bindings = allocate(plan)
    assert bindings.bindings
    check_bindings(plan, bindings)


def test_the_design_plan() -> None:
    plan = load_plan((ROOT / "examples/plan.yaml").read_text(), "plan.yaml")
    assert list(plan.nodes) == ["cdg1", "lhr1", "lhr2"]
    assert plan.node_indices() == {"cdg1": 1, "lhr1": 2, "lhr2": 3}
    assert plan.node_index("lhr2") == 3
    assert [plan.pool_index(name) for name in ("gb", "ten")] == [0, 1]
    assert plan.site_index("lhr") == 2
    pool = plan.pool("gb")
    assert (pool.shift, pool.nodes, dict(pool.tags)) == (11, ("lhr1", "lhr2"), {"country": "GB", "product": "gateway"})
    assert len(pool.addresses) == 4
    shifts = plan.address_shifts()
    assert shifts[ip_address("198.51.100.10")] == 11
    assert shifts[ip_address("198.51.100.20")] == 1  # 9000-9009 begins and ends at even ports
    assert plan.pool("ten").slices[0].slice == Slice.parse("198.51.100.20:9000-9009")


def test_defaults() -> None:
    plan = small()
    assert plan.settings == Settings()
    assert plan.settings.mark == plan.settings.mark_mask == 0x20000000
    assert plan.prefixes[0].announce == ("lhr",)
    assert plan.pools["gb"].slice_ports == 2048
    node = plan.node("lhr1")
    assert (node.uplinks, node.bypass, node.weight, dict(node.onramps)) == ((), (), 1, {})


def test_an_on_ramp_has_defaults() -> None:
    plan = small(node=", onramps: {wg0: {sources: 10.64.0.0/24}}")
    onramp = plan.node("lhr1").onramps["wg0"]
    assert (onramp.device, onramp.pool, onramp.sources) == ("wg0", "gb", (ip_network("10.64.0.0/24"),))
    assert (onramp.gateway4, onramp.gateway6, onramp.tenant, onramp.slice, onramp.bypass) == (
        None,
        None,
        None,
        None,
        (),
    )


@pytest.mark.parametrize(
    ("keys", "mapping", "filtering"),
    [
        ("", "address-and-port-dependent", "address-and-port-dependent"),
        (", mapping: address-and-port-dependent", "address-and-port-dependent", "address-and-port-dependent"),
        (", filtering: address-and-port-dependent", "address-and-port-dependent", "address-and-port-dependent"),
        (", mapping: endpoint-independent", "endpoint-independent", "endpoint-independent"),
        (", mapping: endpoint-independent, filtering: address-dependent", "endpoint-independent", "address-dependent"),
    ],
)
def test_mapping_and_filtering(keys: str, mapping: str, filtering: str) -> None:
    found = small(node=", onramps: {wg0: {sources: 10.64.0.0/24" + keys + "}}").node("lhr1").onramps["wg0"]
    assert (found.mapping.value, found.filtering.value) == (mapping, filtering)


def test_an_on_ramp_in_full() -> None:
    onramp = (
        "{device: wg0, pool: gb, sources: [10.64.0.0/24, 'fd00:64::/64'], gateway: 10.64.0.1, gateway6: 'fd00:64::1',"
        " tenant: acme, bypass: [192.0.2.0/24], slice: '198.51.100.10:2100-2110', mss: 1360,"
        " quotas: {flows: 1000, new_flows_per_s: 50}}"
    )
    plan = small(node=", onramps: {vpn: " + onramp + "}")
    found = plan.node("lhr1").onramps["vpn"]
    assert (str(found.gateway4), str(found.gateway6)) == ("10.64.0.1", "fd00:64::1")
    assert (str(found.slice), found.tenant, found.mss) == ("198.51.100.10:2100-2110", "acme", 1360)
    assert (found.max_flows, found.new_per_s) == (1000, 50)


def test_ipv6_is_a_whole_address_a_node() -> None:
    text = (
        "prefixes: [{prefix: '2001:db8::/48'}]\n"
        "sites: {lhr: {nodes: {a: {underlay: 10.0.1.1}, b: {underlay: 10.0.1.2}}}}\n"
        "pools: {six: {site: lhr, prefix: '2001:db8:0:100::/64'}}\n"
    )
    plan = load_plan(text, "plan.yaml")
    bound = allocate(plan).bindings
    assert [(str(binding.slice), binding.node) for binding in bound] == [
        ("[2001:db8:0:100::1]:1024-65535", "a"),
        ("[2001:db8:0:100::2]:1024-65535", "b"),
    ]
    wider = load_plan(text.replace("::/64'", "::/64', count: 5, slice_ports6: 32768"), "plan.yaml")
    assert len(wider.pools["six"].parts()) == 5


def test_unknown_names() -> None:
    plan = small()
    with pytest.raises(UsageError, match=r"plan.yaml: no node 'x' in the plan; its nodes: lhr1"):
        plan.node("x")
    with pytest.raises(UsageError, match=r"its pools: gb"):
        plan.pool("x")


def test_numbers_of_yaml_1_2() -> None:
    plan = load_plan(
        (SMALL % ("", "{site: lhr, addresses: 198.51.100.10}")) + "settings: {mark: 0x1_00, flows: 0o4000}", "p"
    )
    assert (plan.settings.mark, plan.settings.mark_mask, plan.settings.flows) == (0x100, 0x100, 2048)


def test_keys_are_words_even_when_numbers() -> None:
    plan = load_plan("prefixes: [{prefix: 198.51.100.0/24}]\nsites: {1: {nodes: {2: {underlay: 10.0.0.1}}}}\n"
                     "pools: {3: {site: '1', addresses: 198.51.100.1}}\n", "p")  # fmt: skip
    assert list(plan.nodes) == ["2"]


def test_anchors_may_be_used() -> None:
    plan = load_plan("prefixes: [{prefix: 198.51.100.0/24, announce: &all [lhr]}]\n"
                     "sites: {lhr: {nodes: {a: {underlay: 10.0.0.1, uplinks: &up [eth0]}, b: {underlay: 10.0.0.2,"
                     " uplinks: *up}}}}\npools: {gb: {site: lhr, addresses: 198.51.100.1}}\n", "p")  # fmt: skip
    assert plan.node("b").uplinks == ("eth0",)


def test_aliases_do_not_explode() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 8)}]" for n in range(1, 12)]
    with pytest.raises(PlanError, match="more than 1000000 values ; use fewer aliases"):
        load_document("\n".join(lines), "p")


def test_path_text() -> None:
    assert path_text(("pools", "gb", "slices", 0, "node")) == "pools.gb.slices[0].node"
    assert "\n" not in path_text(("a\nb",))


def test_reference_names_every_key() -> None:
    text = (ROOT / "docs/plan.md").read_text()
    models = [getattr(shape, name) for name in dir(shape) if name.endswith("Shape") and name != "Shape"]
    missing = [f"{model.__name__}.{key}" for model in models for key in model.model_fields if f"`{key}`" not in text]
    assert missing == []


def test_reference_examples_are_good() -> None:
    text = (ROOT / "docs/plan.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= 3
    for block in blocks:
        if block.startswith("#") and "bindings" in block.splitlines()[0]:
            load_bindings(block, "docs/plan.md")
        else:
            load_plan(block, "docs/plan.md")
