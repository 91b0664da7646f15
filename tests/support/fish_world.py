# SPDX-License-Identifier: Apache-2.0
"""A node for the oracle of fish: egress.bpf.o as the agent loads it, small maps, and a clock that can be moved.

slice 0   198.51.100.20   9000-9009     pool 1                     ten ports
slice 1   198.51.100.21   9000-9063     pool 2, range of ramp 3    9000-9015 for UDP wildcard claims
slice 2   2001:db8:1::20  9000-9031     pool 2
slice 3   198.51.100.22   9000-9007     pool 2
other ports of 198.51.100.20 are node 2's (9010-9019) or nobody's

on-ramps 1 (pool 1), 2 (pool 2, with a bypass list and a small MTU), 3 (slice 1, 9040-9049), 4 (pool 3, which is empty):
the same inner addresses behind each. A device without an on-ramp.

Time: whatever the maps say of it is made older (`age`), as if the clock had moved on; the programs are those that
every node runs. A test run happens within one second of the boot clock, or is judged by both.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from ipaddress import ip_network
from socket import if_nametoindex
from typing import Final

from softunicast.egress.arbiter_oracle import NS, Broken, Held, Holder, Key, Oracle, OracleSlice, Phase
from softunicast.kernel import netns
from softunicast.kernel.abi import (
    NONE,
    Address,
    Claim,
    Control,
    Counter,
    Drop,
    Flow,
    Kind,
    List,
    Node,
    Onramp,
    OnrampFlag,
    Origin,
    OriginKey,
    Owner,
    Policy,
    PolicyFlag,
    Pool,
    ProbeFlag,
    Site,
    Slice,
    SliceFlag,
    Slot,
    State,
    Stats,
    Uplink,
    UplinkFlag,
)
from softunicast.kernel.abi_util import Word, prefix_key, word_generation, word_state
from softunicast.kernel.bpf import NOEXIST, BpfObject, object_path
from softunicast.steering.oracle import Tables
from softunicast.wire.craft import mac_bytes
from tests.support import dataplane
from tests.support.ageing import age
from tests.support.claims import flow_check
from tests.support.dataplane import GATEWAY, GATEWAY6, ME, OTHER, UNDERLAY, namespaces, packed, run, u32
from tests.support.fish_memory import Did, InnerFlow, Inside, Ramp
from tests.support.fish_oracle import Fish
from tests.support.packets import DEVICE_MAC

FLOWS: Final = 256
MTU: Final = 1600
RAMP_MTU: Final = 400
MAP_SIZES: Final = {
    "flows": FLOWS, "origin": FLOWS, "slots": 2 * FLOWS, "crowds": 64, "owners": 1 << 19, "nodes": 16,
}  # fmt: skip
SETTINGS: Final = replace(dataplane.SETTINGS, slots=2 * FLOWS, full_ns=20_000_000)
SLICES: Final = (
    ("198.51.100.20", 9000, 9009, 9000),
    ("198.51.100.21", 9000, 9063, 9016),
    ("2001:db8:1::20", 9000, 9031, 9000),
    ("198.51.100.22", 9000, 9007, 9000),
)
OTHERS: Final = ("198.51.100.20", 9010, 9019)
POOLS: Final = {1: ((0,), ()), 2: ((1, 3), (2,)), 3: ((), ())}
SOURCES: Final = (ip_network("10.8.0.0/16"), ip_network("2001:db8:8::/48"))
BYPASS: Final = (ip_network("203.0.113.192/26"),)
NEVER: Final = (ip_network("127.0.0.0/8"), ip_network("192.0.2.0/24"))
SK_BUFF_BYTES: Final = 192
MARK_AT, IFINDEX_AT = 8, 40
COUNTED: Final = (
    Counter.CLAIM_PACKET, Counter.CLAIM_LOCAL, Counter.REFUSED_PACKET, Counter.OUT_PACKETS, Counter.OUT_BYTES,
    Counter.IN_PACKETS, Counter.IN_BYTES, Counter.SOCKET_IN, Counter.LOCAL_OUT, Counter.LOCAL_IN,
    Counter.CARRIED_OUT, Counter.CARRIED_IN, Counter.RST_SENT, Counter.ICMP_SENT, Counter.ECHO_ANSWERED,
    Counter.GUARD_PASSED, Counter.PROBE_ANSWERED, Counter.FRAGMENTS,
)  # fmt: skip
ROW: Final = struct.Struct(f"={Stats.SIZE // 8}Q")


def signed(seconds: int) -> int:
    """Seconds of 32 bits that may lie before the clock's beginning."""
    return seconds - (1 << 32) if seconds >> 31 else seconds


@lru_cache(maxsize=1 << 14)
def key_of(raw: bytes) -> Key:
    flow = Flow.unpack(raw)
    return Key(flow.proto, flow.local, flow.local_port, flow.remote, flow.remote_port)


def flow_of(key: Key) -> bytes:
    return Flow(key.local, key.remote, key.local_port, key.remote_port, key.proto).pack()


@lru_cache(maxsize=1 << 14)
def claim_of(raw: bytes) -> tuple[Held, Inside]:
    claim = Claim.unpack(raw)
    held = Held(
        Holder(claim.kind), claim.owner, Phase(word_state(claim.word)), signed(claim.word & 0xFFFFFFFF),
        word_generation(claim.word), claim.slice,
    )  # fmt: skip
    return held, Inside(claim.inner, claim.inner_port, claim.tcp_seen, claim.tenant)


@dataclass
class World:
    """The loaded programs, the oracle beside them, and what was seen."""

    egress: BpfObject
    claims: BpfObject
    fish: Fish
    devices: dict[str, int]
    ramps: dict[int, Onramp]
    policies: dict[int, Policy] = field(default_factory=dict)
    cookies: int = 1
    aged_s: int = 0
    _last: list[int] = field(default_factory=list)

    # Packets

    def packet(self, program: str, device: str, frame: bytes, mark: int = 0) -> str:
        """One frame through a program, judged; what the case is called."""
        context = bytearray(SK_BUFF_BYTES)
        struct.pack_into("=I", context, MARK_AT, mark)
        struct.pack_into("=I", context, IFINDEX_AT, self.devices[device])
        before = self.now_ns()
        done = self.egress.programs[program].test_run(frame, ctx=bytes(context))
        after = self.now_ns()
        drops, counts = self.counted()
        mark_out: int = struct.unpack_from("=I", done.ctx, MARK_AT)[0]
        did = Did(done.retval, done.data, mark_out, drops, counts, self.table)
        self.fish.arbiter.full_slack_ns = after - before
        arguments = (program, self.devices[device], frame, mark)
        if before // NS == after // NS:
            return self.fish.judge(*arguments, before, did)
        # The second ended meanwhile: it must be right by one of them.
        spare = self.fish.copy()
        try:
            where = self.fish.judge(*arguments, before, did)
            self.compare()
        except Broken:
            self.fish = spare
            where = self.fish.judge(*arguments, after, did)
            self.compare()
        return where

    def counted(self) -> tuple[dict[Drop, int], dict[Counter, int]]:
        """What the counters went up by since the last time."""
        rows = [ROW.unpack(raw) for raw in self.egress.maps["stats"].lookup_percpu(u32(0))]
        now = [sum(column) for column in zip(*rows, strict=True)]
        last = self._last or [0] * len(now)
        self._last = now
        half = len(now) // 2
        drops = {Drop(i): now[i] - last[i] for i in range(half) if now[i] != last[i]}
        counts = {one: now[half + one] - last[half + one] for one in COUNTED if now[half + one] != last[half + one]}
        return drops, counts

    def count(self, counter: Counter) -> int:
        """Since the programs were loaded."""
        return sum(Stats.unpack(raw).counters[counter] for raw in self.egress.maps["stats"].lookup_percpu(u32(0)))

    def now_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def table(self) -> dict[Key, tuple[Held, Inside]]:
        return {key_of(key): claim_of(value) for key, value in self.egress.maps["flows"].items()}

    def compare(self) -> None:
        """Both maps, whole."""
        origin = {}
        for raw_key, raw_value in self.egress.maps["origin"].items():
            key, value = OriginKey.unpack(raw_key), Origin.unpack(raw_value)
            inner = InnerFlow(key.onramp, key.proto, key.inner, key.inner_port, key.remote, key.remote_port)
            origin[inner] = Key(key.proto, value.local, value.local_port, key.remote, key.remote_port)
        self.fish.compare(self.now_ns(), self.table(), origin)

    # What happens beside them

    def age(self, seconds: int) -> None:
        """The clock moves on by so much."""
        age(self.egress.maps, seconds)
        self.fish.age(seconds)
        self.aged_s += seconds

    def socket(self, key: Key, index: int, *, open_: bool, peer: bool = False) -> bool:
        """What a hook, or an agent told of a moved slice, does: claim a free flow. False: the table is full."""
        now_s, generation = self.now_ns() // NS, self.cookies % 0xFFFFFF
        self.cookies += 1
        holder = Holder.PEER if peer else Holder.SOCKET
        owner = OTHER if peer else self.cookies
        state = State.OPEN if open_ else State.NEW
        slot, flow = self.free_slot(), Flow.unpack(flow_of(key))
        claim = Claim(
            word=Word(generation, state, now_s).pack(), owner=owner, kind=Kind[holder.name], check=flow_check(flow),
            slot=slot, slice=index, born_s=now_s,
        )  # fmt: skip
        try:
            self.egress.maps["flows"].update(flow_of(key), claim.pack(), NOEXIST)
        except OSError:
            return False
        if slot != NONE:
            self.egress.maps["slots"].update(u32(slot), Slot(flow, now_s).pack())
        self.fish.claim(key, Held(holder, owner, Phase[state.name], now_s, generation, index), Inside())
        return True

    def free_slot(self) -> int:
        """As su_hand finds one."""
        for _ in range(8):
            slot = self.cookies * 0x9E3779B1 % 0xFFFFFFFB % SETTINGS.slots
            self.cookies += 1
            value = self.egress.maps["slots"].lookup(u32(slot))
            if value is not None and not Slot.unpack(value).flow.proto:
                return slot
        return NONE

    def end(self, key: Key, *, linger: bool) -> None:
        """What a hook does when its socket ends, by the program for it."""
        raw = self.egress.maps["flows"].lookup(flow_of(key))
        assert raw is not None
        claim = Claim.unpack(raw)
        arguments = flow_of(key) + struct.pack("=QQIi", claim.word, claim.owner, int(linger), 0)
        before = self.now_ns()
        done = self.claims.programs["su_release"].test_run(ctx=arguments)
        result = struct.unpack_from("=i", done.ctx, 60)[0]
        if result:
            raise Broken(f"su_release of {key}: {result}")
        if linger:
            raw = self.egress.maps["flows"].lookup(flow_of(key))
            assert raw is not None
            seen_s = signed(Claim.unpack(raw).word & 0xFFFFFFFF)
            if not before // NS <= seen_s <= self.now_ns() // NS:
                raise Broken(f"{key} lingers since {seen_s}")
            self.fish.arbiter.refresh(key, Phase.LINGER, seen_s * NS)
        else:
            self.fish.release(key)
        self.counted()

    def sweep(self) -> None:
        """What the agent does every while: nothing that expired stays."""
        self.claims.programs["su_sweep"].test_run(ctx=bytes(16))
        table = self.table()
        now_ns = self.now_ns()
        left = [key for key in table if self.fish.arbiter.expired(key, now_ns - NS)]
        if left:
            raise Broken(f"swept, and left is {left[:3]}")
        self.compare()
        self.counted()

    def set_slice(self, index: int, *, live: bool = True, drain: bool = False, leased: bool = True) -> None:
        """Change whether it may claim."""
        until = 1 << 62 if leased else 1
        held = replace(self.fish.arbiter.slices[index], live=live, drain=drain, claim_until_ns=until)
        self.fish.arbiter.slices[index] = held
        flags = (SliceFlag.LIVE if live else 0) | (SliceFlag.DRAIN if drain else 0)
        one = self.fish.slices[index] = replace(self.fish.slices[index], flags=flags, claim_until_ns=until)
        self.egress.maps["slices"].update(u32(index), one.pack())

    def set_ready(self, ready: bool) -> None:
        raw = self.egress.maps["control"].lookup(u32(0))
        assert raw is not None
        self.egress.maps["control"].update(u32(0), replace(Control.unpack(raw), ready=int(ready)).pack())
        self.fish.ready = ready

    def renew(self, device: str) -> None:
        """The on-ramp on that device is another one now, with the same number."""
        ifindex = self.devices[device]
        ramp = self.fish.ramps[ifindex]
        self.fish.ramps[ifindex] = replace(ramp, generation=ramp.generation + 1)
        new = self.ramps[ramp.number] = replace(self.ramps[ramp.number], generation=ramp.generation + 1)
        self.egress.maps["onramps"].update(u32(ramp.number), new.pack())


def contents(devices: dict[str, int]) -> tuple[dict[str, dict[bytes, bytes]], list[Slice], dict[int, Onramp]]:
    """All maps, and what is in some of them."""
    owners: dict[bytes, bytes] = {}
    addresses, slices = {}, []
    for index, (address, first, last, exact) in enumerate(SLICES):
        base = index << 16
        addresses[packed(address)] = Address(base, 0, 1).pack()
        slices.append(Slice(packed(address), first, last, exact, SliceFlag.LIVE, 0, 1, 1 << 62))
        owners |= dict.fromkeys(map(u32, range(base, base + 65536)), Owner(NONE, NONE).pack())
        owners |= dict.fromkeys(map(u32, range(base + first, base + last + 1)), Owner(ME, index).pack())
        if address == OTHERS[0]:
            others = range(base + OTHERS[1], base + OTHERS[2] + 1)
            owners |= dict.fromkeys(map(u32, others), Owner(OTHER, NONE).pack())
    pools, pool_slices = {}, {}
    for pool, (v4, v6) in POOLS.items():
        start = len(pool_slices)
        pools[u32(pool)] = Pool(start, len(v4), start + len(v4), len(v6)).pack()
        for member in (*v4, *v6):
            pool_slices[u32(len(pool_slices))] = u32(member)
    prefixes = {prefix_key(List.NEVER, network): u32(1) for network in NEVER}
    prefixes |= {prefix_key(List.INTERNAL, ip_network(text)): u32(1) for text in ("192.0.2.0/24", "198.51.100.0/24")}
    prefixes |= {prefix_key(List.FIRST_FREE, network): u32(1) for network in SOURCES}
    prefixes |= {prefix_key(List.FIRST_FREE + 1, network): u32(1) for network in BYPASS}
    policies = {
        1: Policy(flags=PolicyFlag.SET, pool=1, tenant=7),
        2: Policy(flags=PolicyFlag.SET, pool=2, bypass=List.FIRST_FREE + 1, tenant=8),
        3: Policy(flags=PolicyFlag.SET | PolicyFlag.RANGE, slice=1, first=9040, last=9049),
        4: Policy(flags=PolicyFlag.SET, pool=3),
    }
    gateways = packed(GATEWAY), packed(GATEWAY6)
    flags = OnrampFlag.SET | OnrampFlag.L2
    ramps = {
        number: Onramp(
            flags, 5, devices[f"fish{number}"], List.FIRST_FREE, *gateways, policy, mtu=RAMP_MTU if number == 2 else 0
        )
        for number, policy in policies.items()
    }
    maps = {
        "addresses": addresses,
        "owners": owners,
        "slices": {u32(index): one.pack() for index, one in enumerate(slices)},
        "pools": pools,
        "pool_slices": pool_slices,
        "prefixes": prefixes,
        "onramps": {u32(number): ramp.pack() for number, ramp in ramps.items()},
        "onramp_devices": {u32(ramp.ifindex): u32(number) for number, ramp in ramps.items()},
        "nodes": {u32(ME): Node(packed(UNDERLAY), 1).pack(), u32(OTHER): Node(packed("192.0.2.12"), 1).pack()},
        "peers": {packed("192.0.2.12"): u32(OTHER)},
        "uplinks": {u32(0): Uplink(devices["up0"], MTU, UplinkFlag.ONE_HOP).pack()},
        "sites": {u32(SETTINGS.site): Site(0, 2).pack()},
        "site_nodes": {u32(0): u32(ME), u32(1): u32(OTHER)},
        "control": {u32(0): Control(1, 0, 0, ProbeFlag.FIT).pack()},
    }
    return maps, slices, ramps


def oracle(devices: dict[str, int], maps: dict[str, dict[bytes, bytes]], slices: list[Slice]) -> Fish:
    arbiter = Oracle(
        {i: OracleSlice(one.addr, one.first, one.last, one.udp_exact_first) for i, one in enumerate(slices)},
        SETTINGS, sock_reuse_s=SETTINGS.sock_reuse_s, full_ns=SETTINGS.full_ns, table_size=FLOWS,
        hand_finds_all=False,
    )  # fmt: skip
    common = (packed(GATEWAY), packed(GATEWAY6))
    ramps = {
        devices["fish1"]: Ramp(1, 5, *common, (0,), (), SOURCES, (), tenant=7),
        devices["fish2"]: Ramp(2, 5, *common, (1, 3), (2,), SOURCES, BYPASS, tenant=8, mtu=RAMP_MTU),
        devices["fish3"]: Ramp(3, 5, *common, (1,), (1,), SOURCES, (), 9040, 9049),
        devices["fish4"]: Ramp(4, 5, *common, (), (), SOURCES, ()),
    }
    tables = Tables.from_maps(SETTINGS, maps)
    return Fish(
        arbiter=arbiter,
        tables=tables,
        ramps=ramps,
        never=NEVER,
        mtu=MTU,
        mac=mac_bytes(DEVICE_MAC),
        slices=list(slices),
    )


@contextmanager
def world() -> Iterator[World]:
    """In a namespace of its own, which this thread is in until the end."""
    name = f"t-fish-{os.getpid()}"
    with namespaces(name), netns.enter(name):
        devices = {}
        for device in ("up0", "fish1", "fish2", "fish3", "fish4", "none0"):
            run(f"ip link add {device} address {DEVICE_MAC} type veth peer name {device}p")
            run(f"ip link set {device} up")
            devices[device] = if_nametoindex(device)
        maps, slices, ramps = contents(devices)
        packed_settings = SETTINGS.pack()
        with BpfObject.load(object_path("egress"), settings=packed_settings, map_sizes=MAP_SIZES) as egress:
            for map_name, entries in maps.items():
                egress.maps[map_name].update_many(entries)
            shared = {key: value for key, value in egress.maps.items() if "rodata" not in key and "bss" not in key}
            with BpfObject.load(
                object_path("claim"), settings=packed_settings, reuse=shared, map_sizes=MAP_SIZES,
                programs={"su_release", "su_sweep"},
            ) as claims:  # fmt: skip
                yield World(egress, claims, oracle(devices, maps, slices), devices, ramps)
