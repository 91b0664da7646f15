# SPDX-License-Identifier: Apache-2.0
"""What makes the demonstration fail, one reason at a time."""

from __future__ import annotations

from collections import Counter

import pytest

from softunicast.lab.checker import Finding, Report
from softunicast.lab.demo import ACTORS, ADDRESS, Deed, Outcome

FINDING = Finding(1, 0.0, "why", "packet")


def good() -> Outcome:
    return Outcome(
        deeds=[Deed(ACTORS[0], "curl, 10 MB", "10 MB", f"{ADDRESS}:2048")],
        internet=Report(packets=10, flows=Counter({("tcp", ADDRESS, 2048, "203.0.113.1", 80): 5})),
        rack=Report(packets=5),
        control=Report(packets=1, outside_slice=[FINDING]),
        carried_out={"lhr1": 3, "lhr2": 2},
        carried_in={"lhr1": 2, "lhr2": 3},
        answers=9,
    )


def test_nothing_is_wrong() -> None:
    assert good().wrong() == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda outcome: setattr(outcome.deeds[0], "wrong", "exit status 7"), "program on lhr1, curl, 10 MB: exit"),
        (lambda outcome: outcome.internet.outside_slice.append(FINDING), "internet side: 1 packets outside"),
        (lambda outcome: outcome.internet.bad_checksums.append(FINDING), "1 bad checksums"),
        (lambda outcome: outcome.internet.not_expected_source.append(FINDING), "unexpected source"),
        (lambda outcome: setattr(outcome.internet, "kernel_dropped", 1), "lost 1 packets"),
        (lambda outcome: outcome.rack.outside_slice.append(FINDING), "at the rack: 1 packets outside"),
        (lambda outcome: outcome.internet.flows.update({("udp", "198.51.100.11", 1, "x", 2): 1}), "198.51.100.11 too"),
        (lambda outcome: outcome.carried_out.clear(), "no answer came to the wrong server"),
        (lambda outcome: outcome.carried_in.update(lhr1=0), "5 answers were carried away, 3 arrived"),
        (lambda outcome: outcome.control.outside_slice.clear(), "the checker reported 0"),
    ],
)
def test_each_breach_is_named(change: object, said: str) -> None:
    outcome = good()
    assert callable(change)
    change(outcome)
    assert any(said in line for line in outcome.wrong()), outcome.wrong()
