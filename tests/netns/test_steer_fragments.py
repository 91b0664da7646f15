# SPDX-License-Identifier: Apache-2.0
"""Fragments between real devices: they come to a, their home is c, their owner b. The places are test_steer_live's."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import pytest

from softunicast.kernel import netns
from softunicast.kernel.abi import Control, Counter, ProbeFlag, Site
from softunicast.kernel.bpf import BpfObject, object_path
from softunicast.kernel.links import attach_xdp
from tests.bpf import steer_support as support
from tests.bpf.steer_support import run, u32
from tests.netns.test_steer_live import NODES, PORT, SLICE, SLICE6, WORLD, WORLD6, SteeringNode, fleet, steering

__all__ = ["fleet"]  # a fixture

DATAGRAMS = 20


@contextlib.contextmanager
def at_xdp(names: dict[str, str]) -> Iterator[None]:
    """What XDP on veth wants of its surroundings, see test_steer_live."""
    run(f"nsenter --net=/run/netns/{names['world']} ethtool -K w0 tx off tso off gso off")
    for letter in NODES:
        run(f"nsenter --net=/run/netns/{names['router']} ethtool -K to-{letter} tx off tso off gso off gro on")
        run(f"nsenter --net=/run/netns/{names[letter]} ethtool -K up0 tx off tso off gso off")
    with (
        BpfObject.load(object_path("steer"), settings=support.settings().pack(), map_sizes={"owners": 16}) as passing,
        netns.enter(names["router"]),
        attach_xdp(passing.programs["su_steer"], socket.if_nametoindex("to-a"), generic=False),
    ):
        for letter, target in (("a", 13), ("c", 12)):
            run(f"nsenter --net=/run/netns/{names[letter]} ping -c1 -W10 10.0.1.{target}")
        yield


def set_home(nodes: dict[str, SteeringNode], home: str) -> None:
    """The site's only node that fragments meet at, on every node's word."""
    for node in nodes.values():
        node.loaded.maps["site_nodes"].update(u32(0), u32(NODES[home][0]))
        node.loaded.maps["sites"].update(u32(support.HOME), Site(0, 1).pack())
        node.loaded.maps["control"].update(u32(0), Control(probe_flags=ProbeFlag.FIT).pack())


@pytest.mark.parametrize("xdp", [False, True], ids=["tc", "xdp"])
@pytest.mark.parametrize("ends", [(SLICE, WORLD), (SLICE6, WORLD6)], ids=["4", "6"])
def test_whole_datagrams_by_way_of_their_home(request: pytest.FixtureRequest, ends: tuple[str, str], xdp: bool) -> None:
    names: dict[str, str] = request.getfixturevalue("fleet")
    local, remote = ends
    family = socket.AF_INET6 if ":" in local else socket.AF_INET
    with contextlib.ExitStack() as undo:
        nodes = undo.enter_context(steering(names, dict.fromkeys(NODES, "b"), xdp=xdp))
        set_home(nodes, "c")
        if xdp:
            undo.enter_context(at_xdp(names))
        with netns.enter(names["world"]):
            sender = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        with netns.enter(names["b"]):
            receiver = undo.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        sender.bind((remote, 443))
        receiver.bind((local, PORT))
        receiver.settimeout(5)
        for _ in range(DATAGRAMS):
            data = os.urandom(4000)
            sender.sendto(data, (local, PORT))
            assert receiver.recvfrom(65536)[0] == data
        stats = {letter: node.stats() for letter, node in nodes.items()}
        assert [drops for drops, _ in stats.values()] == [{}, {}, {}]
        a, b, c = (counters for _, counters in stats.values())
        pieces = DATAGRAMS * 3
        assert (
            a[Counter.CARRIED_OUT] == c[Counter.CARRIED_IN] == c[Counter.CARRIED_OUT] == b[Counter.CARRIED_IN] == pieces
        )
        assert [one[Counter.FRAGMENTS] for one in (a, b, c)] == [0, pieces, pieces]
