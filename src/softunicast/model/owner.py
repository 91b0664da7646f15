# SPDX-License-Identifier: Apache-2.0
"""The steering lookup, in Python: address -> shift, `port >> shift` -> owner. The data plane's oracle.

    address --hash--> (base, shift)        owners[base + (port >> shift)] -> binding or nobody

The same two steps as steer.bpf.c does, over the same packed table: addresses in sorted order, each with 65536
>> shift entries. A part may be wider than the slice in it (all of an IPv6 address, its ports 0-1023 never
given out), so `owner` looks at the slice's range as well, as the owning node's own lookup does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from softunicast.model.address import IPAddress, sort_key
from softunicast.model.binding import Binding, Bindings
from softunicast.model.fleet import Plan


@dataclass(frozen=True, slots=True)
class AddressEntry:
    """Where an address's owners are: `owners[base + (port >> shift)]`."""

    base: int
    shift: int

    @property
    def count(self) -> int:
        """Number of entries."""
        return 65536 >> self.shift


class OwnerTable:
    """Owners of every port of every address of the fleet. Immutable once built."""

    def __init__(self, entries: Mapping[IPAddress, AddressEntry], owners: list[Binding | None]) -> None:
        self._entries, self._owners = dict(entries), owners

    @classmethod
    def build(cls, plan: Plan, bindings: Bindings) -> OwnerTable:
        """`bindings` must be the plan's (check_bindings); bindings of unknown addresses are left out."""
        entries: dict[IPAddress, AddressEntry] = {}
        base = 0
        for address, shift in sorted(plan.address_shifts().items(), key=lambda item: sort_key(item[0])):
            entries[address] = AddressEntry(base, shift)
            base += entries[address].count
        owners: list[Binding | None] = [None] * base
        for binding in bindings.bindings:
            entry = entries.get(binding.slice.address)
            if entry is not None:
                first, last = binding.slice.first >> entry.shift, binding.slice.last >> entry.shift
                owners[entry.base + first : entry.base + last + 1] = [binding] * (last - first + 1)
        return cls(entries, owners)

    @property
    def entries(self) -> Mapping[IPAddress, AddressEntry]:
        """All addresses, sorted."""
        return self._entries

    def owners(self) -> Iterator[tuple[int, Binding | None]]:
        """Every entry of the packed table, by index."""
        return iter(enumerate(self._owners))

    def __len__(self) -> int:
        return len(self._owners)

    def owner(self, address: IPAddress, port: int) -> Binding | None:
        """The binding whose slice holds the port; None: nobody's, or no address of the fleet."""
        entry = self._entries.get(address)
        if entry is None or not 0 <= port <= 65535:
            return None
        found = self._owners[entry.base + (port >> entry.shift)]
        return found if found is not None and port in found.slice else None
