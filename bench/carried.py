# SPDX-License-Identifier: Apache-2.0
"""One TCP stream whose every segment comes to the wrong site and is carried, beside the same stream plainly routed.

    world 203.0.113.1 --- router ---+--- far   10.66.1.1     the prefix is routed to it: all answers come here
                                    |
                                    '--- near  10.66.2.1 --- client 10.77.0.2, which downloads

    carried   world, router, far, [tunnel] router, near, client      both nodes run the agent; far is another site
    routed    world, router, far, router, near, client               ip_forward, the same hops
    direct    world, router, near, client                            ip_forward, as if the answer had come right

Each way has five namespaces of its own and iperf3's own figure. Acknowledgements go from near by the router to the
world in every way. veth, MTU 1600 around the router's inner side, 1500 towards world and client.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench import tools
from bench.tools import run, sysctl
from softunicast.kernel import netns, nodes, stats
from softunicast.kernel.abi import Counter
from softunicast.model.allocator import allocate
from softunicast.model.bindings_file import dump_bindings
from softunicast.model.plan import load_plan

WAYS: Final = ("carried", "routed", "direct")
SECONDS: Final = 2
PORT: Final = 5201
CLI: Final = f"{sys.executable} -m softunicast.cli"
PLAN: Final = """\
prefixes:
  - {{prefix: 198.51.100.0/24}}
sites:
  far:
    nodes:
      {far}: {{underlay: 10.66.1.1, uplinks: [u0]}}
  near:
    nodes:
      {near}:
        underlay: 10.66.2.1
        uplinks: [u0]
        onramps:
          fish: {{device: n0, pool: gb, sources: [10.77.0.0/24], gateway: 10.77.0.1}}
pools:
  gb: {{addresses: [198.51.100.10], site: near}}
settings: {{flows: 2048}}
"""


class Fleet:
    """The two agents' work, done once each; `undo` takes it away."""

    def __init__(self, folder: Path, far: str, near: str) -> None:
        self.plan, self.bindings = folder / "plan.yaml", folder / "bindings.yaml"
        text = PLAN.format(far=far, near=near)
        self.plan.write_text(text)
        self.bindings.write_text(dump_bindings(allocate(load_plan(text, str(self.plan)), None)))

    def agent(self, node: str) -> None:
        with netns.enter(node):
            run(f"{CLI} agent --once --plan {self.plan} --bindings {self.bindings} --node {node}")

    def undo(self, node: str) -> None:
        with netns.enter(node):
            run(f"{CLI} agent uninstall --node {node}")


def _address(space: str, device: str, address: str, mtu: int, gateway: str = "") -> None:
    with netns.enter(space):
        run(f"ip address add {address} dev {device}")
        run(f"ip link set {device} mtu {mtu} up")
        if gateway:
            run(f"ip route add default via {gateway}")


@contextmanager
def way(name: str, folder: Path) -> Iterator[str]:
    """The five namespaces of one way; what they are called but for the last part."""
    stem = f"bench-{os.getpid()}-{name}"
    world, router, far, near, client = (f"{stem}-{part}" for part in ("world", "router", "far", "near", "client"))
    with tools.namespaces(world, router, far, near, client), ExitStack() as undo:
        with netns.enter(router):
            run(f"ip link add w0 type veth peer name u0 netns {world}")
            run(f"ip link add f0 type veth peer name u0 netns {far}")
            run(f"ip link add n0 type veth peer name u0 netns {near}")
            sysctl("net/ipv4/ip_forward", 1)
        with netns.enter(near):
            run(f"ip link add n0 type veth peer name u0 netns {client}")
        _address(router, "w0", "203.0.113.254/24", 1500)
        _address(router, "f0", "10.66.1.254/24", 1600)
        _address(router, "n0", "10.66.2.254/24", 1600)
        _address(world, "u0", "203.0.113.1/24", 1500, "203.0.113.254")
        _address(far, "u0", "10.66.1.1/24", 1600, "10.66.1.254")
        _address(near, "u0", "10.66.2.1/24", 1600, "10.66.2.254")
        _address(near, "n0", "10.77.0.1/24", 1500)
        _address(client, "u0", "10.77.0.2/24", 1500, "10.77.0.1")
        if name == "carried":
            with netns.enter(router):
                run("ip route add 198.51.100.0/24 via 10.66.1.1")
            fleet = Fleet(folder, far, near)
            for node in (far, near):
                undo.callback(fleet.undo, node)
                fleet.agent(node)
        else:
            for node in (far, near):
                with netns.enter(node):
                    sysctl("net/ipv4/ip_forward", 1)
            with netns.enter(router):
                run(f"ip route add 10.77.0.0/24 via {'10.66.1.1' if name == 'routed' else '10.66.2.1'}")
                run("ip rule add iif f0 lookup 100")
                run("ip route add 10.77.0.0/24 via 10.66.2.1 table 100")
        with netns.enter(world):
            server = subprocess.Popen(
                ["iperf3", "-s", "-p", str(PORT), "--forceflush"], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
            )
        undo.callback(server.wait)
        undo.callback(server.terminate)
        assert server.stdout is not None
        while b"Server listening" not in (line := server.stdout.readline()):
            if not line:
                raise RuntimeError("iperf3 -s ended")
        yield stem


def download(stem: str, streams: int) -> float:
    """Gbit/s that arrived at the client."""
    with netns.enter(f"{stem}-client"):
        said = json.loads(run(f"iperf3 -J -R -c 203.0.113.1 -p {PORT} -t {SECONDS} -O 0.5 -P {streams}"))
    return float(said["end"]["sum_received"]["bits_per_second"]) / 1e9


def carried_by(node: str) -> int:
    """Packets (segments not yet cut count as one) that a node put into the tunnel so far."""
    with nodes.open_maps(node) as maps:
        return stats.sum_percpu(maps["stats"])[1][Counter.CARRIED_OUT]


STREAMS: Final = (1, 8)
Carried = dict[int, dict[str, list[float]]]
"""By streams, by way: Gbit/s, one entry a round."""


def measure(rounds: int) -> Carried:
    """RuntimeError when what should have been carried was not: then there is nothing to compare."""
    rates: Carried = {streams: {name: [] for name in WAYS} for streams in STREAMS}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as undo:
        stems = {name: undo.enter_context(way(name, Path(folder))) for name in WAYS}
        for _ in range(rounds):
            for streams in STREAMS:
                for name, stem in stems.items():
                    rates[streams][name].append(download(stem, streams))
        if not carried_by(f"{stems['carried']}-far") > rounds * len(STREAMS) * 1000:
            raise RuntimeError("carried: the far node carried hardly anything")
    return rates
