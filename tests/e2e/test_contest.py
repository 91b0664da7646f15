# SPDX-License-Identifier: Apache-2.0
"""The ten-port contest: slice 198.51.100.20:9000-9009, one destination, more who want a flow than there are ports.

Programs under `softunicast run` and clients behind a veth and a TUN compete. Whoever they are and in whatever order
they come: ten have a connection, each seen by the server with a port of the slice that nobody else has and that its
owner believes it has; the rest are told so at once. A capture at the router, by the checker, sees nothing outside.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.support.contest import Contest, Entrant, Outcome
from tests.support.fleet_lab import ECHO_PORT, WEB_PORT, FleetLab, fleet_lab
from tests.support.wait import wait_until

SLICE = range(9000, 9010)
PORTS = {"tcp": WEB_PORT, "udp": ECHO_PORT, "icmp": 0}
SOCKET, VETH, TUN = "lhr1", "c1", "t1"

MIXES = {
    "sockets": [Entrant(SOCKET, 14)],
    "veth": [Entrant(VETH, 14)],
    "tun": [Entrant(TUN, 14)],
    "one of each kind more than fits": [Entrant(SOCKET, 5), Entrant(VETH, 5), Entrant(TUN, 5)],
    "forwarded let go first": [Entrant(TUN, 6), Entrant(VETH, 6), Entrant(SOCKET, 6)],
    "fifty": [Entrant(SOCKET, 9), Entrant(VETH, 8), Entrant(TUN, 8)] * 2,
}


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    # Flows of UDP and echo must outlive a contest: nobody is to win by waiting.
    with fleet_lab(
        "contest", pool="ten", timers={"tcp_linger_s": 2, "sock_linger_s": 2, "udp_s": 30, "icmp_s": 30}
    ) as lab:
        yield lab


def check_winners(protocol: str, outcomes: Sequence[Outcome]) -> None:
    winners = [outcome for outcome in outcomes if outcome.ok]
    assert len(winners) == len(SLICE), outcomes
    if protocol == "icmp":
        return  # the id on the wire is seen by the checker, and by the next who wants one
    ports = []
    for winner in winners:
        assert winner.seen is not None
        address, port = winner.seen.rsplit(":", 1)
        assert address == "198.51.100.20"
        ports.append(int(port))
        if winner.where == SOCKET:
            assert winner.local == int(port)
    assert sorted(ports) == list(SLICE)


def check_losers(protocol: str, outcomes: Sequence[Outcome]) -> None:
    for loser in outcomes:
        if loser.ok:
            continue
        if protocol == "icmp":
            # A ping socket has no hook: the guard refuses its packet, and the kernel says nothing or ENOBUFS.
            assert loser.errno in (("timeout", "ENOBUFS", "EPERM") if loser.where == SOCKET else ("EHOSTUNREACH",)), (
                loser
            )
        else:
            assert loser.errno == ("EADDRNOTAVAIL" if loser.where == SOCKET else "ECONNREFUSED"), loser


@pytest.mark.parametrize("mix", MIXES)
@pytest.mark.parametrize("protocol", PORTS)
def test_exactly_ten(lab: FleetLab, protocol: str, mix: str) -> None:
    destination, other = lab.fresh(), lab.fresh()
    with lab.capture() as capture:
        with Contest(lab, protocol, destination, PORTS[protocol], MIXES[mix]) as contest:
            outcomes = contest.go()
            check_winners(protocol, outcomes)
            check_losers(protocol, outcomes)
            # None has been taken from its owner, and a second destination has its own ten.
            assert not any(outcome.ok for outcome in contest.go())
            with Contest(lab, protocol, other, PORTS[protocol], MIXES[mix]) as second:
                check_winners(protocol, second.go())
    report = capture.report()
    assert report.ok, report
    assert report.packets > 20


@pytest.mark.parametrize("first", [SOCKET, VETH, TUN])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_next_is_told_at_once(lab: FleetLab, protocol: str, first: str) -> None:
    destination, port = lab.fresh(), PORTS[protocol]
    with Contest(lab, protocol, destination, port, [Entrant(first, 10)]) as holders:
        check_winners(protocol, holders.go())
        for late in (SOCKET, VETH, TUN):
            with Contest(lab, protocol, destination, port, [Entrant(late, 1)]) as contest:
                outcomes = [outcome for _ in range(5) for outcome in contest.go()]
            check_losers(protocol, outcomes)
            assert not any(outcome.ok for outcome in outcomes)
            # No timer is in between: of several, the one that no other process held up.
            assert min(outcome.ms for outcome in outcomes) < 10, outcomes


def test_a_port_given_back_is_had_again(lab: FleetLab) -> None:
    destination = lab.fresh()
    for where in (SOCKET, VETH, SOCKET, TUN):
        with Contest(lab, "tcp", destination, WEB_PORT, [Entrant(where, 10)]) as contest:
            got = 0

            def all_ten(contest: Contest = contest) -> bool:
                nonlocal got
                got += sum(outcome.ok for outcome in contest.go())
                return got >= len(SLICE)

            # What the last holders left lingers for its timer (two seconds here), and is then had again.
            wait_until(all_ten, 15, f"{where} has all ten")
            assert got == len(SLICE)
