# SPDX-License-Identifier: Apache-2.0
"""`softunicast proxy` beside HAProxy, Dante, asyncio streams and no relay at all: python -m bench.relays

    client 10.67.1.2 ---- 10.67.1.1 relay 10.67.2.1 ---- 10.67.2.2 world        three namespaces, veth

All relays run at the same time and are measured one after the other, in rounds. The client speaks SOCKS5 to Dante and
to us; HAProxy (TCP mode, splice-request and splice-response) and asyncio know one destination. Ours leaves from the
node's own address here (`direct`): what a slice adds to a connect() is measured by bench.dialing. CPU seconds are those
of the relay's processes (/proc/PID/stat), memory is their Pss; what the kernel holds for sockets is the same for all.
Client and server (bench/relay_load.c) share the CPUs with the relay.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from bench import report, tools
from bench.tools import HERE, median, percentile, ratio, run, table
from softunicast.kernel import netns

STEM: Final = f"relays{os.getpid()}"
CLIENT, RELAY, WORLD = (f"{STEM}-{name}" for name in ("client", "relay", "world"))
INNER, OUTER, FAR = "10.67.1.1", "10.67.2.1", "10.67.2.2"
PORT: Final = 7000
TICKS: Final = os.sysconf("SC_CLK_TCK")
SECONDS: Final = 2
IDLE: Final = 5000
TRIPS: Final = 3000
PARALLEL: Final = 8
PATIENCE_S: Final = 120
NAMES: Final = {
    "none": "no relay (routed)",
    "ours": "**softunicast proxy**, SOCKS5, 1 worker",
    "haproxy": "HAProxy, TCP mode, spliced, 1 thread",
    "dante": "Dante, SOCKS5",
    "asyncio": "asyncio streams",
}
HAPROXY: Final = f"""
global
  maxconn 6000
  nbthread 1
defaults
  mode tcp
  option splice-request
  option splice-response
  timeout connect 10s
  timeout client 1h
  timeout server 1h
listen all
  bind {INNER}:7001
  server far {FAR}:{PORT}
"""
DANTE: Final = f"""
logoutput: /dev/null
internal: {INNER} port = 7002
external: {OUTER}
clientmethod: none
socksmethod: none
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
"""
OURS: Final = f"""
listeners: {{main: {{listen: "{INNER}:7004", anonymous: me, clients: [10.67.0.0/16]}}}}
users: {{me: {{direct: true, allow: [10.67.0.0/16]}}}}
"""


@dataclass(frozen=True)
class Way:
    """`aim`: HOST PORT SOCKS_HOST SOCKS_PORT of relay_load."""

    name: str
    aim: tuple[str, str, str, str]
    process: subprocess.Popen[bytes] | None = None


@dataclass
class Figures:
    """One list a figure, an entry a round."""

    by: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, value: float) -> None:
        self.by.setdefault(name, []).append(value)


def tree(pid: int) -> list[int]:
    """A process and all below it."""
    found, at = [pid], 0
    while at < len(found):
        for task in Path(f"/proc/{found[at]}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
        at += 1
    return found


def cpu_s(way: Way) -> float:
    """CPU seconds of a relay so far, its ended children included."""
    if way.process is None:
        return 0
    ticks = 0
    for pid in tree(way.process.pid):
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(int(field) for field in fields[11:15])
    return ticks / TICKS


def memory_mb(way: Way) -> float:
    if way.process is None:
        return 0
    total = 0
    for pid in tree(way.process.pid):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


@contextmanager
def topology() -> Iterator[None]:
    with tools.namespaces(CLIENT, RELAY, WORLD):
        for here, device, there, peer in ((RELAY, "c0", CLIENT, "u0"), (RELAY, "w0", WORLD, "u0")):
            with netns.enter(here):
                run(f"ip link add {device} type veth peer name {peer} netns {there}")
        for space, device, address in (
            (CLIENT, "u0", "10.67.1.2"),
            (RELAY, "c0", INNER),
            (RELAY, "w0", OUTER),
            (WORLD, "u0", FAR),
        ):
            with netns.enter(space):
                run(f"ip address add {address}/24 dev {device}")
                run(f"ip link set {device} up")
                tools.sysctl("net/core/somaxconn", 4096)
                tools.sysctl("net/ipv4/ip_local_port_range", "10000 65000")
        for space, gateway in ((CLIENT, INNER), (WORLD, OUTER)):
            with netns.enter(space):
                run(f"ip route add default via {gateway}")
        with netns.enter(RELAY):
            tools.sysctl("net/ipv4/ip_forward", 1)
        yield


def listening(port: int) -> bool:
    with netns.enter(RELAY):
        return f":{port} " in run("ss -Hltn")


@contextmanager
def ways(folder: Path, load: Path) -> Iterator[list[Way]]:
    """The server in the world, and every relay."""
    (folder / "haproxy.cfg").write_text(HAPROXY)
    (folder / "danted.conf").write_text(DANTE)
    (folder / "proxy.yaml").write_text(OURS)
    commands = {
        "ours": (7004, [sys.executable, "-m", "softunicast.cli", "proxy", "--policy", str(folder / "proxy.yaml")]),
        "haproxy": (7001, ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]),
        "dante": (7002, ["danted", "-f", str(folder / "danted.conf"), "-p", str(folder / "danted.pid")]),
        "asyncio": (7003, [sys.executable, str(HERE / "asyncio_relay.py"), "7003", FAR, str(PORT)]),
    }
    with ExitStack() as undo:

        def start(space: str, command: Sequence[str]) -> subprocess.Popen[bytes]:
            enter = ["nsenter", f"--net=/run/netns/{space}", *command]
            made = subprocess.Popen(enter, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            undo.callback(made.wait)
            undo.callback(made.terminate)
            return made

        start(WORLD, [str(load), "serve", str(PORT)])
        found = [Way("none", (FAR, str(PORT), "-", "0"))]
        for name, (port, command) in commands.items():
            process = start(RELAY, command)
            ends = time.monotonic() + PATIENCE_S
            while not listening(port):
                if process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError(f"{' '.join(command)}: does not listen on port {port}")
                time.sleep(0.05)
            socks = name in ("ours", "dante")
            aim = (FAR, str(PORT), INNER, str(port)) if socks else (INNER, str(port), "-", "0")
            found.append(Way(name, aim, process))
        yield found


def load_run(load: Path, way: Way, mode: str, first: int, second: int = 0) -> list[str]:
    command = ["nsenter", f"--net=/run/netns/{CLIENT}", str(load), mode, *way.aim, str(first), str(second)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    if done.returncode:
        raise RuntimeError(f"{way.name}, {mode}: {done.stderr.strip() or done.returncode}")
    return done.stdout.splitlines()


def measure_one(load: Path, way: Way, figures: Figures) -> None:
    for streams in (1, 8):
        before = cpu_s(way)
        moved, took_us = map(float, load_run(load, way, "stream", streams, SECONDS)[0].split())
        figures.add(f"gbit {streams}", moved * 8 / took_us / 1e3)
        figures.add(f"cpu {streams}", (cpu_s(way) - before) / (moved / 1e9))
    before = cpu_s(way)
    connects = [float(line) for line in load_run(load, way, "connect", PARALLEL, SECONDS)]
    figures.add("connects", len(connects) / SECONDS)
    figures.add("connect cpu", (cpu_s(way) - before) / len(connects) * 1e6)
    one = [float(line) for line in load_run(load, way, "connect", 1, 1)]
    figures.add("connect p50", median(one))
    figures.add("connect p99", percentile(one, 99))
    trips = [float(line) for line in load_run(load, way, "trip", TRIPS)]
    figures.add("trip p50", median(trips))
    figures.add("trip p99", percentile(trips, 99))


def measure_idle(load: Path, way: Way, count: int) -> float:
    """MB that `count` idle connections cost a relay."""
    before = memory_mb(way)
    words = ["nsenter", f"--net=/run/netns/{CLIENT}", str(load), "hold", *way.aim, str(count), "0"]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        if holder.stdout is None or holder.stdin is None or holder.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{way.name}: {count} connections could not be held")
        used = memory_mb(way) - before
        holder.stdin.close()
    return used


def measure(rounds: int, say: Callable[[str], None]) -> dict[str, Figures]:
    results = {name: Figures() for name in NAMES}
    with tempfile.TemporaryDirectory() as text, topology():
        load = Path(text, "relay_load")
        run(f"{os.environ.get('CC', 'cc')} -O2 -Wall -pthread -o {load} {HERE / 'relay_load.c'}")
        with ways(Path(text), load) as found:
            for number in range(rounds):
                for way in found:
                    say(f"round {number + 1}, {way.name}")
                    measure_one(load, way, results[way.name])
            for way in found:
                say(f"{IDLE} idle connections, {way.name}")
                results[way.name].add("idle", measure_idle(load, way, IDLE))
    return results


AIMS: Final = (
    ("CPU a GB ahead of HAProxy's, 1 stream", "haproxy", "cpu 1", 1.0),
    ("CPU a GB ahead of HAProxy's, 8 streams", "haproxy", "cpu 8", 1.0),
    ("memory of idle connections less than HAProxy's", "haproxy", "idle", 1.0),
    ("CPU a connection level with HAProxy's (at most 1.1)", "haproxy", "connect cpu", 1.1),
    ("CPU a GB ahead of Dante's, 1 stream", "dante", "cpu 1", 1.0),
    ("CPU a GB ahead of Dante's, 8 streams", "dante", "cpu 8", 1.0),
    ("CPU a connection ahead of Dante's", "dante", "connect cpu", 1.0),
    ("time of a connect ahead of Dante's", "dante", "connect p50", 1.0),
    ("time of 1 kB and back ahead of Dante's", "dante", "trip p50", 1.0),
)


def aims(results: dict[str, Figures]) -> str:
    """Ours to theirs: the median of each round's ratio."""
    rows = []
    for text, other, what, most in AIMS:
        figure = ratio(results["ours"].by[what], results[other].by[what])
        rows.append([text, f"{figure:.2f}", "met" if figure <= most else "**missed**"])
    return table(["aim", "ratio", ""], rows)


def markdown(results: dict[str, Figures], rounds: int, seconds: float) -> str:
    def cell(name: str, what: str, form: str) -> str:
        return format(median(results[name].by[what]), form)

    speed = [
        [
            title,
            cell(name, "gbit 1", ".1f"),
            cell(name, "gbit 8", ".1f"),
            "" if name == "none" else f"{cell(name, 'cpu 1', '.2f')} / {cell(name, 'cpu 8', '.2f')}",
            "" if name == "none" else cell(name, "idle", ",.0f"),
        ]
        for name, title in NAMES.items()
    ]
    small = [
        [
            title,
            cell(name, "connects", ",.0f"),
            "" if name == "none" else cell(name, "connect cpu", ",.0f"),
            f"{cell(name, 'connect p50', ',.0f')} / {cell(name, 'connect p99', ',.0f')}",
            f"{cell(name, 'trip p50', ',.0f')} / {cell(name, 'trip p99', ',.0f')}",
        ]
        for name, title in NAMES.items()
    ]
    bulk = table(["", "Gbit/s, 1 stream", "8 streams", "CPU s a GB, 1 / 8", f"MB of {IDLE:,} idle"], speed)
    round_trips = table(
        [
            "",
            "connections/s, 8 at a time",
            "CPU µs a connection",
            "connect, p50 / p99 µs",
            "1 kB and back, p50 / p99 µs",
        ],
        small,
    )
    return f"""# Performance of the proxy

Written by `python -m bench.relays --write docs/performance-proxy.md` as root: one run, {rounds} rounds,
{seconds:.0f} seconds; medians of rounds. Client, relay and server are namespaces joined by veth on the same CPUs,
so that relays compete with both ends for them: read the ratios. [proxy.md](proxy.md) says what the proxy does,
`bench/relays.py` how each figure is taken.

Machine: {report.machine(0)}

## Against the aims

{aims(results)}
## Bytes

{bulk}
## Connections

A connect is socket(), handshake, SOCKS greeting where there is one, a byte there and back; it ends by RST.

{round_trips}
Of a connection's CPU some 60 µs are Python's, spread over a hundred functions of which none takes more than a
twentieth, and some 90 µs the kernel's: twenty-odd system calls, and the two further packets each way of SOCKS5 that
HAProxy here does not have. `bench.dialing` has what a slice adds. Level with HAProxy would take the whole set-up
(session, dialing, relay) in C; nothing of it stands out that could be moved alone.
"""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.relays", description="Measure the proxy beside its peers.")
    parser.add_argument("--rounds", type=int, default=5, help="of each relay, interleaved (default %(default)s)")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the report there instead of on stdout")
    arguments = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("namespaces need root")
    started = time.monotonic()

    def say(what: str) -> None:
        print(f"{time.monotonic() - started:5.0f} s  {what}", file=sys.stderr, flush=True)

    try:
        results = measure(arguments.rounds, say)
    except (OSError, RuntimeError) as error:
        print(f"bench.relays: {error}", file=sys.stderr)
        return 1
    text = markdown(results, arguments.rounds, time.monotonic() - started)
    if arguments.write is None:
        print(text)
    else:
        arguments.write.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
