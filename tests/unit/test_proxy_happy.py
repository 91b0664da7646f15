# SPDX-License-Identifier: Apache-2.0
"""Happy eyeballs, in virtual time."""

from __future__ import annotations

from ipaddress import ip_address

from softunicast.proxy.core.happy import Race

A1, A2 = ip_address("203.0.113.1"), ip_address("203.0.113.2")
B1, B2 = ip_address("2001:db8::1"), ip_address("2001:db8::2")


def test_families_alternate_ipv6_first() -> None:
    race = Race()
    race.add([A1, A2, B1, B2], 0, complete=True)
    tried = []
    for step in range(4):
        now = 0.25 * step
        tried.append(race.due(now))
        assert race.due(now) is None
    assert tried == [B1, A1, B2, A2]


def test_one_that_fails_is_followed_at_once() -> None:
    race = Race()
    race.add([A1, B1], 0, complete=True)
    assert race.due(0) == B1
    assert (race.due(0.1), race.wake_s) == (None, 0.25)
    race.failed(0.1)
    assert race.due(0.1) == A1
    race.failed(0.2)
    assert race.lost


def test_a_quick_a_waits_for_aaaa_a_moment() -> None:
    race = Race()
    race.add([A1], 1, complete=False)
    assert (race.due(1), race.wake_s) == (None, 1.05)
    race.add([B1], 1.02, complete=True)
    assert race.due(1.02) == B1
    late = Race()
    late.add([A1], 1, complete=False)
    assert late.due(1.05) == A1
    late.failed(1.06)
    assert not late.lost, "AAAA may still come"
    late.add([], 1.07, complete=True)
    assert late.lost


def test_a_quick_aaaa_waits_for_nothing() -> None:
    race = Race()
    race.add([B1], 0, complete=False)
    assert race.due(0) == B1
    race.add([A1], 0.1, complete=True)
    assert (race.due(0.1), race.wake_s) == (None, 0.25)
    assert race.due(0.25) == A1
