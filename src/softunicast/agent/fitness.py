# SPDX-License-Identifier: Apache-2.0
"""Is this node fit to steer, so that its prefixes may lead to it? Pure: from what was seen to reasons against it.

A node is fit when an answer that comes to it finds its way: its tables are complete, its programs sit on every uplink,
at least one uplink is up, and its underlay addresses are on a device, so that it can carry and be carried to. Other
nodes that are down are no reason: this one still takes its own answers, and who is cut off from whom nobody can tell
alone. Nor is a reconciliation that failed: what was there before goes on, and a bad plan given to a whole fleet would
withdraw it everywhere at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

from softunicast.kernel.routing import Device


@dataclass(frozen=True, slots=True)
class Seen:
    """What was looked at. `detached`: programs that should be on an uplink, or where the underlay is, and are not."""

    ready: bool
    uplinks: tuple[str, ...]
    devices: Collection[Device]
    underlays: tuple[str, ...]
    detached: tuple[str, ...] = ()


def unfit(seen: Seen) -> list[str]:
    """Reasons against, for people; empty: fit."""
    return list(_reasons(seen))


def _reasons(seen: Seen) -> Iterator[str]:
    if not seen.ready:
        yield "the data plane is not ready"
    devices = {device.name: device for device in seen.devices}
    if not seen.uplinks:
        yield "no uplink"
    elif not any(name in devices and devices[name].up for name in seen.uplinks):
        yield f"no uplink is up ({', '.join(seen.uplinks)})"
    for name in seen.detached:
        yield f"{name} is not attached"
    for underlay in seen.underlays:
        if not any(underlay in device.addresses for device in seen.devices):
            yield f"underlay address {underlay} is on no device"
