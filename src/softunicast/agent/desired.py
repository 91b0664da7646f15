# SPDX-License-Identifier: Apache-2.0
"""From plan, bindings and facts to what the kernel should hold. Pure: the same input gives the same bytes.

What goes where, for one node:

    cgroup2 root      su_sock_create ... su_sockops        sockets claim (scoped by the namespace's cookie)
    on-ramp  ingress  su_onramp_in                         fish claim
    terminus ingress  su_terminus_in                       to clients whose TCP ends here (agent.terminus)
    uplink   XDP      su_steer                             what is others' is carried early (see attachment)
    uplink   ingress  su_uplink_in                         answers are steered and delivered
    underlay ingress  su_uplink_in                         carried answers, when the underlay is no uplink
    uplink   egress   su_guard                             nothing leaves a slice without a claim
    others   egress   su_guard_other                       nothing leaves a slice by another device
    lo                slice addresses                      so that sockets may bind them
    table 1717        default by uplinks, else unreachable slice-sourced packets go nowhere else
    sysctls           uplinks: slice addresses never in ARP; on-ramps: no forwarding past the programs;
                      lo: routes may be asked for by XDP, and for tunnels of nodes with several uplinks
    nft               notrack for slice addresses          conntrack never sees them

An on-ramp's generation grows when its device or its policy changes, so that claims of an earlier life are
dead.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final

from softunicast.agent.attachment import Choice, Refusals, choices
from softunicast.agent.diff import Desired
from softunicast.agent.facts import Facts
from softunicast.agent.findings import Subject
from softunicast.agent.resources import Attachment, Build, Hook, Resources
from softunicast.agent.state import NodeState, OnrampState
from softunicast.agent.tables import Ground, Holding, Made, array_used, make
from softunicast.agent.tables import Memory as TablesMemory
from softunicast.agent.terminus import Terminus, termini, told
from softunicast.egress import tables as egress_tables
from softunicast.egress.numbers import Numbers, numbers
from softunicast.kernel import abi
from softunicast.kernel.entries import XdpFeature
from softunicast.kernel.routing import Route
from softunicast.model.binding import Bindings
from softunicast.model.fleet import MappingBehaviour, Strategy
from softunicast.model.plan import Node, Onramp, Plan
from softunicast.proxy.terminate import FILE as TERMINATE_FILE
from softunicast.steering.places import NOWHERE, Places, places

UNREACHABLE_METRIC: Final = 1 << 31

CGROUP_HOOKS: Final[Mapping[str, int]] = {
    # program: enum bpf_attach_type (include/uapi/linux/bpf.h)
    "su_sock_create": 2,
    "su_sockops": 3,
    "su_bind4": 8,
    "su_bind6": 9,
    "su_connect4": 10,
    "su_connect6": 11,
    "su_sendmsg4": 14,
    "su_sendmsg6": 15,
    "su_sock_release": 34,
}

XDP_ROLES: Final[Mapping[Hook, str]] = {Hook.XDP: "steer", Hook.XDP_GENERIC: "steer_generic"}
NOTHING: Final[Refusals] = MappingProxyType({})

UPLINK_SYSCTLS: Final[Mapping[str, str]] = {"arp_announce": "2", "arp_ignore": "1", "proxy_arp": "0"}


def build(objects_digest: str, plan: Plan, node: Node, netns_cookie: int, at: Places) -> Build:
    """What to load; its hash covers the object files, the settings and the sizes of the maps."""
    flows = plan.settings.flows
    sizes = {"flows": flows, "origin": flows, "slots": egress_tables.slots(flows)}
    packed = egress_tables.settings_bytes(plan, node, netns_cookie, at.nodes[node.name], at.sites[node.site])
    text = json.dumps([objects_digest, packed.hex(), sizes], sort_keys=True)
    return Build(hashlib.sha256(text.encode()).hexdigest(), abi.ABI_VERSION, packed, sizes)


def fingerprint(onramp: Onramp, ifindex: int) -> str:
    """What an on-ramp's claims depend on; another one makes a new generation."""
    parts = [
        ifindex,
        onramp.device,
        onramp.pool,
        sorted(map(str, onramp.sources)),
        str(onramp.gateway4),
        str(onramp.gateway6),
        sorted(map(str, onramp.bypass)),
        onramp.tenant,
        str(onramp.slice),
    ]
    # Only when it is not the default, so that a node that knows the key goes on where one that did not stopped.
    if onramp.mapping is MappingBehaviour.ENDPOINT_INDEPENDENT:
        parts.append(onramp.mapping.value)
    if onramp.strategy is Strategy.TERMINATE:
        parts.append(onramp.strategy.value)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def onramps(node: Node, facts: Facts, last: NodeState | None, given: Numbers) -> dict[str, OnrampState]:
    """On-ramps with ids, ifindexes and generations that go on from the last ones."""
    result = {}
    for name in sorted(node.onramps):
        onramp, id_ = node.onramps[name], given.onramps[name]
        device = facts.devices.get(onramp.device)
        ifindex = device.ifindex if device else 0
        mark = fingerprint(onramp, ifindex)
        before = last.onramps.get(name) if last else None
        same = before is not None and before.fingerprint == mark and before.id == id_
        # An id may change hands when on-ramps come and go: its claims must not, hence one that none ever had.
        generation = before.generation if before is not None and same else given.generation + 1
        result[name] = OnrampState(id_, onramp.device, ifindex, generation, mark)
    return result


def numbers_of(plan: Plan, node: Node, last: NodeState | None) -> Numbers:
    """Numbers that go on from the last ones, also from those of a file that knew less of them."""
    if last is None:
        return numbers(node, pools=plan.pools)
    known = last.numbers
    if not known.onramps:
        known = replace(known, onramps={name: ramp.id for name, ramp in last.onramps.items()})
    if not known.pools:
        known = replace(known, pools=last.pools)
    highest = max((ramp.generation for ramp in last.onramps.values()), default=0)
    return numbers(node, replace(known, generation=max(known.generation, highest)), plan.pools)


def desired(
    plan: Plan,
    bindings: Bindings,
    node_name: str,
    facts: Facts,
    objects_digest: str,
    last: NodeState | None,
    files: Mapping[str, str],
    now_s: int,
    memory: Memory | None = None,
    refused: Refusals = NOTHING,
) -> Desired:
    """What this node's kernel should hold. UsageError when the plan has no such node.

    `memory` of an earlier call spares making the same tables again.
    """
    memory = Memory() if memory is None else memory
    node = node_here(plan, node_name, facts)
    chosen = choices(node, facts, refused)
    given = numbers_of(plan, node, last)
    ramps = onramps(node, facts, last, given)
    ifindexes = {name: device.ifindex for name, device in facts.devices.items()}
    generations = {name: ramp.generation for name, ramp in ramps.items()}
    at = memory.places(plan, node_name, last.places if last else NOWHERE)
    uplinks = uplink_table(node, facts, chosen)
    ends = termini(node, facts, given)
    # The highest generation ever given is no part of any table.
    ground = Ground(plan, node, facts.devices, generations, at, uplinks, replace(given, generation=0), ends)
    made = make(ground, bindings, last.slices if last else (), memory.tables)
    held = made.holding
    versions = sorted({4 if "." in address else 6 for address in held.addresses})
    resources = Resources(
        tables=made.tables,
        links={link.name: link for link in (*_cgroup_links(), *_device_links(node, facts, chosen, ends))},
        addresses=held.on_lo,
        rules=held.rules,
        routes=frozenset(route for version in versions for route in _routes(node, facts, version)),
        sysctls=dict(_sysctls(node, facts, last, chosen)),
        notrack=held.notrack,
        files=files,
        termini=frozenset(ends.values()),
    )
    build_ = build(objects_digest, plan, node, facts.netns_cookie, at)
    if ends:
        resources = replace(resources, files={**files, TERMINATE_FILE: _told(plan, node, ends, ramps, made)})
    state = NodeState(
        node=node_name,
        netns_cookie=facts.netns_cookie,
        abi_version=build_.abi_version,
        bindings_epoch=bindings.epoch,
        pools={name: given.pools[name] for name in plan.pools},
        tags={name: dict(pool.tags) for name, pool in plan.pools.items() if pool.tags},
        never=tuple(map(str, egress_tables.never_sliced(plan, node))),
        places=at,
        numbers=replace(given, generation=max([given.generation, *generations.values()])),
        slices=held.states,
        onramps=ramps,
        uplinks={name: ifindexes[name] for name in node.uplinks if name in ifindexes},
        array_used=array_used(made.tables),
        cgroup_root=facts.cgroup_root,
        cgroup=f"{facts.cgroup_root}/softunicast/{node_name}",
        started_s=now_s,
    )
    return Desired(build_, resources, state)


@dataclass(slots=True)
class Memory:
    """What the last call made, and of what."""

    tables: TablesMemory = field(default_factory=TablesMemory)
    _plan: Plan | None = None
    _places: Places = NOWHERE

    @property
    def holding(self) -> Holding:
        """What the node holds by the last call."""
        assert self.tables.made is not None
        return self.tables.made.holding

    def places(self, plan: Plan, node_name: str, last: Places) -> Places:
        """As steering.places has it: the same plan and what it gave last time give the same."""
        if self._plan is not plan or self._places != last:
            self._plan, self._places = plan, places(plan, node_name, last)
        return self._places


def _told(plan: Plan, node: Node, ends: Mapping[str, Terminus], ramps: Mapping[str, OnrampState], made: Made) -> str:
    """terminate.json: what the terminator is to know."""
    nothing = bytes(abi.Onramp.SIZE)
    known = {name: made.tables["onramps"].get(ramps[name].id.to_bytes(4, sys.byteorder), nothing) for name in ends}
    policies = {name: abi.Onramp.unpack(value).policy.pack() for name, value in known.items()}
    held = [(one.pool, str(one.slice.address)) for one in made.holding.bindings]
    return told(node.name, plan.settings, node.onramps, ends, policies, held).dumps()


def node_here(plan: Plan, name: str, facts: Facts) -> Node:
    """The node, with its uplinks filled in when the plan leaves them to the agent.

    They are the devices of the default routes, else those that have the underlay addresses. UsageError when
    the plan has no such node.
    """
    node = plan.node(name)
    if node.uplinks:
        return node
    onramp_devices = {onramp.device for onramp in node.onramps.values()}
    found = [hop.device for default in facts.defaults for hop in default.hops if hop.device not in onramp_devices]
    if not found:
        carriers = (facts.device_of(str(underlay)) for underlay in node.underlays)
        found = [carrier.name for carrier in carriers if carrier is not None and carrier.name != "lo"]
    return replace(node, uplinks=tuple(dict.fromkeys(found)))


def uplink_table(node: Node, facts: Facts, chosen: Mapping[str, Choice]) -> dict[bytes, bytes]:
    """The map `uplinks`: what exists of them, in the plan's order."""
    table = {}
    for index, name in enumerate(node.uplinks):
        if (device := facts.devices.get(name)) is not None:
            flags = _uplink_flags(name, facts, chosen[name])
            table[index.to_bytes(4, sys.byteorder)] = abi.Uplink(
                device.ifindex, device.mtu, int(flags), device.below
            ).pack()
    return table


def _uplink_flags(uplink: str, facts: Facts, choice: Choice) -> abi.UplinkFlag:
    """ONE_HOP when table 1717 leads by this device to a single IPv4 gateway: its Ethernet header may be remembered."""
    flags = abi.UplinkFlag(0)
    hops = {hop for default in facts.defaults if default.version == 4 for hop in default.hops if hop.device == uplink}
    if len(hops) == 1 and all(hop.gateway for hop in hops):
        flags |= abi.UplinkFlag.ONE_HOP
    if choice.hook.xdp:
        flags |= abi.UplinkFlag.XDP
    entries = facts.entries.get(uplink)
    if entries is not None and entries.features is not None and XdpFeature.NDO_XMIT in entries.features:
        flags |= abi.UplinkFlag.XMIT
    return flags


def subject(plan: Plan, holding: Holding, node_name: str, facts: Facts) -> Subject:
    """What the host is examined for."""
    node = node_here(plan, node_name, facts)
    return Subject(
        uplinks=tuple(node.uplinks),
        onramps={name: onramp.device for name, onramp in node.onramps.items()},
        underlays=tuple(map(str, node.underlays)),
        addresses=holding.addresses,
        ports=tuple((one.slice.first, one.slice.last) for one in holding.bindings),
    )


def _cgroup_links() -> Iterator[Attachment]:
    for program in CGROUP_HOOKS:
        yield Attachment(program, program, Hook.CGROUP)


def _device_links(
    node: Node, facts: Facts, chosen: Mapping[str, Choice], ends: Mapping[str, Terminus]
) -> Iterator[Attachment]:
    terminus_devices = {end.device for end in ends.values()}
    onramp_devices = {onramp.device for onramp in node.onramps.values()}
    carriers = [facts.device_of(str(underlay)) for underlay in node.underlays]
    for name, device in sorted(facts.devices.items()):

        def link(role: str, program: str, hook: Hook, name: str = name, ifindex: int = device.ifindex) -> Attachment:
            return Attachment(f"{role}-{ifindex}", program, hook, name, ifindex)

        if name == "lo":
            continue
        if name in onramp_devices:
            yield link("onramp_in", "su_onramp_in", Hook.INGRESS)
        elif name in node.uplinks:
            if chosen[name].hook.xdp:
                yield link(XDP_ROLES[chosen[name].hook], "su_steer", chosen[name].hook)
            yield link("uplink_in", "su_uplink_in", Hook.INGRESS)
            yield link("guard", "su_guard", Hook.EGRESS)
        else:
            if name in terminus_devices:
                yield link("terminus_in", "su_terminus_in", Hook.INGRESS)
            elif device in carriers:
                yield link("uplink_in", "su_uplink_in", Hook.INGRESS)
            yield link("guard_other", "su_guard_other", Hook.EGRESS)


def _routes(node: Node, facts: Facts, version: int) -> Iterator[Route]:
    yield Route(version, UNREACHABLE_METRIC)
    metric = 0
    for default in facts.defaults:
        hops = tuple(sorted(hop for hop in default.hops if hop.device in node.uplinks))
        if default.version == version and hops:
            metric += 1
            yield Route(version, metric, tuple(replace(hop) for hop in hops), options=default.options)


def _sysctls(
    node: Node, facts: Facts, last: NodeState | None, chosen: Mapping[str, Choice]
) -> Iterator[tuple[str, str]]:
    before = last.sysctls_before if last else {}
    if any(choice.hook.xdp for choice in chosen.values()) or len(chosen) > 1:
        # bpf_fib_lookup answers for a device that may forward; asked through lo, no other device needs to.
        for family in ("ipv4", "ipv6"):
            yield f"net/{family}/conf/lo/forwarding", "1"
    for uplink in node.uplinks:
        if uplink not in facts.devices:
            continue
        folder = f"net/ipv4/conf/{uplink}"
        for name, value in UPLINK_SYSCTLS.items():
            yield f"{folder}/{name}", value
        strictness = max(facts.sysctls.get(f"net/ipv4/conf/{at}/rp_filter", "0") for at in ("all", uplink))
        if strictness == "1" or f"{folder}/rp_filter" in before:
            yield f"{folder}/rp_filter", "2"
    for onramp in node.onramps.values():
        if onramp.device in facts.devices:
            for family in ("ipv4", "ipv6"):
                yield f"net/{family}/conf/{onramp.device}/forwarding", "0"
