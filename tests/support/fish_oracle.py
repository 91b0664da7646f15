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

from dataclasses import dataclass
from typing import Final

from softunicast.egress.arbiter_oracle import Broken, Held, Holder, Key, Phase
from softunicast.kernel.abi import NONE, Counter, Drop, Owner
from softunicast.kernel.abi_util import addr_ip
from softunicast.steering.oracle import Verdict, carry, steer
from softunicast.steering.oracle_packet import ETHERNET, TCP, UDP, Packet, parse
from tests.support import fish_packets as packets
from tests.support.fish_guard import OK, REDIRECT, UNSPEC, Expected, Guard, later, peeked
from tests.support.fish_memory import NOBODY, NOT_FOUND, Did, InnerFlow, Network, Ramp
from tests.support.fish_packets import ACK, RST, SYN

TOLD: Final = {
    Drop.TOO_BIG: ((3, 4), (2, 0)),
    Drop.PROTOCOL: ((3, 2), (1, 1)),
    Drop.HOPS: ((11, 0), (3, 0)),
}


@dataclass(kw_only=True)
class Fish(Guard):
    """One node. `ramps` by ifindex."""

    ramps: dict[int, Ramp]
    never: tuple[Network, ...]
    mtu: int
    mac: bytes
    ready: bool = True

    # Judging ------------------------------------------------------------------------------------------

    def judge(self, program: str, ifindex: int, frame: bytes, mark: int, now_ns: int, did: Did) -> str:
        """Judges one packet and remembers what follows; what the case is called. Broken says what is wrong."""
        way = {"su_onramp_in": self._onramp, "su_uplink_in": self._uplink, "su_guard": self._guard}[program]
        followed = self.fragments.followed
        expected = way(ifindex, frame, mark, now_ns, did)
        if self.fragments.followed > followed:
            expected.counts = {**expected.counts, Counter.FRAGMENTS: self.fragments.followed - followed}
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
        # One that cannot be followed is still the stack's, perhaps.
        if packet.fragment and self.fragments.follow(packet, now_ns, ramp.number) is Drop.MALFORMED:
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
            return Drop.FRAGMENT_EARLY if packet.fragment_at else Drop.FRAGMENT
        if packet.fragment_at:
            return Drop.FRAGMENT
        if packet.ttl <= 1:
            return Drop.HOPS
        if packet.error:
            return None
        if packet.ports is None:
            return Drop.PROTOCOL
        begins = packets.tcp_flags(packet) & (SYN | ACK | RST) == SYN
        if packet.echo_reply or (packet.proto == TCP and not begins):
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
        return self._left(f"onramp {what}{later(packet)}", packet, data, mark, counts)

    def _left(self, where: str, packet: Packet, data: bytes, mark: int, counts: dict[Counter, int]) -> Expected:
        settings = self.tables.settings
        size = len(packet.frame) - ETHERNET
        counts = {**counts, Counter.OUT_PACKETS: 1, Counter.OUT_BYTES: size}
        return Expected(where, REDIRECT, data, mark & ~settings.mask | settings.mark, counts=counts)

    def _refused(self, ramp: Ramp, packet: Packet, drop: Drop, mark: int, counts: dict[Counter, int]) -> Expected:
        """Dropped, and its sender is told if it should know."""
        none_left = drop in NOT_FOUND
        tell = TOLD.get(drop)
        if none_left:
            tell = ((3, 3), (1, 4)) if packet.proto == UDP else ((3, 1), (1, 3))
        if drop is Drop.PROTOCOL and packet.proto in packets.ECHOES:
            tell = None
        if tell is None or packet.error or packet.fragment_at:
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
        settings = self.tables.settings
        if packet is None or len(frame) < ETHERNET + packets.header_size(kind):
            return Expected("uplink stack", UNSPEC, frame, mark)
        # A client's packet that turned round is for us, whatever its Ethernet header says.
        turned = mark & settings.mask == settings.mark
        mark &= ~settings.mask if turned else -1
        if frame[:6] != self.mac and not turned:
            return Expected("uplink stack", UNSPEC, frame, mark)
        target = peeked(frame, kind, target=True)
        if target not in fleet and (target not in (settings.underlay4, settings.underlay6) or packet.malformed):
            return Expected("uplink stack", UNSPEC, frame, mark)
        if packet.malformed:
            return self._dropped("uplink", Drop.MALFORMED, mark)
        said = steer(self.tables, frame, ifindex=ifindex, fragments=self.fragments, now_ns=now_ns)
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
        followed = plain.fragment
        if followed:  # by steer(), and counted there
            self.fragments.follow(plain, now_ns)
            self.fragments.followed -= 1
        if plain.echo_request:
            if said.uncovered and not followed:
                return self._dropped("uplink", Drop.NO_CLAIM, mark, counts)
            data = packets.echo_answer(plain)
            counts = {**counts, Counter.ECHO_ANSWERED: 1}
            marked = mark & ~settings.mask | settings.mark
            return Expected(f"uplink ping{later(plain)}", REDIRECT, data, marked, counts=counts)
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
            return self._to_client(packet, key, held, mark, now_ns, counts, did)
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
        self, packet: Packet, key: Key, held: Held, mark: int, now_ns: int, counts: dict[Counter, int], did: Did
    ) -> Expected:
        if packets.is_bare_syn(packet) and held.phase is not Phase.NEW:
            return self._dropped("uplink", Drop.INBOUND_NEW, mark, counts)
        if held.owner not in {ramp.owner for ramp in self.ramps.values()}:
            return self._dropped("uplink", Drop.ONRAMP, mark, counts)
        if packet.ttl <= 1:
            return self._dropped("uplink", Drop.TTL, mark, counts)
        mtu = next(ramp.mtu for ramp in self.ramps.values() if ramp.owner == held.owner)
        if mtu and len(packet.frame) - ETHERNET > mtu:
            return self._carried_not(Drop.TOO_BIG, mark, counts, did)
        if not packet.error:
            self._track(key, packet, now_ns, out=False)
        size = len(packet.frame) - ETHERNET
        counts = {**counts, Counter.IN_PACKETS: 1, Counter.IN_BYTES: size}
        where = "uplink error to client" if packet.error else f"uplink client{later(packet)}"
        return Expected(where, REDIRECT, self._inwards(packet, key, hop=True), mark, counts=counts)


def listed(networks: tuple[Network, ...], address: bytes) -> bool:
    return any(addr_ip(address) in network for network in networks)


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
