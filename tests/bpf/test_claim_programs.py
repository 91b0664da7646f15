# SPDX-License-Identifier: Apache-2.0
"""claim.bpf.o by itself: it loads, its constants are the kernel's, and user space ends claims by the rules."""

from __future__ import annotations

import errno
import json
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest

from softunicast.kernel import abi
from softunicast.kernel.abi import Counter, Kind, SliceFlag, State
from softunicast.kernel.abi_util import Word, addr_bytes, word_state
from softunicast.kernel.bpf import BpfObject, object_path
from tests.support.claims import flow_check
from tests.support.sock_node import HOOKS, U32, boot_s

SETTINGS = abi.Settings(
    site=1,
    netns_cookie=1,
    slots=1 << 10,
    sock_linger_s=60,
    sock_reuse_s=1,
    tcp_transitory_s=240,
    tcp_established_s=7440,
    tcp_linger_s=120,
    udp_s=300,
    icmp_s=60,
    node=1,
)
FLOW = abi.Flow(addr_bytes(ip_address("198.51.100.20")), addr_bytes(ip_address("203.0.113.1")), 9003, 443, 6)
MASK = 0xFFFFFFFF


@pytest.fixture
def loaded() -> Iterator[BpfObject]:
    sizes = {"flows": 1 << 9, "origin": 1 << 9, "slots": 1 << 10}
    with BpfObject.load(object_path("claim"), settings=SETTINGS.pack(), map_sizes=sizes) as made:
        made.maps["slices"].update(
            U32.pack(0),
            abi.Slice(addr=FLOW.local, first=9000, last=9009, udp_exact_first=9000, flags=SliceFlag.LIVE).pack(),
        )
        yield made


def put(loaded: BpfObject, flow: abi.Flow, kind: Kind, state: State, age_s: int) -> abi.Claim:
    word = Word(7, state, boot_s() - age_s & MASK).pack()
    claim = abi.Claim(word=word, owner=42, kind=kind, check=flow_check(flow), slot=abi.NONE)
    loaded.maps["flows"].update(flow.pack(), claim.pack())
    return claim


def release(loaded: BpfObject, claim: abi.Claim, *, linger: bool = False) -> int:
    arguments = abi.ReleaseArgs(flow=FLOW, word=claim.word, owner=claim.owner, linger=int(linger))
    answer = loaded.programs["su_release"].test_run(ctx=arguments.pack()).ctx
    return abi.ReleaseArgs.unpack(answer).result


def counter(loaded: BpfObject, which: Counter) -> int:
    copies = loaded.maps["stats"].lookup_percpu(U32.pack(0))
    return sum(abi.Stats.unpack(copy).counters[which] for copy in copies)


def test_the_programs(loaded: BpfObject) -> None:
    others = {"su_adopt_tcp", "su_adopt_udp", "su_release", "su_sweep", "su_recount"}
    assert set(loaded.programs) == set(HOOKS) | others


def test_the_bit_of_no_port_is_the_running_kernels() -> None:
    command = ["bpftool", "btf", "dump", "-j", "file", "/sys/kernel/btf/vmlinux"]
    types = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)["types"]
    values = {one["name"]: one["val"] for type_ in types if type_["kind"] == "ENUM" for one in type_["values"]}
    assert values["INET_FLAGS_BIND_ADDRESS_NO_PORT"] == 18


@pytest.mark.parametrize(
    ("kind", "state", "age_s", "gone"),
    [
        (Kind.SOCKET, State.OPEN, 100000, False),
        (Kind.SOCKET, State.NEW, 100000, False),
        (Kind.SOCKET, State.LINGER, 50, False),
        (Kind.SOCKET, State.LINGER, 61, True),
        (Kind.PACKET, State.NEW, 230, False),
        (Kind.PACKET, State.NEW, 241, True),
        (Kind.PACKET, State.OPEN, 7430, False),
        (Kind.PACKET, State.OPEN, 7441, True),
        (Kind.LOCAL, State.LINGER, 121, True),
    ],
)
def test_the_sweep_reaps_what_expired(loaded: BpfObject, kind: Kind, state: State, age_s: int, gone: bool) -> None:
    put(loaded, FLOW, kind, state, age_s)
    fresh = replace(FLOW, local_port=9004)
    put(loaded, fresh, Kind.PACKET, State.OPEN, 0)
    answer = abi.SweepArgs.unpack(loaded.programs["su_sweep"].test_run(ctx=abi.SweepArgs().pack()).ctx)
    assert (answer.seen, answer.reaped) == (2, int(gone))
    assert (loaded.maps["flows"].lookup(FLOW.pack()) is None) == gone
    assert loaded.maps["flows"].lookup(fresh.pack()) is not None
    assert counter(loaded, Counter.REAPED) == int(gone)


def test_a_locked_claim_is_left_to_its_holder(loaded: BpfObject) -> None:
    claim = put(loaded, FLOW, Kind.PACKET, State.LOCKED, 100000)
    loaded.programs["su_sweep"].test_run(ctx=abi.SweepArgs().pack())
    assert release(loaded, claim) == -errno.ENOENT
    assert loaded.maps["flows"].lookup(FLOW.pack()) is not None


def test_release_ends_only_what_was_seen(loaded: BpfObject) -> None:
    claim = put(loaded, FLOW, Kind.SOCKET, State.OPEN, 0)
    assert release(loaded, replace(claim, word=claim.word + 1)) == -errno.EAGAIN
    assert release(loaded, replace(claim, owner=43)) == -errno.EAGAIN
    assert release(loaded, claim, linger=True) == 0
    raw = loaded.maps["flows"].lookup(FLOW.pack())
    assert raw is not None
    assert word_state(abi.Claim.unpack(raw).word) == State.LINGER
    assert release(loaded, claim) == -errno.EAGAIN
    assert release(loaded, abi.Claim.unpack(raw)) == 0
    assert loaded.maps["flows"].lookup(FLOW.pack()) is None
    assert release(loaded, claim) == -errno.ENOENT
    assert (counter(loaded, Counter.LINGER), counter(loaded, Counter.RELEASED)) == (1, 1)


def test_recount_only_raises(loaded: BpfObject) -> None:
    control = loaded.maps["control"]
    control.update(U32.pack(0), abi.Control(ready=1, policies=0, hand=9).pack())
    for number in (1, 2, 3):
        loaded.maps["cgroups"].update(struct.pack("=Q", number), abi.Policy().pack())
    loaded.programs["su_recount"].test_run()
    assert abi.Control.unpack(control.lookup(U32.pack(0)) or b"") == abi.Control(ready=1, policies=3, hand=9)
    loaded.maps["cgroups"].delete(struct.pack("=Q", 3))
    loaded.programs["su_recount"].test_run()
    assert abi.Control.unpack(control.lookup(U32.pack(0)) or b"").policies == 3
