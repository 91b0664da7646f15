# SPDX-License-Identifier: Apache-2.0
"""An on-ramp whose TCP ends at this node: what su_onramp_in hands to the terminus, what comes back from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, replace

import pytest

from softunicast.kernel.abi import Counter, Drop, Onramp, OnrampFlag, Tenant
from softunicast.wire.craft import icmp_error, tcp, udp
from tests.bpf.egress_bench import OK, REDIRECT, SHOT, Bench, bench
from tests.support.dataplane import (
    CLIENT,
    CLIENT6,
    GATEWAY,
    POLICY,
    SERVER,
    SERVER6,
    SLICE,
    TUN_ONRAMP,
    VETH_ONRAMP,
    u32,
)
from tests.support.packets import ACK, SYN, header4

TERMINUS = 4000  # an ifindex that nothing here has


@pytest.fixture(scope="module")
def loaded() -> Iterator[Bench]:
    with bench() as made:
        yield made


def end_tcp(b: Bench, number: int, terminus: int = TERMINUS) -> None:
    """Make an on-ramp one whose TCP ends here."""
    ramp = Onramp.unpack(b.plane.object.maps["onramps"].lookup(u32(number)) or b"")
    ramp = replace(ramp, flags=ramp.flags | OnrampFlag.TERMINATE, terminus=terminus)
    b.plane.put("onramps", u32(number), ramp.pack())
    if terminus:
        b.plane.put("onramp_devices", u32(terminus), u32(number))


@pytest.fixture
def b(loaded: Bench) -> Bench:
    loaded.reset()
    end_tcp(loaded, VETH_ONRAMP)
    return loaded


def tenant(b: Bench) -> Tenant:
    """What the on-ramps' tenant did, over all CPUs."""
    copies = [Tenant.unpack(one) for one in b.plane.object.maps["tenants"].lookup_percpu(u32(POLICY.tenant))]
    return Tenant(**{part.name: sum(getattr(one, part.name) for one in copies) for part in fields(Tenant)})


def quoting(packet: bytes) -> bytes:
    return icmp_error(CLIENT, SERVER, 3, 4, packet)


HANDED = {
    "a SYN": tcp(CLIENT, 40000, SERVER, 443, flags=SYN),
    "data of no flow that anybody knows": tcp(CLIENT, 40000, SERVER, 443, b"x", flags=ACK),
    "a first fragment": header4(tcp(CLIENT, 40000, SERVER, 443, b"x" * 64, flags=ACK), flags=0x2000),
    "a later fragment": header4(tcp(CLIENT, 40000, SERVER, 443, b"x" * 64, flags=ACK), flags=0x0010),
    "too big for the client, about TCP": quoting(tcp(SERVER, 443, CLIENT, 40000, b"x" * 64, flags=ACK)),
    "IPv6": tcp(CLIENT6, 40000, SERVER6, 443, flags=SYN),
}


@pytest.mark.parametrize("name", HANDED)
def test_tcp_is_handed_over_as_it_is(b: Bench, name: str) -> None:
    ran = b.out(HANDED[name])
    assert ran.verdict == REDIRECT
    assert ran.data[14:] == HANDED[name]
    assert b.plane.flows() == {}
    assert b.plane.count(Counter.TERMINATED_OUT) == 1
    assert b.plane.drops() == {}
    assert (tenant(b).out_packets, tenant(b).out_bytes) == (1, len(HANDED[name]))


def test_all_else_stays_with_fish(b: Bench) -> None:
    assert b.out(udp(CLIENT, 40000, SERVER, 53, b"question")).packet.source_port == b.the_claim()[0].local_port
    b.out(quoting(udp(SERVER, 53, CLIENT, 1, b"x")))
    assert b.plane.drops() == {Drop.ERROR_UNKNOWN: 1}
    assert b.plane.count(Counter.TERMINATED_OUT) == 0


REFUSED = {
    Drop.SPOOFED: tcp("10.9.0.2", 1, SERVER, 443, flags=SYN),
    Drop.TO_FLEET: tcp(CLIENT, 1, SLICE, 9000, flags=SYN),
    Drop.HOPS: tcp(CLIENT, 1, SERVER, 443, flags=SYN, ttl=1),
}


@pytest.mark.parametrize("drop", REFUSED, ids=lambda drop: drop.name.lower())
def test_who_may_not_send_is_refused_as_ever(b: Bench, drop: Drop) -> None:
    ran = b.out(REFUSED[drop])
    assert b.plane.drops() == {drop: 1}
    assert b.plane.count(Counter.TERMINATED_OUT) == 0
    assert ran.verdict == (REDIRECT if drop is Drop.HOPS else SHOT)


def test_the_gateway_is_the_nodes(b: Bench) -> None:
    ran = b.out(tcp(CLIENT, 1, GATEWAY, 22, flags=SYN))
    assert (ran.verdict, b.plane.count(Counter.TERMINATED_OUT)) == (OK, 0)


def test_without_a_terminus_nothing_passes(b: Bench) -> None:
    end_tcp(b, VETH_ONRAMP, terminus=0)
    assert b.out(HANDED["a SYN"]).verdict == SHOT
    assert b.plane.drops() == {Drop.TERMINUS: 1}
    assert b.plane.flows() == {}


@pytest.mark.parametrize("l2", [True, False], ids=["veth", "tun"])
@pytest.mark.parametrize("six", [False, True], ids=["ipv4", "ipv6"])
def test_back_to_the_client(b: Bench, l2: bool, six: bool) -> None:
    """The bench's other device stands for the terminus."""
    b.plane.add_onramp(TUN_ONRAMP, b.fish + 64, l2=l2, gateway=GATEWAY)
    end_tcp(b, TUN_ONRAMP, terminus=b.uplink)
    answer = tcp(SERVER6 if six else SERVER, 443, CLIENT6 if six else CLIENT, 40000, flags=SYN | ACK)
    ran = b.run("su_terminus_in", answer)
    assert ran.verdict == REDIRECT
    assert ran.data[14:] == answer
    assert b.plane.count(Counter.TERMINATED_IN) == 1
    assert (tenant(b).in_packets, tenant(b).in_bytes) == (1, len(answer))


def test_from_a_device_that_is_no_terminus_nothing_comes_back(b: Bench) -> None:
    assert b.run("su_terminus_in", HANDED["a SYN"]).verdict == SHOT
    assert b.plane.drops() == {Drop.ONRAMP: 1}
