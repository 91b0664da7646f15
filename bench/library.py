# SPDX-License-Identifier: Apache-2.0
"""What a connect() of the Python library costs by each way into a slice, at several uses of it, beside a plain one.

    node --u0/w0-- world, which accepts and closes on every address of 203.0.113.0/24

Both pairs of namespaces are bench.dialing's. One node has a running agent: tag, bind and agent go by its hooks; what is
in use there are claims of forwarded flows. The other has none: range and explicit, the kernel's own choice; what is in
use are sockets that the library itself bound, which never send (FINDINGS of TCP_FASTOPEN_CONNECT: SYN-SENT, silent).

Whoever measures is a Python process of its own, on one CPU: `python -m bench.library dial ...`.
"""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Final

import softunicast
from bench import dialing, plane, tools
from bench.tools import Helpers, median, ratio, table
from softunicast.api.client import Client
from softunicast.errors import KernelError
from softunicast.kernel import nodes
from softunicast.kernel.abi import Claim, Flow, ReleaseArgs
from softunicast.kernel.programs import Program
from softunicast.model.allocator import allocate
from softunicast.model.bindings_file import dump_bindings
from softunicast.model.plan import load_plan

USES: Final = (0, 50, 90, 99)
TARGETS: Final = 4
EACH: Final = 10
HOOKED: Final = ("tag", "bind", "agent")
BARE: Final = ("range", "explicit")
WAYS: Final = (*HOOKED, *BARE)
PLACE: Final = f"{plane.SLICE}:{plane.FIRST}-{plane.LAST}"
QUIET: Final = ((socket.IPPROTO_TCP, 30, 1), (socket.IPPROTO_TCP, 34, 1))
"""TCP_FASTOPEN_CONNECT, TCP_FASTOPEN_NO_COOKIE: connect() returns, nothing is sent."""
RESET: Final = struct.pack("=ii", 1, 0)
READY_S: Final = 60.0
PLAN: Final = """\
prefixes:
  - {{prefix: 198.51.100.0/24}}
sites:
  lhr:
    nodes:
      {node}: {{underlay: {underlay}, uplinks: [u0]}}
pools:
  gb: {{site: lhr, slices: [{{slice: "{place}", node: {node}}}]}}
settings: {{flows: 262144}}
"""

NAMES: Final = {
    "tag": "`tag`: root, hooks",
    "bind": "`bind`: anybody, hooks",
    "agent": "`agent`: asked for each socket",
    "range": "`range`: no hooks, the kernel's range has the slice",
    "explicit": "`range`: no hooks, it has not: port after port",
}

Costs = dict[str, list[list[int]]]
"""By case ("plain", "tag 50 %" ...): a round's connections, nanoseconds each."""


@contextmanager
def agent(node: str, namespace: str, folder: Path) -> Iterator[None]:
    """A real one, ready, which does not sweep while we measure."""
    text = PLAN.format(node=node, underlay=dialing.UNDERLAY, place=PLACE)
    plan, bindings = folder / "plan.yaml", folder / "bindings.yaml"
    plan.write_text(text)
    bindings.write_text(dump_bindings(allocate(load_plan(text, str(plan)))))
    enter = ["nsenter", f"--net=/run/netns/{namespace}", sys.executable, "-m", "softunicast.cli", "agent"]
    files = ["--plan", str(plan), "--bindings", str(bindings), "--node", node, "--interval", "3600"]
    with (folder / "agent.log").open("w") as log, ExitStack() as undo:
        process = subprocess.Popen([*enter, *files], stderr=log)
        undo.callback(tools.run, " ".join([*enter, "uninstall", "--node", node]), 120)
        undo.callback(process.wait)
        undo.callback(process.kill)
        until = time.monotonic() + READY_S
        while True:
            with suppress(KernelError), Client.of(node) as asked:
                asked.ask({"do": "list"})
                break
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"agent of {node}: {(folder / 'agent.log').read_text().strip() or 'not ready'}")
            time.sleep(0.1)
        yield


def forget(node: str, keep: set[bytes]) -> None:
    """End what measured sockets left, as bench.dialing does."""
    with (
        nodes.open_maps(node) as maps,
        Program.open_pinned(nodes.program_pin(node, "su_release")) as release,
    ):
        for key, value in list(maps["flows"].items()):
            if key not in keep:
                held = Claim.unpack(value)
                release.test_run(ctx=ReleaseArgs(Flow.unpack(key), held.word, held.owner).pack())


def measured(namespace: str, way: str, use: int, first: IPv4Address) -> list[int]:
    """A round of a case."""
    enter = ["nsenter", f"--net=/run/netns/{namespace}", sys.executable, "-m", "bench.library"]
    done = subprocess.run([*enter, way, str(use), str(first)], check=False, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise RuntimeError(f"{way}, {use} %: {done.stderr.strip()}")
    result: list[int] = json.loads(done.stdout)
    return result


def measure(helpers: Helpers, rounds: int) -> Costs:
    """All cases, interleaved."""
    costs: Costs = {"plain": [], **{f"{way} {use} %": [] for way in WAYS for use in USES}}
    stem = f"bench-{os.getpid()}-l"
    with tempfile.TemporaryDirectory() as folder, ExitStack() as undo:
        bare = undo.enter_context(dialing.pair(f"{stem}b", helpers))
        hooked = undo.enter_context(dialing.pair(f"{stem}h", helpers))
        undo.enter_context(agent(stem, hooked, Path(folder)))
        with nodes.open_maps(stem) as maps:
            slot = 0
            for number, use in enumerate(USES):
                hosts = [dialing.FIRST_TARGET + number * TARGETS + i for i in range(TARGETS)]
                slot = plane.use_up({name: maps[name] for name in ("flows", "slots", "crowds")}, plane.TCP, hosts,
                                    dialing.PORT, use, slot)  # fmt: skip
            prepared = set(maps["flows"].keys())
        for _ in range(rounds):
            costs["plain"].append(measured(bare, "plain", 0, dialing.FIRST_TARGET))
            for number, use in enumerate(USES):
                first = dialing.FIRST_TARGET + number * TARGETS
                for way in WAYS:
                    costs[f"{way} {use} %"].append(measured(bare if way in BARE else hooked, way, use, first))
                    if way in HOOKED:
                        forget(stem, prepared)
    return costs


def markdown(costs: Costs) -> str:
    """A table for docs/performance.md."""
    middles = {case: [median(one) for one in rounds] for case, rounds in costs.items()}

    def cell(case: str) -> str:
        return f"{median(middles[case]) / 1e3:,.0f} ({ratio(middles[case], middles['plain']):.1f})"

    rows = [["plain `socket.create_connection()`", f"{median(middles['plain']) / 1e3:,.0f} (1.0)", "", "", ""]]
    rows += [[NAMES[way], *(cell(f"{way} {use} %") for use in USES)] for way in WAYS]
    return table(["µs (ratio to plain)", *(f"{use} % used" for use in USES)], rows)


def connector(
    way: str, use: int, targets: list[str]
) -> tuple[Callable[[tuple[str, int]], socket.socket], list[object]]:
    """What connects, and what must be kept meanwhile."""
    if way == "plain":
        return lambda remote: socket.create_connection(remote), []
    if way in HOOKED:
        by = softunicast.dialer(pool="gb", way=way)
        return lambda remote: softunicast.connect(remote, by=by), []
    held: list[object] = []
    # The kernel's own range has the slice, or has not: IP_LOCAL_PORT_RANGE, or port after port.
    tools.sysctl("net/ipv4/ip_local_port_range", "1024 60999" if way == "range" else "32768 60999")
    quiet = softunicast.dialer(slice=PLACE, options=QUIET)
    for target in targets:
        held += [
            softunicast.connect((target, dialing.PORT), by=quiet)
            for _ in range((plane.LAST - plane.FIRST + 1) * use // 100)
        ]
    by = softunicast.dialer(slice=PLACE)
    return lambda remote: softunicast.connect(remote, by=by), held


def dial(way: str, use: int, first: IPv4Address) -> list[int]:
    """Nanoseconds of each connection: made, connected, reset. Two for each target before, which are not counted."""
    os.sched_setaffinity(0, {tools.MEASURED_CPU})
    targets = [str(first + i) for i in range(TARGETS)]
    connect, held = connector(way, use, targets)
    taken = []
    for number in range(-2 * TARGETS, TARGETS * EACH):
        remote = (targets[number % TARGETS], dialing.PORT)
        begun = time.perf_counter_ns()
        made = connect(remote)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        made.close()
        if number >= 0:
            taken.append(time.perf_counter_ns() - begun)
    del held
    return taken


if __name__ == "__main__":
    json.dump(dial(sys.argv[1], int(sys.argv[2]), IPv4Address(sys.argv[3])), sys.stdout)
