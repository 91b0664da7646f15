# SPDX-License-Identifier: Apache-2.0
"""Numbers stay with their names, whatever comes and goes."""

from __future__ import annotations

import random
from ipaddress import ip_network

import pytest

from softunicast.egress.numbers import FRESH, MAX_ONRAMPS, MAX_POOLS, Numbers, numbers
from softunicast.errors import UsageError
from softunicast.model.address import parse_address
from softunicast.model.fleet import Node, Onramp


def node(*names: str, tenant: str | None = None) -> Node:
    ramps = {
        name: Onramp(name, name, "gb", (ip_network(f"10.{number // 250}.{number % 250}.0/24"),), tenant=tenant or name)
        for name in names
        for number in [int(name[1:])]
    }
    return Node("lhr1", "lhr", parse_address("10.0.1.11"), onramps=ramps)


def test_from_one_by_name() -> None:
    found = numbers(node("b2", "a1"))
    assert (found.onramps, found.tenants) == ({"a1": 1, "b2": 2}, {"a1": 1, "b2": 2})
    assert found.lists == {"10.0.1.0/24": 17, "10.0.2.0/24": 16}


def test_equal_lists_are_one() -> None:
    ramp = Onramp("x", "x", "gb", (ip_network("10.1.0.0/16"),), bypass=(ip_network("10.1.0.0/16"),))
    assert numbers(Node("n", "s", parse_address("10.0.0.1"), onramps={"x": ramp})).lists == {"10.1.0.0/16": 16}


def test_random_comings_and_goings() -> None:
    rng = random.Random(3)
    last, living = FRESH, set[str]()
    for _ in range(300):
        living ^= {f"r{rng.randrange(40)}" for _ in range(rng.randrange(4))}
        now = numbers(node(*sorted(living)), last)
        for before, after in ((last.onramps, now.onramps), (last.lists, now.lists), (last.tenants, now.tenants)):
            assert len(set(after.values())) == len(after)
            assert {name: after[name] for name in before if name in after} == {
                name: before[name] for name in before if name in after
            }
            fresh = {number for name, number in after.items() if name not in before}
            assert not fresh & set(before.values()), "not even a number that has just become free"
        assert set(now.onramps) == living
        assert set(last.tenants) <= set(now.tenants), "a tenant keeps its counters"
        last = now
    assert max(last.onramps.values()) < 100


def test_numbers_are_given_again_when_none_are_left() -> None:
    names = [f"r{number}" for number in range(MAX_ONRAMPS)]
    full = numbers(node(*names, tenant="one"))
    assert sorted(full.onramps.values()) == list(range(1, MAX_ONRAMPS + 1))
    after = numbers(node(*names[1:], "r5000", tenant="one"), full)
    assert after.onramps["r5000"] == full.onramps["r0"]
    with pytest.raises(UsageError, match="1024 on-ramps, at most 1023 fit"):
        numbers(node(*names, "r5000", tenant="one"), full)


def test_more_tenants_than_fit() -> None:
    known = Numbers(tenants={f"t{number}": number for number in range(1, 1024)})
    with pytest.raises(UsageError, match="1024 tenants, at most 1023 fit"):
        numbers(node("r1"), known)


def test_a_pool_keeps_its_number_and_its_heirs_get_others() -> None:
    first = numbers(node(), FRESH, ["gb", "ten"])
    assert first.pools == {"gb": 0, "ten": 1}
    second = numbers(node(), first, ["ten", "fr"])
    assert second.pools == {"gb": 0, "ten": 1, "fr": 2}, "a program under gb must not find itself in fr"
    assert numbers(node(), second, ["gb", "ten", "aa"]).pools == {"gb": 0, "ten": 1, "fr": 2, "aa": 3}


def test_what_left_makes_room_when_there_is_none() -> None:
    full = Numbers(pools={f"p{number}": number for number in range(MAX_POOLS)})
    found = numbers(node(), full, ["p7", "new"])
    assert found.pools == {"new": 0, "p7": 7}
