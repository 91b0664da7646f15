# SPDX-License-Identifier: Apache-2.0
"""An underlay without room for the tunnel: full-sized answers at the wrong node earn a "fragmentation needed".

Real senders adapt: every download comes through, whichever server its answers come to.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from softunicast.kernel.abi import Counter, Drop
from softunicast.lab.topology import NODES
from tests.support.fleet_lab import FleetLab, fleet_lab

BYTES = 500_000


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with fleet_lab("small", rack_mtu=1500) as lab:
        yield lab


def test_downloads_through_the_wrong_server(lab: FleetLab) -> None:
    before = {node: lab.stats(node) for node in NODES}
    with lab.capture() as capture:
        for where in ("c1", "t1", "lhr1", "lhr2") * 4:
            # Each to a destination of its own: what one sender has learned is not to help the next.
            command = ["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{size_download}"]
            command.append(f"http://{lab.fresh()}:443/bytes/{BYTES}")
            if where.startswith("lhr"):
                command = ["softunicast", "run", "--pool", "gb", "--", *command]
            done = lab.node(where).run(command)
            assert done.stdout == str(BYTES), done.stderr
    report = capture.report()
    assert report.ok, report.problems()
    after = {node: lab.stats(node) for node in NODES}
    told = sum(after[node][0][Drop.TOO_BIG] - before[node][0][Drop.TOO_BIG] for node in after)
    carried = sum(after[node][1][Counter.CARRIED_OUT] - before[node][1][Counter.CARRIED_OUT] for node in after)
    assert told > 0, "no answer came to the wrong server: the test shows nothing"
    assert carried > 100
