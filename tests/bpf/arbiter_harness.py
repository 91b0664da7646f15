# SPDX-License-Identifier: Apache-2.0
"""The arbiter in the kernel, with small maps, called by a test one operation at a time.

slice 1   198.51.100.20   9000-9009     ten ports, nothing set apart
slice 2   198.51.100.10   2048-2111     64 ports, 2048-2063 for UDP wildcard claims
slice 3   198.51.100.11   2048-2111     the same on another address
slice 4   2001:db8::10    1024-1087
pool 0: slice 1    pool 1: slices 2 and 3, IPv6 slice 4    pool 2: nothing
"""

from __future__ import annotations

import errno
import platform
import struct
import subprocess
from dataclasses import dataclass, replace
from functools import lru_cache
from ipaddress import ip_address
from pathlib import Path
from typing import Final, Self

from softunicast.egress.arbiter_oracle import Answer, Ask, Given, Held, Holder, Key, Oracle, OracleSlice, Phase
from softunicast.kernel.abi import (
    Claim,
    Control,
    Counter,
    Drop,
    Flow,
    Policy,
    PolicyFlag,
    Pool,
    Settings,
    Slice,
    SliceFlag,
    Stats,
    Use,
)
from softunicast.kernel.abi_util import addr_bytes, word_generation, word_seen_s, word_state
from softunicast.kernel.bpf import BpfObject

NS: Final = 1_000_000_000
START_NS: Final = 1_000 * NS
NEVER_NS: Final = 1 << 62
FLOWS: Final = 1024
HEADERS: Final = Path(__file__).resolve().parents[2] / "bpf" / "include"
WANT: Final = struct.Struct("=40s56sHHI")
ARGS: Final = struct.Struct("=104s28sIQIIIiI4x")
WANT_STOLEN: Final = 1
NO_FLOW: Final = Flow()
NO_CLAIM: Final = Claim()
NO_POLICY: Final = Policy()

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
TIMERS: Final = Settings(
    full_ns=5_000_000,
    node=1,
    tcp_transitory_s=20,
    tcp_established_s=100,
    tcp_linger_s=12,
    sock_linger_s=15,
    sock_reuse_s=1,
    udp_s=30,
    icmp_s=10,
)
ANSWERS: Final = {
    0: Answer.CLAIMED,
    -Drop.SLICE_FULL: Answer.SLICE_FULL,
    -Drop.TABLE_FULL: Answer.TABLE_FULL,
    -Drop.NO_SLICE: Answer.NO_SLICE,
    -Drop.GUARD_FOREIGN: Answer.HELD,
}


def packed(text: str) -> bytes:
    return addr_bytes(ip_address(text))


SLICES: Final = {
    1: OracleSlice(packed("198.51.100.20"), 9000, 9009, 9000),
    2: OracleSlice(packed("198.51.100.10"), 2048, 2111, 2064),
    3: OracleSlice(packed("198.51.100.11"), 2048, 2111, 2064),
    4: OracleSlice(packed("2001:db8::10"), 1024, 1087, 1024),
}
POOL_SLICES: Final = {0: (1,), 1: (2, 3), 2: ()}


def compile_test_program(folder: Path) -> Path:
    """arbiter_test.bpf.c against the product's headers; the object's path."""
    target = folder / "arbiter_test.bpf.o"
    source = Path(__file__).with_name("arbiter_test.bpf.c")
    subprocess.run(
        ["clang", "-O2", "-g", "-Wall", "-Werror", "-Wno-unused-function", "-target", "bpf", "-mcpu=v3",
         f"-I/usr/include/{platform.machine()}-linux-gnu", f"-I{HEADERS}", "-c", str(source), "-o", str(target)],
        check=True,
    )  # fmt: skip
    return target


@dataclass(frozen=True, slots=True)
class Args:
    """struct test_args."""

    flow: Flow = NO_FLOW
    claim: Claim = NO_CLAIM
    first: int = 0
    last: int = 65535
    flags: int = 0
    policy: Policy = NO_POLICY
    client: int = 0
    now_ns: int = START_NS
    rnd: int = 1
    generation: int = 0
    state: int = 0
    result: int = 0
    thread: int = 0

    def pack(self) -> bytes:
        want = WANT.pack(self.flow.pack(), self.claim.pack(), self.first, self.last, self.flags)
        return ARGS.pack(want, self.policy.pack(), self.client, self.now_ns, self.rnd, self.generation, self.state,
                         self.result, self.thread)  # fmt: skip

    @classmethod
    def unpack(cls, data: bytes) -> Self:
        want, policy, client, now_ns, rnd, generation, state, result, thread = ARGS.unpack(data)
        flow, claim, first, last, flags = WANT.unpack(want)
        return cls(Flow.unpack(flow), Claim.unpack(claim), first, last, flags, Policy.unpack(policy), client,
                   now_ns, rnd, generation, state, result, thread)  # fmt: skip

    @property
    def given(self) -> Given:
        """What a successful choice or exact claim returned."""
        key = key_of(self.flow)
        stolen = bool(self.flags & WANT_STOLEN)
        return Given(key, self.claim.slice, word_generation(self.claim.word), stolen)


def key_of(flow: Flow) -> Key:
    return Key(flow.proto, flow.local, flow.local_port, flow.remote, flow.remote_port)


def flow_of(key: Key) -> Flow:
    return Flow(key.local, key.remote, key.local_port, key.remote_port, key.proto)


def held_of(claim: Claim) -> Held:
    return Held(
        Holder(claim.kind),
        claim.owner,
        Phase(word_state(claim.word)),
        word_seen_s(claim.word),
        word_generation(claim.word),
        claim.slice,
    )


@lru_cache(maxsize=1 << 14)
def decoded(key: bytes, value: bytes) -> tuple[Key, Held]:
    return key_of(Flow.unpack(key)), held_of(Claim.unpack(value))


class Arbiter:
    """The loaded test program and its maps. `oracle()` gives a judge that knows the same slices and timers."""

    def __init__(self, path: Path, *, flows: int = FLOWS, settings: Settings = TIMERS) -> None:
        self.flows_size = flows
        self.settings = replace(settings, slots=2 * flows)
        sizes = {"flows": flows, "origin": flows, "slots": 2 * flows, "crowds": 256, "owners": 64}
        self.object = BpfObject.load(path, settings=self.settings.pack(), map_sizes=sizes)
        self.maps = self.object.maps
        self.slices = dict(SLICES)
        for index in SLICES:
            self.write_slice(index)
        place = 0
        for pool, members in POOL_SLICES.items():
            v6 = (4,) if pool == 1 else ()
            entry = Pool(place, len(members), place + len(members), len(v6))
            for index in (*members, *v6):
                self.maps["pool_slices"].update(place.to_bytes(4, "little"), index.to_bytes(4, "little"))
                place += 1
            self.maps["pools"].update(pool.to_bytes(4, "little"), entry.pack())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.object.close()

    def oracle(self) -> Oracle:
        return Oracle(
            self.slices,
            self.settings,
            sock_reuse_s=self.settings.sock_reuse_s,
            full_ns=self.settings.full_ns,
            table_size=self.flows_size,
        )

    def write_slice(self, index: int, **changes: object) -> None:
        """Changes fields of an OracleSlice and writes it to the map."""
        held = self.slices[index] = replace(self.slices[index], **changes)
        flags = (SliceFlag.LIVE if held.live else 0) | (SliceFlag.DRAIN if held.drain else 0)
        value = Slice(held.address, held.first, held.last, held.udp_exact_first, flags, 0, 1, held.claim_until_ns)
        self.maps["slices"].update(index.to_bytes(4, "little"), value.pack())

    def run(self, program: str, args: Args) -> Args:
        result = self.object.programs[program].test_run(ctx=args.pack())
        assert result.retval == 0, f"{program} returned {result.retval}"
        return Args.unpack(result.ctx)

    def choose(self, ask: Ask, now_ns: int, rnd: int, pool: int) -> tuple[Answer, Args]:
        """su_choose for a pool, or for one slice with a range when ask.low and ask.high say so."""
        policy = Policy(flags=PolicyFlag.SET, pool=pool)
        if (ask.low, ask.high) != (0, 65535):
            policy = Policy(flags=PolicyFlag.SET | PolicyFlag.RANGE, slice=ask.slices[0], first=ask.low, last=ask.high)
        args = Args(
            flow=Flow(remote=ask.remote, remote_port=ask.remote_port, proto=ask.proto),
            claim=Claim(owner=ask.owner, kind=ask.holder.value, inner=packed("10.0.0.1")),
            policy=policy,
            client=ask.client,
            now_ns=now_ns,
            rnd=rnd,
        )
        out = self.run("t_choose", args)
        return ANSWERS[out.result], out

    def exact(self, key: Key, index: int, holder: Holder, owner: int, now_ns: int, rnd: int) -> tuple[Answer, Args]:
        claim = Claim(owner=owner, kind=holder.value, slice=index)
        out = self.run("t_exact", Args(flow=flow_of(key), claim=claim, now_ns=now_ns, rnd=rnd))
        return ANSWERS[out.result], out

    def busy(self, given: Args, now_ns: int) -> None:
        self.run("t_busy", replace(given, now_ns=now_ns))

    def get(self, key: Key) -> Held | None:
        out = self.run("t_get", Args(flow=flow_of(key)))
        return held_of(out.claim) if out.result else None

    def refresh(self, key: Key, phase: Phase, now_ns: int) -> bool:
        return bool(self.run("t_refresh", Args(flow=flow_of(key), state=phase.value, now_ns=now_ns)).result)

    def linger(self, key: Key, generation: int, now_ns: int) -> bool:
        out = self.run("t_linger", Args(flow=flow_of(key), generation=generation, now_ns=now_ns))
        assert out.result in (0, -errno.ENOENT)
        return out.result == 0

    def release(self, key: Key, generation: int, now_ns: int) -> bool:
        out = self.run("t_release", Args(flow=flow_of(key), generation=generation, now_ns=now_ns))
        assert out.result in (0, -errno.ENOENT)
        return out.result == 0

    def table(self) -> dict[Key, Held]:
        return dict(decoded(key, value) for key, value in self.maps["flows"].items())

    def counter(self, counter: Counter) -> int:
        copies = self.maps["stats"].lookup_percpu(bytes(4))
        return sum(Stats.unpack(copy).counters[counter] for copy in copies)

    def use(self, owner: int) -> Use:
        """What the claims of an on-ramp come to; its entry is made when there is none."""
        key = owner.to_bytes(8, "little")
        value = self.maps["uses"].lookup(key)
        if value is None:
            self.maps["uses"].update(key, Use().pack())
        return Use() if value is None else Use.unpack(value)

    def turn(self, owner: int, new_per_s: int, now_ns: int) -> bool:
        return bool(self.run("t_turn", Args(claim=Claim(owner=owner), client=new_per_s, now_ns=now_ns)).result)

    def tell(self, whom: int, now_ns: int) -> bool:
        return bool(self.run("t_tell", Args(client=whom, now_ns=now_ns)).result)

    def hand(self) -> int:
        value = self.maps["control"].lookup(bytes(4))
        assert value is not None
        return Control.unpack(value).hand

    def clear(self) -> None:
        """Forget all claims, hints and changes, as if nothing had been."""
        self.slices = dict(SLICES)
        for index in SLICES:
            self.write_slice(index)
        for name in ("flows", "origin", "crowds", "uses"):
            for key in list(self.maps[name].keys()):
                self.maps[name].delete(key)
        for slot, value in self.maps["slots"].items():
            if any(value):
                self.maps["slots"].update(slot, bytes(len(value)))
        self.maps["control"].update(bytes(4), Control().pack())
        self.maps["stats"].update(bytes(4), Stats().pack())
