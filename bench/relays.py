# SPDX-License-Identifier: Apache-2.0
"""`softunicast proxy` beside HAProxy, Dante, asyncio streams and no relay at all: python -m bench.relays

    client 10.67.1.2 ---- 10.67.1.1 relay 10.67.2.1 ---- 10.67.2.2 world        three namespaces, veth

All relays run at the same time and are measured one after the other, in rounds. The client speaks SOCKS5 to Dante and
to us; HAProxy (TCP mode, splice-request and splice-response) and asyncio know one destination. So that equal work is
compared with HAProxy, both run a second time as transparent proxies: the client asks for the world, TPROXY leads it
here, and the relay goes on to where it asked for. Ours leaves from the node's own address here (`direct`): what a slice
adds to a connect() is measured by bench.dialing. CPU seconds are those
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
BOTH, USER = slice(11, 15), slice(11, 15, 2)
"""Fields of /proc/PID/stat behind the name: utime, stime, cutime, cstime."""
SECONDS: Final = 2
IDLE: Final = 5000
TRIPS: Final = 3000
PARALLEL: Final = 8
PATIENCE_S: Final = 120
TAKEN: Final = {"transparent": (7010, 7005), "haproxy transparent": (7011, 7006)}
"""By way: a port of the world's, and the relay's that TPROXY leads to instead."""
NAMES: Final = {
    "none": "no relay (routed)",
    "ours": "**softunicast proxy**, SOCKS5, 1 worker",
    "transparent": "**softunicast proxy**, transparent, 1 worker",
    "haproxy": "HAProxy, TCP mode, spliced, 1 thread",
    "haproxy transparent": "HAProxy, transparent, spliced, 1 thread",
    "dante": "Dante, SOCKS5",
    "asyncio": "asyncio streams",
}
HAPROXY: Final = """
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
"""
HAPROXY_PLACES: Final = {
    "haproxy": f"  bind {INNER}:7001\n  server far {FAR}:{PORT}\n",
    "haproxy transparent": f"  bind {INNER}:7006 transparent\n  server asked 0.0.0.0:0\n",
}
DANTE: Final = f"""
logoutput: /dev/null
internal: {INNER} port = 7002
external: {OUTER}
clientmethod: none
socksmethod: none
client pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
socks pass {{ from: 0.0.0.0/0 to: 0.0.0.0/0 }}
"""
OURS: Final = """
listeners: {main: {listen: "PLACE", anonymous: me, clients: [10.67.0.0/16], transparent: MODE}}
users: {me: {direct: true, allow: [10.67.0.0/16]}}
"""
TPROXY: Final = (  # for SYNs only; all else is routed to this host, and found by the kernel's own lookups (ADR 0013)
    "nft add table ip proxy",
    "nft add chain ip proxy in '{ type filter hook prerouting priority mangle; }'",
    *(
        f"nft add rule ip proxy in iifname c0 tcp dport {asked} tcp flags & (fin | syn | rst | ack) == syn "
        f"tproxy to {INNER}:{taker} accept"
        for asked, taker in TAKEN.values()
    ),
    *(f"ip rule add iif c0 ipproto tcp dport {asked} lookup 77" for asked, _ in TAKEN.values()),
    "ip route add local default dev lo table 77",
)


@dataclass(frozen=True)
class Way:
    """`aim`: HOST PORT SOCKS_HOST SOCKS_PORT of relay_load; `client`: the namespace that it runs in."""

    name: str
    aim: tuple[str, str, str, str]
    process: subprocess.Popen[bytes] | None = None
    client: str = CLIENT


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


def cpu_s(way: Way, fields: slice = BOTH) -> float:
    """CPU seconds of a relay so far, its ended children included."""
    if way.process is None:
        return 0
    ticks = 0
    for pid in tree(way.process.pid):
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += sum(int(field) for field in found[fields])
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
            for command in TPROXY:
                run(command)
        yield


def listening(port: int) -> bool:
    with netns.enter(RELAY):
        return f":{port} " in run("ss -Hltn")


@contextmanager
def ways(folder: Path, load: Path) -> Iterator[list[Way]]:
    """The server in the world, and every relay."""
    (folder / "danted.conf").write_text(DANTE)
    for name, place in HAPROXY_PLACES.items():
        (folder / f"{name}.cfg").write_text(HAPROXY + place)
    for name, port, mode in (("ours", 7004, "false"), ("transparent", 7005, "true")):
        (folder / f"{name}.yaml").write_text(OURS.replace("PLACE", f"{INNER}:{port}").replace("MODE", mode))
    proxy = [sys.executable, "-m", "softunicast.cli", "proxy", "--policy"]
    commands = {
        "ours": (7004, [*proxy, str(folder / "ours.yaml")]),
        "transparent": (7005, [*proxy, str(folder / "transparent.yaml")]),
        "haproxy": (7001, ["haproxy", "-db", "-f", str(folder / "haproxy.cfg")]),
        "haproxy transparent": (7006, ["haproxy", "-db", "-f", str(folder / "haproxy transparent.cfg")]),
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

        for port in (PORT, *(asked for asked, _ in TAKEN.values())):
            start(WORLD, [str(load), "serve", str(port)])
        found = [Way("none", (FAR, str(PORT), "-", "0"))]
        for name, (port, command) in commands.items():
            process = start(RELAY, command)
            ends = time.monotonic() + PATIENCE_S
            while not listening(port):
                if process.poll() is not None or time.monotonic() > ends:
                    raise RuntimeError(f"{' '.join(command)}: does not listen on port {port}")
                time.sleep(0.05)
            if name in TAKEN:
                aim = (FAR, str(TAKEN[name][0]), "-", "0")
            elif name in ("ours", "dante"):
                aim = (FAR, str(PORT), INNER, str(port))
            else:
                aim = (INNER, str(port), "-", "0")
            found.append(Way(name, aim, process))
        yield found


def load_run(load: Path, way: Way, mode: str, first: int, second: int = 0) -> list[str]:
    command = ["nsenter", f"--net=/run/netns/{way.client}", str(load), mode, *way.aim, str(first), str(second)]
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
    before, user_before = cpu_s(way), cpu_s(way, USER)
    connects = [float(line) for line in load_run(load, way, "connect", PARALLEL, SECONDS)]
    figures.add("connects", len(connects) / SECONDS)
    figures.add("connect cpu", (cpu_s(way) - before) / len(connects) * 1e6)
    figures.add("connect user", (cpu_s(way, USER) - user_before) / len(connects) * 1e6)
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
    ("CPU a GB ahead of HAProxy's, 1 stream", "ours", "haproxy", "cpu 1", 1.0),
    ("CPU a GB ahead of HAProxy's, 8 streams", "ours", "haproxy", "cpu 8", 1.0),
    ("memory of idle connections less than HAProxy's", "ours", "haproxy", "idle", 1.0),
    (
        "CPU a connection level with HAProxy's (at most 1.1), both transparent",
        "transparent",
        "haproxy transparent",
        "connect cpu",
        1.1,
    ),
    ("the same of ours with SOCKS5 to HAProxy's without", "ours", "haproxy", "connect cpu", 1.1),
    ("CPU a GB ahead of Dante's, 1 stream", "ours", "dante", "cpu 1", 1.0),
    ("CPU a GB ahead of Dante's, 8 streams", "ours", "dante", "cpu 8", 1.0),
    ("CPU a connection ahead of Dante's, both SOCKS5", "ours", "dante", "connect cpu", 1.0),
    ("time of a connect ahead of Dante's", "ours", "dante", "connect p50", 1.0),
    ("time of 1 kB and back ahead of Dante's", "ours", "dante", "trip p50", 1.0),
)


def aims(results: dict[str, Figures]) -> str:
    """Ours to theirs: the median of each round's ratio."""
    rows = []
    for text, mine, other, what, most in AIMS:
        figure = ratio(results[mine].by[what], results[other].by[what])
        rows.append([text, f"{figure:.2f}", "met" if figure <= most else "**missed**"])
    return table(["aim", "ratio", ""], rows)


def profile(results: dict[str, Figures]) -> str:
    """Where a connection's CPU goes, and what it would take to be level."""

    def split(name: str) -> tuple[float, float]:
        both, user = (median(results[name].by[what]) for what in ("connect cpu", "connect user"))
        return both - user, user

    kernel, user = split("transparent")
    their_kernel, their_user = split("haproxy transparent")
    socks_kernel, socks_user = split("ours")
    return f"""As transparent proxies both make 22 system calls a connection: the kernel's part is {kernel:.0f}
µs of ours and {their_kernel:.0f} of HAProxy's. In its own code ours spends {user:.0f} µs, HAProxy
{their_user:.0f}. Events, relays, accept() and connect() are C (`native/`); what is left is Python's: who the
client is, by whom it leaves, dialing, what the log and a successor will want to know. That is some fifty calls
of which none has more than a fifteenth, and compiling them by mypyc gained nothing: the time is in objects, and
in caches that the kernel's part has emptied. Level with HAProxy would take all of it (session, dial, limits,
policy) in C; nothing stands out that could be moved alone ([ADR 0014](adr/0014-the-relay-is-c.md)). SOCKS5 is
two more questions and answers, which HAProxy here does not have: {socks_user - user:.0f} µs more of Python,
{socks_kernel - kernel:.0f} of the kernel. `bench.dialing` has what a slice adds."""


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
            "" if name == "none" else f"{cell(name, 'connect cpu', ',.0f')} / {cell(name, 'connect user', ',.0f')}",
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
            "CPU µs a connection / user's",
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
{profile(results)}
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
