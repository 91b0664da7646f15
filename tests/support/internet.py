# SPDX-License-Identifier: Apache-2.0
"""More of an internet for real clients: servers that the lab has not, and a place behind a small link.

    r1 --.
         inet  203.0.113.1, 2001:db8:f::1 ---- mtu 1400 ---- far  203.0.113.242-.246, 2001:db8:f:1::2-::6
    r2 --'     203.0.113.241, 2001:db8:f:1::1

Both have ssh (22), web and echo (80, 7); inet has QUIC (443) and iperf3 (IPERF_PORTS, each serves one client at a time)
too. inet becomes a router for far, and what is too big for the small link is told to its sender by inet: by way of r2,
as all that the internet sends. far goes on to announce a full-sized MSS, as if the small link were not its own.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from softunicast.lab import build
from softunicast.lab.lab import Host, Lab, environment
from tests.support import ssh_server
from tests.support.wait import wait_until

INET = ("203.0.113.1", "2001:db8:f::1")
FAR = [(f"203.0.113.{241 + number}", f"2001:db8:f:1::{1 + number}") for number in range(1, 6)]
SMALL_MTU = 1400
IPERF_PORTS = range(5201, 5207)
QUIC_PORT = 443
QUIC = Path(__file__).with_name("quic_end.py")


class Internet:
    """`folder` has the keys that ssh_server.client_command wants."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.inet = lab.node("inet")
        self.far = Host(lab, "far")
        self.folder = lab.folder / "servers"

    def up(self) -> None:
        """Wire far, start all servers and wait until they listen."""
        self._wire()
        self.folder.mkdir(mode=0o700)
        ssh_server.make_keys(self.folder)
        web = [sys.executable, "-m", "softunicast.lab.servers", "--log", str(self.folder / "far.jsonl")]
        places = [address for pair in FAR for address in pair]
        for what, port in (("--web", 80), ("--echo", 7)):
            web += [what, ",".join(f"{address}:{port}" for address in places)]
        self._start(self.far, web)
        for host in (self.inet, self.far):
            self._start(host, ssh_server.server_command(self.folder))
        for address in INET:
            for port in IPERF_PORTS:
                # Bound to its address, or it answers UDP from that of the line (it does not ask where it was called).
                self._start(self.inet, ["iperf3", "--server", "--bind", address, "--port", str(port)])
            keys = self.folder / f"quic{INET.index(address)}"
            keys.mkdir()
            self._start(self.inet, [sys.executable, str(QUIC), "serve", address, str(QUIC_PORT), str(keys)])
        wait_until(lambda: self._listening(self.far, {22, 80, 7}, 0), 60, "servers of far")
        wait_until(lambda: self._listening(self.inet, {22, *IPERF_PORTS}, len(INET)), 60, "servers of inet")

    def down(self) -> None:
        """far is no part of the lab's drawing, so the lab does not remove it."""
        with contextlib.suppress(FileNotFoundError):
            build.stop(build.processes([self.far.netns]))
        build.delete_namespaces(self.lab.prefix, {"far": self.far.netns} if self.far.netns.exists() else {})

    def _wire(self) -> None:
        far = build.namespace(self.lab.prefix, "far")
        self.inet.run(["ip", "netns", "add", far], check=True)
        self.inet.run(["sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"], check=True)
        full_mss = ["net.ipv4.route.min_adv_mss=1460", "net.ipv6.route.min_adv_mss=1440"]
        # It tells every traceroute that it is the end: left alone, an address six times and then once a second.
        told = ["net.ipv4.icmp_ratelimit=0", "net.ipv6.icmp.ratelimit=0"]
        self.far.run(["sysctl", "-qw", "net.ipv6.conf.all.accept_dad=0", *full_mss, *told], check=True)
        for host, device, first in ((self.inet, "far0", 0), (self.far, "inet0", 1)):
            lines = ["link set lo up"] if host is self.far else []
            if host is self.inet:
                mtu = f"mtu {SMALL_MTU}"
                lines.append(f"link add far0 {mtu} type veth peer name inet0 {mtu} netns {far}")
            lines.append(f"link set {device} up")
            last = 1 if first == 0 else 1 + len(FAR)
            for number in range(first, last):
                lines.append(f"addr add 203.0.113.{241 + number}/29 dev {device}")
                lines.append(f"addr add 2001:db8:f:1::{1 + number}/64 dev {device} nodad")
            host.run(["ip", "-batch", "-"], input="\n".join(lines) + "\n", check=True)
        routes = "route add default via 203.0.113.241\nroute add ::/0 via 2001:db8:f:1::1\n"
        self.far.run(["ip", "-batch", "-"], input=routes, check=True)

    def _start(self, host: Host, command: list[str]) -> None:
        with (self.folder / f"{host.name}.log").open("ab") as log:
            host.popen(command, stdin=-3, stdout=log, stderr=log, start_new_session=True, env=environment())

    def _listening(self, host: Host, wanted: set[int], quic: int) -> bool:
        places = host.run(["ss", "-Hltn"], check=True).stdout.split()
        ports = [int(word.rpartition(":")[2]) for word in places if word.rpartition(":")[2].isdigit()]
        udp = host.run(["ss", "-Hlun", f"sport = :{QUIC_PORT}"], check=True).stdout.splitlines()
        twice = all(ports.count(port) >= len(INET) for port in wanted)  # once a family
        return twice and len(udp) >= quic


@contextlib.contextmanager
def internet(lab: Lab) -> Iterator[Internet]:
    """The lab's internet with all of it; gone at the end."""
    made = Internet(lab)
    try:
        made.up()
        yield made
    except BaseException:
        log = made.folder / "inet.log"
        print(log.read_text(errors="replace")[-4000:] if log.exists() else "")
        raise
    finally:
        made.down()
