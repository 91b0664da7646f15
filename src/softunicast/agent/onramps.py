# SPDX-License-Identifier: Apache-2.0
"""On-ramps that a running agent was asked for, and a plan that has them too.

The plan's on-ramps stand in the plan; these stand in /run/softunicast/<node>/onramps.json (agent.onramp_file). Every
reconciliation reads it and goes on as if the plan had them, so that they have all that planned ones have (id,
generation, hooks, lists) and outlive the agent. They end with the machine's /run, like the node.

One that no longer fits the plan (its pool went, its device became an uplink) is left out and told as a finding: its
clients are refused until plan or on-ramp is mended.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from softunicast.agent.findings import Finding
from softunicast.agent.onramp_file import Added
from softunicast.errors import PlanError
from softunicast.kernel.routing import Device
from softunicast.model.fleet import Node, Onramp, Plan
from softunicast.model.reading_onramps import read_added, with_onramps


@dataclass(frozen=True, slots=True)
class Merged:
    """The plan with the added on-ramps, those whose lease is over, and what did not fit."""

    plan: Plan
    ended: tuple[str, ...] = ()
    findings: tuple[Finding, ...] = ()


@dataclass(slots=True)
class Merger:
    """Merges, and gives the very same plan again as long as nothing changed."""

    _key: tuple[object, ...] = ()
    _plan: Plan | None = None
    _merged: Merged | None = field(default=None)

    def merge(self, plan: Plan, here: Node, added: tuple[Added, ...], devices: Mapping[str, Device]) -> Merged:
        """`here`: the plan's node with its uplinks filled in; its on-ramps are the plan's."""
        living = tuple(one for one in added if one.lives(devices))
        key = (living, here.uplinks, len(added))
        if self._merged is None or self._plan is not plan or self._key != key:
            self._merged, self._plan, self._key = _merge(plan, here, added, living), plan, key
        return self._merged


def _merge(plan: Plan, here: Node, added: tuple[Added, ...], living: tuple[Added, ...]) -> Merged:
    good: dict[str, Onramp] = {}
    findings = []
    for one in living:
        try:
            node = replace(here, onramps={**here.onramps, **good})
            good[one.name] = read_added(plan, node, one.name, {**one.keys, "device": one.device})
        except PlanError as error:
            findings.append(Finding("onramp", f"on-ramp {one.name} is left out: {error}"))
    ended = tuple(one.name for one in added if one not in living)
    merged = with_onramps(plan, plan.node(here.name), good.values()) if good else plan
    return Merged(merged, ended, tuple(findings))
