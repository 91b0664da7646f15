# SPDX-License-Identifier: Apache-2.0
"""The lab on an IPv6 underlay: what lhr sends comes back at cdg, as always, and is carried home in outer IPv6.

Three nodes have an IPv6 underlay address alone, cdg2 has both, the IPv4 one first: it is reached by IPv6 all the same.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from softunicast.kernel.abi import Counter, Drop
from softunicast.lab.topology import NODES, WEB6, topology, underlay
from tests.support.fleet_lab import FleetLab
from tests.support.wait import wait_until

BYTES = 300_000
TUNNEL = (Drop.ENCAP, Drop.STRANGER, Drop.GUE_MALFORMED, Drop.TOO_BIG, Drop.SITE_DOWN)


def underlay6(node: str) -> str:
    """The IPv6 address of a node's eth0 in the drawing."""
    return next(
        str(address.ip)
        for end in topology().ends()
        if (end.namespace, end.device) == (node, "eth0")
        for address in end.addresses
        if address.version == 6
    )


class SixLab(FleetLab):
    """A lab whose nodes reach each other by IPv6."""

    def plan_text(self) -> str:
        text = super().plan_text()
        for node in NODES:
            both = f'[{underlay(node)}, "{underlay6(node)}"]' if node == "cdg2" else f'"{underlay6(node)}"'
            text = text.replace(f"underlay: {underlay(node)}\n", f"underlay: {both}\n")
        return text


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with SixLab(f"six{os.getpid()}") as lab:
        yield lab


def carried(lab: FleetLab) -> dict[str, tuple[int, int]]:
    """By node: packets put into the tunnel, taken out."""
    found = {node: lab.stats(node)[1] for node in NODES}
    return {node: (counters[Counter.CARRIED_OUT], counters[Counter.CARRIED_IN]) for node, counters in found.items()}


def test_nodes_ask_each_other_by_ipv6(lab: FleetLab) -> None:
    for node in NODES:
        wait_until(
            lambda node=node: {peer["state"] for peer in lab.json(node, "peers")["peers"]} == {"up"},
            10,
            f"{node} to see all others up",
        )
        peers = {peer["underlay"] for peer in lab.json(node, "peers")["peers"]}
        assert peers == {underlay6(other) for other in NODES if other != node}


@pytest.mark.parametrize("version", [4, 6])
def test_curl_comes_back_through_the_wrong_site(lab: FleetLab, version: int) -> None:
    before = carried(lab)
    host = lab.fresh() if version == 4 else f"[{WEB6[0]}]"
    with lab.capture() as capture:
        for where in ("lhr1", "c1") * 2:
            command = ["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{size_download}"]
            command.append(f"http://{host}:443/bytes/{BYTES}")
            if where == "lhr1":
                command = ["softunicast", "run", "--pool", "gb", "--", *command]
            done = lab.node(where).run(command)
            assert done.stdout == str(BYTES), done.stderr
    report = capture.report()
    assert report.ok, report.problems()
    after = carried(lab)
    assert sum(after[node][0] - before[node][0] for node in ("cdg1", "cdg2")) > 4 * 5, "all answers came to cdg"
    assert after["lhr1"][1] - before["lhr1"][1] > 4 * 5
    for node in NODES:
        drops = lab.stats(node)[0]
        assert not any(drops[reason] for reason in TUNNEL), f"{node}: {drops}"
