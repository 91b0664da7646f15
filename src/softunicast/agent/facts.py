# SPDX-License-Identifier: Apache-2.0
"""What the agent knows of the host and does not own: devices, default routes, sysctls, other firewalls. Pure
values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from softunicast.kernel.entries import Entries
from softunicast.kernel.routing import DefaultRoute, Device


@dataclass(frozen=True, slots=True)
class Facts:
    """`sysctls` by path below /proc/sys; `ruleset`: nft's JSON objects; `iptables`: outputs of
    iptables-save; `entries`: what others attached to devices, and what those can do."""

    netns_cookie: int
    devices: Mapping[str, Device] = field(default_factory=dict)
    defaults: tuple[DefaultRoute, ...] = ()
    sysctls: Mapping[str, str] = field(default_factory=dict)
    ruleset: tuple[Mapping[str, Any], ...] = ()
    iptables: tuple[str, ...] = ()
    cgroup_root: str = ""
    entries: Mapping[str, Entries] = field(default_factory=dict)

    def device_of(self, address: str) -> Device | None:
        """The device that has this address (without prefix length)."""
        return next((device for device in self.devices.values() if address in device.addresses), None)
