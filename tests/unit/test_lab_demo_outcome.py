# SPDX-License-Identifier: Apache-2.0
"""What makes the demonstration fail, one reason at a time."""

from __future__ import annotations

import io
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import pytest
from rich.console import Console

from softunicast.lab import demo_actors
from softunicast.lab.checker import Finding, Owned, Report
from softunicast.lab.cost import Cost
from softunicast.lab.demo_actors import ACTORS, Deed, Witnesses, judge
from softunicast.lab.demo_outcome import Outcome, deeds_table, show_bill, show_sums, ways_table
from softunicast.lab.demo_ways import Owners, Way, Ways
from softunicast.lab.scenarios import Result
from softunicast.lab.topology import NODES, SITES

FINDING = Finding(1, 0.0, "why", "packet")
ADDRESS = "198.51.100.10"
OWNERS = Owners([Owned(ip_address(ADDRESS), 2048, 4095, "lhr1"), Owned(ip_address(ADDRESS), 4096, 6143, "lhr2")])


def way(node: str) -> Way:
    """Ten answers, by r2: half of them come to each node of cdg."""
    far = node in SITES["lhr"]
    return Way(Counter(r2=10), Counter(cdg1=5, cdg2=5), 10 if far else 0, 5)


def good() -> Outcome:
    return Outcome(
        deeds=[Deed(ACTORS[0], "download", 4, 0xA1, "2 MB", (ADDRESS, 2048))],
        internet=Report(packets=10, flows=Counter({("tcp", ADDRESS, 2048, "203.0.113.1", 80): 5})),
        rack=Report(packets=5),
        control=Report(packets=1, outside_slice=[FINDING]),
        ways=Ways({node: way(node) for node in NODES}),
        carried_out={"lhr1": 15, "cdg1": 25},
        carried_in={"lhr1": 20, "lhr2": 20},
        cut=Result("fail-site", SITES["lhr"], costs={node: Cost(node, flows=18) for node in NODES}),
    )


def break_a_connection(outcome: Outcome) -> None:
    assert outcome.cut is not None
    outcome.cut.costs["lhr2"] = Cost("lhr2", broken=1, errors=["tcp: ECONNRESET"])


def test_nothing_is_wrong() -> None:
    assert good().wrong() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda outcome: setattr(outcome.deeds[0], "wrong", "exit status 7"),
            "lhr1, a program, download over IPv4: exit",
        ),
        (lambda outcome: outcome.internet.outside_slice.append(FINDING), "internet side: 1 packets outside"),
        (lambda outcome: outcome.internet.bad_checksums.append(FINDING), "1 bad checksums"),
        (lambda outcome: outcome.internet.not_expected_source.append(FINDING), "unexpected source"),
        (lambda outcome: setattr(outcome.internet, "kernel_dropped", 1), "lost 1 packets"),
        (lambda outcome: outcome.rack.outside_slice.append(FINDING), "in the racks: 1 packets outside"),
        (lambda outcome: setattr(outcome, "ways", Ways()), "no answer came for cdg2"),
        (lambda outcome: setattr(outcome, "ways", Ways()), "no answer came to the wrong site"),
        (lambda outcome: outcome.ways.by_owner["lhr1"].first_at.update(cdg1=-1), "10 answers for lhr1 came in, 9 came"),
        (
            lambda outcome: setattr(outcome.ways.by_owner["lhr1"], "to_site", 9),
            "10 answers for lhr1 came to another site",
        ),
        (lambda outcome: setattr(outcome.ways, "strays", 2), "2 answers came for ports that are nobody's"),
        (lambda outcome: outcome.carried_in.update(lhr1=0), "40 answers were carried away, 20 arrived"),
        (lambda outcome: outcome.carried_out.update(lhr1=16), "the nodes counted 41 carried answers, the racks saw 40"),
        (lambda outcome: outcome.control.outside_slice.clear(), "the checker reported 0"),
        (lambda outcome: setattr(outcome, "cut", None), "no site was cut off"),
        (break_a_connection, "1 connections of lhr2 broke"),
    ],
)
def test_each_breach_is_named(change: object, said: str) -> None:
    outcome = good()
    assert callable(change)
    change(outcome)
    assert any(said in line for line in outcome.wrong()), outcome.wrong()


def test_what_is_shown_fits_a_hundred_columns() -> None:
    outcome = good()
    outcome.deeds = [
        Deed(actor, what, version, 0, result, ("2001:db8:100::10" if version == 6 else ADDRESS, 65535))
        for actor in ACTORS
        for version in (4, 6)
        for what, result in (("download", "2 MB in 10.3 s"), ("name", "ok"), ("ping", "5 of 5"))
    ]
    outcome.deeds[1].seen = ("198.51.100.11", 65535)
    for one in outcome.ways.by_owner.values():
        one.first_at.update(cdg1=1_000_000)
    text = io.StringIO()
    console = Console(file=text, width=100)
    console.print(deeds_table(outcome.deeds))
    console.print(ways_table(outcome.ways))
    show_sums(console, outcome)
    assert outcome.cut is not None
    show_bill(console, outcome.cut)
    said = text.getvalue()
    assert "…" not in said and ".11:65535" in said, said
    assert all(len(line) <= 100 for line in said.splitlines())
    assert "connections broken at lhr: 0" in said


PING = "5 packets transmitted, 5 received, 0% packet loss, time 804ms"


@pytest.mark.parametrize(
    ("what", "printed", "seen", "said"),
    [
        ("ping", PING, (ADDRESS, 2048), ""),
        ("ping", PING, (ADDRESS, 4096), f"left as {ADDRESS} port 4096, which is lhr2's"),
        ("ping", PING, (ADDRESS, 1), f"left as {ADDRESS} port 1, which is nobody's"),
        ("ping", PING, None, "nobody outside saw it"),
        ("ping", PING.replace("5 received", "4 received"), (ADDRESS, 2048), "4 received"),
        ("name", "203.0.113.1", (ADDRESS, 2048), ""),
        ("name", "203.0.113.9", (ADDRESS, 2048), "instead of 203.0.113.1"),
        ("download", f"200 4 0.1 {ADDRESS} 2048", (ADDRESS, 2048), ""),
        ("download", f"200 4 0.1 {ADDRESS} 2049", (ADDRESS, 2048), f"believes to be {ADDRESS} port 2049"),
        ("download", f"404 4 0.1 {ADDRESS} 2048", (ADDRESS, 2048), "status 404"),
        ("download", f"200 3 0.1 {ADDRESS} 2048", (ADDRESS, 2048), "3 bytes"),
    ],
)
def test_how_deeds_are_judged(
    what: str,
    printed: str,
    seen: tuple[str, int] | None,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(demo_actors, "DOWNLOAD_BYTES", 4)
    deed = Deed(ACTORS[0], what, 4, 0xA1)
    (tmp_path / deed.token).write_bytes(b"lhr1")
    places = {deed.token: seen} if seen else {}
    judge(deed, printed, Witnesses(places, places, {0xA1: seen} if seen else {}, OWNERS), tmp_path)
    assert said in deed.wrong and bool(said) == bool(deed.wrong), deed


def test_bytes_of_somebody_else_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_actors, "DOWNLOAD_BYTES", 4)
    deed = Deed(ACTORS[0], "download", 4, 0xA1)
    (tmp_path / deed.token).write_bytes(b"lhr2")
    places = {deed.token: (ADDRESS, 2048)}
    judge(deed, f"200 4 0.1 {ADDRESS} 2048", Witnesses(places, {}, {}, OWNERS), tmp_path)
    assert deed.wrong == "bytes of somebody else, or damaged ones"
