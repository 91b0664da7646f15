# SPDX-License-Identifier: Apache-2.0
"""Real clients in the lab of two sites, IPv4 and IPv6: curl, ssh, ping, traceroute, mtr, iperf3, QUIC, path MTU.

From a program under `softunicast run` and from clients behind a veth and a TUN; at lhr, all of whose answers come to
the wrong site, and at cdg, where they come to one of two nodes. For each kind of client all twelve run at once,
captured at both routers: nothing left outside its slice, and lhr's answers came by r2.
"""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface
from pathlib import Path
from typing import Any

import pytest

from softunicast.kernel import netns
from softunicast.lab import topology as facts
from softunicast.lab.capture import Capture
from softunicast.lab.lab import Lab
from softunicast.wire.packet import Malformed, Packet, parse
from softunicast.wire.pcap import read_pcap
from tests.support import ssh_server
from tests.support.fleet_lab import FleetLab, fleet_lab
from tests.support.internet import FAR, INET, IPERF_PORTS, QUIC, QUIC_PORT, SMALL_MTU, Internet, internet
from tests.support.proxy_node import BIG, origin
from tests.support.proxy_place import on
from tests.support.proxy_users import chromium, http3, seen_in, ssh_and_git, wget
from tests.support.proxy_users import iperf3 as iperf3_through
from tests.support.quic_end import certificate
from tests.support.sock_node import ip, sysctl
from tests.support.websocket_end import idle, seen_by, talk, websocket

POOLS = {"lhr1": "gb", "c1": "gb", "t1": "gb", "cdg1": "fr", "c3": "fr", "t4": "fr"}
ADDRESSES = {
    "gb": {"198.51.100.10", "198.51.100.11", "2001:db8:100::10"},
    "fr": {"198.51.100.40", "198.51.100.41", "2001:db8:100::40"},
}
HEADERS = {4: 28, 6: 48}  # of IP and ICMP echo
OWN_DROPS = {"HOPS", "NO_CLAIM"}  # traceroute's packets, that end there; answers to who is gone
PACED = ("-b", "200K", "-l", "1000", "-t", "4")  # of UDP: a receiver without a processor for seconds has room for all
PATIENCE_S = 120  # twelve at once on a machine with other work


@dataclass(frozen=True)
class Place:
    """Where a client runs, with what version of IP."""

    where: str
    version: int

    def __str__(self) -> str:
        return f"{self.where} IPv{self.version}"

    @property
    def pool(self) -> str:
        return POOLS[self.where]

    @property
    def program(self) -> bool:
        return self.where in facts.NODES

    @property
    def flag(self) -> str:
        return f"-{self.version}"

    @property
    def number(self) -> int:
        return list(POOLS).index(self.where)

    def of(self, pair: tuple[str, str]) -> str:
        """The one of two addresses that this place asks."""
        return pair[self.version == 6]


PLACES = [Place(where, version) for where in POOLS for version in (4, 6)]


@dataclass(frozen=True)
class Kind:
    """A kind of client: its command, and whether what it said is right, else an AssertionError. `protocols` are those
    that must have been answered.
    """

    command: Callable[[Place, Internet], list[str]]
    right: Callable[[Place, str], None]
    protocols: tuple[str, ...]


def is_ours(place: Place, address: str) -> None:
    """The server saw an address of the place's pool."""
    assert str(ip_address(address)) in ADDRESSES[place.pool], address


def url(address: str, path: str) -> str:
    return f"http://[{address}]{path}" if ":" in address else f"http://{address}{path}"


# -- curl, ssh, QUIC


def curl(place: Place, net: Internet) -> list[str]:
    target = place.of(INET)
    return ["curl", "-sS", "-m", "30", url(target, "/"), "-o", "-", url(target, "/bytes/1000000?token=x"), "-o", "-"]


def curl_right(place: Place, said: str) -> None:
    line, _, rest = said.partition("\n")
    is_ours(place, line.removeprefix("you are ").rpartition(":")[0].strip("[]"))
    assert rest == "x\n" * 500_000


def ssh(place: Place, net: Internet) -> list[str]:
    """A megabyte there, and whom the server saw."""
    client = " ".join(ssh_server.client_command(net.folder, place.of(INET), "'wc -c; echo $SSH_CLIENT'"))
    return ["sh", "-c", f"head -c 1000000 /dev/zero | {client}"]


def ssh_right(place: Place, said: str) -> None:
    count, address, *_ = said.split()
    assert count == "1000000"
    is_ours(place, address)


def quic(place: Place, net: Internet) -> list[str]:
    return [sys.executable, str(QUIC), "fetch", place.of(INET), str(QUIC_PORT), "100000"]


def quic_right(place: Place, said: str) -> None:
    told = json.loads(said)
    assert (told["bytes"], told["right"]) == (100_000, True)
    is_ours(place, told["seen"].rpartition(":")[0])


# -- ping, traceroute, mtr


def ping(size: int) -> Callable[[Place, Internet], list[str]]:
    """Packets of `size` bytes, IP header and all, that nobody may fragment."""

    def command(place: Place, net: Internet) -> list[str]:
        load = str(size - HEADERS[place.version])
        return ["ping", "-n", "-c", "5", "-i", "0.05", "-W", "5", "-M", "do", "-s", load, place.of(INET)]

    return command


def ping_right(place: Place, said: str) -> None:
    assert " 5 received" in said


def ping_far(place: Place, net: Internet) -> list[str]:
    """Too big for the small link: the first is told of, the second not even sent; one that fits is answered."""
    fits, big = (str(size - HEADERS[place.version]) for size in (SMALL_MTU, 1500))
    words = f"ping -n -W 5 -M do {place.of(FAR[0])}"
    return ["sh", "-c", f"{words} -c 2 -i 2 -s {big} 2>&1; {words} -c 1 -s {fits}"]


def ping_far_right(place: Place, said: str) -> None:
    told = {4: f"Frag needed and DF set (mtu = {SMALL_MTU})", 6: f"Packet too big: mtu={SMALL_MTU}"}[place.version]
    assert re.search(rf"From \S+ icmp_seq=1 {re.escape(told)}", said)
    assert re.search(rf"message too long, mtu[:=] ?{SMALL_MTU}", said)
    assert " 1 received" in said


def hops(place: Place) -> list[str]:
    """The way to far: the node for those behind it, the site's router, inet."""
    number, version = (1 if facts.router_of(_node(place)) == "r1" else 2), place.version
    way = [f"10.0.{number}.1" if version == 4 else f"fd00:{number}::1"]
    if not place.program:
        kind, last = ("64" if place.where[0] == "c" else "65"), place.where[1:]
        way.insert(0, f"10.{kind}.{last}.1" if version == 4 else f"fd{kind}:{last}::1")
    # inet speaks from the line of its way back, by r2 for all; in IPv6 from the one that it was asked by.
    return [*way, "192.0.2.6" if version == 4 else f"2001:db8:e:{number}::2", place.of(FAR[1])]


def _node(place: Place) -> str:
    return next(node for node, clients in facts.CLIENTS.items() if place.where in (node, *clients))


def traceroute(*options: str) -> Callable[[Place, Internet], list[str]]:
    def command(place: Place, net: Internet) -> list[str]:
        return ["traceroute", "-n", place.flag, "-q", "1", "-w", "10", "-m", "6", *options, place.of(FAR[1])]

    return command


def traceroute_right(place: Place, said: str) -> None:
    assert re.findall(r"^ *\d+ +(\S+)", said, re.MULTILINE) == hops(place)


def mtr(place: Place, net: Internet) -> list[str]:
    command = ["mtr", "-n", place.flag, "--json", "-c", "2", "-i", "0.3", "-G", "8", "-m", "6"]
    return [*command, place.of(FAR[1])]


def mtr_right(place: Place, said: str) -> None:
    hubs = json.loads(said)["report"]["hubs"]
    assert [(hub["host"], hub["Loss%"]) for hub in hubs] == [(hop, 0.0) for hop in hops(place)]


# -- iperf3


def iperf3(*options: str) -> Callable[[Place, Internet], list[str]]:
    def command(place: Place, net: Internet) -> list[str]:
        port = str(IPERF_PORTS[place.number])
        return ["iperf3", "--json", "-c", place.of(INET), "-p", port, "-b", "5M", "-t", "4", *options]

    return command


def iperf3_right(place: Place, said: str) -> None:
    end = json.loads(said)["end"]
    total = end.get("sum_received") or end["sum"]
    assert total["bytes"] > (50_000 if "sum" in end else 250_000), total
    if "sum" in end:
        # On a busy machine its sockets' own buffers overflow (PACED); what nodes drop is counted (OWN_DROPS).
        assert end["sum"]["lost_packets"] < end["sum"]["packets"] / 10, end["sum"]


# -- path MTU discovery


def upload_far(place: Place, net: Internet) -> list[str]:
    """Half a megabyte there and back through the small link; far announces a full-sized MSS."""
    client = " ".join(ssh_server.client_command(net.folder, place.of(FAR[2]), "cat"))
    return ["sh", "-c", f"head -c 500000 /dev/zero | {client} | wc -c"]


def upload_far_right(place: Place, said: str) -> None:
    assert said.strip() == "500000"


KINDS = {
    "curl": Kind(curl, curl_right, ("tcp",)),
    "ssh": Kind(ssh, ssh_right, ("tcp",)),
    "quic": Kind(quic, quic_right, ("udp",)),
    "ping": Kind(ping(84), ping_right, ("icmp",)),
    "ping, full-sized": Kind(ping(1500), ping_right, ("icmp",)),
    "traceroute": Kind(traceroute(), traceroute_right, ("icmp",)),
    "traceroute -I": Kind(traceroute("-I"), traceroute_right, ("icmp",)),
    "traceroute -T": Kind(traceroute("-T", "-p", "80"), traceroute_right, ("icmp", "tcp")),
    "mtr": Kind(mtr, mtr_right, ("icmp",)),
    "iperf3 TCP": Kind(iperf3(), iperf3_right, ("tcp",)),
    "iperf3 TCP -R": Kind(iperf3("-R"), iperf3_right, ("tcp",)),
    "iperf3 UDP": Kind(iperf3("-u", *PACED), iperf3_right, ("udp", "tcp")),
    "iperf3 UDP -R": Kind(iperf3("-u", *PACED, "-R"), iperf3_right, ("udp", "tcp")),
    "path MTU, ping": Kind(ping_far, ping_far_right, ("icmp",)),
    "path MTU, ssh": Kind(upload_far, upload_far_right, ("tcp", "icmp")),
}


@pytest.fixture(scope="module")
def net() -> Iterator[Internet]:
    with fleet_lab("clients") as lab, internet(lab) as made:
        yield made


def started(net: Internet, place: Place, command: list[str]) -> subprocess.Popen[Any]:
    if place.program:
        command = ["softunicast", "run", "--pool", place.pool, "--", *command]
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return net.lab.node(place.where).popen(command, **pipes)


def judged(children: list[tuple[Kind, Place, subprocess.Popen[Any]]]) -> list[str]:
    """What was wrong with what they said, once they have ended."""
    wrong = []
    for kind, place, child in children:
        out, err = child.communicate(timeout=PATIENCE_S)
        try:
            assert child.returncode == 0, f"exit status {child.returncode}"
            kind.right(place, out)
        except (AssertionError, ValueError, KeyError) as error:
            wrong.append(f"{child.args!r} {place}: {error}\n{out[-1500:]}{err[-500:]}")
    return wrong


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_real_clients(net: Internet, kind: Kind) -> None:
    before = drops(net.lab)
    with net.lab.capture() as capture:
        wrong = judged([(kind, place, started(net, place, kind.command(place, net))) for place in PLACES])
    dropped = drops(net.lab) - before
    assert not wrong, "\n".join([*wrong, str(dropped)])
    assert {why for _, why in dropped} <= OWN_DROPS, dropped
    report = capture.report()
    assert report.ok, report.problems()
    assert_ways(capture, kind, {owned.node for owned, count in report.by_slice.items() if count})


def test_clients_of_a_proxy(net: Internet, tmp_path: Path) -> None:
    """`softunicast proxy` on lhr1, all of whose answers come by r2: curl and wget over TLS, Chromium, WebSockets, ssh
    and git by a ProxyCommand, HTTP/3 by UDP ASSOCIATE, and iperf3 both ways from a client that knows of no proxy."""
    here, there = (net.lab.node(name).netns.name for name in ("lhr1", "inet"))
    own = frozenset(address for address in ADDRESSES["gb"] if ":" not in address)
    files = certificate(tmp_path, INET[0])
    with net.lab.capture() as capture, on(here, "{pool: gb}", there, INET[0], own, tmp_path) as place:
        with origin(INET[0], 0, there, files) as port:
            for scheme in ("http", "socks5h"):
                by = ("-x", place.url(scheme), "--cacert", str(files[0]))
                place.ours(place.run("curl", "-sSf", *by, f"https://{INET[0]}:{port}/who").stdout)
            assert wget(place, f"https://{INET[0]}:{port}/big", files[0], tmp_path / "big") == BIG
            for scheme in ("http", "socks5"):
                page = f"https://{INET[0]}:{port}/page"
                found = seen_in(chromium(place, place.url(scheme), page, tmp_path / scheme))
                for what in ("page", "script", "style"):
                    place.ours(found[what])
        for scheme in ("http", "socks5h"):
            with websocket(place, place.url(scheme)) as (client, server):
                place.ours(seen_by(server))
                idle([client], 0.2)
                talk(client, server, "hello")
        ssh_and_git(place, net.folder, 22, tmp_path)
        http3(place, tmp_path, 4433)
        with place.lan() as lan:
            for number, options in enumerate(((), ("-R",))):
                end = iperf3_through(place, lan, "-P", "4", "-t", "4", "-b", "5M", *options, port=5210 + number)
                assert all(each["receiver"]["bytes"] > 250_000 for each in end["streams"]), end
    report = capture.report()
    assert report.ok, report.problems()
    assert {owned.node for owned, count in report.by_slice.items() if count} == {"lhr1"}
    assert arrived(capture, "r1") == Counter()
    at_r2 = arrived(capture, "r2")
    for protocol in ("tcp", "udp"):
        assert sum(at_r2[address, protocol] for address in own), f"no {protocol} came by r2: {at_r2}"


ENDED = {"lhr1": Place("c1", 4), "cdg1": Place("c3", 4)}
"""Nodes with one more on-ramp, whose TCP ends there, and the place whose pool and servers its client has."""
INNER = {4: ("10.66.1.2", "10.66.1.1", 24, 32), 6: ("fd66::2", "fd66::1", 64, 128)}


@pytest.fixture(scope="module")
def ended(net: Internet) -> Iterator[dict[str, str]]:
    """Clients of such on-ramps, at both sites with the same inner addresses: namespaces by node."""
    with ExitStack() as undo:
        made = {}
        for node in ENDED:
            here = net.lab.node(node)
            name = made[node] = f"{here.netns.name}e"
            netns.create(name)
            undo.callback(netns.delete, name)
            ip("link", "add", "ended0", "netns", here.netns.name, "type", "veth", "peer", "name", "eth0", "netns", name)
            undo.callback(ip, "link", "delete", "ended0", ns=here.netns.name)
            for address, gateway, length, whole in INNER.values():
                ip("address", "add", f"{gateway}/{whole}", "dev", "ended0", *nodad(gateway), ns=here.netns.name)
                ip("address", "add", f"{address}/{length}", "dev", "eth0", *nodad(address), ns=name)
            sysctl(name, "net.ipv6.conf.eth0.accept_dad", "0")
            for device, where in (("ended0", here.netns.name), ("lo", name), ("eth0", name)):
                ip("link", "set", device, "up", ns=where)
            for _, gateway, _, _ in INNER.values():
                ip("route", "add", "default", "via", gateway, ns=name)
            keys = ["--pool", ENDED[node].pool, "--strategy", "terminate"]
            for option, version in (("--gateway", 4), ("--gateway6", 6)):
                _, gateway, length, _ = INNER[version]
                keys += [option, gateway, "--source", str(ip_interface(f"{gateway}/{length}").network)]
            done = here.softunicast("onramp", "add", "ended", "--device", "ended0", *keys)
            assert done.returncode == 0, done.stderr
            undo.callback(here.softunicast, "onramp", "remove", "ended")
        yield made


def nodad(address: str) -> list[str]:
    return ["nodad"] if ":" in address else []


@pytest.mark.parametrize(
    "kinds", [["curl", "ssh", "quic", "ping", "iperf3 TCP", "path MTU, ssh"], ["iperf3 TCP -R"]], ids=len
)
def test_clients_whose_tcp_ends_at_the_node(net: Internet, ended: dict[str, str], kinds: list[str]) -> None:
    """Answers at the wrong site and at the right one, IPv4 and IPv6; UDP and ping are packets as ever."""
    before = drops(net.lab)
    with net.lab.capture() as capture, ExitStack() as undo:
        children = []
        for name, (node, inside), version in itertools.product(kinds, ended.items(), (4, 6)):
            # As if it were c1 or c3, of that version; iperf3's servers serve one at a time.
            place = Place(ENDED[node].where if version == 4 else {"c1": "t1", "c3": "t4"}[ENDED[node].where], version)
            command = ["nsenter", f"--net=/run/netns/{inside}", *KINDS[name].command(place, net)]
            child = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
            )
            children.append((KINDS[name], place, undo.enter_context(child)))
        wrong = judged(children)
    dropped = drops(net.lab) - before
    assert not wrong, "\n".join([*wrong, str(dropped)])
    assert {why for _, why in dropped} <= OWN_DROPS, dropped
    report = capture.report()
    assert report.ok, report.problems()
    assert {owned.node for owned, count in report.by_slice.items() if count} == set(ended)
    assert arrived(capture, "r1") == Counter()


def drops(lab: Lab) -> Counter[tuple[str, str]]:
    """What the nodes dropped so far, by node and reason."""
    assert isinstance(lab, FleetLab)
    return Counter({(node, why.name): count for node in facts.NODES for why, count in lab.stats(node)[0].items()})


def arrived(capture: Capture, router: str) -> Counter[tuple[str, str]]:
    """What came in from the internet to slices, by address and protocol (`icmp` for both versions)."""
    inside = bytes.fromhex(facts.mac(router, "inet0").replace(":", ""))
    found: Counter[tuple[str, str]] = Counter()
    for _, frame, wire in read_pcap(capture.data_at(router)).frames():
        if frame[:6] != inside:
            continue
        packet = _packet(frame, wire)
        if packet is not None and any(packet.destination in fleet for fleet in (facts.FLEET, facts.FLEET6)):
            found[str(packet.destination), {6: "tcp", 17: "udp"}.get(packet.proto, "icmp")] += 1
    return found


def _packet(frame: bytes, wire: int) -> Packet | None:
    try:
        return parse(frame[14:], quoted=len(frame) < wire)
    except Malformed:
        return None


def assert_ways(capture: Capture, kind: Kind, senders: set[str]) -> None:
    """lhr's answers, of each protocol and version, came by r2, as did cdg's; nothing came by r1, by which lhr sends."""
    assert {"lhr1", "cdg1", "cdg2"} <= senders
    assert arrived(capture, "r1") == Counter()
    at_r2 = arrived(capture, "r2")
    for pool, addresses in ADDRESSES.items():
        for version in (4, 6):
            for protocol in kind.protocols:
                seen = sum(at_r2[address, protocol] for address in addresses if ip_address(address).version == version)
                assert seen, f"no {protocol} of IPv{version} came to {pool} by r2: {at_r2}"
