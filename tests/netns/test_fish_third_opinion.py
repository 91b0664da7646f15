# SPDX-License-Identifier: Apache-2.0
"""The kernel's own NAT as a third opinion: what nftables makes of a packet is what the oracle of fish says of it.

    generator g0 --- n0 node (snat to 198.51.100.20:9000-9999) u0 --- s0 world

Flows of TCP, UDP (checksum zero too) and echo, their answers, and ICMP errors about them from a router on the way. The
port is the kernel's to choose; given that, both say the same of every byte. The programs are compared with the oracle
in tests/bpf/test_fish_oracle.py.
"""

from __future__ import annotations

import json
import os
import random
import socket
import time
from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from softunicast.kernel import netns
from softunicast.steering.oracle_packet import ETHERNET, Packet, parse
from softunicast.wire import craft
from tests.support.dataplane import CLIENT, SERVER, SLICE, namespaces, packed, run, sysctl
from tests.support.fish_oracle import same
from tests.support.fish_packets import ACK, FIN, SYN, translated, translated_error

ROUTER = "203.0.113.250"
NEAR, FAR = "10.66.0.1", "10.66.0.254"
FLOWS = 400
RULES = f"""table ip third {{
 chain out {{
  type nat hook postrouting priority srcnat;
  oifname "u0" meta l4proto {{ tcp, udp, icmp }} snat to {SLICE}:9000-9999
 }}
}}
"""


@dataclass
class Wire:
    """Both ends, by packet sockets, and the Ethernet addresses between."""

    inside: socket.socket
    outside: socket.socket
    macs: dict[str, str]
    seen: Tally[str] = field(default_factory=Tally)

    def out(self, packet: bytes) -> tuple[Packet, Packet]:
        """From the generator: as sent, as it left."""
        return self._through(self.inside, self.outside, craft.ethernet(self.macs["n0"], self.macs["g0"], packet))

    def back(self, packet: bytes) -> tuple[Packet, Packet]:
        return self._through(self.outside, self.inside, craft.ethernet(self.macs["u0"], self.macs["s0"], packet))

    def _through(self, source: socket.socket, target: socket.socket, frame: bytes) -> tuple[Packet, Packet]:
        source.send(frame)
        while True:
            came = target.recv(65536)
            if (came[12:14] == b"\x08\0" and came[26:30] != frame[26:30]) or came[30:34] != frame[30:34]:
                break
        sent, left = parse(frame, ETHERNET, 0x0800), parse(came, ETHERNET, 0x0800)
        assert sent is not None
        assert left is not None
        return sent, left


def mac(device: str) -> str:
    return str(json.loads(run(f"ip -json link show {device}"))[0]["address"])


def packet_socket(device: str) -> socket.socket:
    """Of incoming IPv4 on that device of this thread's namespace; sends any frame."""
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
    sock.bind((device, 0x0800))
    sock.settimeout(20)
    return sock


@pytest.fixture
def wire(tmp_path: Path) -> Iterator[Wire]:
    node, inside, outside = (f"t-third-{os.getpid()}-{part}" for part in "nio")
    with namespaces(node, inside, outside):
        macs = {}
        with netns.enter(node):
            for name in ("default", "all"):
                sysctl(f"ipv6.conf.{name}.disable_ipv6", 1)
                sysctl(f"ipv4.conf.{name}.rp_filter", 0)
            run(f"ip link add n0 type veth peer name g0 netns {inside}")
            run(f"ip link add u0 type veth peer name s0 netns {outside}")
            run("ip address add 10.8.0.1/24 dev n0")
            run(f"ip address add {NEAR}/24 dev u0")
            for device in ("n0", "u0"):
                run(f"ip link set {device} mtu 1600 up")
                macs[device] = mac(device)
            sysctl("ipv4.ip_forward", 1)
        ends = []
        for space, device in ((inside, "g0"), (outside, "s0")):
            with netns.enter(space):
                sysctl("ipv6.conf.all.disable_ipv6", 1)
                run(f"ip link set {device} mtu 1600 up")
                macs[device] = mac(device)
                ends.append(packet_socket(device))
        with netns.enter(node):
            run(f"ip neigh replace {CLIENT} lladdr {macs['g0']} dev n0 nud permanent")
            run(f"ip neigh replace {FAR} lladdr {macs['s0']} dev u0 nud permanent")
            run(f"ip route add default via {FAR}")
            (rules := tmp_path / "third.nft").write_text(RULES)
            run(f"nft -f {rules}")
        try:
            yield Wire(ends[0], ends[1], macs)
        finally:
            for end in ends:
                end.close()


def out(wire: Wire, packet: bytes) -> tuple[int, bytes]:
    """Sent by the client; the port it got, and the packet as the world saw it."""
    sent, left = wire.out(packet)
    assert left.source == packed(SLICE)
    assert left.ports is not None
    expected = translated(sent, left.source, left.ports[0], target=False, hop=True)
    assert same(left.frame, expected), f"\n{left.frame.hex()}\n{expected.hex()}"
    wire.seen["out"] += 1
    return left.ports[0], left.frame[ETHERNET:]


def back(wire: Wire, packet: bytes, port: int) -> None:
    """An answer; `port`: the client's."""
    sent, left = wire.back(packet)
    assert left.target == packed(CLIENT)
    write = translated_error if sent.error else translated
    expected = write(sent, left.target, port, target=True, hop=True)
    assert same(left.frame, expected), f"\n{left.frame.hex()}\n{expected.hex()}"
    wire.seen["error" if sent.error else "back"] += 1


def flow(wire: Wire, r: random.Random, number: int) -> None:
    """One flow and its answers, then an error about its last packet."""
    kind, sport, dport, ttl = number % 3, 20000 + number, r.choice([80, 443, 53, 65535]), r.choice([2, 64, 255])
    body = [r.randbytes(r.choice([0, 1, 2, 33, 500, 1471])) for _ in range(4)]
    if kind == 0:
        first, answer = r.getrandbits(32), r.getrandbits(32)
        port, _ = out(wire, craft.tcp(CLIENT, sport, SERVER, dport, flags=SYN, sequence=first, ttl=ttl))
        step = craft.tcp(
            SERVER, dport, SLICE, port, flags=SYN | ACK, sequence=answer, acknowledgement=(first + 1) % 2**32
        )
        back(wire, step, sport)
        acks = {"sequence": (first + 1) % 2**32, "acknowledgement": (answer + 1) % 2**32}
        _, last = out(wire, craft.tcp(CLIENT, sport, SERVER, dport, body[0], flags=ACK, ttl=ttl, **acks))
        told = {"sequence": (answer + 1) % 2**32, "acknowledgement": (first + 1 + len(body[0])) % 2**32}
        back(wire, craft.tcp(SERVER, dport, SLICE, port, body[1], flags=r.choice([ACK, ACK | FIN]), **told), sport)
    elif kind == 1:
        packet = craft.udp(CLIENT, sport, SERVER, dport, body[0], ttl=ttl)
        if r.random() < 0.3:
            packet = packet[:26] + b"\0\0" + packet[28:]
        port, last = out(wire, packet)
        back(wire, craft.udp(SERVER, dport, SLICE, port, body[1]), sport)
    else:
        port, last = out(wire, craft.echo(CLIENT, SERVER, sport, payload=body[0], ttl=ttl))
        back(wire, craft.echo(SERVER, SLICE, port, payload=body[0], reply=True), sport)
    code, rest = r.choice([((3, 1), 0), ((3, 3), 0), ((3, 4), 1400), ((11, 0), 0), ((12, 0), 0)])
    quoted = last[: r.choice([28, 40, 60, 400])]
    back(wire, craft.icmp_error(r.choice([ROUTER, SERVER]), SLICE, *code, quoted, rest=rest), sport)


def test_the_kernel_translates_alike(wire: Wire) -> None:
    seed = int(os.environ.get("SOFTUNICAST_SEED", time.time_ns() % 1_000_000_007))
    print(f"seed {seed}")
    r = random.Random(seed)
    for number in range(FLOWS):
        flow(wire, r, number)
    print(wire.seen)
    assert wire.seen["out"] > FLOWS
    assert wire.seen["back"] > FLOWS
    assert wire.seen["error"] == FLOWS
