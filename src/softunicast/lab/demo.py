# SPDX-License-Identifier: Apache-2.0
"""The demonstration: two servers, one address, before your eyes.

On each of two servers a program under `softunicast run`, and two client hosts behind it (one on a veth, one
on a TUN), download 10 MB, resolve a name and ping, all at once, all from 198.51.100.10. What is shown comes
from the other side: the web server's log, the DNS server's log, the router's capture. The checker's zero is
proved by a packet put behind the guard, which it must find. Exit status 1 names what was not as told; the lab
is taken down whatever happens.
"""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from rich.console import Console
from rich.table import Table

from softunicast.errors import SoftunicastError
from softunicast.kernel import nodes, stats
from softunicast.kernel.abi import Counter, Drop
from softunicast.wire.packet import parse
from softunicast.wire.pcap import read_pcap

from . import topology as facts
from .capture import Capture
from .checker import Report
from .inject import inject_behind_guard
from .lab import Host, Lab

ADDRESS: Final = "198.51.100.10"
DOWNLOAD_BYTES: Final = 10_000_000
PINGS: Final = 5
PATIENCE_S: Final = 45.0
SETTLE_S: Final = 3.0
LEAST_WIDTH: Final = 100  # columns; a narrower terminal folds the lines rather than losing an address


class DemoLab(Lab):
    """The lab with a pool of one address, so that nobody has a choice."""

    def plan_text(self) -> str:
        return super().plan_text().replace("[198.51.100.10-198.51.100.11,", f"[{ADDRESS},")


@dataclass(frozen=True, slots=True)
class Actor:
    """Who takes part. `program`: on the node itself, under `softunicast run`; otherwise a client host behind it."""

    where: str
    title: str
    program: bool = False

    @property
    def prefix(self) -> list[str]:
        return ["softunicast", "run", "--pool", "gb", "--"] if self.program else []


ACTORS: Final = (
    Actor("lhr1", "program on lhr1", program=True),
    Actor("c1", "client c1, veth at lhr1"),
    Actor("t1", "client t1, TUN at lhr1"),
    Actor("lhr2", "program on lhr2", program=True),
    Actor("c2", "client c2, veth at lhr2"),
    Actor("t2", "client t2, TUN at lhr2"),
)


@dataclass(slots=True)
class Deed:
    """One thing that one actor did. `seen`: address:port (ping: id) as it arrived; `wrong`: what was not as told."""

    actor: Actor
    what: str
    result: str = ""
    seen: str = ""
    wrong: str = ""


@dataclass(slots=True)
class Outcome:
    """All that the demonstration found out."""

    deeds: list[Deed] = field(default_factory=list)
    internet: Report = field(default_factory=Report)
    rack: Report = field(default_factory=Report)
    control: Report = field(default_factory=Report)
    carried_out: dict[str, int] = field(default_factory=dict)
    carried_in: dict[str, int] = field(default_factory=dict)
    answers: int = 0
    drops: dict[str, dict[str, int]] = field(default_factory=dict)

    def wrong(self) -> list[str]:
        """What was not as told, a line each."""
        found = [f"{deed.actor.title}, {deed.what}: {deed.wrong}" for deed in self.deeds if deed.wrong]
        found += [f"at the router's internet side: {problem}" for problem in self.internet.problems()]
        found += [f"at the rack: {problem}" for problem in self.rack.problems()]
        others = sorted({flow[1] for flow in self.internet.flows} - {ADDRESS})
        if others:
            found.append(f"not everything left from {ADDRESS}: {', '.join(others)} too")
        carried = sum(self.carried_out.values())
        if not carried:
            found.append("no answer came to the wrong server, so nothing was shown")
        if carried != sum(self.carried_in.values()):
            found.append(f"{carried} answers were carried away, {sum(self.carried_in.values())} arrived")
        if len(self.control.outside_slice) != 1:
            found.append(f"one packet was put behind the guard, the checker reported {len(self.control.outside_slice)}")
        return found


def expected_digest(token: str) -> str:
    """SHA-256 of what /bytes/N?token= sends."""
    line = f"{token}\n".encode()
    whole = line * (DOWNLOAD_BYTES // len(line) + 1)
    return hashlib.sha256(whole[:DOWNLOAD_BYTES]).hexdigest()


def start(host: Host, actor: Actor, mark: int, folder: Path) -> list[tuple[Deed, subprocess.Popen[Any]]]:
    """Start an actor's three programs at once. `mark` fills its pings, so that the capture tells them apart."""
    url = f"http://{facts.WEB[0]}/bytes/{DOWNLOAD_BYTES}?token={actor.where}"
    shown = "%{http_code} %{size_download} %{time_total} %{local_ip}:%{local_port}"
    commands = {
        "curl, 10 MB": ["curl", "-sS", "--max-time", "30", "-o", str(folder / actor.where), "-w", shown, url],
        "dig, a name": [*("dig", "+short", "+tries=2", "+time=4", f"@{facts.DNS}", f"{actor.where}.{facts.ANY_NAME}")],
        "ping, 5 times": [
            *("ping", "-n", "-q", "-c", str(PINGS), "-i", "0.2", "-W", "3", "-p", f"{mark:02x}", facts.WEB[0])
        ],
    }
    begun = []
    for what, command in commands.items():
        child = host.popen([*actor.prefix, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        begun.append((Deed(actor, what), child))
    return begun


def finish(deed: Deed, child: subprocess.Popen[Any]) -> str:
    """Wait for a program and return what it printed; what went wrong is noted in the deed."""
    try:
        out, errors = child.communicate(timeout=PATIENCE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        out, errors = child.communicate()
        deed.wrong = f"did not end within {PATIENCE_S:.0f} s"
    if child.returncode and not deed.wrong:
        said = (errors or out).strip().splitlines()
        deed.wrong = f"exit status {child.returncode}{': ' + said[-1] if said else ''}"
    return str(out).strip()


def judge_download(deed: Deed, out: str, seen: dict[str, str], folder: Path) -> None:
    """Status, size, every byte, and for a program the port it believes to have against the one the server saw."""
    token = deed.actor.where
    deed.seen = seen.get(token, "")
    if deed.wrong:
        return
    status, size, seconds, local = out.split()
    deed.result = f"{int(size) / 1e6:.0f} MB in {float(seconds):.2f} s"
    if status != "200" or int(size) != DOWNLOAD_BYTES:
        deed.wrong = f"status {status}, {size} bytes"
    elif hashlib.sha256((folder / token).read_bytes()).hexdigest() != expected_digest(token):
        deed.wrong = "bytes of somebody else, or damaged ones"
    elif not deed.seen:
        deed.wrong = "the web server did not see it"
    elif deed.actor.program and local != deed.seen:
        deed.wrong = f"believes to be {local}, the server saw {deed.seen}"


def judge_name(deed: Deed, out: str, seen: dict[str, str]) -> None:
    """The answer, and that the server saw the question."""
    deed.seen = seen.get(f"{deed.actor.where}.{facts.ANY_NAME}", "")
    if deed.wrong:
        return
    deed.result = out
    if out != facts.WEB[0]:
        deed.wrong = f"answered {out!r} instead of {facts.WEB[0]}"
    elif not deed.seen:
        deed.wrong = "the DNS server did not see it"


def judge_ping(deed: Deed, out: str, seen: dict[int, str], mark: int) -> None:
    """All answered, and that the router saw them."""
    deed.seen = seen.get(mark, "")
    if deed.wrong:
        return
    summary = next((line for line in out.splitlines() if "received" in line), "no summary")
    counts = summary.split(", ")
    deed.result = f"{counts[1].split()[0]} of {counts[0].split()[0]} answered" if len(counts) > 1 else summary
    if f"{PINGS} received" not in summary:
        deed.wrong = summary
    elif not deed.seen:
        deed.wrong = "the router did not see it"


def pings_seen(pcap: bytes) -> dict[int, str]:
    """Last byte of an echo request's payload -> source and id, from the router's capture."""
    routers = [bytes.fromhex(facts.mac(*side).replace(":", "")) for side in facts.INTERNET_SIDES]
    seen = {}
    for _, frame, _ in read_pcap(pcap).frames():
        if frame[6:12] in routers and frame[12:14] == b"\x08\x00" and frame[23] == 1:
            packet = parse(frame[14:])
            if packet.is_echo_request:
                seen[frame[-1]] = f"{packet.source} id {packet.icmp_id}"
    return seen


def act(lab: Lab, outcome: Outcome) -> None:
    """Everybody does everything at once, between captures at both sides of the router."""
    marks = {actor.where: 0xA1 + number for number, actor in enumerate(ACTORS)}
    with TemporaryDirectory(prefix="softunicast-demo-") as name:
        folder = Path(name)
        with Capture(lab, "internet") as internet, Capture(lab, "rack") as rack:
            begun = list(
                itertools.chain.from_iterable(
                    start(lab.node(actor.where), actor, marks[actor.where], folder) for actor in ACTORS
                )
            )
            said = [(deed, finish(deed, child)) for deed, child in begun]
            internet.catch_up()
        outcome.internet, outcome.rack = internet.report(), rack.report()
        pings = pings_seen(internet.data)
        web = {seen.path.partition("token=")[2]: f"{seen.peer}:{seen.port}" for seen in lab.web_log()}
        questions = {question: f"{peer}:{port}" for question, peer, port in lab.dns_log()}
        for deed, out in said:
            if deed.what.startswith("curl"):
                judge_download(deed, out, web, folder)
            elif deed.what.startswith("dig"):
                judge_name(deed, out, questions)
            else:
                judge_ping(deed, out, pings, marks[deed.actor.where])
            outcome.deeds.append(deed)
    outcome.answers = outcome.internet.packets - outcome.internet.sent


def count(lab: Lab, outcome: Outcome) -> None:
    """Read the data plane's own counters: only for what no router can see, who carried what to whom.

    Nodes are read one after the other while late packets (a FIN, its ACK) may still pass: read again until they agree.
    """
    deadline = time.monotonic() + SETTLE_S
    while True:
        for node in facts.NODES:
            with nodes.open_maps(lab.node(node).plan_name) as maps:
                drops, counters = stats.sum_percpu(maps["stats"])
            outcome.carried_out[node] = counters[Counter.CARRIED_OUT]
            outcome.carried_in[node] = counters[Counter.CARRIED_IN]
            outcome.drops[node] = {Drop(reason).name: number for reason, number in drops.items() if number}
        agreed = sum(outcome.carried_out.values()) == sum(outcome.carried_in.values())
        if agreed or time.monotonic() > deadline:
            return
        time.sleep(0.1)


def control(lab: Lab, outcome: Outcome) -> None:
    """One packet behind the guard: the checker must report exactly it."""
    with Capture(lab, "internet") as capture:
        inject_behind_guard(lab.node("lhr1"), ADDRESS)
    outcome.control = capture.report()


def show(console: Console, outcome: Outcome) -> None:
    """The table, and the sums below it."""
    table = Table(title=f"Two servers, one address: {ADDRESS}", title_style="bold", header_style="bold")
    for column in ("who", "what", "result", "seen from outside as"):
        table.add_column(column, no_wrap=True)
    for actor in ACTORS:
        for number, deed in enumerate(deed for deed in outcome.deeds if deed.actor == actor):
            result = f"[red]{deed.wrong}[/red]" if deed.wrong else deed.result
            table.add_row("" if number else actor.title, deed.what, result, deed.seen or "-", end_section=number == 2)
    console.print(table)
    internet, nodes_sent = outcome.internet, outcome.rack.by_node()
    carried = sum(outcome.carried_out.values())
    share = f" ({carried / outcome.answers:.0%})" if outcome.answers else ""
    sent = ", ".join(f"{node} {nodes_sent[node]:,}" for node in facts.NODES)
    by_whom = ", ".join(f"{node} carried {number:,} to the other" for node, number in outcome.carried_out.items())
    rows = [
        ("packets at the router", f"{internet.packets:,} ({internet.sent:,} out: {sent})"),
        ("answers that came to the wrong server", f"{carried:,} of {outcome.answers:,}{share}; {by_whom}"),
        ("packets outside their slice", _good(len(internet.outside_slice) + len(internet.not_expected_source))),
        ("from the other server's slice", _good(len(outcome.rack.outside_slice))),
        ("bad checksums", _good(len(internet.bad_checksums))),
        ("lost by the capture", _good(internet.kernel_dropped + outcome.rack.kernel_dropped)),
        ("control: 1 packet put behind the guard", f"{len(outcome.control.outside_slice)} reported"),
    ]
    sums = Table.grid(padding=(0, 2))
    for title, value in rows:
        sums.add_row(title, value)
    console.print(sums)
    for node, drops in outcome.drops.items():
        if drops:
            console.print(f"[dim]dropped at {node}: {', '.join(f'{n} {name}' for name, n in drops.items())}[/dim]")


def _good(number: int) -> str:
    return f"[green]{number}[/green]" if number == 0 else f"[bold red]{number}[/bold red]"


@contextmanager
def step(console: Console, what: str) -> Iterator[None]:
    """A line with the time it took."""
    began_s = time.monotonic()
    console.print(f"{what} ...", end=" ")
    try:
        yield
    except BaseException:
        console.print("[red]failed[/red]")
        raise
    console.print(f"{time.monotonic() - began_s:.1f} s")


def demonstrate(prefix: str = "demo", *, keep: bool = False, console: Console | None = None) -> int:
    """Run it all. 0: everything was as told; 1: it was not, and what is printed. `keep` leaves the lab up.

    SoftunicastError when the lab cannot be brought up; then nothing is left behind.
    """
    out = console if console is not None else Console(highlight=False)
    out.width = max(out.width, LEAST_WIDTH)
    lab = DemoLab(prefix)
    outcome = Outcome()
    out.print(facts.DRAWING, markup=False)
    try:
        with step(out, "Building it, starting servers and two agents"):
            lab.up()
        with step(out, f"{len(ACTORS)} parties download, resolve and ping at once"):
            act(lab, outcome)
            count(lab, outcome)
        with step(out, "Putting a packet behind the guard, to test the checker"):
            control(lab, outcome)
        show(out, outcome)
        wrong = outcome.wrong()
        if wrong:
            _autopsy(out, lab)
    except SoftunicastError:
        _autopsy(out, lab)
        raise
    finally:
        if keep:
            out.print(f"The lab stays up; softunicast lab down --prefix {prefix}")
        else:
            lab.down()
    for line in wrong:
        out.print(f"[bold red]not as told:[/bold red] {line}", highlight=False)
    out.print("[bold]Not as told.[/bold]" if wrong else "[bold green]All as told.[/bold green]")
    return 1 if wrong else 0


def _autopsy(out: Console, lab: Lab) -> None:
    """What the agents said, when something went wrong."""
    for node in facts.NODES:
        words = lab.log(f"agent-{node}").splitlines()[-5:]
        for line in words:
            out.print(f"[dim]agent {node}: {line}[/dim]")
