# SPDX-License-Identifier: Apache-2.0
"""Quotas of an on-ramp: how many flows it may hold and begin, who is told, and who pays."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path

import pytest

from softunicast.egress.quota_oracle import NS, Bucket
from softunicast.kernel.abi import Counter, Drop, Onramp, Tenant, Use
from softunicast.wire.craft import echo, tcp, udp
from tests.bpf.arbiter_harness import START_NS, Arbiter, compile_test_program
from tests.bpf.egress_bench import REDIRECT, Bench, Ran, bench
from tests.support.dataplane import CLIENT, GATEWAY, POLICY, SERVER, SLICE, TUN_ONRAMP, VETH_ONRAMP, u32
from tests.support.packets import ACK, FIN, RST, SYN

OWNER = VETH_ONRAMP << 32 | 5
TENANT = POLICY.tenant


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    return loaded


def limit(b: Bench, **quotas: int) -> None:
    b.plane.add_onramp(VETH_ONRAMP, b.fish, l2=True, gateway=GATEWAY, **quotas)


def use(b: Bench, owner: int = OWNER) -> Use:
    value = b.plane.object.maps["uses"].lookup(owner.to_bytes(8, "little"))
    return Use() if value is None else Use.unpack(value)


def tenant(b: Bench, number: int = TENANT) -> Tenant:
    each = [Tenant.unpack(one) for one in b.plane.object.maps["tenants"].lookup_percpu(u32(number))]
    return Tenant(*(sum(getattr(one, part.name) for one in each) for part in fields(Tenant)))


def syn(port: int) -> bytes:
    return tcp(CLIENT, port, SERVER, 443, flags=SYN, sequence=7)


def is_reset(ran: Ran) -> bool:
    seen = ran.packet
    return ran.verdict == REDIRECT and str(seen.source) == SERVER and seen.tcp_flags == RST | ACK


def test_no_more_flows_than_allowed_and_the_client_is_told(b: Bench) -> None:
    limit(b, max_flows=3)
    for port in (1, 2, 3):
        assert str(b.out(syn(port)).packet.source) == SLICE
    assert is_reset(b.out(syn(4)))
    refused = b.out(udp(CLIENT, 4, SERVER, 53)).packet
    assert (refused.icmp_type, refused.icmp_code, str(refused.source)) == (3, 3, GATEWAY)
    refused = b.out(echo(CLIENT, SERVER, 9)).packet
    assert (refused.icmp_type, refused.icmp_code) == (3, 1)
    assert b.plane.drops() == {Drop.QUOTA_FLOWS: 3}
    assert b.plane.count(Counter.REFUSED_PACKET) == 3
    assert len(b.plane.flows()) == 3
    assert (use(b).flows, use(b).begun, use(b).refused_flows, use(b).refused_new) == (3, 3, 3, 0)
    # Those that it has go on.
    assert str(b.out(tcp(CLIENT, 2, SERVER, 443, b"x", flags=ACK)).packet.source) == SLICE


def test_a_flow_that_ended_makes_room_for_another(b: Bench) -> None:
    limit(b, max_flows=1)
    b.out(syn(1))
    flow, claim = b.the_claim()
    b.plane.object.maps["flows"].update(flow.pack(), replace(claim, word=claim.word & ~0xFFFFFFFF | 1).pack())
    slot = b.plane.object.maps["slots"]
    for key, value in slot.items():
        if any(value):
            slot.update(key, value[:-4] + bytes(4))
    hand = b.plane.object.maps["control"].lookup(bytes(4))
    assert hand is not None
    # No agent sweeps here: each refusal moves the hand by two slots, and it comes round.
    for _ in range(1100):
        ran = b.out(syn(2))
        if not is_reset(ran):
            break
    assert str(ran.packet.source) == SLICE
    assert use(b).flows == 1
    assert b.plane.count(Counter.REAPED) == 1


def test_new_flows_a_second(b: Bench) -> None:
    for _ in range(20):
        b.reset()
        limit(b, new_per_s=5)
        began = time.monotonic()
        answers = [b.out(syn(port)) for port in range(1, 9)]
        # Longer, and there is a turn for a sixth: test_turns_are_those_of_a_bucket has its own clock.
        if time.monotonic() - began < 0.15:
            break
    assert [is_reset(ran) for ran in answers] == [False] * 5 + [True] * 3
    assert b.plane.drops() == {Drop.QUOTA_NEW: 3}
    assert (use(b).begun, use(b).refused_new) == (5, 3)
    # What has its flow is not new.
    assert str(b.out(syn(1)).packet.source) == SLICE
    assert use(b).begun == 5


def test_an_on_ramp_pays_for_itself_only(b: Bench) -> None:
    limit(b, max_flows=1)
    b.out(syn(1))
    assert is_reset(b.out(syn(2)))
    b.plane.add_onramp(VETH_ONRAMP, b.fish, l2=True, gateway=GATEWAY, max_flows=1, generation=6)
    assert str(b.out(syn(2)).packet.source) == SLICE, "the claims of an earlier generation are not this one's"
    b.plane.put("onramps", u32(VETH_ONRAMP), Onramp().pack())
    b.plane.add_onramp(TUN_ONRAMP, b.fish, l2=True, gateway=GATEWAY, max_flows=1)
    assert str(b.out(syn(3)).packet.source) == SLICE
    assert [use(b, owner).flows for owner in (OWNER, OWNER + 1, TUN_ONRAMP << 32 | 5)] == [1, 1, 1]


def test_a_full_slice_holds_nothing_of_the_quota(b: Bench) -> None:
    limit(b, max_flows=64)
    for port in range(1, 21):
        b.out(syn(port))
    assert b.plane.drops() == {Drop.SLICE_FULL: 10}
    assert (use(b).flows, use(b).begun) == (10, 10)


def test_two_cpus_never_hold_more_than_allowed(b: Bench) -> None:
    """Two CPUs ask at once for more than there is: the last place is given once, or for an instant to nobody."""
    cpus = sorted(os.sched_getaffinity(0))[:2]
    assert len(cpus) == 2, "this test needs two CPUs"
    for _ in range(30):
        b.reset()
        limit(b, max_flows=5)
        start = threading.Barrier(2)

        def ask(thread: int, start: threading.Barrier = start) -> None:
            os.sched_setaffinity(0, {cpus[thread]})
            packets = [udp(CLIENT, 1000 + 2 * number + thread, SERVER, 1000 + number) for number in range(5)]
            start.wait(10)
            for packet in packets:
                b.out(packet)

        threads = [threading.Thread(target=ask, args=(thread,)) for thread in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        held = len(b.plane.flows())
        assert 4 <= held <= 5
        assert (use(b).flows, use(b).refused_flows) == (held, 10 - held)
        b.out(syn(1))
        assert use(b).flows == len(b.plane.flows()) == 5


def test_tenants_are_counted_both_ways(b: Bench) -> None:
    out = udp(CLIENT, 4000, SERVER, 53, b"question")
    for _ in range(3):
        b.out(out)
    flow, _ = b.the_claim()
    back = udp(SERVER, 53, SLICE, flow.local_port, b"a longer answer")
    b.back(back)
    b.back(back)
    limit(b, max_flows=1)
    b.out(syn(1))
    assert tenant(b) == Tenant(1, 1, 3, 3 * len(out), 2, 2 * len(back))
    assert tenant(b, 0) == Tenant()
    limit(b, policy=replace(POLICY, tenant=0))
    b.out(udp(CLIENT, 4001, SERVER, 53))
    assert tenant(b, 0).flows == 1


def test_a_tenant_out_of_range_is_not_counted_and_goes_on(b: Bench) -> None:
    limit(b, policy=replace(POLICY, tenant=4096))
    assert str(b.out(syn(1)).packet.source) == SLICE


def test_claims_of_a_flow_that_ends_by_itself(b: Bench) -> None:
    b.out(syn(1))
    flow, _ = b.the_claim()
    b.back(tcp(SERVER, 443, SLICE, flow.local_port, flags=SYN | ACK))
    b.out(tcp(CLIENT, 1, SERVER, 443, flags=FIN | ACK))
    b.back(tcp(SERVER, 443, SLICE, flow.local_port, flags=FIN | ACK))
    assert use(b).flows == 1, "it lingers, and holds its port"


@pytest.mark.parametrize("seed", [int(os.environ.get("SOFTUNICAST_SEED", "0")) or 5, 6])
def test_turns_are_those_of_a_bucket(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    allowed = refused = 0
    with Arbiter(compile_test_program(tmp_path)) as arbiter:
        for owner, new_per_s in enumerate([1, 2, 3, 7, 50, 999, 100_000, 1_000_000], start=1):
            arbiter.use(owner)
            bucket, now_ns = Bucket(new_per_s), START_NS
            for number in range(400):
                expected = bucket.turn(now_ns)
                place = f"seed {seed}, {new_per_s} a second, flow {number}"
                assert arbiter.turn(owner, new_per_s, now_ns) == expected, place
                allowed, refused = allowed + expected, refused + (not expected)
                now_ns += rng.choice([0, 0, 1, bucket.period_ns - 1, bucket.period_ns, rng.randrange(2 * NS // 100)])
                if rng.random() < 0.02:
                    now_ns += rng.randrange(3 * NS)
        assert arbiter.turn(1, 0, START_NS), "no limit"
    assert allowed > 500 and refused > 500, (allowed, refused)
