# SPDX-License-Identifier: Apache-2.0
"""What it costs to end TCP here rather than to rewrite packets: python -m bench.terminated

    client (three: bpf, held, early) 10.68.0.2 ---- node, a real agent ---- 10.68.9.2 world        namespaces, veth

One node with three on-ramps that differ in strategy and handshake only, measured one after the other, in rounds, by
the same load (bench/relay_load.c). CPU is that of the whole machine (/proc/stat), both ends of the load and softirqs
counted, for rewriting has no process; so look at differences.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

from bench import report, tools
from bench.relays import PARALLEL, PATIENCE_S, SECONDS, TICKS, TRIPS, Figures, Way, load_run
from bench.tools import HERE, median, percentile, ratio, run, table
from softunicast.kernel import netns
from softunicast.model.allocator import allocate
from softunicast.model.bindings_file import dump_bindings
from softunicast.model.plan import load_plan

STEM: Final = f"ended{os.getpid()}"
NODE, WORLD = f"{STEM}-node", f"{STEM}-world"
FAR: Final = "10.68.9.2"
PORT: Final = 7000
NAMES: Final = {
    "bpf": "packets rewritten (`bpf`)",
    "held": "terminated, `handshake: held`",
    "early": "terminated, `handshake: early`",
}
KEYS: Final = {
    "bpf": "",
    "held": ", strategy: terminate",
    "early": ", strategy: terminate, handshake: early",
}


def plan_text() -> str:
    onramps = "".join(
        f"          {name}: {{device: {name}0, sources: [10.68.0.0/24], gateway: 10.68.0.1{keys}}}\n"
        for name, keys in KEYS.items()
    )
    return f"""\
prefixes: [{{prefix: 198.51.100.0/24}}]
sites:
  lhr:
    nodes:
      {NODE}:
        underlay: 10.68.9.1
        uplinks: [up0]
        onramps:
{onramps}pools:
  all: {{addresses: [198.51.100.10-198.51.100.17], site: lhr, slice_ports: 65536}}
settings:
  flows: 1048576
  timers: {{tcp_transitory_s: 2, tcp_linger_s: 1, sock_linger_s: 1}}
"""


def client_of(name: str) -> str:
    return f"{STEM}-{name}"


@contextmanager
def topology() -> Iterator[None]:
    with tools.namespaces(NODE, WORLD, *map(client_of, NAMES)):
        with netns.enter(NODE):
            run(f"ip link add up0 type veth peer name u0 netns {WORLD}")
            run("ip address add 10.68.9.1/24 dev up0")
            run("ip link set up0 up")
            run(f"ip route add default via {FAR}")
            for name in NAMES:
                run(f"ip link add {name}0 type veth peer name u0 netns {client_of(name)}")
                run(f"ip address add 10.68.0.1/32 dev {name}0")
                run(f"ip link set {name}0 up")
        with netns.enter(WORLD):
            run(f"ip address add {FAR}/24 dev u0")
            run("ip link set u0 up")
            run("ip route add 198.51.100.0/24 via 10.68.9.1")
            tools.sysctl("net/core/somaxconn", 4096)
        for name in NAMES:
            with netns.enter(client_of(name)):
                run("ip address add 10.68.0.2/24 dev u0")
                run("ip link set u0 up")
                run("ip route add default via 10.68.0.1")
                tools.sysctl("net/ipv4/ip_local_port_range", "10000 65000")
        yield


@contextmanager
def agent(folder: Path) -> Iterator[None]:
    """A real one, its terminator serving; uninstalled at the end."""
    text = plan_text()
    (folder / "plan.yaml").write_text(text)
    (folder / "bindings.yaml").write_text(dump_bindings(allocate(load_plan(text, "plan.yaml"))))
    softunicast = ["nsenter", f"--net=/run/netns/{NODE}", sys.executable, "-m", "softunicast.cli"]
    files = ["--plan", str(folder / "plan.yaml"), "--bindings", str(folder / "bindings.yaml"), "--node", NODE]
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen([*softunicast, "agent", *files], stdout=log, stderr=log)
        try:
            ends = time.monotonic() + PATIENCE_S
            while b'"serving"' not in (folder / "agent.log").read_bytes():
                if process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError(f"the agent does not serve: {(folder / 'agent.log').read_text()[-2000:]}")
                time.sleep(0.1)
            yield
        finally:
            process.terminate()
            process.wait()
            subprocess.run([*softunicast, "agent", "uninstall", "--node", NODE], capture_output=True, check=False)


def machine_s() -> float:
    """CPU seconds that the machine was busy so far."""
    user, nice, system, _, _, irq, softirq = map(int, Path("/proc/stat").read_text().split()[1:8])
    return (user + nice + system + irq + softirq) / TICKS


def way_of(name: str) -> Way:
    """Every client asks the world itself."""
    return Way(name, (FAR, str(PORT), "-", "0"), client=client_of(name))


def measure_one(load: Path, name: str, figures: Figures) -> None:
    for streams in (1, 8):
        before = machine_s()
        moved, took_us = map(float, load_run(load, way_of(name), "stream", streams, SECONDS)[0].split())
        figures.add(f"gbit {streams}", moved * 8 / took_us / 1e3)
        figures.add(f"cpu {streams}", (machine_s() - before) / (moved / 1e9))
    before = machine_s()
    connects = load_run(load, way_of(name), "connect", PARALLEL, SECONDS)
    figures.add("connects", len(connects) / SECONDS)
    figures.add("connect cpu", (machine_s() - before) / len(connects) * 1e6)
    one = [float(line) for line in load_run(load, way_of(name), "connect", 1, 1)]
    figures.add("connect p50", median(one))
    figures.add("connect p99", percentile(one, 99))
    trips = [float(line) for line in load_run(load, way_of(name), "trip", TRIPS)]
    figures.add("trip p50", median(trips))
    figures.add("trip p99", percentile(trips, 99))


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, Figures]:
    results = {name: Figures() for name in NAMES}
    with tempfile.TemporaryDirectory() as text, topology(), ExitStack() as undo:
        load = Path(text, "relay_load")
        run(f"{os.environ.get('CC', 'cc')} -O2 -Wall -pthread -o {load} {HERE / 'relay_load.c'}")
        enter = ["nsenter", f"--net=/run/netns/{WORLD}", str(load), "serve", str(PORT)]
        server = subprocess.Popen(enter, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        undo.callback(server.wait)
        undo.callback(server.terminate)
        undo.enter_context(agent(Path(text)))
        for number in range(rounds):
            for name, its in results.items():
                say(f"round {number + 1}, {name}")
                measure_one(load, name, its)
    return results


def markdown(results: dict[str, Figures], rounds: int, seconds: float) -> str:
    def cell(name: str, what: str, form: str) -> str:
        return format(median(results[name].by[what]), form)

    def beside(name: str, what: str) -> str:
        return f"{ratio(results[name].by[what], results['bpf'].by[what]):.2f}"

    bulk = table(
        ["", "Gbit/s, 1 stream", "8 streams", "machine's CPU s a GB, 1 / 8", "of `bpf`"],
        [
            [
                title,
                cell(name, "gbit 1", ".1f"),
                cell(name, "gbit 8", ".1f"),
                f"{cell(name, 'cpu 1', '.2f')} / {cell(name, 'cpu 8', '.2f')}",
                f"{beside(name, 'cpu 1')} / {beside(name, 'cpu 8')}",
            ]
            for name, title in NAMES.items()
        ],
    )
    small = table(
        [
            "",
            "connections/s, 8 at a time",
            "machine's CPU µs each",
            "of `bpf`",
            "connect, p50 / p99 µs",
            "1 kB and back, p50 / p99 µs",
        ],
        [
            [
                title,
                cell(name, "connects", ",.0f"),
                cell(name, "connect cpu", ",.0f"),
                beside(name, "connect cpu"),
                f"{cell(name, 'connect p50', ',.0f')} / {cell(name, 'connect p99', ',.0f')}",
                f"{cell(name, 'trip p50', ',.0f')} / {cell(name, 'trip p99', ',.0f')}",
            ]
            for name, title in NAMES.items()
        ],
    )
    return f"""# Performance of terminated TCP

Written by `python -m bench.terminated --write docs/performance-terminate.md` as root: one run, {rounds} rounds,
{seconds:.0f} seconds; medians of rounds. Client, node and server are namespaces joined by veth on the same CPUs; CPU is
the whole machine's, both ends of the load counted: read the ratios. [terminate.md](terminate.md) says what it is,
`bench/terminated.py` how each figure is taken.

Machine: {report.machine(0)}

## Bytes

{bulk}
## Connections

A connect is socket(), handshake, a byte there and back; it ends by RST.

{small}
What `held` costs towards a destination that is far away, a round trip, is not measured.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.terminated", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", type=Path, metavar="FILE", help="where the page goes; default: standard output")
    arguments = parser.parse_args()
    began = time.monotonic()
    results = measure(arguments.rounds, lambda text: print(text, file=sys.stderr))
    page = markdown(results, arguments.rounds, time.monotonic() - began)
    if arguments.write is None:
        print(page)
    else:
        arguments.write.write_text(page, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
