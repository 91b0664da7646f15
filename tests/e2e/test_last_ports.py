# SPDX-License-Identifier: Apache-2.0
"""2,048 ports, one destination, 99 % of them used: sockets and forwarded flows still get the last free ones."""

from __future__ import annotations

from tests.support.contest import Contest, Entrant
from tests.support.fleet_lab import WEB_PORT, fleet_lab

PORTS = range(4096, 6144)
LAST = 20


def test_the_last_free_ports() -> None:
    with fleet_lab("last", pool="wide") as lab:
        destination = lab.fresh()
        with Contest(lab, "tcp", destination, WEB_PORT, [Entrant("lhr1", len(PORTS) - LAST, "wide")]) as most:
            held = most.go()
            assert all(outcome.ok for outcome in held), [outcome for outcome in held if not outcome.ok][:3]
            last = [Entrant("lhr1", LAST // 2, "wide"), Entrant("c1", LAST // 4), Entrant("t1", LAST // 4)]
            with Contest(lab, "tcp", destination, WEB_PORT, last) as contest:
                rest = contest.go()
                assert all(outcome.ok for outcome in rest), rest
                # A slice is full only when it is full, and then it is: every port is held, once.
                seen = sorted(int(str(outcome.seen).rsplit(":", 1)[1]) for outcome in (*held, *rest))
                assert seen == list(PORTS)
                late = contest.go()
                assert not any(outcome.ok for outcome in late), late
        used = {flow.local_port for flow, _ in lab.claims("lhr1") if flow.remote_port == WEB_PORT}
        assert used <= set(PORTS)
