# SPDX-License-Identifier: Apache-2.0
"""What would happen to a packet that comes to a slice, and why: bpf/include/deliver.h in words.

    address of the fleet?  ->  ping?  ->  owner of the port  ->  another node: carried, final when it was carried before
                                                            ->  this node: its claim -> on-ramp, stack, peer or drop

A pure function of the tables and one claim: the live maps of a node, or those that the plan alone would give,
where nobody knows the claims and the verdict says what each possibility would bring. Each step names the table it
looked at, so that it can be checked by hand.

The packet is one that comes from outside to `local`: TCP (`begins`: a bare SYN), UDP, or an ICMP echo reply whose
id is `local`'s port (`begins`: a request). Where a live program would look at what only the packet tells (its
length, its checksum), the step says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Protocol

from softunicast.egress.flow_view import (
    ONRAMP_SHIFT,
    PROTOCOLS,
    TCP,
    UDP,
    FlowView,
    Names,
    Timers,
    flow_view,
    state_of,
)
from softunicast.egress.permits import Lookup, permitted
from softunicast.kernel.abi import (
    DROP_MEANINGS,
    NO_ADDRESS,
    NONE,
    Address,
    Claim,
    Drop,
    Flow,
    Kind,
    Node,
    NodeFlag,
    Onramp,
    OnrampFlag,
    Owner,
    Site,
    Slice,
    SliceFlag,
    State,
)
from softunicast.kernel.abi_util import addr_bytes, addr_ip
from softunicast.steering.home import fragment_home

IPAddress = IPv4Address | IPv6Address

ICMP_PROTOCOLS = (1, 58)


class Tables(Protocol):
    """Maps by name; a kernel.nodes.NodeMaps is one."""

    def __getitem__(self, name: str, /) -> Lookup: ...


@dataclass(frozen=True, slots=True)
class Contents:
    """A table that is only a dictionary: what `build_tables` gives, for the plan alone."""

    entries: Mapping[bytes, bytes]

    def lookup(self, key: bytes) -> bytes | None:
        return self.entries.get(key)


@dataclass(frozen=True, slots=True)
class Asked:
    """The packet. Ports are host order; of ICMP echo `local_port` is the id and `remote_port` 0."""

    proto: int
    local: IPAddress
    local_port: int
    remote: IPAddress
    remote_port: int
    begins: bool = False
    fragment: int | None = None  # the identification of the datagram that it is the first fragment of


@dataclass(frozen=True, slots=True)
class Setting:
    """What is known besides the tables: this node's and its site's index, names, timers, now, and whether claims can be
    known."""

    node: int
    site: int
    names: Names
    timers: Timers
    now_s: int
    answer_ping: bool = True
    live: bool = True


class Action(Enum):
    """What would happen."""

    PASS = "pass"  # none of our business: to the stack as any packet
    ANSWER = "answer"  # a ping, answered here
    CARRY = "carry"  # to another node, encapsulated
    ONRAMP = "on-ramp"  # to a client
    STACK = "stack"  # to a socket of this node
    DROP = "drop"
    CLAIM_DECIDES = "claim-decides"  # the plan alone cannot tell


@dataclass(frozen=True, slots=True)
class Step:
    """One look into one table, or one decision. `step` is a stable word, `text` for people."""

    step: str
    text: str


@dataclass(frozen=True, slots=True)
class HeldBy:
    """Who owns the port: node, and when this node knows them, the slice and its epoch."""

    node: str
    slice: str | None
    epoch: int | None
    pool: str | None


@dataclass(frozen=True, slots=True)
class Explanation:
    """The answer. `drop` only with Action.DROP, `to` names the node, on-ramp or client where there is one."""

    asked: Asked
    action: Action
    drop: Drop | None = None
    to: str = ""
    owner: HeldBy | None = None
    claim: FlowView | None = None
    steps: tuple[Step, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The keys of docs/cli.md, `explain`."""
        asked = self.asked
        return {
            "packet": {
                "proto": PROTOCOLS[asked.proto],
                "remote": str(asked.remote),
                "remote_port": asked.remote_port,
                "local": str(asked.local),
                "local_port": asked.local_port,
                "begins": asked.begins,
                "fragment": asked.fragment,
            },
            "owner": None
            if self.owner is None
            else {
                "node": self.owner.node,
                "slice": self.owner.slice,
                "epoch": self.owner.epoch,
                "pool": self.owner.pool,
            },
            "claim": None if self.claim is None else self.claim.as_json(),
            "steps": [{"step": step.step, "text": step.text} for step in self.steps],
            "verdict": {
                "action": self.action.value,
                "to": self.to or None,
                "drop": None if self.drop is None else self.drop.name.lower(),
                "meaning": None if self.drop is None else DROP_MEANINGS[self.drop],
            },
        }


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def endpoint(address: IPAddress, port: int) -> str:
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


class _Story:
    """Collects steps and ends in an Explanation."""

    def __init__(self, asked: Asked) -> None:
        self.asked = asked
        self.steps: list[Step] = []
        self.owner: HeldBy | None = None
        self.claim: FlowView | None = None

    def say(self, step: str, text: str) -> None:
        self.steps.append(Step(step, text))

    def end(self, action: Action, text: str, *, drop: Drop | None = None, to: str = "") -> Explanation:
        self.say("verdict", text)
        return Explanation(self.asked, action, drop, to, self.owner, self.claim, tuple(self.steps))

    def drop(self, reason: Drop, text: str) -> Explanation:
        return self.end(Action.DROP, f"{text}: dropped, counted as {reason.name.lower()}", drop=reason)


def explain(tables: Tables, asked: Asked, setting: Setting) -> Explanation:
    """The verdict of this node's programs on that packet, with the steps that lead to it."""
    story = _Story(asked)
    where = endpoint(asked.local, asked.local_port)
    raw = tables["addresses"].lookup(addr_bytes(asked.local))
    if raw is None:
        story.say("address", f"{asked.local} is no address of the fleet (addresses)")
        return story.end(Action.PASS, "not ours: left to the stack and to routing")
    address = Address.unpack(raw)
    home = setting.names.of_site(address.site)
    finds = f"; port >> {address.shift} finds the owner" if address.site == setting.site else ""
    story.say("address", f"{asked.local} is of the fleet, at site {home}{finds} (addresses)")
    if asked.fragment is not None:
        meets = _meets(story, tables, address.site, setting)
        if meets is not None:
            return meets
    if asked.proto in ICMP_PROTOCOLS and asked.begins:
        if setting.answer_ping:
            return story.end(Action.ANSWER, "a ping to a slice's address: answered where it arrives")
        return story.drop(Drop.NO_CLAIM, "a ping, and answer_ping is off")
    if address.site != setting.site:
        return _to_site(story, tables, address.site, setting)
    at = address.base + (asked.local_port >> address.shift)
    raw = tables["owners"].lookup(u32(at))
    owner = Owner.unpack(raw) if raw is not None else Owner(NONE, NONE)
    if owner.node == NONE:
        story.say("owner", f"port {asked.local_port} is nobody's (owners[{at}])")
        return story.drop(Drop.NO_OWNER, f"nobody holds {where}")
    name = setting.names.of_node(owner.node)
    story.owner = HeldBy(name, None, None, None)
    if owner.node != setting.node:
        story.say("owner", f"{where} belongs to {name} (owners[{at}])")
        return _carried(story, tables, owner.node, name, "not this node's")
    return _delivered(story, tables, owner, at, setting)


def _meets(story: _Story, tables: Tables, site: int, setting: Setting) -> Explanation | None:
    """Where all fragments of the datagram meet; None: here, and they go on as whole packets of their flow do."""
    asked, name = story.asked, setting.names.of_site(site)
    of = f"fragments of datagram {asked.fragment} from {asked.remote}"
    share = addr_bytes(asked.remote), addr_bytes(asked.local), asked.fragment or 0, asked.proto
    home = fragment_home(tables, *share, site=site, node=setting.node, live=setting.live)
    if isinstance(home, Drop):
        return story.drop(home, f"{of} have no home: no node of site {name} answers, or none is known (sites[{site}])")
    where = setting.names.of_node(home)
    if home != setting.node:
        story.say("home", f"{of} meet at {where}, by a hash of addresses and id; ask explain there")
        return _carried(story, tables, home, where, "the home of its fragments")
    story.say("home", f"{of} meet here; one that comes before the first is dropped as fragment_early")
    return None


def _to_site(story: _Story, tables: Tables, index: int, setting: Setting) -> Explanation:
    """Another site's address: any of its nodes that answers, by the hash of the flow."""
    site = setting.names.of_site(index)
    raw = tables["sites"].lookup(u32(index))
    known = Site.unpack(raw) if raw is not None else Site()
    living: list[int] = []
    for place in range(known.first, known.first + known.count):
        number = int.from_bytes(tables["site_nodes"].lookup(u32(place)) or b"", "little")
        raw = tables["nodes"].lookup(u32(number))
        node = Node.unpack(raw) if raw is not None else Node()
        if node.flags & (NodeFlag.SET | NodeFlag.DOWN) == NodeFlag.SET:
            living.append(number)
    if not known.count:
        return story.drop(Drop.NO_OWNER, f"site {site} has no nodes here (sites[{index}])")
    if not living:
        return story.drop(Drop.SITE_DOWN, f"none of the {known.count} nodes of site {site} answers (nodes)")
    names = ", ".join(setting.names.of_node(number) for number in living)
    story.say(
        "site", f"which node owns the port is known at {site}; one of {names}, by the flow's hash (sites[{index}])"
    )
    if len(living) == 1:
        return _carried(story, tables, living[0], names, f"for site {site}")
    story.say("carry", f"for site {site}: in GUE to one of them; one hop less to live, and it must fit the uplink")
    return story.end(Action.CARRY, f"carried to site {site}", to=site)


def _carried(story: _Story, tables: Tables, index: int, name: str, why: str, *, final: bool = False) -> Explanation:
    raw = tables["nodes"].lookup(u32(index))
    node = Node.unpack(raw) if raw is not None else Node()
    if not node.flags & NodeFlag.SET:
        return story.drop(Drop.NO_OWNER, f"{name} is in no table of nodes")
    underlay = addr_ip(node.underlay)
    kind = "final: that node delivers it or drops it" if final else "one hop less to live, and it must fit the uplink"
    story.say("carry", f"{why}: in GUE to {name} at {underlay} (nodes[{index}]); {kind}")
    return story.end(Action.CARRY, f"carried to {name}", to=name)


def _delivered(story: _Story, tables: Tables, owner: Owner, at: int, setting: Setting) -> Explanation:
    asked, node = story.asked, setting.names.of_node(setting.node)
    where = endpoint(asked.local, asked.local_port)
    raw = tables["slices"].lookup(u32(owner.slice)) if owner.slice != NONE else None
    held = Slice.unpack(raw) if raw is not None else None
    if held is not None and held.addr != NO_ADDRESS:
        text = f"{endpoint(addr_ip(held.addr), held.first)}-{held.last}"
        pool = setting.names.of_pool(held.pool)
        story.owner = HeldBy(node, text, held.epoch, pool)
        state = "draining" if held.flags & SliceFlag.DRAIN else "live" if held.flags & SliceFlag.LIVE else "off"
        story.say("owner", f"{where} is this node's, {node} (owners[{at}])")
        story.say("slice", f"slice {text} of {pool}, epoch {held.epoch}, {state} (slices[{owner.slice}])")
    else:
        story.say("owner", f"{where} is this node's, {node}, but it is no slice of it yet (owners[{at}])")
    if not setting.live:
        story.say("claim", f"what happens at {node} is for the claim to say, and a plan has none")
        return story.end(
            Action.CLAIM_DECIDES,
            f"delivered by {node} to whoever claimed the flow; without a claim dropped, counted as no_claim",
            to=node,
        )
    return _claimed(story, tables, setting)


def _find(tables: Tables, asked: Asked) -> tuple[Flow, bytes | None]:
    """The claim's key and value: the exact one, for UDP else the wildcard one."""
    key = Flow(addr_bytes(asked.local), addr_bytes(asked.remote), asked.local_port, asked.remote_port, asked.proto)
    value = tables["flows"].lookup(key.pack())
    if value is None and asked.proto == UDP:
        wildcard = Flow(key.local, NO_ADDRESS, key.local_port, 0, UDP)
        found = tables["flows"].lookup(wildcard.pack())
        if found is not None:
            return wildcard, found
    return key, value


def _claimed(story: _Story, tables: Tables, setting: Setting) -> Explanation:
    asked = story.asked
    key, value = _find(tables, asked)
    of = f"{endpoint(asked.local, asked.local_port)} <- {endpoint(asked.remote, asked.remote_port)}"
    if value is None:
        also = ", nor any remote" if asked.proto == UDP else ""
        story.say("claim", f"nobody claims {of}{also} (flows)")
        return story.drop(Drop.NO_CLAIM, "slices are for answers; a listener is not exposed by them")
    claim = Claim.unpack(value)
    if state_of(claim.word) == State.LOCKED:
        story.say("claim", f"{of} is just being claimed or given back (flows)")
        return story.drop(Drop.NO_CLAIM, "no claim at this instant")
    view = flow_view(key.pack(), value, setting.names, setting.now_s, setting.timers)
    story.claim = view
    which = "a wildcard claim" if view.remote is None else "a claim"
    age = f"{view.state}, made {view.born_ago_s} s ago, idle {view.idle_s} s"
    if view.expires_s == 0:
        age += ", expired: it holds until somebody takes it over"
    story.say("claim", f"{which} of kind {view.kind}, {age} (flows)")
    state, bare_syn = state_of(claim.word), asked.proto == TCP and asked.begins
    if claim.kind == Kind.SOCKET:
        if bare_syn and state == State.LINGER:
            return story.drop(Drop.INBOUND_NEW, "the socket ended, and an answer does not begin a connection")
        return story.end(Action.STACK, f"to the stack, for the socket with cookie {claim.owner}", to="socket")
    if claim.kind == Kind.LOCAL:
        inner = endpoint(addr_ip(claim.inner), claim.inner_port)
        return story.end(Action.STACK, f"rewritten to {inner}, and to the stack", to=inner)
    if claim.kind == Kind.PEER:
        name = setting.names.of_node(claim.owner)
        return _carried(story, tables, claim.owner, name, f"{name} still has that flow", final=True)
    if claim.kind == Kind.PACKET:
        return _to_onramp(story, tables, claim, view, setting, bare_syn and state != State.NEW)
    return story.drop(Drop.NO_CLAIM, f"a claim of kind {claim.kind}, which this version does not know")


def _to_onramp(
    story: _Story, tables: Tables, claim: Claim, view: FlowView, setting: Setting, new_inside: bool
) -> Explanation:
    if new_inside:
        return story.drop(Drop.INBOUND_NEW, "a SYN on a connection that is open already")
    index, generation = claim.owner >> ONRAMP_SHIFT, claim.owner & 0xFFFFFFFF
    raw = tables["onramps"].lookup(u32(index))
    onramp = Onramp.unpack(raw) if raw is not None else Onramp()
    name = setting.names.of_onramp(index)
    if not onramp.flags & OnrampFlag.SET:
        return story.drop(Drop.ONRAMP, f"on-ramp {name} is gone (onramps[{index}])")
    if onramp.generation != generation:
        return story.drop(
            Drop.ONRAMP, f"on-ramp {name} is another one by now: generation {onramp.generation}, not {generation}"
        )
    asked = story.asked
    if view.remote is None and not permitted(tables["permits"], onramp, claim, asked, setting.now_s, setting.timers):
        return story.drop(Drop.FILTERED, f"{asked.remote} was not sent to by this mapping (permits)")
    inner = endpoint(addr_ip(claim.inner), claim.inner_port)
    story.say("on-ramp", f"{name}, generation {generation}, interface {onramp.ifindex} (onramps[{index}])")
    return story.end(Action.ONRAMP, f"rewritten to {inner}, one hop less to live, and to on-ramp {name}", to=inner)
