# SPDX-License-Identifier: Apache-2.0
"""Devices, addresses, rules and routes of the current network namespace, over rtnetlink.

Slice addresses go on lo with scope host (IPv4) or deprecated (IPv6, preferred lifetime 0) and without
duplicate address detection: a program may bind them, but the kernel never picks one by itself as a source
(net/ipv4/devinet.c inet_select_addr wants ifa_scope <= the destination's; RFC 6724 section 5 rule 3).

Dumps ask for strict checking (NETLINK_GET_STRICT_CHK) so that the kernel filters by table. Only this module,
kernel.entries and kernel.conntrack use pyroute2; the library has no type hints, hence the Any at its edge.
"""

from __future__ import annotations

import errno
import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from softunicast.errors import KernelError
from softunicast.kernel.routing import TABLE, DefaultRoute, Device, NextHop, Option, Route, Rule

_MAIN: Final = 254
_SCOPE_HOST: Final = 254
_SCOPE_LINK: Final = 253
_IFA_F_NODAD: Final = 0x02
_RTN_UNICAST: Final = 1
_RTN_UNREACHABLE: Final = 7
_UP_AND_RUNNING: Final = 0x41  # IFF_UP, IFF_RUNNING (include/uapi/linux/if.h)
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}
_CLSACT_SIDES: Final = (0xFFFFFFF2, 0xFFFFFFF3)
_IPV6: Final = Path("/proc/sys/net/ipv6")
_ANY: Final = {4: "0.0.0.0/0", 6: "::/0"}
_RTAX: Final = "RTAX_"


@contextmanager
def _naming(what: str, *ignored: int) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        if error.code not in ignored:
            raise KernelError(f"{what}: {error.args[1] if len(error.args) > 1 else error}", errno=error.code) from error
    except OSError as error:
        raise KernelError(f"{what}: {error.strerror or error}", errno=error.errno or 0) from error


def below(link: Any) -> int:
    """The device that a VLAN device sends by (IFLA_LINK); 0: it is none. A veth's is its peer."""
    return int(link.get("link") or 0) if (link.get("linkinfo") or {}).get("kind") == "vlan" else 0


class Netlink:
    """An rtnetlink socket of the namespace the thread is in when it is made. Context manager."""

    def __init__(self) -> None:
        self._ipr: Any = IPRoute(strict_check=True)

    def __enter__(self) -> Netlink:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._ipr.close()

    def devices(self) -> dict[str, Device]:
        """All devices by name, with their addresses (without prefix length)."""
        with _naming("list devices and addresses"):
            links = list(self._ipr.get_links())
            addresses: dict[int, list[str]] = {}
            for message in self._ipr.get_addr():
                text = message.get("local") or message.get("address")
                if text is not None:
                    addresses.setdefault(message["index"], []).append(str(ipaddress.ip_address(text)))
        found = {}
        for link in links:
            name, index = link.get("ifname"), link["index"]
            up = link["flags"] & _UP_AND_RUNNING == _UP_AND_RUNNING
            found[name] = Device(
                name,
                index,
                int(link.get("mtu") or 0),
                link["ifi_type"],
                tuple(addresses.get(index, ())),
                up,
                below(link),
                link.get("ifalias") or "",
            )
        return found

    def _names(self) -> dict[int, str]:
        return {link["index"]: link.get("ifname") for link in self._ipr.get_links()}

    def _routes(self, version: int, table: int, names: dict[int, str]) -> Iterator[tuple[Route, bool]]:
        for message in self._ipr.get_routes(family=_FAMILIES[version], table=table):
            if message["dst_len"] or message["type"] not in (_RTN_UNICAST, _RTN_UNREACHABLE):
                continue
            hops = message.get("multipath") or [message]
            reachable = message["type"] == _RTN_UNICAST
            metric = int(message.get("priority") or 0)
            leads = tuple(_hop(hop, names) for hop in hops) if reachable else ()
            yield Route(version, metric, leads, table, _options(message)), reachable

    def default_routes(self) -> tuple[DefaultRoute, ...]:
        """The default routes of the main table, both families, by metric."""
        found = []
        with _naming("list default routes"):
            names = self._names()
            for version in versions():
                for route, reachable in self._routes(version, _MAIN, names):
                    if reachable:
                        found.append(DefaultRoute(version, route.metric, route.hops, route.options))
        return tuple(sorted(found, key=lambda route: (route.version, route.metric, route.hops)))

    def routes(self) -> frozenset[Route]:
        """The default routes of the agent's table."""
        with _naming(f"list routes of table {TABLE}"):
            names = self._names()
            return frozenset(route for version in versions() for route, _ in self._routes(version, TABLE, names))

    def rules(self) -> frozenset[Rule]:
        """The rules that lead to the agent's table."""
        found = set()
        with _naming("list rules"):
            for version in versions():
                for message in self._ipr.get_rules(family=_FAMILIES[version]):
                    if (message.get("table") or message["table"]) == TABLE:
                        source = message.get("src")
                        text = str(ipaddress.ip_address(source)) if source else "all"
                        found.add(Rule(version, text, TABLE, int(message.get("priority") or 0)))
        return frozenset(found)

    def lo_addresses(self) -> frozenset[str]:
        """Addresses on lo with their prefix lengths."""
        with _naming("list addresses of lo"):
            return frozenset(
                str(ipaddress.ip_interface((message.get("local") or message.get("address"), message["prefixlen"])))
                for message in self._ipr.get_addr(index=1)
            )

    def remove_idle_clsact(self, ifindex: int) -> None:
        """Remove a device's clsact qdisc when no filter is left on it. One that is not there is no error."""
        with _naming(f"remove the clsact qdisc of device {ifindex}", errno.ENOENT, errno.EINVAL, errno.ENODEV):
            if not any(list(self._ipr.get_filters(ifindex, parent=side)) for side in _CLSACT_SIDES):
                self._ipr.tc("del", "clsact", ifindex)

    def lo_up(self) -> None:
        """Bring lo up: addresses on a device that is down are not local."""
        with _naming("bring lo up"):
            self._ipr.link("set", index=1, state="up")

    def set_up(self, ifindex: int, *addresses: str) -> None:
        """Bring a device up, with these addresses (without prefix length: to whom they lead is nobody's business but
        the programs'), after which IPv6 has asked nobody whether they are free."""
        with _naming(f"bring device {ifindex} up"):
            for address in addresses:
                extra = {"flags": _IFA_F_NODAD} if ":" in address else {}
                self._ipr.addr("add", index=ifindex, address=address, prefixlen=128 if extra else 32, **extra)
            self._ipr.link("set", index=ifindex, state="up")

    def add_veth(self, name: str, peer: str, namespace: Path) -> None:
        """A pair of devices, the peer in another namespace; both down."""
        with _naming(f"veth {name} with {peer} in {namespace}"):
            there = {"ifname": peer, "net_ns_fd": str(namespace)}
            self._ipr.link("add", ifname=name, kind="veth", peer=there)

    def shape(self, ifindex: int, mtu: int, alias: str | None = None) -> None:
        """MTU and alias of a device that asks nobody for neighbours (IFF_NOARP), and up."""
        extra = {} if alias is None else {"IFLA_IFALIAS": alias}
        with _naming(f"set device {ifindex} up"):
            self._ipr.link("set", index=ifindex, mtu=mtu, arp=False, state="up", **extra)

    def all_is_local(self, device: str, ifindex: int, table: int, priority: int) -> None:
        """What comes in by that device is for this host, whatever its destination, and all that leaves goes there."""
        for version in versions():
            family, anywhere = _FAMILIES[version], _ANY[version]
            with _naming(f"make all addresses local that come by {device}", errno.EEXIST):
                self._ipr.route("replace", family=family, dst=anywhere, oif=ifindex, scope=_SCOPE_LINK)
                local = {"type": "local", "scope": _SCOPE_HOST} if version == 4 else {"type": "local"}
                self._ipr.route("replace", family=family, dst=anywhere, oif=1, table=table, **local)
                self._ipr.rule("add", family=family, iifname=device, table=table, priority=priority)

    def delete_device(self, ifindex: int) -> None:
        """Remove a device. One that is gone is no error."""
        with _naming(f"remove device {ifindex}", errno.ENODEV):
            self._ipr.link("del", index=ifindex)

    def add_address(self, address: str) -> None:
        host, _, length = address.partition("/")
        extra: dict[str, Any] = {"scope": _SCOPE_HOST}
        if ":" in host:
            extra = {"flags": _IFA_F_NODAD, "preferred_lft": 0, "valid_lft": 0xFFFFFFFF}
        with _naming(f"address {address} on lo", errno.EEXIST):
            self._ipr.addr("add", index=1, address=host, prefixlen=int(length), **extra)

    def delete_address(self, address: str) -> None:
        host, _, length = address.partition("/")
        with _naming(f"remove address {address} from lo", errno.EADDRNOTAVAIL, errno.ENODEV):
            self._ipr.addr("del", index=1, address=host, prefixlen=int(length))

    def _rule(self, command: str, rule: Rule, *ignored: int) -> None:
        arguments: dict[str, Any] = {"table": rule.table, "priority": rule.priority}
        if rule.source != "all":
            arguments |= {"src": rule.source, "src_len": 32 if rule.version == 4 else 128}
        with _naming(f"{command} {rule}", *ignored):
            self._ipr.rule(command, family=_FAMILIES[rule.version], **arguments)

    def add_rule(self, rule: Rule) -> None:
        self._rule("add", rule, errno.EEXIST)

    def delete_rule(self, rule: Rule) -> None:
        self._rule("del", rule, errno.ENOENT)

    def set_route(self, route: Route) -> None:
        arguments: dict[str, Any] = {}
        if not route.hops:
            arguments["type"] = "unreachable"
        elif len(route.hops) == 1:
            arguments = _hop_arguments(route.hops[0], route.version)
        else:
            arguments["multipath"] = [_hop_arguments(hop, route.version) for hop in route.hops]
        if route.options:
            arguments["metrics"] = dict(route.options)
        with _naming(f"set {route}"):
            self._ipr.route(
                "replace",
                family=_FAMILIES[route.version],
                dst=_ANY[route.version],
                table=route.table,
                priority=route.metric,
                **arguments,
            )

    def delete_route(self, route: Route) -> None:
        with _naming(f"delete {route}", errno.ESRCH):
            self._ipr.route(
                "del",
                family=_FAMILIES[route.version],
                dst=_ANY[route.version],
                table=route.table,
                priority=route.metric,
                **({} if route.hops else {"type": "unreachable"}),
            )


def versions() -> tuple[int, ...]:
    """The IP versions this kernel has: booted with ipv6.disable=1 it refuses to list anything of version 6."""
    return (4, 6) if _IPV6.exists() else (4,)


def _hop(message: Any, names: dict[int, str]) -> NextHop:
    gateway = message.get("gateway") or (message.get("via") or {}).get("addr", "")
    ifindex = int(message.get("oif") or 0)
    return NextHop(ifindex, gateway, names.get(ifindex, ""))


def _options(message: Any) -> tuple[Option, ...]:
    """What a route says of its path, by names that the library can write again."""
    found = (message.get("metrics") or {}).get("attrs", ())
    return tuple(sorted((name[len(_RTAX) :].lower(), value) for name, value in found if name.startswith(_RTAX)))


def _hop_arguments(hop: NextHop, version: int) -> dict[str, Any]:
    if not hop.gateway:
        return {"oif": hop.ifindex}
    if version == 4 and ":" in hop.gateway:
        # An IPv4 route by an IPv6 next hop (RFC 8950) has its own attribute.
        return {"oif": hop.ifindex, "via": {"family": socket.AF_INET6, "addr": hop.gateway}}
    return {"oif": hop.ifindex, "gateway": hop.gateway}
