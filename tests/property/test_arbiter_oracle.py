# SPDX-License-Identifier: Apache-2.0
"""The judge is judged: an arbiter that keeps every promise passes, and each way of breaking one is caught.

A small arbiter in Python, obviously right because it looks at everything, lives through random histories under
the oracle. Then it is given one fault at a time, and the oracle must say so.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softunicast.egress.arbiter_oracle import Answer, Ask, Broken, Given, Held, Holder, Key, Oracle, OracleSlice, Phase
from softunicast.kernel.abi import Settings

NS = 1_000_000_000
FULL_NS = 5_000_000
TABLE = 40
TCP, UDP, ICMP = 6, 17, 1
LOCAL, OTHER_LOCAL, WEB = b"L" * 16, b"M" * 16, b"W" * 16
SLICES = {
    1: OracleSlice(LOCAL, 9000, 9005, 9000),
    2: OracleSlice(OTHER_LOCAL, 2048, 2055, 2050),
}
TIMERS = Settings(tcp_transitory_s=20, tcp_established_s=100, tcp_linger_s=12, sock_linger_s=15, udp_s=30, icmp_s=10)


def fresh_oracle() -> Oracle:
    return Oracle(SLICES, TIMERS, sock_reuse_s=1, full_ns=FULL_NS, table_size=TABLE)


class PlainArbiter:
    """Looks at every port of every slice, every time. `fault` names the promise it breaks."""

    def __init__(self, rng: random.Random, fault: str = "") -> None:
        self.rng = rng
        self.fault = fault
        self.oracle = fresh_oracle()  # for its rules of time only
        self.table = self.oracle.claims

    def free(self, key: Key, now_ns: int) -> bool:
        if self.fault == "steals early" and key in self.table:
            held = self.table[key]
            lifetime = self.oracle.lifetime_s(held, key.proto)
            return lifetime is not None and now_ns // NS - held.seen_s >= lifetime - 1
        return self.oracle.free(key, now_ns)

    def choose(self, ask: Ask, now_ns: int) -> tuple[Answer, Given | None]:
        candidates = [index for index in ask.slices if self.oracle.slices[index].may_claim(now_ns)]
        if not candidates or (self.fault == "denies slices" and self.rng.random() < 0.1):
            return Answer.NO_SLICE, None
        start = ask.client % len(ask.slices)
        if self.fault == "moves clients":
            start = self.rng.randrange(len(ask.slices))
        order = [index for index in ask.slices[start:] + ask.slices[:start] if index in candidates]
        for index in order:
            held = self.oracle.slices[index]
            ports = list(held.ports(ask.proto, ask.low, ask.high))
            if self.fault == "ignores the range":
                ports = list(range(held.first, held.last + 1))
            if self.fault == "refuses early":
                ports = ports[1:]
            keys = [Key(ask.proto, held.address, port, ask.remote, ask.remote_port) for port in ports]
            self.rng.shuffle(keys)
            free = [key for key in keys if self.free(key, now_ns)]
            reusable = [key for key in keys if key in self.table and self.oracle.reusable(key, ask.holder, now_ns)]
            if self.fault == "gives twice":
                free = free or keys
            choice = reusable + free if self.fault == "reuses first" else free + reusable
            for key in choice:
                return self.take(key, index, ask.holder, ask.owner, now_ns)
        return Answer.SLICE_FULL, None

    def take(self, key: Key, index: int, holder: Holder, owner: int, now_ns: int) -> tuple[Answer, Given | None]:
        last = self.table.get(key)
        limit = TABLE // 2 if self.fault == "table too small" else TABLE
        if last is None and len(self.table) >= limit:
            dead = [other for other in self.table if self.oracle.expired(other, now_ns)]
            if not dead or self.fault == "never reaps":
                return Answer.TABLE_FULL, None
            del self.table[dead[0]]
        generation = (last.generation + 1) % (1 << 24) if last else self.rng.randrange(1 << 24)
        if self.fault == "keeps the generation" and last:
            generation = last.generation
        self.table[key] = Held(holder, owner, Phase.NEW, now_ns // NS, generation, index)
        stolen = last is not None and last.holder is Holder.SOCKET
        return Answer.CLAIMED, Given(key, index, generation, stolen)


def live(seed: int, fault: str = "", steps: int = 300) -> Oracle:
    """A history; Broken when the oracle objects."""
    rng = random.Random(seed)
    arbiter, oracle, now_ns = PlainArbiter(rng, fault), fresh_oracle(), 1000 * NS
    for step in range(steps):
        act = rng.choices(["choose", "refresh", "linger", "release", "wait", "lease"], [12, 3, 3, 3, 2, 1])[0]
        key = rng.choice(list(oracle.claims)) if oracle.claims else None
        if act == "choose":
            proto = rng.choice([TCP, UDP, ICMP])
            ask = Ask(
                proto, WEB, 0 if proto == ICMP else rng.choice([443, 80]), rng.choice(list(Holder)), step,
                rng.randrange(3), rng.choice([(1,), (2,), (1, 2)]),
            )  # fmt: skip
            if len(ask.slices) == 1 and rng.random() < 0.3:
                ask = replace(ask, low=SLICES[ask.slices[0]].first + 1, high=SLICES[ask.slices[0]].first + 4)
            answer, made = arbiter.choose(ask, now_ns)
            oracle.choose(ask, answer, made, now_ns)
        elif act == "wait":
            now_ns += rng.choice([FULL_NS, NS, 2 * NS, 9 * NS, 20 * NS])
        elif act == "lease":
            index = rng.choice([1, 2])
            changed = replace(SLICES[index], drain=rng.random() < 0.3, claim_until_ns=now_ns + rng.choice([NS, 10**15]))
            arbiter.oracle.slices[index] = oracle.slices[index] = changed
        elif key is not None:
            held = oracle.claims[key]
            if act == "refresh":
                phase = max(held.phase, Phase.OPEN, key=lambda one: one.value)
                seen = held if fault == "forgets to refresh" else replace(held, phase=phase, seen_s=now_ns // NS)
                arbiter.table[key] = seen
                oracle.refresh(key, phase, now_ns)
            elif act == "linger":
                arbiter.table[key] = replace(held, phase=Phase.LINGER, seen_s=now_ns // NS)
                oracle.linger(key, held.generation, now_ns, done=True)
            else:
                old = fault == "releases for anybody"
                del arbiter.table[key]
                oracle.release(key, (held.generation + old) % (1 << 24), done=True)
        if fault == "loses claims" and arbiter.table and rng.random() < 0.05:
            del arbiter.table[rng.choice(list(arbiter.table))]
        oracle.compare(arbiter.table, now_ns)
    return oracle


@settings(max_examples=20)
@given(seed=st.integers(0, 2**32))
def test_an_arbiter_that_keeps_its_promises_passes(seed: int) -> None:
    live(seed, steps=150)


FAULTS = [
    "gives twice",
    "refuses early",
    "steals early",
    "reuses first",
    "ignores the range",
    "keeps the generation",
    "denies slices",
    "table too small",
    "never reaps",
    "moves clients",
    "loses claims",
    "forgets to refresh",
    "releases for anybody",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_caught(fault: str) -> None:
    """Within 20 histories; the same seed without the fault passes."""
    for seed in range(20):
        try:
            live(seed, fault, 150)
        except Broken:
            live(seed, steps=150)
            return
    raise AssertionError(f"{fault!r} passed 20 histories")


def ask_tcp(holder: Holder = Holder.PACKET) -> Ask:
    return Ask(TCP, WEB, 443, holder, 1, 0, (1,))


def filled(oracle: Oracle, now_ns: int) -> None:
    for port in range(9000, 9006):
        made = Given(Key(TCP, LOCAL, port, WEB, 443), 1, port, False)
        oracle.choose(ask_tcp(), Answer.CLAIMED, made, now_ns)


def test_full_may_be_remembered_but_not_after_a_port_was_freed() -> None:
    oracle = fresh_oracle()
    filled(oracle, NS)
    oracle.choose(ask_tcp(), Answer.SLICE_FULL, None, NS)
    oracle.release(Key(TCP, LOCAL, 9003, WEB, 443), 9003, done=True)
    with pytest.raises(Broken, match="1 ports are left"):
        oracle.choose(ask_tcp(), Answer.SLICE_FULL, None, NS + 1)


def test_full_is_believed_for_its_time_only() -> None:
    oracle = fresh_oracle()
    filled(oracle, NS)
    # Verified just before the claims expire (transitory: 20 s).
    almost = 21 * NS - 1
    oracle.choose(ask_tcp(), Answer.SLICE_FULL, None, almost)
    oracle.choose(ask_tcp(), Answer.SLICE_FULL, None, almost + FULL_NS - 1)
    with pytest.raises(Broken, match="6 ports are left"):
        oracle.choose(ask_tcp(), Answer.SLICE_FULL, None, almost + FULL_NS)


@pytest.mark.parametrize(
    ("act", "complaint"),
    [
        (lambda o: o.choose(ask_tcp(), Answer.CLAIMED, None, NS), "but what"),
        (lambda o: o.choose(ask_tcp(), Answer.HELD, None, NS), "no answer"),
        (lambda o: o.choose(ask_tcp(), Answer.TABLE_FULL, None, NS), "table full"),
        (
            lambda o: o.compare({Key(TCP, LOCAL, 9001, WEB, 443): Held(Holder.PACKET, 1, Phase.NEW, 1, 1, 1)}, NS),
            "nobody",
        ),
    ],
)
def test_answers_that_make_no_sense(act: Callable[[Oracle], object], complaint: str) -> None:
    with pytest.raises(Broken, match=complaint):
        act(fresh_oracle())
