# SPDX-License-Identifier: Apache-2.0
"""Sequences of packets for the oracle of fish: few clients and few destinations, so that slices fill, flows answer,
end and begin again; sockets beside them; damaged frames; and the clock, which jumps."""

from __future__ import annotations

import random
import struct
from collections import Counter as Tally
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from softunicast.egress.arbiter_oracle import Broken, Holder, Key
from softunicast.kernel.abi_util import MAPPED, addr_ip
from softunicast.steering.oracle_packet import ICMP, ICMP6, TCP, UDP
from softunicast.wire import craft
from tests.fuzz.damage import damaged
from tests.support.dataplane import GATEWAY, GATEWAY6, MARK, UNDERLAY
from tests.support.fish_memory import NOBODY
from tests.support.fish_world import SLICES, World
from tests.support.packets import extension, fragment6, fragments, frame, gre, header4, header6

CLIENTS: Final = ("10.8.0.2", "10.8.0.3", "10.8.7.7")
CLIENTS6: Final = ("2001:db8:8::2", "2001:db8:8::3")
SERVERS: Final = ("203.0.113.1", "203.0.113.2", "203.0.113.9")
SERVERS6: Final = ("2001:db8:f::1", "2001:db8:f::2")
RAMPS: Final = ("fish1", "fish2", "fish2", "fish2", "fish3", "fish4")
FOLLOW: Final = (0x10, 0x18, 0x10, 0x12, 0x11, 0x11, 0x04, 0x14, 0x02, 0x00, 0x29)
JUMPS: Final = (1, 1, 2, 5, 30, 61, 130, 250, 310, 8000)
COMPARE_EVERY: Final = 50


@dataclass
class Traffic:
    """The same seed gives the same packets, as far as the data plane chooses the same ports."""

    world: World
    seed: int
    damage: float = 0.12
    random: random.Random = field(init=False)
    tally: Tally[str] = field(default_factory=Tally)
    rest: list[bytes] = field(default_factory=list)
    later: list[tuple[str, str, bytes, int]] = field(default_factory=list)
    """Fragments that are still to come."""

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)

    def run(self, count: int) -> None:
        """So many packets. Broken names seed, number and frame."""
        start = self.tally.total()
        while (number := self.tally.total() - start) < count:
            self.beside()
            program, device, whole, mark = self.packet()
            if self.random.random() < self.damage:
                whole = damaged(whole, self.random)
            if len(whole) < 54:
                whole += bytes(54 - len(whole))  # the kernel's test run wants the header that the type announces
            try:
                self.tally[self.world.packet(program, device, whole, mark)] += 1
                if number % COMPARE_EVERY == 0:
                    self.world.compare()
            except Broken as error:
                raise Broken(
                    f"seed {self.seed}, packet {number}: {program} on {device} {whole.hex()}: {error}"
                ) from error

    # What happens beside packets

    def beside(self) -> None:
        r, world = self.random, self.world
        if r.random() < 1 / 90:
            world.age(r.choice(JUMPS))
            self.tally_beside("jump")
        if r.random() < 1 / 12:
            self.socket()
        if r.random() < 1 / 25:
            self.socket_ends()
        if r.random() < 1 / 400:
            world.sweep()
        if r.random() < 1 / 500:
            world.renew(f"fish{r.randrange(1, 5)}")
        if r.random() < 1 / 150:
            index = r.randrange(len(SLICES))
            world.set_slice(index, live=r.random() < 0.9, drain=r.random() < 0.1, leased=r.random() < 0.9)
        if not world.fish.ready or r.random() < 1 / 500:
            world.set_ready(r.random() < 0.3)

    beside_tally: Tally[str] = field(default_factory=Tally)

    def tally_beside(self, what: str) -> None:
        self.beside_tally[what] += 1

    def socket(self) -> None:
        """A hook claims (or another node keeps) a flow in one of the slices."""
        r = self.random
        index = r.randrange(len(SLICES))
        address, first, last, exact = SLICES[index]
        proto = r.choice([TCP, TCP, UDP])
        remote = craft_bytes(r.choice(SERVERS6 if ":" in address else SERVERS))
        port, remote_port = r.randint(first, last), self.remote_port()
        if proto == UDP and port < exact:
            remote, remote_port = NOBODY, 0
        key = Key(proto, craft_bytes(address), port, remote, remote_port)
        if key not in self.world.fish.arbiter.claims:
            peer = r.random() < 0.1
            if self.world.socket(key, index, open_=r.random() < 0.5, peer=peer):
                self.tally_beside("peer" if peer else "socket")

    def socket_ends(self) -> None:
        others = (Holder.SOCKET, Holder.PEER)
        keys = [key for key, held in self.world.fish.arbiter.claims.items() if held.holder in others]
        if keys:
            linger = self.random.random() < 0.6
            self.world.end(self.random.choice(keys), linger=linger)
            self.tally_beside("linger" if linger else "release")

    # Packets

    def packet(self) -> tuple[str, str, bytes, int]:
        r = self.random
        if self.later and r.random() < 0.5:
            return self.later.pop(0)
        kinds: list[Callable[[], tuple[str, str, bytes, int]]] = [
            self.from_client, self.strange_from_client, self.answer, self.strange_answer, self.from_stack,
        ]  # fmt: skip
        self.rest = []
        program, device, whole, mark = r.choices(kinds, [40, 8, 30, 10, 12])[0]()
        self.later += [(program, device, piece, mark) for piece in self.rest]
        return program, device, whole, mark

    def remote_port(self) -> int:
        return self.random.choice((443, 443, 443, 53))

    def body(self) -> bytes:
        r = self.random
        return r.randbytes(r.choice([0, 0, 1, 8, 33, 400, 1500, 1572, 1600] if r.random() < 0.2 else [0, 1, 9, 32]))

    def segment(self, proto: int, source: str, sport: int, target: str, dport: int, flags: int) -> bytes:
        """A TCP segment, datagram or echo (`sport` or `dport` its id, the other 0)."""
        r, ttl = self.random, self.random.choice([1, 2, 64, 64, 64, 64, 64, 255])
        if proto == TCP:
            return craft.tcp(
                source, sport, target, dport, self.body(), flags=flags, sequence=r.getrandbits(32), ttl=ttl
            )
        if proto == UDP:
            whole = craft.udp(source, sport, target, dport, self.body(), ttl=ttl)
            if ":" not in source and r.random() < 0.2:
                whole = whole[:26] + b"\0\0" + whole[28:]
            return whole
        return craft.echo(source, target, sport or dport, payload=self.body(), reply=not sport, ttl=ttl)

    def dressed(self, packet: bytes) -> bytes:
        """Sometimes with options, extension headers, as a fragment, with bytes behind; or one of its fragments, and the
        others come later."""
        r = self.random
        if len(packet) > 20 + 20 * (packet[0] >> 4 == 6) and r.random() < 0.1:
            pieces = fragments(packet, r.choice([8, 24, 24, 40]), r.randrange(40))[:4]
            chosen = pieces.pop(0 if r.random() < 0.85 else -1)
            self.rest = [frame(piece) for piece in pieces]
            return frame(chosen)
        if r.random() < 0.9:
            return frame(packet)
        if packet[0] >> 4 == 6:
            chain = [extension(r.choice([0, 60]), r.choice([0, 1]))]
            if r.random() < 0.3:
                chain.append(fragment6(7, r.choice([0, 0, 1480]), more=r.random() < 0.5))
            packet = header6(packet, *chain)
        else:
            options, flags = b"\x01" * r.choice([0, 0, 4, 40]), r.choice([0x4000] * 8 + [0x2000, 0x0010])
            packet = header4(packet, flags=flags, options=options)
        return frame(packet) + bytes(r.choice([0, 0, 0, 5]))

    def from_client(self) -> tuple[str, str, bytes, int]:
        r = self.random
        device, v6 = r.choice(RAMPS), r.random() < 0.2
        client, server = r.choice(CLIENTS6 if v6 else CLIENTS), r.choice(SERVERS6 if v6 else SERVERS)
        proto = r.choice([TCP, TCP, TCP, UDP, UDP, ICMP6 if v6 else ICMP])
        sport, dport = 40000 + r.randrange(12), self.remote_port()
        if proto in (ICMP, ICMP6):
            sport, dport = 70 + r.randrange(8), 0
        origin = self.world.fish.origin
        if origin and r.random() < 0.35:
            inner = r.choice(list(origin))
            if inner.onramp:
                device, proto = f"fish{inner.onramp}", inner.proto
                client, server = str(addr_ip(inner.inner)), str(addr_ip(inner.remote))
                sport, dport = inner.inner_port, inner.remote_port
        flags = 2 if r.random() < 0.5 else r.choice(FOLLOW)
        if r.random() < 0.06:
            return "su_onramp_in", device, self.error_about(proto, server, dport, client, sport, client), 0
        return "su_onramp_in", device, self.dressed(self.segment(proto, client, sport, server, dport, flags)), 0

    def error_about(self, proto: int, source: str, sport: int, target: str, dport: int, teller: str) -> bytes:
        """`teller` could not deliver a packet from source to target."""
        r = self.random
        quoted = self.segment(proto, source, sport, target, dport, 0x10)
        if ":" in source and r.random() < 0.2:
            quoted = header6(quoted, extension(60))
        elif ":" not in source and r.random() < 0.2:
            quoted = header4(quoted, options=b"\x01" * 8)
        quoted = quoted[: r.choice([27, 28, 28, 48, 60, 100, 300] if ":" not in source else [47, 48, 60, 68, 300])]
        kind = r.choice([1, 2, 3, 4] if ":" in source else [3, 3, 11, 12, 5])
        return frame(craft.icmp_error(teller, source, kind, r.randrange(5), quoted, rest=r.choice([0, 1400])))

    def strange_from_client(self) -> tuple[str, str, bytes, int]:
        """Of each class."""
        r = self.random
        client, server = r.choice(CLIENTS), r.choice(SERVERS)
        any_port = r.randrange(65536)
        packet = r.choice([
            lambda: frame(craft.udp("10.9.0.1", 5, server, 53)),
            lambda: frame(craft.udp(client, 5, GATEWAY, 53)),
            lambda: frame(craft.udp(client, 5, "203.0.113.200", 53)),
            lambda: frame(craft.udp(client, 5, "192.0.2.1", 53)),
            lambda: frame(craft.tcp(client, 5, SLICES[0][0], 9000)),
            lambda: frame(craft.udp(client, 5, "224.0.0.251", 5353)),
            lambda: frame(craft.udp("169.254.3.3", 5, server, 5353)),
            lambda: frame(craft.udp("0.0.0.0", 68, "255.255.255.255", 67)),
            lambda: frame(craft.udp("fe80::2", 5, SERVERS6[0], 53)),
            lambda: frame(craft.icmp_error("2001:db8:8::2", GATEWAY6, r.randrange(130, 140), 0, bytes(20))),
            lambda: frame(craft.tcp(client, any_port, server, 443), to="02:00:00:00:00:99"),
            lambda: frame(gre(client, server)),
            lambda: frame(craft.icmp_error(client, server, r.choice([13, 15, 17]), 0, bytes(12))),
            lambda: frame(bytes(40), ethertype=r.choice([0x0806, 0x8100, 0x0800, 0x86DD])),
        ])()  # fmt: skip
        return "su_onramp_in", r.choice([*RAMPS, "none0"]), packet, r.choice([0, MARK])

    def answer(self) -> tuple[str, str, bytes, int]:
        """From the Internet, to a flow that is held."""
        r = self.random
        claims = self.world.fish.arbiter.claims
        if not claims:
            return self.strange_answer()
        key = r.choice(list(claims))
        local, remote, remote_port = str(addr_ip(key.local)), str(addr_ip(key.remote)), key.remote_port
        if key.remote == NOBODY:
            remote, remote_port = r.choice(SERVERS), 53
        if r.random() < 0.15:
            teller = r.choice([remote, "2001:db8:77::1" if ":" in local else "203.0.113.250"])
            whole = self.error_about(key.proto, local, key.local_port, remote, remote_port, teller)
        else:
            packet = self.segment(key.proto, remote, remote_port, local, key.local_port, r.choice([0x12, *FOLLOW]))
            whole = self.dressed(packet)
        if r.random() < 0.1 and ":" not in local:
            whole = self.carried(whole)
        return "su_uplink_in", "up0", whole, 0

    def carried(self, whole: bytes) -> bytes:
        """As another node (or a stranger) sends it."""
        r = self.random
        source = r.choice(["192.0.2.12", "192.0.2.12", "192.0.2.12", "192.0.2.99"])
        return frame(craft.carried(source, 50000, UNDERLAY, 6080, whole[14:], flags=r.choice([0, 0, 2])))

    def strange_answer(self) -> tuple[str, str, bytes, int]:
        r = self.random
        address = r.choice(SLICES)[0]
        v6 = ":" in address
        remote, port = r.choice(SERVERS6 if v6 else SERVERS), r.randrange(8990, 9070)
        packet = r.choice([
            lambda: self.dressed(self.segment(TCP, remote, 443, address, port, r.choice(FOLLOW))),
            lambda: self.dressed(self.segment(UDP, remote, 53, address, port, 0)),
            lambda: self.dressed(craft.echo(remote, address, port, payload=self.body())),
            lambda: self.dressed(craft.echo(remote, address, port, reply=True)),
            lambda: frame(gre(SERVERS[0], SLICES[0][0])),
            lambda: frame(craft.udp(SERVERS[0], 53, "203.0.113.77", 53)),
            lambda: frame(craft.udp(SERVERS[0], 53, UNDERLAY, 53)),
            lambda: frame(craft.tcp(remote, 443, address, port), to="02:00:00:00:00:99"),
            lambda: frame(craft.udp("192.0.2.12", 6080, UNDERLAY, 6080, struct.pack("!BBHI", 0x20, 1, 0, 9))),
            lambda: frame(craft.icmp_error(remote, address, 3, 1, craft.udp(SERVERS[0], 5, SERVERS[1], 6))),
        ])()  # fmt: skip
        if r.random() < 0.15:
            packet = self.carried(packet)
        return "su_uplink_in", "up0", packet, r.choice([0, 0, MARK])

    def from_stack(self) -> tuple[str, str, bytes, int]:
        """By the uplink, from this node's own sockets."""
        r = self.random
        claims = self.world.fish.arbiter.claims
        local = [key for key, held in claims.items() if held.holder in (Holder.SOCKET, Holder.LOCAL)]
        kind = r.randrange(10)
        if kind < 4 and (local or claims):
            key = r.choice(local if local and r.random() < 0.8 else list(claims))
            source, remote, remote_port = str(addr_ip(key.local)), str(addr_ip(key.remote)), key.remote_port
            if key.remote == NOBODY:
                remote, remote_port = r.choice(SERVERS), 53
            if r.random() < 0.1:
                whole = self.error_about(key.proto, remote, remote_port, source, key.local_port, source)
            else:
                packet = self.segment(key.proto, source, key.local_port, remote, remote_port, r.choice(FOLLOW))
                whole = self.dressed(packet)
            return "su_guard", "up0", whole, 0
        source = r.choice(SLICES)[0]
        v6 = ":" in source
        remote = r.choice(SERVERS6 if v6 else SERVERS)
        proto = r.choice([TCP, UDP, ICMP6 if v6 else ICMP])
        sport, dport = r.randrange(8996, 9070), self.remote_port()
        if proto in (ICMP, ICMP6):
            sport, dport = (sport if r.random() < 0.5 else r.randrange(1, 9)), 0
        packet = self.segment(proto, source, sport, remote, dport, 2 if r.random() < 0.7 else r.choice(FOLLOW))
        if kind == 9:
            packet = gre(SLICES[0][0], SERVERS[0]) if v6 else craft.udp(UNDERLAY, 5, remote, 53)
        return "su_guard", "up0", self.dressed(packet), MARK if r.random() < 0.1 else 0


def craft_bytes(address: str) -> bytes:
    """16 bytes, as in the maps."""
    packed = craft.ip_address(address).packed
    return packed if len(packed) == 16 else MAPPED + packed
