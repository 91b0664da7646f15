# SPDX-License-Identifier: Apache-2.0
"""`explain` is held against the program that it explains: the same tables, the same packet, the same verdict.

Each case is one packet through su_uplink_in under BPF_PROG_TEST_RUN; what explain said of the same maps just before
must be what the program did, to the name of the counter. Needs root.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter as Tally
from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from softunicast.egress.explain import Action, Asked, Explanation, Setting, explain
from softunicast.egress.flow_view import Names
from softunicast.kernel.abi import NONE, Claim, Control, Counter, Drop, Flow, Kind, Node, NodeFlag, ProbeFlag, State
from softunicast.kernel.abi_util import Word
from softunicast.wire.craft import echo, tcp, udp
from tests.bpf.egress_bench import OK, REDIRECT, SHOT, UNSPEC, Bench, bench
from tests.support.claims import flow_check
from tests.support.dataplane import CLIENT, ME, OTHER, SERVER, SETTINGS, SLICE, UNDERLAY, VETH_ONRAMP, packed, u32
from tests.support.packets import ACK, SYN, header4

TCP, UDP, ICMP = 6, 17, 1
NAMES = Names(node="me", nodes={ME: "me", OTHER: "other"}, onramps={VETH_ONRAMP: "fish"})
ABSENT = 9  # a node in no table
DONE = {
    Action.ANSWER: (REDIRECT, (Counter.ECHO_ANSWERED,)),
    Action.CARRY: (REDIRECT, (Counter.CARRIED_OUT,)),
    Action.ONRAMP: (REDIRECT, (Counter.IN_PACKETS,)),
    Action.STACK: (OK, (Counter.SOCKET_IN, Counter.LOCAL_IN)),
}


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with bench() as made:
        yield made


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    loaded.plane.add_slice(SLICE, 9020, 9029, node=ABSENT)
    # A node that is reached by IPv6.
    loaded.plane.put("nodes", u32(3), Node(packed("2001:db8:1::1"), 1).pack())
    loaded.plane.add_slice(SLICE, 9030, 9039, node=3)
    return loaded


def put_claim(b: Bench, key: Flow, kind: Kind, owner: int, state: State) -> None:
    claim = Claim(
        word=Word(3, state, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 10**9).pack(),
        owner=owner,
        inner=packed(CLIENT),
        inner_port=40000,
        kind=kind,
        check=flow_check(key),
        slot=NONE,
    )
    b.plane.put("flows", key.pack(), claim.pack())


def packet(asked: Asked) -> bytes:
    whole = whole_packet(asked)
    if asked.fragment is None:
        return whole
    return header4(whole[:4] + asked.fragment.to_bytes(2, "big") + whole[6:], flags=0x2000)


def whole_packet(asked: Asked) -> bytes:
    local, remote = str(asked.local), str(asked.remote)
    if asked.proto == TCP:
        flags = SYN if asked.begins else ACK
        return tcp(remote, asked.remote_port, local, asked.local_port, b"x" * 12, flags=flags)
    if asked.proto == UDP:
        return udp(remote, asked.remote_port, local, asked.local_port, b"answered")
    return echo(remote, local, asked.local_port, reply=not asked.begins, payload=b"x" * 16)


def hold(b: Bench, asked: Asked, answer_ping: bool = True) -> Explanation:
    """Explains, runs, compares; what was said."""
    setting = Setting(ME, 1, NAMES, SETTINGS, time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 10**9, answer_ping)
    said = explain(b.plane.object.maps, asked, setting)
    before = b.plane.stats()
    ran = b.back(packet(asked))
    after = b.plane.stats()
    drops = {Drop(i): n - before.drops[i] for i, n in enumerate(after.drops) if n != before.drops[i]}
    story = "; ".join(step.text for step in said.steps)
    if said.action is Action.DROP:
        assert said.drop is not None
        assert (ran.verdict, drops) == (SHOT, {said.drop: 1}), story
        return said
    assert drops == {}, story
    if said.action is Action.PASS:
        assert ran.verdict == UNSPEC, story
        return said
    verdict, counters = DONE[said.action]
    assert ran.verdict == verdict, story
    assert sum(after.counters[c] - before.counters[c] for c in counters) == 1, story
    if said.action is Action.ONRAMP:
        seen = ran.packet
        port = seen.icmp_id if asked.proto == ICMP else seen.destination_port
        assert said.to == f"{seen.destination}:{port}"
    return said


OWNERS = {
    Kind.PACKET: (VETH_ONRAMP << 32 | 5, VETH_ONRAMP << 32 | 4, 7 << 32 | 5),
    Kind.SOCKET: (77,),
    Kind.LOCAL: (0,),
    Kind.PEER: (OTHER, ABSENT, 3),
}


def test_every_verdict_is_what_the_program_does(b: Bench) -> None:
    """2,000 packets to random ports, with random claims before them. SOFTUNICAST_SEED=n for others."""
    seed = int(os.environ.get("SOFTUNICAST_SEED", "0")) or 4
    rng = random.Random(seed)
    verdicts = Tally[tuple[Action, Drop | None]]()
    for number in range(2000):
        proto = rng.choice([TCP, TCP, UDP, ICMP])
        local = rng.choice([SLICE] * 9 + ["192.0.2.77"])
        asked = Asked(
            proto,
            ip_address(local),
            rng.choice([*range(9000, 9010), *range(9000, 9010), rng.randrange(9010, 9045), 1, 65535]),
            ip_address(SERVER),
            0 if proto == ICMP else rng.choice([443, 53]),
            begins=proto != UDP and rng.random() < 0.3,
        )
        if rng.random() < 0.8:
            wildcard = proto == UDP and rng.random() < 0.4
            remote, port = (bytes(16), 0) if wildcard else (packed(SERVER), asked.remote_port)
            kind = rng.choice(list(OWNERS))
            state = rng.choice([State.NEW, State.OPEN, State.LINGER, State.LOCKED])
            put_claim(
                b, Flow(packed(local), remote, asked.local_port, port, proto), kind, rng.choice(OWNERS[kind]), state
            )
        try:
            said = hold(b, asked)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, packet {number}: {asked}: {error}") from error
        verdicts[said.action, said.drop] += 1
        for key in list(b.plane.object.maps["flows"].keys()):
            b.plane.object.maps["flows"].delete(key)
    assert {action for action, _ in verdicts} == set(Action) - {Action.CLAIM_DECIDES}
    reasons = {Drop.NO_CLAIM, Drop.NO_OWNER, Drop.ONRAMP, Drop.INBOUND_NEW}
    assert reasons <= {drop for _, drop in verdicts}, verdicts


def test_first_fragments_meet_where_it_says(b: Bench) -> None:
    """The program carries them there, or follows them here: with each node fit or not, up or down."""
    b.plane.set_site(ME, OTHER, 3)
    seed = int(os.environ.get("SOFTUNICAST_SEED", "0")) or 4
    rng = random.Random(seed)
    met = Tally[tuple[Action, str]]()
    for number in range(400):
        fit, flags = rng.random() < 0.7, [rng.choice([1, 1, 1, 0, NodeFlag.SET | NodeFlag.DOWN]) for _ in range(3)]
        b.plane.put("control", u32(0), Control(1, 0, 0, int(fit) * ProbeFlag.FIT).pack())
        for index, address in ((ME, UNDERLAY), (OTHER, "192.0.2.12"), (3, "2001:db8:1::1")):
            b.plane.put("nodes", u32(index), Node(packed(address), flags[index - 1]).pack())
        proto = rng.choice([TCP, UDP, ICMP])
        begins = proto == ICMP and rng.random() < 0.5
        remote_port = 0 if proto == ICMP else 443
        asked = Asked(
            proto, ip_address(SLICE), rng.randrange(9000, 9020), ip_address(SERVER), remote_port, begins,
            rng.randrange(1 << 16),
        )  # fmt: skip
        try:
            said = hold(b, asked)
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, packet {number}: {asked}: {error}") from error
        met[said.action, said.to] += 1
        assert said.steps[1].step in ("home", "verdict")
    assert min(met[Action.CARRY, "other"], met[Action.CARRY, "node 3"], met[Action.ANSWER, ""]) > 5, met


def test_an_unanswered_ping() -> None:
    with bench(answer_ping=0) as quiet:
        quiet.reset()
        asked = Asked(ICMP, ip_address(SLICE), 77, ip_address(SERVER), 0, begins=True)
        assert hold(quiet, asked, answer_ping=False).drop is Drop.NO_CLAIM
