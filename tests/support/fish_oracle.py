# SPDX-License-Identifier: Apache-2.0
"""What fish does with a sequence of packets, said a second time: the stateful oracle.

It stands on two others, and shares no code with what it judges: steering.oracle says whose a packet from the Internet
is, egress.arbiter_oracle keeps the set of claims and judges each choice of a port. What is added here is a packet's
way: which class it is of, which claim it follows, what state the claim is in after it (RFC 5382 sections 5 and 7),
which bytes leave, which reason to drop it is counted under.

    on-ramp --> known: translated | class: stack, dropped, or a claim --> translated, or told why not
    uplink  --> steering.oracle --> claim: client, stack, another node | dropped
    guard   --> marked, claimed by a socket or LOCAL: passes | may begin a flow: claims | dropped

A port is not predicted: what the data plane did is given along, and it must keep the arbiter's promises. Times are
nanoseconds of the boot clock; `age` makes all that is remembered older, which is how a test moves time.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Final

from softunicast.egress.arbiter_oracle import Answer, Broken, Held, Holder, Key, Phase
from softunicast.kernel.abi import NONE, Counter, Drop, Owner, Slice
from softunicast.kernel.abi_util import MAPPED, addr_ip
from softunicast.steering.oracle import ETHERNET, TCP, UDP, Packet, Tables, Verdict, carry, parse, steer
from tests.support import fish_packets as packets
from tests.support.fish_memory import NOBODY, NOT_FOUND, Did, InnerFlow, Inside, Memory, Network, Ramp
from tests.support.fish_packets import ACK, RST, SYN

OK, SHOT, REDIRECT, UNSPEC = 0, 2, 7, 0xFFFFFFFF
TOLD: Final = {
    Drop.TOO_BIG: ((3, 4), (2, 0)),
    Drop.PROTOCOL: ((3, 2), (1, 1)),
    Drop.HOPS: ((11, 0), (3, 0)),
}


@dataclass
class Expected:
    """`data` None: not compared. `where`: what the case is called in the tally."""

    where: str
    verdict: int
    data: bytes | None
    mark: int
    drop: Drop | None = None
    counts: dict[Counter, int] = field(default_factory=dict)


@dataclass(kw_only=True)
class Fish(Memory):
    """One node. `slices` are those of the map, for the guard's search; `arbiter` knows them too. `ramps` by ifindex."""

    tables: Tables
    ramps: dict[int, Ramp]
    never: tuple[Network, ...]
    mtu: int
    mac: bytes
    slices: list[Slice]
    ready: bool = True

    # Judging ------------------------------------------------------------------------------------------

    def judge(self, program: str, ifindex: int, frame: bytes, mark: int, now_ns: int, did: Did) -> str:
        """Judges one packet and remembers what follows; what the case is called. Broken says what is wrong."""
        way = {"su_onramp_in": self._onramp, "su_uplink_in": self._uplink, "su_guard": self._guard}[program]
        expected = way(ifindex, frame, mark, now_ns, did)
        drops = {expected.drop: 1} if expected.drop else {}
        if did.drops != drops:
            raise Broken(f"{expected.where}: dropped for {did.drops}, expected {drops}")
        if did.verdict != expected.verdict:
            raise Broken(f"{expected.where}: verdict {did.verdict}, expected {expected.verdict}")
        if did.mark != expected.mark:
            raise Broken(f"{expected.where}: mark {did.mark:#x}, expected {expected.mark:#x}")
        if dict(did.counts) != expected.counts:
            raise Broken(f"{expected.where}: counted {dict(did.counts)}, expected {expected.counts}")
        if expected.data is not None and not same(did.data, expected.data):
            raise Broken(f"{expected.where}: left as\n{did.data.hex()}\nexpected\n{expected.data.hex()}")
        return expected.where

    # The on-ramp ----------------------------------------------------------------------------------------

    def _onramp(self, ifindex: int, frame: bytes, mark: int, now_ns: int, did: Did) -> Expected:
        ramp = self.ramps.get(ifindex)
        if ramp is None:
            return self._dropped("onramp", Drop.ONRAMP, mark)
        packet = parse(frame, ETHERNET, int.from_bytes(frame[12:14], "big"))
        if packet is None:
            return Expected("onramp stack: not IP", OK, frame, mark)
        if packet.malformed:
            return self._dropped("onramp", Drop.MALFORMED, mark)
        inner = self._inner(packet, ramp.number)
        known = self._known(packet, inner, ramp.owner, Holder.PACKET) if inner is not None and packet.ttl > 1 else None
        if known is not None and packet.ports is not None and not packet.fragment:
            self._track(known, packet, now_ns, out=True)
            return self._leave(ramp, packet, known, mark, {}, "known")
        verdict = self._class(ramp, packet)
        if verdict is OK:
            return Expected("onramp stack", OK, frame, mark & ~self.tables.settings.mask)
        if isinstance(verdict, Drop):
            return self._refused(ramp, packet, verdict, mark, {})
        if packet.error:
            return self._client_error(ramp, packet, mark)
        if not self.ready:
            return self._dropped("onramp", Drop.NOT_READY, mark)
        assert inner is not None
        found = self._begin(ramp, inner, now_ns, did)
        if isinstance(found, Drop):
            return self._refused(ramp, packet, found, mark, {Counter.REFUSED_PACKET: 1})
        return self._leave(ramp, packet, found, mark, {Counter.CLAIM_PACKET: 1}, "new")

    def _class(self, ramp: Ramp, packet: Packet) -> Drop | int | None:
        """OK: the stack's; None: may begin a flow, or is an error."""
        if self._neighbour(packet):
            return OK
        if not listed(ramp.sources, packet.source):
            return Drop.SPOOFED
        if packet.target == (ramp.gateway6 if packet.ip6 else ramp.gateway4):
            return OK
        if packet.target in self.tables.addresses:
            return Drop.TO_FLEET
        if listed(self.never, packet.target) or listed(ramp.bypass, packet.target):
            return OK
        if packet.fragment:
            return Drop.FRAGMENT
        if packet.ttl <= 1:
            return Drop.HOPS
        if packet.error:
            return None
        if packet.ports is None:
            return Drop.PROTOCOL
        begins = packets.tcp_flags(packet) & (SYN | ACK | RST) == SYN
        if packets.is_echo_reply(packet) or (packet.proto == TCP and not begins):
            return Drop.NOT_INITIAL
        return None

    def _neighbour(self, packet: Packet) -> bool:
        """What routers do not forward."""
        if packet.frame[:6] != self.mac:
            return True
        source, target = packet.source, packet.target
        if packet.ip6:
            link_local = any(address[0] == 0xFE and address[1] & 0xC0 == 0x80 for address in (source, target))
            return target[0] == 0xFF or link_local or 133 <= packets.icmp_type(packet) <= 137
        source, target = source[12:], target[12:]
        return target[0] >= 224 or b"\xa9\xfe" in (source[:2], target[:2]) or 0 in (source[0], target[0])

    def _client_error(self, ramp: Ramp, packet: Packet, mark: int) -> Expected:
        quote = packets.quote_of(packet)
        if quote is None:
            return self._refused(ramp, packet, Drop.ERROR_UNKNOWN, mark, {})
        inner = InnerFlow(ramp.number, quote.proto, quote.target, quote.target_port, quote.source, quote.source_port)
        key = self._known(packet, inner, ramp.owner, Holder.PACKET)
        if key is None:
            return self._refused(ramp, packet, Drop.ERROR_UNKNOWN, mark, {})
        data = packets.translated_error(packet, key.local, key.local_port, target=False, hop=True)
        return self._left("onramp error", packet, data, mark, {})

    def _leave(
        self, ramp: Ramp, packet: Packet, key: Key, mark: int, counts: dict[Counter, int], what: str
    ) -> Expected:
        if len(packet.frame) - ETHERNET > self.mtu:
            return self._refused(ramp, packet, Drop.TOO_BIG, mark, counts)
        data = packets.translated(packet, key.local, key.local_port, target=False, hop=True)
        return self._left(f"onramp {what}", packet, data, mark, counts)

    def _left(self, where: str, packet: Packet, data: bytes, mark: int, counts: dict[Counter, int]) -> Expected:
        settings = self.tables.settings
        size = len(packet.frame) - ETHERNET
        counts = {**counts, Counter.OUT_PACKETS: 1, Counter.OUT_BYTES: size}
        return Expected(where, REDIRECT, data, mark & ~settings.mask | settings.mark, counts=counts)

    def _dropped(self, where: str, drop: Drop, mark: int, counts: dict[Counter, int] | None = None) -> Expected:
        return Expected(f"{where} drop {drop.name}", SHOT, None, mark, drop, counts or {})

    def _refused(self, ramp: Ramp, packet: Packet, drop: Drop, mark: int, counts: dict[Counter, int]) -> Expected:
        """Dropped, and its sender is told if it should know."""
        none_left = drop in NOT_FOUND
        tell = TOLD.get(drop)
        if none_left:
            tell = ((3, 3), (1, 4)) if packet.proto == UDP else ((3, 1), (1, 3))
        if drop is Drop.PROTOCOL and packet.proto in packets.ECHOES:
            tell = None
        if tell is None or packet.error or packets.is_later_fragment(packet):
            return self._dropped("onramp", drop, mark, counts)
        if none_left and packet.proto == TCP:
            counts = {**counts, Counter.RST_SENT: 1}
            return Expected(f"onramp RST {drop.name}", REDIRECT, packets.refusal(packet), mark, drop, counts)
        kind, code = tell[packet.ip6]
        gateway = ramp.gateway6 if packet.ip6 else ramp.gateway4
        data = packets.error(packet, gateway, kind, code, self.mtu if drop is Drop.TOO_BIG else 0)
        counts = {**counts, Counter.ICMP_SENT: 1}
        return Expected(f"onramp ICMP {drop.name}", REDIRECT, data, mark, drop, counts)

    # The uplink -----------------------------------------------------------------------------------------

    def _uplink(self, ifindex: int, frame: bytes, mark: int, now_ns: int, did: Did) -> Expected:
        kind = int.from_bytes(frame[12:14], "big")
        packet = parse(frame, ETHERNET, kind)
        fleet = self.tables.addresses
        if packet is None or len(frame) < ETHERNET + packets.header_size(kind) or frame[:6] != self.mac:
            return Expected("uplink stack", UNSPEC, frame, mark)
        target = peeked(frame, kind, target=True)
        settings = self.tables.settings
        if target not in fleet and (target not in (settings.underlay4, settings.underlay6) or packet.malformed):
            return Expected("uplink stack", UNSPEC, frame, mark)
        if packet.malformed:
            return self._dropped("uplink", Drop.MALFORMED, mark)
        said = steer(self.tables, frame, ifindex=ifindex)
        counts = {Counter.CARRIED_IN: 1} if said.uncovered else {}
        if said.verdict is Verdict.DROP:
            return self._carried_not(said.drop, mark, counts, did)
        if said.verdict is Verdict.ANSWER:
            return Expected("uplink probe", REDIRECT, said.frame, did.mark, counts={Counter.PROBE_ANSWERED: 1})
        if said.verdict is Verdict.CARRY:
            return Expected("uplink carried", REDIRECT, said.frame, mark, counts={**counts, Counter.CARRIED_OUT: 1})
        plain = parse(said.frame, ETHERNET, int.from_bytes(said.frame[12:14], "big"))
        assert plain is not None
        if plain.target not in fleet:
            return Expected("uplink stack", UNSPEC, frame, mark)
        if plain.echo_request:
            if said.uncovered:
                return self._dropped("uplink", Drop.NO_CLAIM, mark, counts)
            data = packets.echo_answer(plain)
            marked = mark & ~settings.mask | settings.mark
            return Expected("uplink ping", REDIRECT, data, marked, counts={Counter.ECHO_ANSWERED: 1})
        return self._deliver(ifindex, plain, mark, now_ns, counts, did)

    def _carried_not(self, drop: Drop, mark: int, counts: dict[Counter, int], did: Did) -> Expected:
        """Of what is too big its sender is told, unless too many were."""
        if drop is not Drop.TOO_BIG or did.verdict != REDIRECT:
            return self._dropped("uplink", drop, mark, counts)
        return Expected("uplink ICMP TOO_BIG", REDIRECT, None, did.mark, drop, {**counts, Counter.ICMP_SENT: 1})

    def _deliver(
        self, ifindex: int, packet: Packet, mark: int, now_ns: int, counts: dict[Counter, int], did: Did
    ) -> Expected:
        if packet.error:
            quote = packets.quote_of(packet)
            assert quote is not None
            key = Key(quote.proto, quote.source, quote.source_port, quote.target, quote.target_port)
        else:
            assert packet.ports is not None
            key = Key(packet.proto, packet.target, packet.ports[1], packet.source, packet.ports[0])
        claims = self.arbiter.claims
        if key not in claims and key.proto == UDP:
            key = Key(key.proto, key.local, key.local_port, NOBODY, 0)
        if key not in claims:
            return self._dropped("uplink", Drop.NO_CLAIM, mark, counts)
        held = claims[key]
        if held.holder is Holder.PACKET:
            return self._to_client(packet, key, held, mark, now_ns, counts)
        if held.holder is Holder.SOCKET:
            if packets.is_bare_syn(packet) and held.phase is Phase.LINGER:
                return self._dropped("uplink", Drop.INBOUND_NEW, mark, counts)
            return Expected("uplink socket", OK, packet.frame, mark, counts={**counts, Counter.SOCKET_IN: 1})
        if held.holder is Holder.LOCAL:
            if not packet.error:
                self._track(key, packet, now_ns, out=False)
            return Expected(
                "uplink local", OK, self._inwards(packet, key, hop=False), mark, counts={**counts, Counter.LOCAL_IN: 1}
            )
        said = carry(self.tables, packet, Owner(held.owner, NONE), packet.tos & 3, True, ifindex)
        if said.verdict is Verdict.DROP:
            return self._carried_not(said.drop, mark, counts, did)
        return Expected("uplink peer", REDIRECT, said.frame, mark, counts={**counts, Counter.CARRIED_OUT: 1})

    def _inwards(self, packet: Packet, key: Key, *, hop: bool) -> bytes:
        inside = self.inside[key]
        if not hop and (inside.inner, inside.inner_port) == (key.local, key.local_port):
            return packet.frame
        write = packets.translated_error if packet.error else packets.translated
        return write(packet, inside.inner, inside.inner_port, target=True, hop=hop)

    def _to_client(
        self, packet: Packet, key: Key, held: Held, mark: int, now_ns: int, counts: dict[Counter, int]
    ) -> Expected:
        if packets.is_bare_syn(packet) and held.phase is not Phase.NEW:
            return self._dropped("uplink", Drop.INBOUND_NEW, mark, counts)
        if held.owner not in {ramp.owner for ramp in self.ramps.values()}:
            return self._dropped("uplink", Drop.ONRAMP, mark, counts)
        if packet.ttl <= 1:
            return self._dropped("uplink", Drop.TTL, mark, counts)
        if not packet.error:
            self._track(key, packet, now_ns, out=False)
        size = len(packet.frame) - ETHERNET
        counts = {**counts, Counter.IN_PACKETS: 1, Counter.IN_BYTES: size}
        where = "uplink error to client" if packet.error else "uplink client"
        return Expected(where, REDIRECT, self._inwards(packet, key, hop=True), mark, counts=counts)

    # The guard ------------------------------------------------------------------------------------------

    def _guard(self, ifindex: int, frame: bytes, mark: int, now_ns: int, did: Did) -> Expected:
        settings, kind = self.tables.settings, int.from_bytes(frame[12:14], "big")
        if mark & settings.mask == settings.mark:
            return Expected("guard marked", OK, frame, mark & ~settings.mask)
        packet = parse(frame, ETHERNET, kind)
        if packet is None or len(frame) < ETHERNET + packets.header_size(kind):
            return Expected("guard other", UNSPEC, frame, mark)
        if peeked(frame, kind, target=False) not in self.tables.addresses:
            return Expected("guard other", UNSPEC, frame, mark)
        if packet.malformed:
            return self._dropped("guard", Drop.MALFORMED, mark)
        if packet.fragment:
            return self._dropped("guard", Drop.FRAGMENT, mark)
        quote = packets.quote_of(packet)
        if packet.error and quote is not None:
            key = Key(quote.proto, quote.target, quote.target_port, quote.source, quote.source_port)
        elif packet.ports is not None:
            key = Key(packet.proto, packet.source, packet.ports[0], packet.target, packet.ports[1])
        else:
            return self._dropped("guard", Drop.GUARD_NO_CLAIM, mark)
        claims = self.arbiter.claims
        if key not in claims and packet.proto == UDP:
            wildcard = Key(key.proto, key.local, key.local_port, NOBODY, 0)
            key = wildcard if wildcard in claims else key
        if key not in claims:
            return self._guard_begin(packet, key, mark, now_ns, did)
        held, inside, flags = claims[key], self.inside[key], packets.tcp_flags(packet)
        if held.holder is Holder.LOCAL and (inside.inner, inside.inner_port) == (key.local, key.local_port):
            if packet.error:
                self.arbiter.refresh(key, held.phase, now_ns)
            else:
                self._track(key, packet, now_ns, out=True)
        elif held.holder is Holder.SOCKET:
            phase = Phase.OPEN if held.phase is Phase.NEW and flags & ACK else held.phase
            if not (phase is Phase.LINGER and flags & RST):
                self.arbiter.refresh(key, phase, now_ns)
        else:
            return self._dropped("guard", Drop.GUARD_FOREIGN, mark)
        return Expected("guard passed", OK, frame, mark, counts={Counter.GUARD_PASSED: 1})

    def _guard_begin(self, packet: Packet, key: Key, mark: int, now_ns: int, did: Did) -> Expected:
        """A local packet of a flow that nobody holds."""
        begins = packets.tcp_flags(packet) & (SYN | ACK | RST) == SYN
        if packet.error or packets.is_echo_reply(packet) or (packet.proto == TCP and not begins):
            return self._dropped("guard", Drop.GUARD_NO_CLAIM, mark)
        owner = self.tables.owner(replace(packet, target=key.local), key.local_port)
        if isinstance(owner, Owner) and owner.node == self.tables.settings.node:
            return self._guard_exact(packet, key, owner.slice, mark, now_ns, did)
        live = [i for i, one in enumerate(self.slices) if one.addr == key.local and self.arbiter.slices[i].live]
        live = [i for i in live if not self.arbiter.slices[i].drain]
        if packet.proto in (TCP, UDP) or not live:
            return self._dropped("guard", Drop.GUARD_NO_CLAIM, mark)
        inner = self._inner(packet, 0)
        assert inner is not None
        found = self._known(packet, inner, 0, Holder.LOCAL)
        counts = {Counter.LOCAL_OUT: 1}
        if found is None:
            chosen = (live[0],)
            stack = Ramp(0, 0, NOBODY, NOBODY, chosen, chosen, (), ())
            begun = self._begin(stack, inner, now_ns, did, Holder.LOCAL)
            if isinstance(begun, Drop):
                return self._dropped("guard", begun, mark)
            counts[Counter.CLAIM_LOCAL] = 1
            found = begun
        self.arbiter.refresh(found, self.arbiter.claims[found].phase, now_ns)
        data = packets.translated(packet, found.local, found.local_port, target=False, hop=False)
        return Expected("guard rewritten", OK, data, mark, counts=counts)

    def _guard_exact(self, packet: Packet, key: Key, index: int, mark: int, now_ns: int, did: Did) -> Expected:
        """It claims its flow as it stands, if its port may be claimed exactly."""
        if packet.proto == UDP and key.local_port < self.slices[index].udp_exact_first:
            return self._dropped("guard", Drop.GUARD_NO_CLAIM, mark)
        table = did.table()
        if not self.arbiter.slices[index].may_claim(now_ns):
            answer, drop = Answer.NO_SLICE, Drop.GUARD_NO_CLAIM
        elif Drop.TABLE_FULL in did.drops:
            answer, drop = Answer.TABLE_FULL, Drop.TABLE_FULL
        else:
            given = self._given(table)
            self._take(given, Inside(key.local, key.local_port))
            self.arbiter.exact(key, index, Holder.LOCAL, 0, Answer.CLAIMED, given, now_ns)
            self._settle(table, now_ns)
            counts = {Counter.CLAIM_LOCAL: 1, Counter.GUARD_PASSED: 1}
            return Expected("guard claimed", OK, packet.frame, mark, counts=counts)
        self.arbiter.exact(key, index, Holder.LOCAL, 0, answer, None, now_ns)
        self._settle(table, now_ns)
        return self._dropped("guard", drop, mark)


def listed(networks: tuple[Network, ...], address: bytes) -> bool:
    return any(addr_ip(address) in network for network in networks)


def peeked(frame: bytes, ether_type: int, *, target: bool) -> bytes:
    """Source or target where an IP header has it, whatever the rest is like."""
    if ether_type == 0x86DD:
        return frame[38:54] if target else frame[22:38]
    return MAPPED + (frame[30:34] if target else frame[26:30])


def same(left: bytes, right: bytes) -> bool:
    """Alike but for Ethernet addresses, and for an ICMP checksum that is zero both ways (RFC 1624 section 3)."""
    if left[12:] == right[12:]:
        return True
    if len(left) != len(right):
        return False
    different = [at for at in range(12, len(left)) if left[at] != right[at]]
    at = different[0]
    pair = {left[at : at + 2], right[at : at + 2]}
    return different[-1] - at == 1 and pair == {b"\0\0", b"\xff\xff"}
