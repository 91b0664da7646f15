# SPDX-License-Identifier: Apache-2.0
"""Plan + bindings + node -> contents of the maps that steering needs. Pure: same input, same bytes.

    addresses   su_addr -> su_address   every address of the fleet: its site; of this site: where its owners are
    owners      index -> su_owner       this site's alone: owners[base + (port >> shift)]
    sites       index -> su_site        every site: where its nodes are listed (this one's, for fragments)
    site_nodes  index -> node index     those lists
    nodes       index -> su_node        every node of the fleet, at an underlay address of a family that both have
    peers       su_addr -> index        underlay addresses of every other node: who may encapsulate to this one

So a node's memory grows with the fleet's addresses and nodes, and with its own site's slices. Indices and bases come
from steering.places. A part that nobody holds has node NONE.
"""

from __future__ import annotations

import struct
from typing import Final

from softunicast.kernel import abi
from softunicast.kernel.abi_util import addr_bytes
from softunicast.model.address import IPAddress
from softunicast.model.binding import Bindings
from softunicast.model.plan import Plan
from softunicast.steering.places import Block, Places, places

Tables = dict[str, dict[bytes, bytes]]

_U32: Final = struct.Struct("=I")


def build_tables(plan: Plan, bindings: Bindings, node_name: str, at: Places | None = None) -> Tables:
    """All of the tables above, by map name. `bindings` must be the plan's (check_bindings); without `at` everything is
    where it comes first. UsageError: no such node.
    """
    me = plan.node(node_name)
    where = places(plan, node_name) if at is None else at
    shifts = plan.address_shifts()
    addresses: dict[bytes, bytes] = {}
    for pool in plan.pools.values():
        site = where.sites[pool.site]
        for address in (*pool.addresses, *pool.static_addresses):
            here = pool.site == me.site
            base, shift = (where.owners[str(address)].first, shifts[address]) if here else (0, 0)
            addresses[addr_bytes(address)] = abi.Address(base, shift, site).pack()
    return {
        "addresses": addresses,
        "owners": _owners(plan, bindings, me.name, where, shifts),
        "sites": {
            _U32.pack(where.sites[name]): abi.Site(known.first, len(known.nodes)).pack()
            for name, known in where.lists.items()
        },
        "site_nodes": {
            _U32.pack(known.first + position): _U32.pack(where.nodes[node])
            for known in where.lists.values()
            for position, node in enumerate(known.nodes)
        },
        "nodes": {
            _U32.pack(where.nodes[name]): abi.Node(
                addr_bytes(node.reached_at(me) or node.underlay), int(abi.NodeFlag.SET)
            ).pack()
            for name, node in plan.nodes.items()
        },
        "peers": {
            addr_bytes(address): _U32.pack(where.nodes[name])
            for name, node in plan.nodes.items()
            if name != me.name
            for address in node.underlays
        },
    }


def _owners(
    plan: Plan, bindings: Bindings, node_name: str, where: Places, shifts: dict[IPAddress, int]
) -> dict[bytes, bytes]:
    nobody = abi.Owner(abi.NONE, abi.NONE).pack()
    parts: dict[int, bytes] = {}
    for block in where.owners.values():
        parts.update(dict.fromkeys(range(block.first, block.first + block.size), nobody))
    others = {name: abi.Owner(index, abi.NONE).pack() for name, index in where.nodes.items()}
    held = sorted((one.slice for one in bindings.bindings if one.node == node_name), key=lambda held: held.sort_key)
    me = where.nodes[node_name]
    mine = {id(slice_): abi.Owner(me, number).pack() for number, slice_ in enumerate(held)}
    # Bindings are sorted and their addresses shared: what an address needs is found once for all of its slices.
    at: IPAddress | None = None
    known: Block | None = None
    shift = 0
    for binding in bindings.bindings:
        slice_ = binding.slice
        if slice_.address is not at:
            at = slice_.address
            known, shift = where.owners.get(str(at)), shifts[at]
        if known is None:
            continue
        owner = mine[id(slice_)] if binding.node == node_name else others[binding.node]
        first, last = known.first + (slice_.first >> shift), known.first + (slice_.last >> shift)
        if first == last:
            parts[first] = owner
        else:
            parts.update(dict.fromkeys(range(first, last + 1), owner))
    return {_U32.pack(index): owner for index, owner in parts.items()}
