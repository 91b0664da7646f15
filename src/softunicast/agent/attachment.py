# SPDX-License-Identifier: Apache-2.0
"""Where steering begins on each uplink: at XDP or at tc. Pure, from the plan and what the devices said.

tc steers everything, always; XDP in front of it takes away what is not this node's before the kernel makes a packet of
it. So XDP is chosen only where it gains: on a card whose driver does it itself. Virtual devices hand over segments of
64 kB, which XDP would take apart. Whatever XDP cannot be, tc is: nothing that is found here keeps a node from working.

Others' programs are never moved. One at XDP stands before all of ours, and the kernel takes one only; those ahead of
ours at tc see packets first. Both are told.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from softunicast.agent.facts import Facts
from softunicast.agent.findings import Finding
from softunicast.agent.resources import Hook
from softunicast.kernel.entries import Entries, XdpFeature
from softunicast.model.fleet import AUTO
from softunicast.model.plan import Node

HOOKS: Final[Mapping[str, Hook]] = {"xdp": Hook.XDP, "xdp-generic": Hook.XDP_GENERIC, "tc": Hook.INGRESS}
NOT_TOLD: Final = Entries()


@dataclass(frozen=True, slots=True)
class Choice:
    """`hook`: XDP, XDP_GENERIC (su_uplink_in behind it at tc) or INGRESS (tc alone); `why` for the reader.

    `lost`: the plan asked for another one, or there is something to be mended.
    """

    hook: Hook
    why: str
    lost: bool = False

    def __str__(self) -> str:
        return f"{self.hook.value if self.hook.xdp else 'tc'} ({self.why})"


Refusals = Mapping[tuple[int, Hook], str]
"""What the kernel said when an XDP hook was tried in vain, by ifindex and hook; another agent tries again."""


def choices(node: Node, facts: Facts, refused: Refusals) -> dict[str, Choice]:
    """For each uplink that is there, in the plan's order. `node` has its uplinks filled in."""
    return {name: choose(node.attach_of(name), name, facts, refused) for name in node.uplinks if name in facts.devices}


def choose(mode: str, name: str, facts: Facts, refused: Refusals) -> Choice:
    """For one uplink; `mode` as in the plan."""
    device, entries = facts.devices[name], facts.entries.get(name, NOT_TOLD)
    asked = mode != AUTO
    if mode == "tc":
        return Choice(Hook.INGRESS, "as the plan says")
    if not device.ethernet:
        return Choice(Hook.INGRESS, "its packets have no Ethernet header", lost=asked)
    if entries.foreign_xdp:
        return Choice(Hook.INGRESS, f"XDP has {', '.join(entries.foreign_xdp)}, which is not ours", lost=asked)
    wanted = HOOKS[mode] if asked else Hook.XDP
    if not asked:
        above = sorted(other.name for other in facts.devices.values() if other.below == device.ifindex)
        obstacle = _obstacle(entries, above)
        if obstacle:
            return Choice(Hook.INGRESS, obstacle)
    reason = refused.get((device.ifindex, wanted))
    if reason is not None:
        return Choice(Hook.INGRESS, f"the kernel refused XDP: {reason}", lost=True)
    return Choice(wanted, "as the plan says" if asked else "its driver can")


def _obstacle(entries: Entries, above: list[str]) -> str:
    """Why XDP would not gain here, or would see what is not this device's; empty: it would. `above`: VLAN devices."""
    if entries.kind:
        return f"a {entries.kind} is virtual and hands over whole segments"
    if above:
        return f"it carries {', '.join(above)}: a card that takes tags off would hide from XDP that frames are theirs"
    if entries.features is None:
        return "this kernel does not tell what its driver can at XDP"
    lacking = (XdpFeature.BASIC | XdpFeature.REDIRECT) & ~entries.features
    return f"its driver lacks XDP's {' and '.join(part.name or '' for part in lacking)}" if lacking else ""


def findings(chosen: Mapping[str, Choice], others: Iterable[str], facts: Facts) -> Iterator[Finding]:
    """What stands in the way on uplinks, and on `others` (on-ramps and whatever else carries our programs)."""
    for name, choice in chosen.items():
        entries = facts.entries.get(name, NOT_TOLD)
        if entries.foreign_xdp:
            yield Finding(
                "foreign-xdp",
                f"uplink {name}: {', '.join(entries.foreign_xdp)} is attached at XDP and sees packets first; it is "
                f"left alone, steering is at tc: answers that it drops or redirects never come here",
            )
        elif choice.lost:
            yield Finding(
                "attach",
                f"uplink {name}: steered at tc: {choice.why}; say `attach: {{{name}: tc}}` in the plan, or mend it and "
                f"restart the agent",
            )
    for name in sorted({*chosen, *others}):
        entries = facts.entries.get(name, NOT_TOLD)
        if entries.ahead:
            yield Finding(
                "foreign-tc",
                f"device {name}: {', '.join(entries.ahead)} runs at tc before our programs and is left alone: what it "
                f"drops, redirects or accepts is not steered, delivered or guarded; attach it behind (BPF_F_AFTER)",
            )
