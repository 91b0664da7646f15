# SPDX-License-Identifier: Apache-2.0
"""What all measurements share: commands, compiled helpers, namespaces, the kernel's own clock on programs."""

from __future__ import annotations

import os
import shlex
import statistics
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from softunicast.kernel import netns
from softunicast.kernel.bpf import Program

HERE: Final = Path(__file__).parent
STATS: Final = Path("/proc/sys/kernel/bpf_stats_enabled")
MEASURED_CPU: Final = max(os.sched_getaffinity(0))
OTHER_CPU: Final = min(os.sched_getaffinity(0))


def run(command: str, timeout_s: float = 60) -> str:
    """In the namespace of this thread; RuntimeError with what it said when it fails."""
    done = subprocess.run(shlex.split(command), check=False, capture_output=True, timeout=timeout_s, text=True)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip() or done.returncode}")
    return done.stdout


def sysctl(name: str, value: int | str) -> None:
    """In the namespace of this thread; `name` below /proc/sys, with slashes."""
    Path("/proc/sys", name).write_text(str(value))


@dataclass(frozen=True)
class Helpers:
    """What was compiled for this run."""

    dial: Path
    bare: Path


def compile_helpers(folder: Path) -> Helpers:
    """bench/dial.c by cc, bench/bare.bpf.c by clang, into `folder`."""
    dial, bare = folder / "dial", folder / "bare.bpf.o"
    run(f"{os.environ.get('CC', 'cc')} -O2 -Wall -o {dial} {HERE / 'dial.c'}")
    include = f"-I/usr/include/{os.uname().machine}-linux-gnu"
    run(f"clang -O2 -g -target bpf -mcpu=v3 {include} -c {HERE / 'bare.bpf.c'} -o {bare}")
    return Helpers(dial, bare)


@contextmanager
def namespaces(*names: str) -> Iterator[None]:
    """Made, and deleted whatever happens. No IPv6 in them: it talks on its own."""
    with ExitStack() as undo:
        for name in names:
            netns.create(name)
            undo.callback(netns.delete, name)
            with netns.enter(name):
                sysctl("net/ipv6/conf/default/disable_ipv6", 1)
                sysctl("net/ipv6/conf/all/disable_ipv6", 1)
                run("ip link set lo up")
        yield


@contextmanager
def program_clock() -> Iterator[None]:
    """The kernel times every run of every program (some 20 ns each) while this is open."""
    before = STATS.read_text().strip()
    STATS.write_text("1")
    try:
        yield
    finally:
        STATS.write_text(before)


def run_time(program: Program) -> tuple[int, int]:
    """Nanoseconds and runs so far, by the kernel's clock."""
    lines = Path(f"/proc/self/fdinfo/{program.fd}").read_text().splitlines()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return int(fields["run_time_ns"]), int(fields["run_cnt"])


def median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else float("nan")


def percentile(values: Sequence[float], percent: float) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))] if ordered else float("nan")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(lines) + "\n"


def ratio(mine: Sequence[float], base: Sequence[float]) -> float:
    """Median of the ratios of each round."""
    return median([a / b for a, b in zip(mine, base, strict=True)])
