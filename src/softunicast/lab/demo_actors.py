# SPDX-License-Identifier: Apache-2.0
"""Who takes part in the demonstration, what they do, and how each deed is judged.

On each node a program under `softunicast run`, behind it its client hosts; each downloads, resolves a name and pings,
over IPv4 and IPv6, all at once. A deed is believed when the other side saw it too (the servers' logs, the routers'
captures), and saw it come from a slice of the very node that the actor is at.
"""

from __future__ import annotations

import hashlib
import itertools
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from softunicast.wire.packet import Malformed, parse
from softunicast.wire.pcap import read_pcap

from . import topology as facts
from .demo_ways import Owners
from .lab import Lab

DOWNLOAD_BYTES: Final = 2_000_000
PINGS: Final = 5
PATIENCE_S: Final = 60.0
FAMILIES: Final = (4, 6)
WEB: Final = {4: facts.WEB[0], 6: facts.WEB6[0]}
DNS: Final = {4: facts.DNS, 6: facts.DNS6}
RECORD: Final = {4: "A", 6: "AAAA"}
FIRST_MARK: Final = 0xA1  # fills the first actor's pings, so that a capture tells everybody's apart

Place = tuple[str, int]
"""Address and port (a ping's id), as somebody outside saw them."""


@dataclass(frozen=True, slots=True)
class Actor:
    """Who takes part. `where` is the node itself for a program under `softunicast run`, else a client behind it."""

    where: str
    node: str

    @property
    def program(self) -> bool:
        """On the node itself."""
        return self.where == self.node

    @property
    def title(self) -> str:
        """For the first column."""
        if self.program:
            return f"{self.node}, a program"
        return f"{self.where}, {'veth' if self.where[0] == 'c' else 'TUN'} at {self.node}"

    @property
    def prefix(self) -> list[str]:
        """What is put before a command."""
        return (
            ["softunicast", "run", "--pool", facts.POOL_OF_SITE[facts.site_of(self.node)], "--"] if self.program else []
        )


ACTORS: Final = tuple(Actor(where, node) for node in facts.NODES for where in (node, *facts.CLIENTS[node]))


@dataclass(slots=True)
class Deed:
    """One thing that one actor did. `seen`: from where it arrived; `wrong`: what was not as told."""

    actor: Actor
    what: str
    version: int
    mark: int
    result: str = ""
    seen: Place | None = None
    wrong: str = ""

    @property
    def token(self) -> str:
        """Names this actor's download and question among all."""
        return f"{self.actor.where}-{self.version}"

    def __str__(self) -> str:
        return f"{self.actor.title}, {self.what} over IPv{self.version}"


@dataclass(frozen=True, slots=True)
class Witnesses:
    """What the other side saw: downloads and questions by token, pings by mark; and whose a port is."""

    web: Mapping[str, Place]
    dns: Mapping[str, Place]
    pings: Mapping[int, Place]
    owners: Owners


def expected_digest(token: str) -> str:
    """SHA-256 of what /bytes/N?token= sends."""
    line = f"{token}\n".encode()
    whole = line * (DOWNLOAD_BYTES // len(line) + 1)
    return hashlib.sha256(whole[:DOWNLOAD_BYTES]).hexdigest()


def commands(deed: Deed, folder: Path) -> list[str]:
    """What a deed runs; a download goes to folder/TOKEN."""
    version, web = deed.version, WEB[deed.version]
    if deed.what == "download":
        url = f"http://{f'[{web}]' if version == 6 else web}/bytes/{DOWNLOAD_BYTES}?token={deed.token}"
        shown = "%{http_code} %{size_download} %{time_total} %{local_ip} %{local_port}"
        return ["curl", "-sS", "-g", "--max-time", "30", "-o", str(folder / deed.token), "-w", shown, url]
    if deed.what == "name":
        name = f"{deed.token}.{facts.ANY_NAME}"
        return ["dig", "+short", "+tries=2", "+time=4", f"@{DNS[version]}", name, RECORD[version]]
    return ["ping", "-n", "-q", "-c", str(PINGS), "-i", "0.2", "-W", "3", "-p", f"{deed.mark:02x}", web]


def act(lab: Lab, folder: Path) -> list[tuple[Deed, str]]:
    """Everybody does everything at once; each deed and what its program printed."""
    deeds = [
        Deed(actor, what, version, FIRST_MARK + number * len(FAMILIES) + place)
        for number, actor in enumerate(ACTORS)
        for place, version in enumerate(FAMILIES)
        for what in ("download", "name", "ping")
    ]
    begun = [
        lab.node(deed.actor.where).popen(
            [*deed.actor.prefix, *commands(deed, folder)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for deed in deeds
    ]
    return [(deed, finish(deed, child)) for deed, child in zip(deeds, begun, strict=True)]


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


def judge(deed: Deed, out: str, witnesses: Witnesses, folder: Path) -> None:
    """Fill in `seen`, `result` and, when something was not as told, `wrong`."""
    if deed.what == "ping":
        deed.seen = witnesses.pings.get(deed.mark)
    else:
        deed.seen = (witnesses.web if deed.what == "download" else witnesses.dns).get(deed.token)
    if not deed.wrong:
        deed.result, deed.wrong = _JUDGES[deed.what](deed, out, folder)
        deed.wrong = deed.wrong or _judge_source(deed, witnesses.owners)


def _judge_source(deed: Deed, owners: Owners) -> str:
    """It came from a slice of the actor's own node."""
    if deed.seen is None:
        return "nobody outside saw it"
    address, port = deed.seen
    whose = owners.find(ip_address(address).packed, port)
    return "" if whose == deed.actor.node else f"left as {address} port {port}, which is {whose or 'nobody'}'s"


def _judge_download(deed: Deed, out: str, folder: Path) -> tuple[str, str]:
    """Status, size, every byte, and for a program the port it believes to have against the one the server saw."""
    status, size, seconds, address, port = out.split()
    result = f"{int(size) / 1e6:.0f} MB in {float(seconds):.1f} s"
    if status != "200" or int(size) != DOWNLOAD_BYTES:
        return result, f"status {status}, {size} bytes"
    if hashlib.sha256((folder / deed.token).read_bytes()).hexdigest() != expected_digest(deed.token):
        return result, "bytes of somebody else, or damaged ones"
    if deed.actor.program and deed.seen not in (None, (address, int(port))):
        return result, f"believes to be {address} port {port}, the server saw {deed.seen}"
    return result, ""


def _judge_name(deed: Deed, out: str, folder: Path) -> tuple[str, str]:
    wanted = WEB[deed.version]
    return ("ok", "") if out == wanted else ("", f"answered {out!r} instead of {wanted}")


def _judge_ping(deed: Deed, out: str, folder: Path) -> tuple[str, str]:
    summary = next((line for line in out.splitlines() if "received" in line), "no summary")
    counts = summary.split(", ")
    result = f"{counts[1].split()[0]} of {counts[0].split()[0]}" if len(counts) > 1 else summary
    return result, "" if f"{PINGS} received" in summary else summary


_JUDGES: Final = {"download": _judge_download, "name": _judge_name, "ping": _judge_ping}


def pings_seen(pcap: bytes) -> dict[int, Place]:
    """Last byte of an echo request's payload -> source and id, from the captures towards the internet."""
    routers = [bytes.fromhex(facts.mac(*side).replace(":", "")) for side in facts.INTERNET_SIDES]
    seen = {}
    for _, frame, _ in read_pcap(pcap).frames():
        icmp = (frame[12:14] == b"\x08\x00" and frame[23] == 1) or (frame[12:14] == b"\x86\xdd" and frame[20] == 58)
        if icmp and frame[6:12] in routers:
            try:
                packet = parse(frame[14:])
            except Malformed:
                continue
            if packet.is_echo_request and packet.icmp_id is not None:
                seen[frame[-1]] = (str(packet.source), packet.icmp_id)
    return seen


def web_seen(lab: Lab) -> dict[str, Place]:
    """Token of a download -> who the web server saw."""
    return {
        seen.path.partition("token=")[2]: (str(ip_address(seen.peer.strip("[]"))), seen.port) for seen in lab.web_log()
    }


def dns_seen(lab: Lab) -> dict[str, Place]:
    """Token of a question -> who the DNS server saw."""
    return {name.partition(".")[0]: (str(ip_address(peer)), port) for name, peer, port in lab.dns_log()}


def by_actor(deeds: list[Deed]) -> list[tuple[Actor, int, list[Deed]]]:
    """The deeds of each actor over each family, in order."""
    found = []
    for (actor, version), group in itertools.groupby(deeds, key=lambda deed: (deed.actor, deed.version)):
        found.append((actor, version, list(group)))
    return found


def folder() -> TemporaryDirectory[str]:
    """Where downloads go while they are judged."""
    return TemporaryDirectory(prefix="softunicast-demo-")
