# SPDX-License-Identifier: Apache-2.0
"""Plan + bindings + node -> contents of the maps that steering needs. Pure: same input, same bytes.

    addresses  su_addr -> su_address   every address of the fleet: base, shift, site
    owners     index -> su_owner       owners[base + (port >> shift)]; addresses packed in sorted order
    nodes      index -> su_node        by sorted name, from 1
    peers      su_addr -> index        underlay of every other node: who may encapsulate to this one

`addresses` and `owners` are the same on every node but for su_owner.slice, which is this node's own index. A part
that nobody holds has node NONE.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Final

from softunicast.kernel import abi
from softunicast.kernel.abi_util import addr_bytes
from softunicast.model.binding import Binding, Bindings
from softunicast.model.owner import OwnerTable
from softunicast.model.plan import Plan

Tables = dict[str, dict[bytes, bytes]]

NODE_IN_USE: Final = 1
_U32: Final = struct.Struct("=I")


def build_tables(
    plan: Plan,
    bindings: Bindings,
    node_name: str,
    ifindexes: Mapping[str, int] | None = None,
    generations: Mapping[str, int] | None = None,
) -> Tables:
    """All of the tables above, by map name. `bindings` must be the plan's (check_bindings).

    `ifindexes` and `generations` are taken for the sake of one signature and not looked at. UsageError: no such
    node.
    """
    me = plan.node(node_name)
    indices = plan.node_indices()
    table = OwnerTable.build(plan, bindings)
    sites = {
        address: plan.site_index(pool.site)
        for pool in plan.pools.values()
        for address in (*pool.addresses, *pool.static_addresses)
    }
    addresses = {
        addr_bytes(address): abi.Address(entry.base, entry.shift, sites[address]).pack()
        for address, entry in table.entries.items()
    }
    nodes = {
        _U32.pack(indices[name]): abi.Node(addr_bytes(node.underlay), NODE_IN_USE).pack()
        for name, node in plan.nodes.items()
    }
    peers = {
        addr_bytes(node.underlay): _U32.pack(indices[name]) for name, node in plan.nodes.items() if name != me.name
    }
    return {
        "addresses": addresses,
        "owners": _owners(table, bindings, indices, node_name),
        "nodes": nodes,
        "peers": peers,
    }


def _owners(table: OwnerTable, bindings: Bindings, indices: Mapping[str, int], node_name: str) -> dict[bytes, bytes]:
    mine = sorted(
        (binding for binding in bindings.bindings if binding.node == node_name),
        key=lambda binding: binding.slice.sort_key,
    )
    slices = {id(binding): index for index, binding in enumerate(mine)}
    nobody = abi.Owner(abi.NONE, abi.NONE).pack()
    packed: dict[int, bytes] = {}

    def value(binding: Binding | None) -> bytes:
        if binding is None:
            return nobody
        if id(binding) not in packed:
            index = slices.get(id(binding), abi.NONE)
            packed[id(binding)] = abi.Owner(indices[binding.node], index).pack()
        return packed[id(binding)]

    return {_U32.pack(index): value(binding) for index, binding in table.owners()}
