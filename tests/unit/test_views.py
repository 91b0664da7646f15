# SPDX-License-Identifier: Apache-2.0
"""The read models, against maps that are dictionaries."""

from __future__ import annotations

import json
from ipaddress import ip_address

import pytest

from softunicast.egress import views
from softunicast.egress.flow_view import Names, expired, flow_view, lifetime_s, read_flows
from softunicast.egress.views import read_counters, read_drops, read_slices
from softunicast.kernel.abi import (
    Claim,
    Counter,
    Crowd,
    CrowdKey,
    Drop,
    Flow,
    Kind,
    LastDrop,
    Settings,
    Slice,
    SliceFlag,
    State,
    Stats,
)
from tests.support.fake_maps import FakeMap, claim, flow, packed, u32

NS = 1_000_000_000
NOW_S = 1030
TIMERS = Settings(
    tcp_transitory_s=240,
    tcp_established_s=7440,
    tcp_linger_s=120,
    sock_linger_s=60,
    sock_reuse_s=1,
    udp_s=300,
    icmp_s=60,
)
NAMES = Names(node="lhr1", nodes={1: "lhr1", 2: "lhr2"}, pools={0: "ten", 1: "gb"}, onramps={1: "vpn"})
ONRAMP = 1 << 32 | 5


def slices_map(**changes: int) -> FakeMap:
    ten = {"first": 9000, "last": 9009, "udp_exact_first": 9000, "flags": SliceFlag.LIVE, "pool": 0, "epoch": 4}
    big = {"first": 2048, "last": 4095, "udp_exact_first": 2560, "flags": SliceFlag.LIVE, "pool": 1, "epoch": 2}
    until = {"claim_until_ns": (NOW_S + 3600) * NS}
    return FakeMap(
        {
            u32(0): Slice(addr=packed("198.51.100.20"), **(ten | until | changes)).pack(),
            u32(1): Slice(addr=packed("198.51.100.10"), **(big | until)).pack(),
            u32(2): Slice().pack(),
        }
    )


def flows_map(entries: list[tuple[Flow, Claim]]) -> FakeMap:
    return FakeMap({key.pack(): value.pack() for key, value in entries})


def read(flows: FakeMap, crowds: FakeMap | None = None, slices: FakeMap | None = None) -> list[views.SliceView]:
    return read_slices(slices or slices_map(), flows, crowds or FakeMap(), NAMES, NOW_S * NS, TIMERS)


def test_the_fast_layout_is_the_codecs() -> None:
    value = Claim(word=0x1122334455667788, kind=3, slice=77, owner=2**64 - 1, slot=2**32 - 1, check=2**32 - 1).pack()
    assert views.CLAIM_PARTS.unpack(value) == (0x1122334455667788, 3, 77)
    key = Flow(packed("192.0.2.1"), packed("203.0.113.1"), 1, 443, 17).pack()
    assert key[views.REMOTE_FIRST : views.REMOTE_LAST + 1] == packed("203.0.113.1")
    assert key[views.REMOTE_PORT : views.PROTO] == (443).to_bytes(2, "big")
    assert key[views.PROTO] == 17


def test_a_slice_nobody_uses() -> None:
    big, ten = read(FakeMap())
    assert (str(ten.address), ten.first, ten.last, ten.ports) == ("198.51.100.20", 9000, 9009, 10)
    assert (ten.pool, ten.epoch, ten.state, ten.claim_for_s) == ("ten", 4, "live", 3600)
    assert ten.claims == {} and ten.crowded is None and not ten.warning
    assert big.wildcard_ports == 512


@pytest.mark.parametrize(
    ("changes", "state"),
    [
        ({"flags": SliceFlag.LIVE | SliceFlag.DRAIN}, "drain"),
        ({"flags": 0}, "off"),
        ({"claim_until_ns": 5}, "lease-over"),
    ],
)
def test_states_of_a_slice(changes: dict[str, int], state: str) -> None:
    assert read(FakeMap(), slices=slices_map(**changes))[1].state == state


def test_claims_are_counted_by_protocol_and_kind() -> None:
    entries = [
        (flow("198.51.100.20", 9000, "203.0.113.1", 443), claim(Kind.SOCKET, 17)),
        (flow("198.51.100.20", 9001, "203.0.113.1", 443), claim(Kind.PACKET, ONRAMP, state=State.LINGER)),
        (flow("198.51.100.20", 9002, "203.0.113.1", 443), claim(Kind.PACKET, ONRAMP)),
        (flow("198.51.100.20", 9002, "203.0.113.9", 0, 1), claim(Kind.LOCAL, 0)),
        # Expired: free, and no longer counted; locked: just being filled.
        (flow("198.51.100.20", 9003, "203.0.113.1", 443), claim(Kind.PACKET, ONRAMP, state=State.NEW, seen_s=700)),
        (flow("198.51.100.20", 9004, "203.0.113.1", 443), claim(Kind.PACKET, ONRAMP, state=State.LOCKED)),
    ]
    ten = read(flows_map(entries))[1]
    assert ten.claims == {"icmp": {"local": 1}, "tcp": {"socket": 1, "packet": 2}}
    assert (ten.lingering, ten.expired) == (1, 1)
    assert ten.crowded is not None
    assert (ten.crowded.proto, str(ten.crowded.remote), ten.crowded.remote_port) == ("tcp", "203.0.113.1", 443)
    assert (ten.crowded.used, ten.crowded.size, ten.crowded.percent, ten.warning) == (3, 10, 30, False)


@pytest.mark.parametrize(("held", "warning", "full"), [(8, False, False), (9, True, False), (10, True, True)])
def test_ninety_percent_warns(held: int, warning: bool, full: bool) -> None:
    entries = [(flow("198.51.100.20", 9000 + n, "203.0.113.1", 443), claim(Kind.SOCKET, n)) for n in range(held)]
    ten = read(flows_map(entries))[1]
    assert ten.crowded is not None
    assert (ten.warning, ten.crowded.full, ten.crowded.percent) == (warning, full, held * 10)


def test_refusals_come_from_what_the_chooser_remembers() -> None:
    crowds = FakeMap(
        {CrowdKey(packed("203.0.113.7"), 0, 53, 17, chunk).pack(): Crowd(refused=20).pack() for chunk in (0, 1)}
        | {CrowdKey(packed("203.0.113.8"), 0, 443, 6, 0).pack(): Crowd(refused=0).pack()}
    )
    ten = read(FakeMap(), crowds)[1]
    assert ten.refused == 40 and ten.warning
    assert ten.crowded is not None
    assert (str(ten.crowded.remote), ten.crowded.refused, ten.crowded.used) == ("203.0.113.7", 40, 0)


def test_wildcard_claims_are_one_destination_with_their_own_ports() -> None:
    entries = [(flow("198.51.100.10", 2048 + n, "", 0, 17), claim(Kind.SOCKET, n, slice_index=1)) for n in range(480)]
    entries += [
        (flow("198.51.100.10", 2560 + n, "203.0.113.1", 53, 17), claim(Kind.PACKET, ONRAMP, slice_index=1))
        for n in range(500)
    ]
    big = read(flows_map(entries))[0]
    assert big.crowded is not None and big.crowded.remote is None
    assert (big.crowded.used, big.crowded.size, big.crowded.percent) == (480, 512, 93)
    assert big.claims == {"udp": {"socket": 480, "packet": 500}}


def test_the_fullest_destination_wins_not_the_one_with_most_claims() -> None:
    """1,400 of 1,536 UDP ports are more than 1,500 of 2,048 TCP ports."""
    entries = [
        (flow("198.51.100.10", 2048 + n, "203.0.113.1", 443), claim(Kind.SOCKET, n, slice_index=1)) for n in range(1500)
    ]
    entries += [
        (flow("198.51.100.10", 2560 + n, "203.0.113.2", 53, 17), claim(Kind.SOCKET, n, slice_index=1))
        for n in range(1400)
    ]
    big = read(flows_map(entries))[0]
    assert big.crowded is not None
    assert (big.crowded.proto, big.crowded.used, big.crowded.size) == ("udp", 1400, 1536)


def test_flow_views() -> None:
    entries = flows_map(
        [
            (flow("198.51.100.20", 9000, "203.0.113.1", 443), claim(Kind.SOCKET, 0xBEEF)),
            (
                flow("198.51.100.20", 9001, "203.0.113.1", 443),
                claim(Kind.PACKET, ONRAMP, inner="10.8.0.2", inner_port=5555),
            ),
            (flow("198.51.100.20", 9002, "", 0, 17), claim(Kind.SOCKET, 9, state=State.LINGER, seen_s=900)),
            (flow("198.51.100.20", 9003, "203.0.113.1", 53, 17), claim(Kind.PEER, 2)),
            (flow("2001:db8::10", 1024, "2001:db8:ffff::1", 0, 58), claim(Kind.LOCAL, 0, inner="2001:db8::a")),
        ]
    )
    socket, packet, wildcard, peer, local = read_flows(entries, NAMES, NOW_S, TIMERS)
    assert (socket.kind, socket.owner, socket.expires_s, socket.inner) == ("socket", 0xBEEF, None, None)
    assert (socket.born_ago_s, socket.idle_s, socket.state) == (40, 30, "open")
    assert (packet.owner, packet.owner_name, str(packet.inner), packet.inner_port) == (1, "vpn", "10.8.0.2", 5555)
    assert packet.expires_s == 7410
    assert (wildcard.remote, wildcard.remote_port, wildcard.expires_s) == (None, None, 0)
    assert (peer.owner_name, peer.expires_s) == ("lhr2", 270)
    assert (local.proto, local.owner_name, local.local) == ("icmpv6", "lhr1", ip_address("2001:db8::10"))
    for view in (socket, packet, wildcard, peer, local):
        assert json.loads(json.dumps(view.as_json()))["slice"] == 0


def test_numbers_stand_in_for_names_that_are_missing() -> None:
    key, value = flow("198.51.100.20", 9000, "203.0.113.1", 443), claim(Kind.PACKET, 9 << 32)
    view = flow_view(key.pack(), value.pack(), Names(), NOW_S, TIMERS)
    assert view.owner_name == "on-ramp 9"


@pytest.mark.parametrize(
    ("kind", "state", "proto", "seconds"),
    [
        (Kind.SOCKET, State.OPEN, 6, None),
        (Kind.SOCKET, State.NEW, 17, None),
        (Kind.SOCKET, State.LINGER, 6, 60),
        (Kind.SOCKET, State.LINGER, 17, 60),
        (Kind.PACKET, State.NEW, 6, 240),
        (Kind.PACKET, State.OPEN, 6, 7440),
        (Kind.PACKET, State.LINGER, 6, 120),
        (Kind.PACKET, State.NEW, 17, 300),
        (Kind.LOCAL, State.OPEN, 1, 60),
        (Kind.LOCAL, State.OPEN, 58, 60),
        (Kind.PEER, State.OPEN, 6, 7440),
    ],
)
def test_lifetimes(kind: Kind, state: State, proto: int, seconds: int | None) -> None:
    assert lifetime_s(kind, state, proto, TIMERS) == seconds
    word = claim(kind, 1, state=state, seen_s=1000).word
    if seconds is None:
        assert not expired(word, kind, proto, 10**9, TIMERS)
    else:
        assert not expired(word, kind, proto, 1000 + seconds - 1, TIMERS)
        assert expired(word, kind, proto, 1000 + seconds, TIMERS)
    # Another CPU's clock may be ahead.
    assert not expired(word, kind, proto, 999, TIMERS)


def stats_map() -> FakeMap:
    def copy(n: int) -> bytes:
        return Stats(
            drops=tuple(n * reason for reason in range(48)), counters=tuple(n * 100 + c for c in range(48))
        ).pack()

    return FakeMap(copies=[copy(1), copy(2)])


def test_counters_are_sums_over_cpus() -> None:
    found = {view.name: view for view in read_counters(stats_map())}
    assert len(found) == len(Counter)
    assert found["claim_packet"].count == 302
    assert found["claim_packet"].meaning == "claims made by forwarded packets"


def test_drops_tell_the_last_packet() -> None:
    last = FakeMap(
        {
            u32(Drop.NO_CLAIM): LastDrop(1000 * NS, flow("198.51.100.20", 9001, "203.0.113.1", 443)).pack(),
            u32(Drop.FRAGMENT): LastDrop(1000 * NS, Flow()).pack(),
            u32(Drop.TTL): LastDrop().pack(),
        }
    )
    found = {view.name: view for view in read_drops(stats_map(), last, NOW_S * NS)}
    assert "none" not in found and len(found) == len(Drop) - 1
    assert (found["no_claim"].count, found["no_claim"].ago_s) == (3, 30.0)
    assert found["no_claim"].as_json()["last"] == {
        "ago_s": 30.0,
        "proto": "tcp",
        "local": "198.51.100.20",
        "local_port": 9001,
        "remote": "203.0.113.1",
        "remote_port": 443,
    }
    assert found["fragment"].as_json()["last"] == {"ago_s": 30.0}
    assert found["ttl"].as_json()["last"] is None
