# SPDX-License-Identifier: Apache-2.0
"""Whatever a plan becomes, what was somewhere stays there, and nothing new takes the place of anything old."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from softunicast.model.fleet import static_shifts
from softunicast.model.plan import Plan, load_plan
from softunicast.model.slice import Slice
from softunicast.steering.places import Block, Places, SiteList, places

ME = "m"


def plan(nodes: dict[str, list[str]], addresses: dict[int, int]) -> Plan:
    """Sites with these nodes besides mine, and this site's addresses by last number, with the ports of a slice."""
    text = "prefixes: [{prefix: 198.51.100.0/24}]\nsites:\n"
    number = 10
    for site, names in nodes.items():
        text += f"  {site}:\n    nodes:\n"
        for name in names:
            text += f"      {name}: {{underlay: 10.0.0.{number}}}\n"
            number += 1
    text += "pools:\n"
    for last, ports in addresses.items():
        text += f"  p{last}: {{addresses: [198.51.100.{last}], site: home, slice_ports: {ports}}}\n"
    return load_plan(text, "plan.yaml")


NAMES = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=4, unique=True)
ADDRESSES = st.dictionaries(st.integers(1, 20), st.sampled_from([1024, 2048, 4096]), min_size=1, max_size=8)
PLANS = st.tuples(NAMES, NAMES, ADDRESSES).map(
    lambda drawn: plan({"home": [ME], "one": [f"o{n}" for n in drawn[0]], "two": [f"t{n}" for n in drawn[1]]}, drawn[2])
)


def taken(blocks: list[Block]) -> list[int]:
    return [index for block in blocks for index in range(block.first, block.first + block.size)]


def lists(found: Places) -> list[Block]:
    return [Block(known.first, len(known.nodes)) for known in found.lists.values()]


@given(st.lists(PLANS, min_size=2, max_size=5))
def test_everything_keeps_its_place(plans: list[Plan]) -> None:
    before = places(plans[0], ME)
    for one in plans[1:]:
        after = places(one, ME, before)
        assert places(one, ME, after) == after
        for old, new in ((before.nodes, after.nodes), (before.sites, after.sites)):
            assert all(new[name] == index for name, index in old.items() if name in new)
            assert len(set(new.values())) == len(new)
            assert min(new.values()) >= 1
            assert not {new[name] for name in new if name not in old} & set(old.values())
        assert set(after.nodes) == set(one.nodes)
        assert set(after.owners) == {str(address) for address in one.address_shifts()}
        for text, block in after.owners.items():
            if before.owners.get(text) != block:
                assert not set(taken([block])) & set(taken(list(before.owners.values())))
            if text in before.owners and before.owners[text].size == block.size:
                assert before.owners[text] == block
        for name, known in after.lists.items():
            assert known.nodes == tuple(sorted(one.sites[name].nodes))
            if before.lists.get(name) != known:
                assert not set(taken([Block(known.first, len(known.nodes))])) & set(taken(lists(before)))
        for blocks in (list(after.owners.values()), lists(after)):
            assert len(set(taken(blocks))) == len(taken(blocks))
        before = after


def test_the_first_places() -> None:
    found = places(plan({"home": [ME, "z"], "far": ["x", "a"]}, {10: 2048, 9: 1024}), ME)
    assert found.nodes == {"a": 1, "m": 2, "x": 3, "z": 4}
    assert found.sites == {"far": 1, "home": 2}
    assert found.owners == {"198.51.100.9": Block(0, 64), "198.51.100.10": Block(64, 32)}
    assert found.lists == {"far": SiteList(0, ("a", "x")), "home": SiteList(2, ("m", "z"))}


def test_a_static_address_is_cut_as_coarsely_as_its_slices_allow() -> None:
    texts = ["198.51.100.1:9000-9009", "198.51.100.2:2048-4095", "198.51.100.2:4096-8191", "198.51.100.3:5000-5000"]
    texts += ["198.51.100.4:1024-65535"]
    found = {str(address): shift for address, shift in static_shifts(map(Slice.parse, texts)).items()}
    assert found == {"198.51.100.1": 1, "198.51.100.2": 11, "198.51.100.3": 0, "198.51.100.4": 10}
