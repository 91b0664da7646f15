# SPDX-License-Identifier: Apache-2.0
"""Plan + bindings + node -> contents of the maps that claims and packets need. Pure: same input, same bytes.

    slices         index -> su_slice       this node's slices, sorted by address and port, from 0, or as told
    pools          index -> su_pool        by egress.numbers, from 0: where in pool_slices its slices are
    pool_slices    place -> slice index    for each pool its IPv4 slices, then its IPv6 ones
    onramps        id -> su_onramp         by name (egress.numbers); all zero while the device is not there
    onramp_devices ifindex -> id           of its device, and of the veth towards where its TCP ends
    prefixes       su_prefix -> 1          lists: NEVER, INTERNAL, and each distinct list of sources or bypass

Keys and values are as bpf/include/abi.h has them; the maps themselves are in bpf/include/maps.h. IPv4 lives in
IPv6's ::ffff:0:0/96 there, so an IPv6 prefix that is wider than that is written without it: ::/0 is all IPv6,
never IPv4.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from types import MappingProxyType
from typing import Final

from softunicast.egress.numbers import Numbers, list_text, numbers
from softunicast.kernel import abi
from softunicast.kernel.abi_util import addr_bytes, prefix_key
from softunicast.model.address import IPNetwork, network_key
from softunicast.model.binding import Binding, Bindings, held_by, numbered
from softunicast.model.fleet import WILDCARD_PORTS, Filtering, MappingBehaviour, Strategy
from softunicast.model.plan import Node, Onramp, Plan
from softunicast.model.slice import Slice

Tables = dict[str, Mapping[bytes, bytes]]

FOREVER_NS: Final = (1 << 64) - 1
"""Leases do not end where a file says who holds what."""

LOOPBACK: Final[tuple[IPNetwork, ...]] = (IPv4Network("127.0.0.0/8"), IPv6Network("::1/128"))
LINK_LOCAL: Final[tuple[IPNetwork, ...]] = (IPv4Network("169.254.0.0/16"), IPv6Network("fe80::/10"))
MULTICAST: Final[tuple[IPNetwork, ...]] = (IPv4Network("224.0.0.0/4"), IPv6Network("ff00::/8"))
NOWHERE: Final[tuple[IPNetwork, ...]] = (
    IPv4Network("0.0.0.0/8"),
    IPv4Network("255.255.255.255/32"),
    IPv6Network("::/128"),
)
_MAPPED: Final = IPv6Network("::ffff:0:0/96")
_U32: Final = struct.Struct("=I")


@dataclass(frozen=True, slots=True)
class TableNames:
    """What the indices in this node's maps mean. `slices` by index; `pools`, `onramps`, `nodes`, `tenants` by name;
    `lists` the contents of `prefixes` by number."""

    pools: Mapping[str, int]
    slices: Mapping[int, Binding]
    onramps: Mapping[str, int]
    nodes: Mapping[str, int]
    tenants: Mapping[str, int]
    lists: Mapping[int, tuple[IPNetwork, ...]]

    def slice_index(self, binding: Binding) -> int:
        """Index in `slices`; abi.NONE when this node does not hold it."""
        return next((index for index, held in self.slices.items() if held == binding), abi.NONE)

    def list_number(self, networks: Collection[IPNetwork]) -> int:
        """The list with these prefixes; 0 for none."""
        wanted = tuple(sorted(networks, key=network_key))
        free = int(abi.List.FIRST_FREE)
        return next((number for number, found in self.lists.items() if number >= free and found == wanted), 0)


def table_names(
    plan: Plan,
    bindings: Bindings,
    node_name: str,
    given: Numbers | None = None,
    indices: Mapping[Slice, int] | None = None,
) -> TableNames:
    """Names and indices of one node's tables; `given` and `indices` (of its slices): those that go on from earlier
    ones. UsageError: no such node.
    """
    node = plan.node(node_name)
    given = numbers(node, pools=plan.pools) if given is None else given
    held = held_by(bindings, node_name)
    indices = numbered(held) if indices is None else indices
    lists = {int(abi.List.NEVER): never_sliced(plan, node), int(abi.List.INTERNAL): _internal(plan, node)}
    for onramp in node.onramps.values():
        for networks in (onramp.sources, onramp.bypass):
            if networks:
                lists[given.lists[list_text(networks)]] = tuple(sorted(networks, key=network_key))
    return TableNames(
        pools={name: given.pools[name] for name in sorted(plan.pools)},
        slices={indices[binding.slice]: binding for binding in held},
        onramps=given.onramps,
        nodes=plan.node_indices(),
        tenants=given.tenants,
        lists=lists,
    )


def build_tables(
    plan: Plan,
    bindings: Bindings,
    node_name: str,
    ifindexes: Mapping[str, int],
    generations: Mapping[str, int],
    *,
    bare_ip: Collection[str] = (),
    mtus: Mapping[str, int] = MappingProxyType({}),
    termini: Mapping[str, int] = MappingProxyType({}),
    given: Numbers | None = None,
    indices: Mapping[Slice, int] | None = None,
) -> Tables:
    """All of the tables above, by map name. `bindings` must be the plan's (check_bindings); those of other nodes do not
    matter.

    `ifindexes` by device name (those that exist); `generations` by on-ramp name; `bare_ip` names the devices without
    Ethernet headers (TUN), `mtus` what fits through them, bytes; `termini`: ifindexes towards where the TCP of on-ramps
    ends; `given` and `indices` as for table_names. UsageError: no such node.
    """
    node = plan.node(node_name)
    names = table_names(plan, bindings, node_name, given, indices)
    onramps: dict[bytes, bytes] = {}
    devices: dict[bytes, bytes] = {}
    tables: Tables = {
        "slices": {_U32.pack(at): _slice(plan, names, binding) for at, binding in names.slices.items()},
        "prefixes": dict(_prefixes(names.lists)),
        "onramps": onramps,
        "onramp_devices": devices,
    }
    tables["pools"], tables["pool_slices"] = _pools(names)
    for name, onramp in node.onramps.items():
        id_, ifindex = names.onramps[name], ifindexes.get(onramp.device, 0)
        value = abi.Onramp()
        if ifindex:
            flags = abi.OnrampFlag.SET | (0 if onramp.device in bare_ip else abi.OnrampFlag.L2) | _udp_flags(onramp)
            terminus = 0
            if onramp.strategy is Strategy.TERMINATE:
                flags |= abi.OnrampFlag.TERMINATE
                terminus = termini.get(name, 0)
            value = abi.Onramp(
                flags=int(flags),
                generation=generations.get(name, 0),
                ifindex=ifindex,
                sources=names.list_number(onramp.sources),
                gateway4=addr_bytes(onramp.gateway4) if onramp.gateway4 else abi.NO_ADDRESS,
                gateway6=addr_bytes(onramp.gateway6) if onramp.gateway6 else abi.NO_ADDRESS,
                policy=_policy(names, onramp),
                max_flows=onramp.max_flows,
                new_per_s=onramp.new_per_s,
                mss=onramp.mss or 0,
                mtu=min(mtus.get(onramp.device, 0), 0xFFFF),
                terminus=terminus,
            )
            devices[_U32.pack(ifindex)] = _U32.pack(id_)
            if terminus:
                devices[_U32.pack(terminus)] = _U32.pack(id_)
        onramps[_U32.pack(id_)] = value.pack()
    return tables


def slots(flows: int) -> int:
    """Entries of `slots` for that many flows: a power of two, at least twice as many."""
    return 1 << (2 * flows - 1).bit_length()


def settings_bytes(plan: Plan, node: Node, netns_cookie: int, index: int, site: int) -> bytes:
    """The constants of a node's programs, struct su_settings; `index` and `site`: its own places in the maps."""
    wanted, timers = plan.settings, plan.settings.timers
    return abi.Settings(
        netns_cookie=netns_cookie,
        full_ns=wanted.full_ms * 1_000_000,
        underlay4=addr_bytes(node.underlay_of(4) or node.underlay),
        underlay6=addr_bytes(node.underlay_of(6) or node.underlay),
        node=index,
        mark=wanted.mark,
        mask=wanted.mark_mask,
        slots=slots(wanted.flows),
        tcp_transitory_s=timers.tcp_transitory_s,
        tcp_established_s=timers.tcp_established_s,
        tcp_linger_s=timers.tcp_linger_s,
        sock_linger_s=timers.sock_linger_s,
        sock_reuse_s=timers.sock_reuse_s,
        udp_s=timers.udp_s,
        icmp_s=timers.icmp_s,
        gue_port=wanted.gue_port,
        answer_ping=int(wanted.answer_ping),
        site=site,
    ).pack()


def udp_exact_first(first: int, last: int, fraction: float) -> int:
    """First UDP port for exact claims; those before it are for wildcard ones. == first: no wildcard ports."""
    size = last - first + 1
    return first + int(size * fraction) if size >= WILDCARD_PORTS else first


def _slice(plan: Plan, names: TableNames, binding: Binding) -> bytes:
    held = binding.slice
    return abi.Slice(
        addr=addr_bytes(held.address),
        first=held.first,
        last=held.last,
        udp_exact_first=udp_exact_first(held.first, held.last, plan.settings.udp_wildcard_fraction),
        flags=int(abi.SliceFlag.LIVE),
        pool=names.pools[binding.pool],
        epoch=binding.epoch,
        claim_until_ns=FOREVER_NS,
    ).pack()


def _pools(names: TableNames) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    of_pool: dict[tuple[str, int], list[int]] = {}
    for index, binding in names.slices.items():
        of_pool.setdefault((binding.pool, binding.slice.address.version), []).append(index)
    pools: dict[bytes, bytes] = {}
    order: list[int] = []
    for name, number in names.pools.items():
        four, six = of_pool.get((name, 4), []), of_pool.get((name, 6), [])
        value = abi.Pool(len(order), len(four), len(order) + len(four), len(six))
        pools[_U32.pack(number)] = value.pack()
        order += four + six
    return pools, {_U32.pack(at): _U32.pack(index) for at, index in enumerate(order)}


def _udp_flags(onramp: Onramp) -> int:
    if onramp.mapping is not MappingBehaviour.ENDPOINT_INDEPENDENT:
        return 0
    filters = {
        Filtering.ENDPOINT_INDEPENDENT: 0,
        Filtering.ADDRESS_DEPENDENT: int(abi.OnrampFlag.ADF),
        Filtering.ADDRESS_AND_PORT_DEPENDENT: int(abi.OnrampFlag.APDF),
    }
    return int(abi.OnrampFlag.EIM) | filters[onramp.filtering]


def _policy(names: TableNames, onramp: Onramp) -> abi.Policy:
    flags, index, first, last = abi.PolicyFlag.SET, abi.NONE, 0, 0
    if onramp.slice is not None:
        flags |= abi.PolicyFlag.RANGE
        first, last = onramp.slice.first, onramp.slice.last
        # Held by another node for now: no slice, hence refused, never widened to the pool.
        index = next((at for at, held in names.slices.items() if held.slice.covers(onramp.slice)), abi.NONE)
    return abi.Policy(
        flags=int(flags),
        pool=names.pools[onramp.pool],
        slice=index,
        first=first,
        last=last,
        bypass=names.list_number(onramp.bypass),
        client=0,
        tenant=names.tenants.get(onramp.tenant, 0) if onramp.tenant else 0,
    )


def _underlays(plan: Plan) -> list[IPNetwork]:
    return [
        IPv4Network(address) if address.version == 4 else IPv6Network(address)
        for node in plan.nodes.values()
        for address in node.underlays
    ]


def _sorted(networks: Iterable[IPNetwork]) -> tuple[IPNetwork, ...]:
    return tuple(sorted(set(networks), key=network_key))


def never_sliced(plan: Plan, node: Node) -> tuple[IPNetwork, ...]:
    """Destinations that are never sliced on this node."""
    return _sorted([*LOOPBACK, *LINK_LOCAL, *MULTICAST, *NOWHERE, *_underlays(plan), *node.bypass])


def _internal(plan: Plan, node: Node) -> tuple[IPNetwork, ...]:
    """What an answer from outside can never come from."""
    fleet = [prefix.network for prefix in plan.prefixes]
    clients = [source for onramp in node.onramps.values() for source in onramp.sources]
    return _sorted([*LOOPBACK, *LINK_LOCAL, *MULTICAST, *NOWHERE, *_underlays(plan), *fleet, *clients])


def _prefixes(lists: Mapping[int, tuple[IPNetwork, ...]]) -> Iterable[tuple[bytes, bytes]]:
    for number, networks in lists.items():
        for network in networks:
            for part in without_mapped(network):
                yield prefix_key(number, part), _U32.pack(1)


def without_mapped(network: IPNetwork) -> Iterable[IPNetwork]:
    """The network as prefixes that do not cover ::ffff:0:0/96, where IPv4 is."""
    if isinstance(network, IPv6Network) and _MAPPED.subnet_of(network):
        return sorted(network.address_exclude(_MAPPED), key=network_key)
    return [network]
