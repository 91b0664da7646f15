# SPDX-License-Identifier: Apache-2.0
"""What `softunicast onramp list` and `counters` read of on-ramps and tenants, from maps and node.json's names."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from softunicast.egress.flow_view import Reader
from softunicast.egress.views import PerCpuReader
from softunicast.kernel.abi import Onramp, OnrampFlag, Tenant, Use
from softunicast.model.fleet import Strategy

OWNER: Final = struct.Struct("=Q")


@dataclass(frozen=True, slots=True)
class TenantView:
    """A tenant's counters, summed over CPUs; `name` None: on-ramps without a tenant."""

    name: str | None
    counts: Tenant

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, **{part.name: getattr(self.counts, part.name) for part in fields(Tenant)}}


def read_tenants(tenants: PerCpuReader, names: Mapping[str, int]) -> list[TenantView]:
    """Every tenant that has a number, by name, and those without one first."""
    views = []
    for name, number in [(None, 0), *sorted(names.items())]:
        copies = [Tenant.unpack(copy) for copy in tenants.lookup_percpu(number.to_bytes(4, "little"))]
        counts = Tenant(**{part.name: sum(getattr(copy, part.name) for copy in copies) for part in fields(Tenant)})
        views.append(TenantView(name, counts))
    return views


@dataclass(frozen=True, slots=True)
class OnrampView:
    """An on-ramp. `from_`: plan, added, tun or tap (made by the agent), lease. `use`: since its generation began.

    `attached`: its device is there and its packets are taken.
    """

    name: str
    device: str
    id: int
    generation: int
    attached: bool
    from_: str
    pool: str | None
    tenant: str | None
    max_flows: int | None
    new_flows_per_s: int | None
    use: Use
    strategy: Strategy = Strategy.BPF

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "device": self.device,
            "id": self.id,
            "generation": self.generation,
            "attached": self.attached,
            "from": self.from_,
            "pool": self.pool,
            "tenant": self.tenant,
            "strategy": self.strategy.value,
            "quotas": {"flows": self.max_flows, "new_flows_per_s": self.new_flows_per_s},
            "flows": self.use.flows,
            "begun": self.use.begun,
            "refused_flows": self.use.refused_flows,
            "refused_new": self.use.refused_new,
        }


@dataclass(frozen=True, slots=True)
class Known:
    """What node.json and onramps.json say of an on-ramp."""

    name: str
    device: str
    id: int
    generation: int
    from_: str


def read_onramps(
    known: Iterable[Known], onramps: Reader, uses: Reader, pools: Mapping[int, str], tenants: Mapping[int, str]
) -> list[OnrampView]:
    """By name. `pools` and `tenants`: names by number."""
    views = []
    for one in known:
        raw = onramps.lookup(one.id.to_bytes(4, "little"))
        held = Onramp() if raw is None else Onramp.unpack(raw)
        attached = bool(held.flags) and held.generation == one.generation
        used = uses.lookup(OWNER.pack(one.id << 32 | one.generation))
        views.append(
            OnrampView(
                name=one.name,
                device=one.device,
                id=one.id,
                generation=one.generation,
                attached=attached,
                from_=one.from_,
                pool=pools.get(held.policy.pool) if attached else None,
                tenant=tenants.get(held.policy.tenant) if attached else None,
                max_flows=held.max_flows or None,
                new_flows_per_s=held.new_per_s or None,
                use=Use() if used is None else Use.unpack(used),
                strategy=Strategy.TERMINATE if held.flags & OnrampFlag.TERMINATE else Strategy.BPF,
            )
        )
    return sorted(views, key=lambda view: view.name)
