# SPDX-License-Identifier: Apache-2.0
"""Devices, addresses, routes, rules and neighbours, by rtnetlink (pyroute2), as small values.

A `Netlink` talks to the namespace its thread was in when it was made. Reading gives frozen values, writing
takes them: what was read can be written back. Addresses and prefixes are those of `ipaddress`.

Adding what is there and deleting what is not are answers (False), not errors, so that a caller who wants a
state need not ask first. Everything else the kernel refuses is a KernelError that names the object.

Sources: rtnetlink(7), include/uapi/linux/rtnetlink.h.
"""

from __future__ import annotations

import errno
import ipaddress
import os
import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from pathlib import Path
from typing import Any, Final, Self

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from softunicast.errors import KernelError

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
Interface = IPv4Interface | IPv6Interface

IFF_UP: Final = 1
MAIN_TABLE: Final = 254
IFA_F_NODAD: Final = 0x02
NUD_PERMANENT: Final = 0x80
RTN_UNICAST: Final = 1
RTN_UNREACHABLE: Final = 7
FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
THERE: Final = frozenset({errno.EEXIST})
GONE: Final = frozenset({errno.ENOENT, errno.ESRCH, errno.ENODEV, errno.EADDRNOTAVAIL})


@dataclass(frozen=True, slots=True)
class Device:
    """A network device. `kind` is how it was made ("veth", "tun", "": hardware); `mac` "": it has none."""

    name: str
    ifindex: int
    kind: str
    mac: str
    mtu: int
    up: bool
    master: int


@dataclass(frozen=True, slots=True)
class DeviceAddress:
    ifindex: int
    address: Interface


@dataclass(frozen=True, slots=True)
class Route:
    """A route with at most one next hop. `ifindex` 0 and no gateway: unreachable. Default: 0.0.0.0/0 or ::/0.

    `gateway` may be IPv6 for an IPv4 prefix (RFC 8950). `metric` 0 lets the kernel choose for IPv6 (1024).
    """

    prefix: Network
    ifindex: int = 0
    gateway: Address | None = None
    source: Address | None = None
    table: int = MAIN_TABLE
    metric: int = 0


@dataclass(frozen=True, slots=True)
class Rule:
    """A routing rule that leads to a table; `mark` and `mask` 0: any mark."""

    version: int
    priority: int
    table: int
    source: Network | None = None
    mark: int = 0
    mask: int = 0


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A permanent ARP or ND entry."""

    ifindex: int
    address: Address
    mac: str


class Netlink:
    """A connection; a context manager. Not for several threads at a time."""

    def __init__(self) -> None:
        self._route: Any = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._route.close()

    def devices(self) -> list[Device]:
        """All devices, by ifindex."""
        return sorted(map(read_device, self._route.get_links()), key=lambda device: device.ifindex)

    def device(self, name: str) -> Device | None:
        """The device of that name, None when there is none."""
        return next((device for device in self.devices() if device.name == name), None)

    def add_device(self, name: str, kind: str, **options: Any) -> bool:
        """Make a device; `options` as pyroute2 has them. False when the name is taken."""
        return self._do(f"add {kind} device {name}", THERE, "link", "add", ifname=name, kind=kind, **options)

    def add_veth(self, name: str, peer: str, peer_netns: str | Path | None = None) -> bool:
        """Make a pair, the other end in the namespace at `peer_netns` (path or name). False when taken."""
        other: dict[str, Any] = {"ifname": peer}
        if peer_netns is not None:
            other["net_ns_fd"] = os.fspath(peer_netns)
        return self.add_device(name, "veth", peer=other)

    def set_device(
        self, ifindex: int, *, up: bool | None = None, mtu: int | None = None, master: int | None = None
    ) -> None:
        """Change what is given."""
        wanted: dict[str, Any] = {"mtu": mtu, "master": master}
        if up is not None:
            wanted["state"] = "up" if up else "down"
        given = {key: value for key, value in wanted.items() if value is not None}
        self._do(f"set device {ifindex}", frozenset(), "link", "set", index=ifindex, **given)

    def delete_device(self, name: str) -> bool:
        """Remove it, and the other end of a pair. False when there is none."""
        device = self.device(name)
        return device is not None and self._do(f"delete device {name}", GONE, "link", "del", index=device.ifindex)

    def addresses(self, ifindex: int | None = None) -> list[DeviceAddress]:
        """Addresses of one device or of all."""
        found = []
        for message in self._route.get_addr(**({} if ifindex is None else {"index": ifindex})):
            text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
            interface = ipaddress.ip_interface(f"{text}/{message['prefixlen']}")
            found.append(DeviceAddress(message["index"], interface))
        return found

    def add_address(self, address: DeviceAddress) -> bool:
        """Add it, without duplicate address detection. False when it is there."""
        return self._address("add", address, THERE, flags=IFA_F_NODAD)

    def delete_address(self, address: DeviceAddress) -> bool:
        """Remove it. False when it is not there."""
        return self._address("del", address, GONE)

    def _address(self, verb: str, wanted: DeviceAddress, answers: frozenset[int], **more: int) -> bool:
        interface = wanted.address
        extra = more if interface.version == 6 else {}
        return self._do(
            f"{verb} address {interface} on device {wanted.ifindex}",
            answers,
            "addr",
            verb,
            index=wanted.ifindex,
            address=str(interface.ip),
            prefixlen=interface.network.prefixlen,
            **extra,
        )

    def routes(self, version: int, table: int = MAIN_TABLE) -> list[Route]:
        """Unicast and unreachable routes of a table; one for each next hop of a multipath route."""
        found: list[Route] = []
        for message in self._route.get_routes(family=FAMILIES[version], table=table):
            if message.get_attr("RTA_TABLE") == table and message["type"] in (RTN_UNICAST, RTN_UNREACHABLE):
                found.extend(read_routes(message, version, table))
        return found

    def replace_route(self, route: Route) -> None:
        """Add it, or put it in the place of the one with its prefix, table and metric."""
        self._routing("replace", route, frozenset())

    def add_route(self, route: Route) -> bool:
        """Add it. False when one with its prefix, table and metric is there."""
        return self._routing("add", route, THERE)

    def delete_route(self, route: Route) -> bool:
        """Remove it. False when it is not there."""
        return self._routing("del", route, GONE)

    def _routing(self, verb: str, route: Route, answers: frozenset[int]) -> bool:
        wanted: dict[str, Any] = {"dst": str(route.prefix), "table": route.table}
        if route.metric:
            wanted["priority"] = route.metric
        if route.source is not None:
            wanted["prefsrc"] = str(route.source)
        if route.ifindex:
            wanted["oif"] = route.ifindex
        if route.gateway is not None and route.gateway.version != route.prefix.version:
            wanted["via"] = {"family": FAMILIES[route.gateway.version], "addr": str(route.gateway)}
        elif route.gateway is not None:
            wanted["gateway"] = str(route.gateway)
        elif not route.ifindex:
            wanted["type"] = "unreachable"
        what = f"{verb} route {route.prefix} in table {route.table}"
        return self._do(what, answers, "route", verb, family=FAMILIES[route.prefix.version], **wanted)

    def rules(self, version: int) -> list[Rule]:
        """Rules that lead to a table, by priority; those of other kinds are left out."""
        found = []
        for message in self._route.get_rules(family=FAMILIES[version]):
            table = message.get_attr("FRA_TABLE") or message["table"]
            text = message.get_attr("FRA_SRC")
            source = ipaddress.ip_network(f"{text}/{message['src_len']}") if text else None
            mark, mask = message.get_attr("FRA_FWMARK") or 0, message.get_attr("FRA_FWMASK") or 0
            if table:
                priority = message.get_attr("FRA_PRIORITY") or 0
                found.append(Rule(version, priority, table, source, mark, mask if mark else 0))
        return sorted(found, key=lambda rule: rule.priority)

    def add_rule(self, rule: Rule) -> bool:
        """Add it. False when it is there."""
        return self._rule("add", rule, THERE)

    def delete_rule(self, rule: Rule) -> bool:
        """Remove it. False when it is not there."""
        return self._rule("del", rule, GONE)

    def _rule(self, verb: str, rule: Rule, answers: frozenset[int]) -> bool:
        wanted: dict[str, Any] = {"priority": rule.priority, "table": rule.table}
        if rule.source is not None:
            wanted["src"], wanted["src_len"] = str(rule.source.network_address), rule.source.prefixlen
        if rule.mark:
            wanted["fwmark"], wanted["fwmask"] = rule.mark, rule.mask or 0xFFFFFFFF
        what = f"{verb} rule {rule.priority} to table {rule.table}"
        return self._do(what, answers, "rule", verb, family=FAMILIES[rule.version], **wanted)

    def neighbours(self, ifindex: int) -> list[Neighbour]:
        """Entries of a device that have a MAC address."""
        found = []
        for message in self._route.get_neighbours(ifindex=ifindex):
            mac, address = message.get_attr("NDA_LLADDR"), message.get_attr("NDA_DST")
            if mac and address:
                found.append(Neighbour(ifindex, ipaddress.ip_address(address), mac))
        return found

    def set_neighbour(self, neighbour: Neighbour) -> None:
        """Put a permanent entry, replacing one for that address."""
        self._do(
            f"set neighbour {neighbour.address} on device {neighbour.ifindex}",
            frozenset(),
            "neigh",
            "replace",
            ifindex=neighbour.ifindex,
            dst=str(neighbour.address),
            lladdr=neighbour.mac,
            state=NUD_PERMANENT,
        )

    def _do(self, what: str, answers: frozenset[int], request: str, *verb: str, **arguments: Any) -> bool:
        try:
            getattr(self._route, request)(*verb, **arguments)
        except NetlinkError as error:
            if error.code in answers:
                return False
            raise KernelError(f"{what}: {os.strerror(error.code)}", errno=error.code) from error
        return True


def read_device(message: Any) -> Device:
    details = message.get_attr("IFLA_LINKINFO")
    return Device(
        name=message.get_attr("IFLA_IFNAME"),
        ifindex=message["index"],
        kind=(details.get_attr("IFLA_INFO_KIND") if details else None) or "",
        mac=message.get_attr("IFLA_ADDRESS") or "",
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & IFF_UP),
        master=message.get_attr("IFLA_MASTER") or 0,
    )


def read_routes(message: Any, version: int, table: int) -> list[Route]:
    text = message.get_attr("RTA_DST") or ("0.0.0.0" if version == 4 else "::")
    prefix = ipaddress.ip_network(f"{text}/{message['dst_len']}")
    source = message.get_attr("RTA_PREFSRC")
    metric = message.get_attr("RTA_PRIORITY") or 0
    reachable = message["type"] == RTN_UNICAST
    found = []
    for hop in message.get_attr("RTA_MULTIPATH") or [message]:
        gateway = hop.get_attr("RTA_GATEWAY") or (hop.get_attr("RTA_VIA") or {}).get("addr")
        ifindex = hop.get_attr("RTA_OIF") or (hop["oif"] if hop is not message else 0)
        found.append(
            Route(
                prefix,
                ifindex if reachable else 0,
                ipaddress.ip_address(gateway) if gateway else None,
                ipaddress.ip_address(source) if source else None,
                table,
                metric,
            )
        )
    return found
