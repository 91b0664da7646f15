# SPDX-License-Identifier: Apache-2.0
"""Findings and the notrack table, from recorded nft JSON: pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from softunicast.agent import notrack
from softunicast.agent.facts import Facts
from softunicast.agent.findings import Subject, find
from softunicast.agent.resources import Notrack
from softunicast.kernel.routing import DefaultRoute, Device, NextHop

SUBJECT = Subject(("up0",), {"fish": "fish0"}, ("10.0.1.11",), ("198.51.100.10", "2001:db8::1"), ((9000, 9009),))
FACTS = Facts(
    1,
    {
        "up0": Device("up0", 2, 1500),
        "fish0": Device("fish0", 3, 1500),
        "under0": Device("under0", 4, 1600, 1, ("10.0.1.11",)),
    },
    (DefaultRoute(4, 0, (NextHop(2, "10.0.1.1", "up0"),)), DefaultRoute(6, 0, (NextHop(2, "fe80::1", "up0"),))),
    {"net/ipv4/tcp_timestamps": "1"},
)


def names(facts: Facts, subject: Subject = SUBJECT) -> list[str]:
    return [finding.name for finding in find(subject, facts)]


def chain(family: str, table: str, name: str, hook: str | None = None) -> dict[str, Any]:
    return {"chain": {"family": family, "table": table, "name": name, **({"hook": hook} if hook else {})}}


def rule(family: str, table: str, name: str, *expressions: Any) -> dict[str, Any]:
    return {"rule": {"family": family, "table": table, "chain": name, "expr": list(expressions)}}


CT = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "related"]}}
CT_UNTRACKED = {"match": {"op": "in", "left": {"ct": {"key": "state"}}, "right": ["established", "untracked"]}}
CT_MAP = {"vmap": {"key": {"ct": {"key": "state"}}, "data": {"set": [["established", {"accept": None}]]}}}


def test_a_good_host_has_no_findings() -> None:
    assert find(SUBJECT, FACTS) == []


@pytest.mark.parametrize("expression", [CT, CT_MAP])
def test_ct_state_in_a_chain_that_input_jumps_to(expression: dict[str, Any]) -> None:
    ruleset = (
        chain("inet", "filter", "input", "input"),
        chain("inet", "filter", "common"),
        rule("inet", "filter", "input", {"jump": {"target": "common"}}),
        rule("inet", "filter", "common", expression, {"accept": None}),
    )
    (finding,) = find(SUBJECT, replace(FACTS, ruleset=ruleset))
    assert finding.name == "ct-state-firewall"
    assert "nft insert rule inet filter common ip daddr { 198.51.100.10 } accept" in finding.message
    assert "nft insert rule inet filter common ip6 daddr { 2001:db8::1 } accept" in finding.message


def test_ct_state_that_does_not_concern_input_or_knows_untracked() -> None:
    ruleset = (
        chain("inet", "filter", "forward", "forward"),
        chain("inet", "filter", "input", "input"),
        chain("inet", "softunicast", "prerouting", "prerouting"),
        rule("inet", "filter", "forward", CT, {"accept": None}),
        rule("inet", "filter", "input", CT_UNTRACKED, {"accept": None}),
    )
    assert names(replace(FACTS, ruleset=ruleset)) == []


def test_nat() -> None:
    ruleset = (
        chain("ip", "nat", "post", "postrouting"),
        rule("ip", "nat", "post", {"masquerade": None}),
    )
    assert names(replace(FACTS, ruleset=ruleset)) == ["nat"]


def test_iptables() -> None:
    text = """*filter
:INPUT DROP [0:0]
-A INPUT -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
-A FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT
COMMIT
*nat
-A POSTROUTING -o up0 -j MASQUERADE
COMMIT
"""
    first, second = find(SUBJECT, replace(FACTS, iptables=(text,)))
    assert "iptables -I INPUT -m conntrack --ctstate UNTRACKED -d 198.51.100.10 -j ACCEPT" in first.message
    assert second.name == "nat"


@pytest.mark.parametrize(
    ("sysctls", "name"),
    [
        ({"net/ipv4/tcp_timestamps": "0"}, "tcp-timestamps"),
        ({"net/ipv4/ip_local_reserved_ports": "80,8000-9000"}, "reserved-ports"),
        ({"net/ipv4/ip_local_reserved_ports": "9010,8999"}, None),
        ({"net/ipv4/conf/up0/rp_filter": "1"}, "rp-filter"),
        ({"net/ipv4/conf/fish0/rp_filter": "1"}, None),
    ],
)
def test_sysctls(sysctls: dict[str, str], name: str | None) -> None:
    assert names(replace(FACTS, sysctls=sysctls)) == ([name] if name else [])


def test_devices_and_routes() -> None:
    devices = dict(FACTS.devices)
    del devices["fish0"]
    devices["under0"] = replace(devices["under0"], mtu=1531)
    assert names(replace(FACTS, devices=devices)) == ["onramp-missing", "underlay-mtu"]
    del devices["under0"]
    assert names(replace(FACTS, devices=devices)) == ["onramp-missing", "underlay-missing"]
    assert names(replace(FACTS, defaults=FACTS.defaults[:1])) == ["no-default-route"]
    several = (*FACTS.defaults, DefaultRoute(4, 9, (NextHop(4, "10.0.1.2", "under0"),)))
    assert names(replace(FACTS, defaults=several)) == ["several-default-routes"]


@pytest.mark.parametrize(("mtu", "found"), [(1500, True), (1531, True), (1532, False), (9000, False)])
def test_an_uplink_that_is_the_underlay_carries_what_the_internet_sends(mtu: int, found: bool) -> None:
    devices = {**FACTS.devices, "up0": Device("up0", 2, mtu, 1, ("10.0.1.11",))}
    del devices["under0"]
    assert names(replace(FACTS, devices=devices)) == (["underlay-mtu"] if found else [])


@pytest.mark.parametrize(
    ("underlays", "mtu", "found"),
    [(("fd00:1::11",), 1551, True), (("fd00:1::11",), 1552, False), (("10.0.1.11", "fd00:1::11"), 1551, True)],
)
def test_an_ipv6_underlay_wants_52_bytes(underlays: tuple[str, ...], mtu: int, found: bool) -> None:
    devices = {**FACTS.devices, "up0": Device("up0", 2, mtu, 1, ("10.0.1.11", "fd00:1::11"))}
    del devices["under0"]
    told = find(replace(SUBJECT, underlays=underlays), replace(FACTS, devices=devices))
    assert [finding.name for finding in told] == (["underlay-mtu"] if found else [])
    assert not found or "need 1552" in str(told[0])


def test_every_finding_is_one_line() -> None:
    facts = Facts(1, sysctls={"net/ipv4/tcp_timestamps": "0"})
    for finding in find(SUBJECT, facts):
        assert "\n" not in str(finding)


def recorded(table: Notrack) -> list[dict[str, Any]]:
    """What `nft -j list table inet softunicast` shows of a rendered table (nftables 1.0.6)."""
    items: list[dict[str, Any]] = [{"table": {"family": "inet", "name": "softunicast", "handle": 3}}]
    for name, kind, elements in (("slices4", "ipv4_addr", table.v4), ("slices6", "ipv6_addr", table.v6)):
        entry: dict[str, Any] = {"family": "inet", "name": name, "table": "softunicast", "type": kind}
        items.append({"set": {**entry, "elem": sorted(elements)} if elements else entry})
    for name, fields in (("prerouting", ("daddr", "saddr")), ("output", ("saddr", "daddr"))):
        hook = {"family": "inet", "table": "softunicast", "name": name, "hook": name, "prio": -300}
        items.append({"chain": hook})
        for family, elements_name in (("ip", "slices4"), ("ip6", "slices6")):
            for part in fields:
                left = {"payload": {"protocol": family, "field": part}}
                match = {"match": {"op": "==", "left": left, "right": f"@{elements_name}"}}
                items.append(rule("inet", "softunicast", name, match, {"notrack": None}))
    return items


TABLE = Notrack(frozenset({"198.51.100.10", "198.51.100.20"}), frozenset({"2001:db8::1"}))


def test_notrack_reads_what_nft_shows() -> None:
    assert notrack.read(recorded(TABLE)) == TABLE
    assert notrack.read(recorded(Notrack())) == Notrack()
    assert notrack.read([]) is None


def test_a_table_that_was_tampered_with_is_not_ours() -> None:
    whole = recorded(TABLE)
    for at in range(1, len(whole)):
        assert notrack.read(whole[:at] + whole[at + 1 :]) is None
    assert notrack.read([*whole, rule("inet", "softunicast", "output", {"drop": None})]) is None


def test_rendering_replaces_the_whole_table() -> None:
    text = notrack.render(TABLE)
    assert text.splitlines()[:2] == ["add table inet softunicast", "delete table inet softunicast"]
    assert "elements = { 198.51.100.10, 198.51.100.20 }" in text
    assert "elements" not in notrack.render(Notrack())
