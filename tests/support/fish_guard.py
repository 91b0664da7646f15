# SPDX-License-Identifier: Apache-2.0
"""The guard in the oracle of fish: what the stack sends from an address of the fleet.

    marked, claimed by a socket or LOCAL: passes | may begin a flow: claims | dropped

A fragment goes as the first one of its datagram did; a later one begins nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from softunicast.egress.arbiter_oracle import Answer, Holder, Key, Phase
from softunicast.kernel.abi import FRAG_STACK, Counter, Drop, Owner, Slice
from softunicast.kernel.abi_util import MAPPED
from softunicast.steering.oracle import Tables
from softunicast.steering.oracle_packet import ETHERNET, TCP, UDP, Packet, parse
from tests.support import fish_packets as packets
from tests.support.fish_memory import NOBODY, Did, Inside, Memory, Ramp
from tests.support.fish_packets import ACK, RST, SYN

OK, SHOT, REDIRECT, UNSPEC = 0, 2, 7, 0xFFFFFFFF


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
class Guard(Memory):
    """`slices` are those of the map, for the guard's search; `arbiter` knows them too."""

    tables: Tables
    slices: list[Slice]

    def _dropped(self, where: str, drop: Drop, mark: int, counts: dict[Counter, int] | None = None) -> Expected:
        return Expected(f"{where} drop {drop.name}", SHOT, None, mark, drop, counts or {})

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
        drop = self.fragments.follow(packet, now_ns, FRAG_STACK) if packet.fragment else None
        if drop is not None:
            return self._dropped("guard", drop, mark)
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
        return Expected(f"guard passed{later(packet)}", OK, frame, mark, counts={Counter.GUARD_PASSED: 1})

    def _guard_begin(self, packet: Packet, key: Key, mark: int, now_ns: int, did: Did) -> Expected:
        """A local packet of a flow that nobody holds."""
        begins = packets.tcp_flags(packet) & (SYN | ACK | RST) == SYN
        if packet.error or packet.echo_reply or (packet.proto == TCP and not begins):
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
        if found is None and packet.fragment_at:
            return self._dropped("guard", Drop.FRAGMENT, mark)
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
        if packet.fragment_at or (packet.proto == UDP and key.local_port < self.slices[index].udp_exact_first):
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


def peeked(frame: bytes, ether_type: int, *, target: bool) -> bytes:
    """Source or target where an IP header has it, whatever the rest is like."""
    if ether_type == 0x86DD:
        return frame[38:54] if target else frame[22:38]
    return MAPPED + (frame[30:34] if target else frame[26:30])


def later(packet: Packet) -> str:
    """A word for the tally."""
    return " later fragment" if packet.fragment_at else ""
