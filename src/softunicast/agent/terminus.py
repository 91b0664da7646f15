# SPDX-License-Identifier: Apache-2.0
"""Where the TCP of an on-ramp ends (strategy `terminate`): a network namespace of its own, as a value. Pure.

    on-ramp's device ..su_onramp_in..> suterm3 ======veth====== in0 | namespace softunicast-lhr1-3
                     <..su_terminus_in..                             | every address is local; TPROXY; SYNs held

What the namespace was made for stands in the alias of the device on this side, so that the next agent can see whether
it is still what is wanted: nothing about it is kept anywhere else. The process that has its sockets,
`softunicast terminator`, is told by terminate.json (proxy.terminate), which is written like the copies of plan and
bindings.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

from softunicast.agent.facts import Facts
from softunicast.egress.numbers import Numbers
from softunicast.kernel.nodes import terminus_namespace
from softunicast.kernel.routing import Device
from softunicast.model.fleet import Handshake, Node, Onramp, Settings, Strategy
from softunicast.proxy.terminate import Ended, Told

DEVICE: Final = "suterm"
HEADERS: Final = 40
"""Of IPv4 and TCP: a device of MSS and these bytes announces that MSS, and 20 less for IPv6."""


@dataclass(frozen=True, slots=True, order=True)
class Terminus:
    """`id` is the on-ramp's; `mtu` in bytes; gateways empty: none; `held`: SYNs wait for the destination."""

    node: str
    id: int
    onramp: str
    mtu: int
    gateway4: str
    gateway6: str
    held: bool

    def __str__(self) -> str:
        return f"namespace {self.namespace}, where the TCP of on-ramp {self.onramp} ends"

    @property
    def device(self) -> str:
        """Of the veth's end on the node."""
        return f"{DEVICE}{self.id}"

    @property
    def namespace(self) -> str:
        return terminus_namespace(self.node, self.id)

    @property
    def alias(self) -> str:
        """All of it, as the device's alias (at most 255 bytes)."""
        how = Handshake.HELD if self.held else Handshake.EARLY
        gateways = f"{self.gateway4 or '-'} {self.gateway6 or '-'}"
        return f"softunicast {self.node} {self.id} {self.onramp} {self.mtu} {gateways} {how.value}"


def of_device(device: Device) -> Terminus | None:
    """What a device's alias says it was made for; None: no terminus of ours, or none that this version knows."""
    words = device.alias.split(" ")
    if not device.name.startswith(DEVICE) or len(words) != 8 or words[0] != "softunicast":
        return None
    _, node, number, onramp, mtu, gateway4, gateway6, how = words
    if not number.isdecimal() or not mtu.isdecimal():
        return None
    four, six = ("" if one == "-" else one for one in (gateway4, gateway6))
    found = Terminus(node, int(number), onramp, int(mtu), four, six, how == Handshake.HELD.value)
    return found if found.device == device.name and found.alias == device.alias else None


def termini(node: Node, facts: Facts, given: Numbers) -> dict[str, Terminus]:
    """By on-ramp: those whose TCP ends here and whose device is there."""
    found = {}
    for name, onramp in node.onramps.items():
        device = facts.devices.get(onramp.device)
        if onramp.strategy is Strategy.TERMINATE and device is not None:
            mtu = device.mtu if onramp.mss is None else min(device.mtu, onramp.mss + HEADERS)
            found[name] = Terminus(
                node.name,
                given.onramps[name],
                name,
                mtu,
                str(onramp.gateway4 or ""),
                str(onramp.gateway6 or ""),
                onramp.handshake is Handshake.HELD,
            )
    return found


def told(
    node: str,
    settings: Settings,
    onramps: Mapping[str, Onramp],
    places: Mapping[str, Terminus],
    policies: Mapping[str, bytes],
    slices: Iterable[tuple[str, str]],
) -> Told:
    """What the terminator is to know. `policies` by on-ramp, packed; `slices`: pool and address of those held here."""
    held = sorted(set(slices))
    return Told(
        node,
        settings.terminate.connect_s,
        settings.terminate.access_log,
        tuple(
            Ended(
                name,
                place.id,
                place.namespace,
                place.held,
                onramps[name].pool,
                policies[name].hex(),
                tuple(address for pool, address in held if pool == onramps[name].pool),
                onramps[name].max_flows,
                onramps[name].new_per_s,
            )
            for name, place in sorted(places.items())
        ),
    )
