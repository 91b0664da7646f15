# SPDX-License-Identifier: Apache-2.0
"""Which slices a program's words mean, and in which order they are tried."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from softunicast.client.making import seed
from softunicast.dial.choice import Choice, Held, Holdings, client_of, lanes, make_choice, pools_of, rendezvous
from softunicast.dial.here import Never, read_holdings
from softunicast.errors import KernelError, UsageError
from softunicast.model.slice import Slice

SLICES = (
    Held(0, Slice.parse("198.51.100.10:2048-4095"), "gb"),
    Held(3, Slice.parse("198.51.100.11:2048-4095"), "gb"),
    Held(1, Slice.parse("198.51.100.12:2048-4095"), "gb"),
    Held(2, Slice.parse("198.51.100.20:9000-9009"), "ten"),
    Held(4, Slice.parse("[2001:db8:100::10]:1024-65535"), "gb"),
)
TAGS = {"gb": {"country": "GB", "product": "gateway"}, "ten": {"country": "GB"}, "fr": {"country": "FR"}}
HELD = Holdings("lhr1", {"fr": 0, "gb": 1, "ten": 2}, SLICES, TAGS)


def said(choice: Choice, version: int = 4) -> list[str]:
    return [str(lane) for lane in lanes(choice, HELD, version)]


def test_a_pool_is_its_slices_of_that_family() -> None:
    assert sorted(said(make_choice("gb", None, {}))) == [f"198.51.100.1{n}:2048-4095" for n in range(3)]
    assert said(make_choice("gb", None, {}), 6) == ["[2001:db8:100::10]:1024-65535"]
    assert said(make_choice("ten", None, {}), 6) == []


def test_part_of_a_slice() -> None:
    (lane,) = lanes(make_choice(None, "198.51.100.20:9003-9004", {}), HELD, 4)
    assert (str(lane), lane.pool, lane.whole) == ("198.51.100.20:9003-9004", "ten", False)
    assert lanes(make_choice(None, "198.51.100.20:9000-9009", {}), HELD, 4)[0].whole


def test_tags_mean_every_pool_that_has_all_of_them() -> None:
    assert pools_of(make_choice(None, None, {"country": "GB"}), HELD) == ("gb", "ten")
    assert pools_of(make_choice(None, None, {"country": "GB", "product": "gateway"}), HELD) == ("gb",)
    assert len(said(make_choice(None, None, {"country": "GB"}))) == 4


def test_nothing_said_is_the_only_pool() -> None:
    one = Holdings("lhr1", {"ten": 0}, SLICES[3:4])
    assert pools_of(Choice(), one) == ("ten",)
    with pytest.raises(UsageError, match="holds slices of gb, ten: say which pool"):
        pools_of(Choice(), HELD)


@pytest.mark.parametrize(
    ("words", "tags", "told"),
    [
        (("gbb", None), {}, "pool gbb: not in the plan of node lhr1; did you mean gb?"),
        (("fr", None), {}, "pool fr: node lhr1 holds no slice of it; `softunicast plan apply` gives it one"),
        ((None, "198.51.100.20:9000-9010"), {}, "does not hold it; it holds 198.51.100.10:2048-4095, "),
        (
            (None, None),
            {"country": "FR"},
            "tags country=FR: no pool of node lhr1 has them; its pools have: country=GB, ",
        ),
        (("gb", "198.51.100.20:9000-9009"), {}, "pool and slice: each says all; keep one of them"),
        ((None, "9000-9009"), {}, "is no slice; write address:first-last"),
    ],
)
def test_what_cannot_be_had_is_told(words: tuple[str | None, str | None], tags: dict[str, str], told: str) -> None:
    with pytest.raises(UsageError) as refused:
        lanes(make_choice(*words, tags), HELD, 4)
    assert told in str(refused.value)


def test_one_client_has_one_address_and_many_clients_all() -> None:
    firsts = {name: said(make_choice("gb", None, {}, client_of(name)))[0] for name in map("user-{}".format, range(200))}
    assert len(set(firsts.values())) == 3
    assert all(said(make_choice("gb", None, {}, client_of(name)))[0] == first for name, first in firsts.items())


def test_the_order_is_the_best_first_and_then_the_pools_own() -> None:
    for client in range(1, 50):
        order = said(make_choice("gb", None, {}, client))
        best = max(range(3), key=lambda at: rendezvous(client, SLICES[at].slice.address))
        assert order == [f"198.51.100.1{(best + at) % 3}:2048-4095" for at in range(3)]


def test_rendezvous_is_the_data_planes() -> None:
    # By su_mix of bpf/include/word.h in C on a little-endian machine; tests/netns/test_library.py asks the hooks.
    assert rendezvous(1, ip_address("198.51.100.10")) != rendezvous(1, ip_address("198.51.100.11"))
    assert rendezvous(7, ip_address("2001:db8::1")) != rendezvous(8, ip_address("2001:db8::1"))


def test_who_is_who() -> None:
    assert seed("user-7") == seed("user-7") != seed("user-8")
    assert seed(True) == seed(True) != 0
    assert seed(False) == 0
    assert client_of("\udc80") != 0


def test_holdings_of_a_file() -> None:
    text = (
        '{"pools": {"ten": 0}, "slices": [{"index": 5, "slice": "198.51.100.20:9000-9009", "pool": "ten", "epoch": 1}]}'
    )
    found = read_holdings("lhr1", text)
    assert found.slices == (Held(5, Slice.parse("198.51.100.20:9000-9009"), "ten"),)
    for bad in ("", "[]", '{"pools": 1}', '{"pools": {}, "slices": [{}]}'):
        with pytest.raises(KernelError, match="unreadable"):
            read_holdings("lhr1", bad)


def test_what_is_never_sliced() -> None:
    never = Never(("127.0.0.0/8", "fe80::/10"))
    assert [never.has(one) for one in ("127.9.9.9", "128.0.0.1", "fe80::1%eth0", "2001:db8::1")] == [1, 0, 1, 0]
