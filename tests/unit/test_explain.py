# SPDX-License-Identifier: Apache-2.0
"""Each way that a packet can go, from tables written by hand and from a plan."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

import pytest

from softunicast.egress.explain import Action, Asked, Contents, Explanation, Setting, explain
from softunicast.egress.flow_view import Names
from softunicast.egress.permits import mapping_hash
from softunicast.kernel.abi import (
    NONE,
    Address,
    Claim,
    Drop,
    Flow,
    Kind,
    Node,
    Onramp,
    OnrampFlag,
    Owner,
    Permit,
    Settings,
    Slice,
    SliceFlag,
    State,
)
from tests.support.fake_maps import claim, flow, packed, u32

LOCAL, REMOTE = "198.51.100.20", "203.0.113.1"
NAMES = Names(node="lhr1", nodes={1: "lhr1", 2: "lhr2", 3: "cdg1", 4: "six"}, pools={0: "ten"}, onramps={1: "vpn"})
TIMERS = Settings(
    tcp_transitory_s=240, tcp_established_s=7440, tcp_linger_s=120, sock_linger_s=60, udp_s=300, icmp_s=60
)
ONRAMP = 1 << 32 | 5


def tables(*entries: tuple[Flow, Claim]) -> dict[str, Contents]:
    """198.51.100.20: 9000-9009 this node's, 9010 lhr2's, 9011 a node's not in use, 9012 one's with IPv6."""
    owners = {u32(9000 + n): Owner(1, 0).pack() for n in range(10)}
    owners |= {u32(9010): Owner(2, NONE).pack(), u32(9011): Owner(3, NONE).pack(), u32(9012): Owner(4, NONE).pack()}
    owners |= {u32(9013): Owner(NONE, NONE).pack(), u32(9014): Owner(1, NONE).pack()}
    return {
        "addresses": Contents({packed(LOCAL): Address(0, 0, 1).pack()}),
        "owners": Contents(owners),
        "nodes": Contents(
            {
                u32(2): Node(packed("10.0.1.12"), 1).pack(),
                u32(3): Node(packed("10.0.2.11"), 0).pack(),
                u32(4): Node(packed("2001:db8:1::1"), 1).pack(),
            }
        ),
        "slices": Contents({u32(0): Slice(packed(LOCAL), 9000, 9009, 9000, SliceFlag.LIVE, 0, 4).pack()}),
        "onramps": Contents({u32(1): Onramp(flags=OnrampFlag.SET, generation=5, ifindex=9).pack()}),
        "permits": Contents({}),
        "flows": Contents({key.pack(): value.pack() for key, value in entries}),
    }


WILDCARD = (flow(LOCAL, 9001, "", 0, 17), claim(Kind.PACKET, ONRAMP, inner="10.8.0.2", inner_port=40000))


@pytest.mark.parametrize(
    ("flags", "permits", "action"),
    [
        (0, {}, Action.ONRAMP),
        (OnrampFlag.ADF, {}, Action.DROP),
        (OnrampFlag.ADF, {0: 1000}, Action.ONRAMP),
        (OnrampFlag.ADF, {443: 1000}, Action.DROP),
        (OnrampFlag.APDF, {443: 1000}, Action.ONRAMP),
        (OnrampFlag.APDF, {443: 730}, Action.DROP),
        (OnrampFlag.APDF, {442: 1000}, Action.DROP),
    ],
)
def test_a_mapping_lets_in_whom_its_filter_lets(flags: int, permits: dict[int, int], action: Action) -> None:
    """`permits`: remote port (0: any) -> when it was sent to; it is 1030 now, and a permit is believed for 300 s."""
    found = tables(WILDCARD)
    ramp = Onramp(flags=OnrampFlag.SET | OnrampFlag.EIM | flags, generation=5, ifindex=9)
    found["onramps"] = Contents({u32(1): ramp.pack()})
    who = mapping_hash(WILDCARD[1])
    found["permits"] = Contents(
        {flow(LOCAL, 9001, REMOTE, port, 17).pack(): Permit(who, sent_s).pack() for port, sent_s in permits.items()}
    )
    setting = Setting(node=1, site=1, names=NAMES, timers=TIMERS, now_s=1030)
    told = explain(found, Asked(17, ip_address(LOCAL), 9001, ip_address(REMOTE), 443, False), setting)
    assert (told.action, told.drop) == (action, Drop.FILTERED if action is Action.DROP else None)


def ask(*entries: tuple[Flow, Claim], port: int = 9001, proto: int = 6, **changes: Any) -> Explanation:
    begins = changes.pop("begins", False)
    local = ip_address(changes.pop("local", LOCAL))
    remote_port = 0 if proto == 1 else 443
    setting: dict[str, Any] = {"node": 1, "site": 1, "names": NAMES, "timers": TIMERS, "now_s": 1030} | changes
    asked = Asked(proto, local, port, ip_address(REMOTE), remote_port, begins)
    return explain(tables(*entries), asked, Setting(**setting))


def held(kind: Kind, owner: int = 77, *, proto: int = 6, **changes: Any) -> tuple[Flow, Claim]:
    remote_port = 0 if proto == 1 else 443
    return flow(LOCAL, 9001, REMOTE, remote_port, proto), claim(kind, owner, **changes)


def test_another_address_is_none_of_our_business() -> None:
    assert ask(local="192.0.2.1").action is Action.PASS


@pytest.mark.parametrize(("answer_ping", "action"), [(True, Action.ANSWER), (False, Action.DROP)])
def test_a_ping(answer_ping: bool, action: Action) -> None:
    found = ask(proto=1, begins=True, answer_ping=answer_ping)
    assert found.action is action
    assert found.drop is (None if answer_ping else Drop.NO_CLAIM)


@pytest.mark.parametrize("port", [9013, 9999])
def test_a_port_nobody_holds(port: int) -> None:
    found = ask(port=port)
    assert (found.action, found.drop, found.owner) == (Action.DROP, Drop.NO_OWNER, None)


def test_another_nodes_port_is_carried() -> None:
    found = ask(port=9010)
    assert (found.action, found.to) == (Action.CARRY, "lhr2")
    assert found.owner is not None and found.owner.node == "lhr2"
    assert any("10.0.1.12" in step.text for step in found.steps)


def test_a_node_that_is_not_in_use() -> None:
    assert ask(port=9011).drop is Drop.NO_OWNER


def test_a_node_with_an_ipv6_underlay() -> None:
    found = ask(port=9012)
    assert found.action is Action.CARRY
    assert any("2001:db8:1::1" in step.text for step in found.steps)


def test_without_a_claim_it_is_dropped() -> None:
    for proto in (6, 17, 1):
        found = ask(proto=proto)
        assert (found.action, found.drop) == (Action.DROP, Drop.NO_CLAIM)
        assert found.owner is not None
        assert (found.owner.node, found.owner.slice, found.owner.epoch, found.owner.pool) == (
            "lhr1",
            "198.51.100.20:9000-9009",
            4,
            "ten",
        )


def test_a_claim_being_filled_is_none() -> None:
    found = ask(held(Kind.PACKET, ONRAMP, state=State.LOCKED))
    assert (found.drop, found.claim) == (Drop.NO_CLAIM, None)


def test_a_sockets_answer_goes_to_the_stack() -> None:
    found = ask(held(Kind.SOCKET))
    assert (found.action, found.to) == (Action.STACK, "socket")
    assert found.claim is not None and found.claim.owner == 77


def test_a_syn_to_a_socket_that_ended() -> None:
    assert ask(held(Kind.SOCKET, state=State.LINGER), begins=True).drop is Drop.INBOUND_NEW
    assert ask(held(Kind.SOCKET, state=State.LINGER)).action is Action.STACK
    assert ask(held(Kind.SOCKET), begins=True).action is Action.STACK


def test_a_clients_answer_goes_to_its_onramp() -> None:
    found = ask(held(Kind.PACKET, ONRAMP, inner="10.8.0.2", inner_port=5555))
    assert (found.action, found.to) == (Action.ONRAMP, "10.8.0.2:5555")


def test_an_expired_claim_holds_until_it_is_taken_over() -> None:
    found = ask(held(Kind.PACKET, ONRAMP, inner="10.8.0.2", state=State.NEW, seen_s=10))
    assert found.action is Action.ONRAMP
    assert any("expired" in step.text for step in found.steps)


@pytest.mark.parametrize("state", [State.OPEN, State.LINGER])
def test_a_syn_to_a_client_begins_nothing(state: State) -> None:
    assert ask(held(Kind.PACKET, ONRAMP, state=state), begins=True).drop is Drop.INBOUND_NEW
    assert ask(held(Kind.PACKET, ONRAMP, state=State.NEW), begins=True).action is Action.ONRAMP


@pytest.mark.parametrize("owner", [1 << 32 | 4, 9 << 32 | 5])
def test_an_onramp_that_is_gone(owner: int) -> None:
    assert ask(held(Kind.PACKET, owner)).drop is Drop.ONRAMP


def test_a_local_claim_is_rewritten() -> None:
    found = ask(held(Kind.LOCAL, 0, inner="192.0.2.11", inner_port=4000))
    assert (found.action, found.to) == (Action.STACK, "192.0.2.11:4000")


def test_a_peers_claim_is_carried_for_good() -> None:
    found = ask(held(Kind.PEER, 2))
    assert (found.action, found.to) == (Action.CARRY, "lhr2")
    assert any("final" in step.text for step in found.steps)


def test_a_wildcard_claim_takes_any_remote_but_only_of_udp() -> None:
    wildcard = (flow(LOCAL, 9001, "", 0, 17), claim(Kind.SOCKET, 5))
    found = ask(wildcard, proto=17)
    assert found.action is Action.STACK and found.claim is not None and found.claim.remote is None
    exact = (flow(LOCAL, 9001, REMOTE, 443, 17), claim(Kind.PACKET, ONRAMP, inner="10.8.0.2"))
    assert ask(wildcard, exact, proto=17).action is Action.ONRAMP
    tcp_like = (flow(LOCAL, 9001, "", 0, 6), claim(Kind.SOCKET, 5))
    assert ask(tcp_like).drop is Drop.NO_CLAIM


def test_an_owner_without_its_slice_yet() -> None:
    found = ask(port=9014)
    assert found.drop is Drop.NO_CLAIM
    assert found.owner is not None and found.owner.slice is None


def test_a_plan_cannot_know_claims() -> None:
    found = ask(live=False)
    assert (found.action, found.to, found.drop) == (Action.CLAIM_DECIDES, "lhr1", None)
    assert ask(live=False, port=9010).action is Action.CARRY


def test_every_explanation_ends_in_a_verdict_and_is_json() -> None:
    for found in (ask(), ask(port=9010), ask(held(Kind.SOCKET)), ask(proto=1, begins=True), ask(local="192.0.2.1")):
        assert found.steps[-1].step == "verdict"
        document = json.loads(json.dumps(found.as_json()))
        assert set(document) == {"packet", "owner", "claim", "steps", "verdict"}
        assert set(document["verdict"]) == {"action", "to", "drop", "meaning"}


def test_fragments_without_a_node_to_meet_at() -> None:
    """No table of sites here; with one, it is held against the program in tests/netns/test_views_explain.py."""
    found = tables() | {"sites": Contents({}), "site_nodes": Contents({})}
    asked = Asked(17, ip_address(LOCAL), 9001, ip_address(REMOTE), 443, fragment=7)
    told = explain(found, asked, Setting(1, 1, NAMES, TIMERS, 1030, live=False))
    assert (told.action, told.drop) == (Action.DROP, Drop.NO_OWNER)
    assert told.as_json()["packet"]["fragment"] == 7
