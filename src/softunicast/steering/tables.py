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
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from softunicast.kernel import abi
from softunicast.kernel.abi_util import addr_bytes
from softunicast.kernel.elements import Elements
from softunicast.model.address import IPAddress
from softunicast.model.binding import Binding, Bindings, held_by, numbered
from softunicast.model.plan import Plan
from softunicast.model.slice import Slice
from softunicast.steering.places import Block, Places, places

Tables = dict[str, Mapping[bytes, bytes]]

_U32: Final = struct.Struct("=I")
_NOBODY: Final = abi.Owner(abi.NONE, abi.NONE).pack()


def build_tables(plan: Plan, bindings: Bindings, node_name: str, at: Places | None = None) -> Tables:
    """All of the tables above, by map name. `bindings` must be the plan's (check_bindings); without `at` everything is
    where it comes first. UsageError: no such node.
    """
    where = places(plan, node_name) if at is None else at
    indices = numbered(held_by(bindings, node_name))
    return {
        **fleet_tables(plan, node_name, where),
        "owners": owners(bindings.bindings, node_name, where, indices),
    }


def fleet_tables(plan: Plan, node_name: str, at: Places) -> Tables:
    """Those that do not depend on who holds what: all but `owners`. UsageError: no such node."""
    me = plan.node(node_name)
    shifts = plan.address_shifts()
    addresses: dict[bytes, bytes] = {}
    for pool in plan.pools.values():
        site = at.sites[pool.site]
        for address in (*pool.addresses, *pool.static_addresses):
            here = pool.site == me.site
            base, shift = (at.owners[str(address)].first, shifts[address]) if here else (0, 0)
            addresses[addr_bytes(address)] = abi.Address(base, shift, site).pack()
    return {
        "addresses": addresses,
        "sites": {
            _U32.pack(at.sites[name]): abi.Site(known.first, len(known.nodes)).pack()
            for name, known in at.lists.items()
        },
        "site_nodes": {
            _U32.pack(known.first + position): _U32.pack(at.nodes[node])
            for known in at.lists.values()
            for position, node in enumerate(known.nodes)
        },
        "nodes": {
            _U32.pack(at.nodes[name]): abi.Node(
                addr_bytes(node.reached_at(me) or node.underlay), int(abi.NodeFlag.SET)
            ).pack()
            for name, node in plan.nodes.items()
        },
        "peers": {
            addr_bytes(address): _U32.pack(at.nodes[name])
            for name, node in plan.nodes.items()
            if name != me.name
            for address in node.underlays
        },
    }


def owners(bindings: Iterable[Binding], node_name: str, at: Places, indices: Mapping[Slice, int]) -> Elements:
    """The map `owners`. `indices`: where this node's own slices are in its map `slices`."""
    parts = [bytes(abi.Owner.SIZE)] * max((block.first + block.size for block in at.owners.values()), default=0)
    for block in at.owners.values():
        parts[block.first : block.first + block.size] = [_NOBODY] * block.size
    for first, last, owner in _owned(bindings, node_name, at, indices):
        if first == last:
            parts[first] = owner
        else:
            parts[first : last + 1] = [owner] * (last + 1 - first)
    return Elements(abi.Owner.SIZE, b"".join(parts))


def owners_moved(
    table: Elements, moved: Iterable[Binding], node_name: str, at: Places, indices: Mapping[Slice, int]
) -> Elements:
    """`table` after these bindings took the place of others of the same slices."""
    return table.but(
        {
            index: owner
            for first, last, owner in _owned(moved, node_name, at, indices)
            for index in range(first, last + 1)
        }
    )


def _owned(
    bindings: Iterable[Binding], node_name: str, at: Places, indices: Mapping[Slice, int]
) -> Iterator[tuple[int, int, bytes]]:
    """(first element, last element, its value) for every slice of this site."""
    others = {name: abi.Owner(index, abi.NONE).pack() for name, index in at.nodes.items()}
    me = at.nodes[node_name]
    # Bindings are sorted and their addresses shared: what an address needs is found once for all of its slices.
    address: IPAddress | None = None
    known: Block | None = None
    for binding in bindings:
        slice_ = binding.slice
        if slice_.address is not address:
            address = slice_.address
            known = at.owners.get(str(address))
        if known is None:
            continue
        mine = binding.node == node_name
        owner = abi.Owner(me, indices[slice_]).pack() if mine else others[binding.node]
        yield known.part(slice_.first), known.part(slice_.last), owner
