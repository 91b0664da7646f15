# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: what is written is read back as it was written. Needs root."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from softunicast.errors import KernelError
from softunicast.kernel import netns
from softunicast.kernel.link import DeviceAddress, Neighbour, Netlink, Route, Rule
from tests.support.kernel_place import namespace

TABLE = 1717


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    """In a namespace with a pair a0, b0, both up."""
    with namespace() as name, netns.enter(name), Netlink() as found:
        found.add_veth("a0", "b0")
        for device in ("a0", "b0"):
            found.set_device(index_of(found, device), up=True)
        found.set_device(1, up=True)
        yield found


def index_of(netlink: Netlink, name: str) -> int:
    device = netlink.device(name)
    assert device is not None
    return device.ifindex


def test_devices(netlink: Netlink) -> None:
    assert netlink.devices()[0].name == "lo"
    device = netlink.device("a0")
    assert device is not None and (device.kind, device.up, device.mtu) == ("veth", True, 1500)
    assert len(device.mac) == 17
    assert not netlink.add_veth("a0", "c0")
    assert netlink.add_device("br0", "bridge")
    netlink.set_device(device.ifindex, mtu=1600, master=index_of(netlink, "br0"), up=False)
    changed = netlink.device("a0")
    assert changed is not None
    assert (changed.mtu, changed.up, changed.master) == (1600, False, index_of(netlink, "br0"))
    assert netlink.delete_device("a0") and not netlink.delete_device("a0")
    assert netlink.device("b0") is None


def test_a_pair_reaches_into_another_namespace(netlink: Netlink) -> None:
    with namespace() as there:
        netlink.add_veth("x0", "y0", netns.path_of(there))
        assert netlink.device("y0") is None
        with netns.enter(there), Netlink() as far:
            assert far.device("y0") is not None


@pytest.mark.parametrize("text", ["198.51.100.10/32", "2001:db8::10/128", "10.1.0.1/24"])
def test_addresses(netlink: Netlink, text: str) -> None:
    address = DeviceAddress(1, ip_interface(text))
    assert netlink.add_address(address) and not netlink.add_address(address)
    assert address in netlink.addresses(1) and address in netlink.addresses()
    assert netlink.delete_address(address) and not netlink.delete_address(address)
    assert address not in netlink.addresses(1)


def test_routes(netlink: Netlink) -> None:
    index = index_of(netlink, "a0")
    netlink.add_address(DeviceAddress(index, ip_interface("10.1.0.1/24")))
    netlink.add_address(DeviceAddress(index, ip_interface("2001:db8:1::1/64")))
    routes = [
        Route(ip_network("0.0.0.0/0"), index, ip_address("10.1.0.254"), table=TABLE, metric=10),
        Route(ip_network("203.0.113.0/24"), index, source=ip_address("10.1.0.1"), table=TABLE),
        Route(ip_network("192.0.2.0/24"), index, ip_address("2001:db8:1::2"), table=TABLE),
        Route(ip_network("0.0.0.0/0"), table=TABLE, metric=4000),
        Route(ip_network("::/0"), index, ip_address("2001:db8:1::2"), table=TABLE, metric=10),
        Route(ip_network("::/0"), 0, table=TABLE, metric=4000),
    ]
    for route in routes:
        assert netlink.add_route(route) and not netlink.add_route(route), route
    for version in (4, 6):
        wanted = {route for route in routes if route.prefix.version == version}
        found = set(netlink.routes(version, TABLE))
        # An IPv6 unreachable route is shown on lo.
        assert {(r.prefix, r.ifindex, r.gateway, r.source, r.metric) for r in found} == {
            (r.prefix, r.ifindex, r.gateway, r.source, r.metric) for r in wanted
        }
    moved = Route(ip_network("0.0.0.0/0"), index, ip_address("10.1.0.253"), table=TABLE, metric=10)
    netlink.replace_route(moved)
    assert moved in netlink.routes(4, TABLE) and routes[0] not in netlink.routes(4, TABLE)
    for route in [moved, *routes[1:]]:
        assert netlink.delete_route(route) and not netlink.delete_route(route), route
    assert not netlink.routes(4, TABLE) and not netlink.routes(6, TABLE)
    with pytest.raises(KernelError, match=r"add route 203\.0\.113\.0/24 in table 1717: "):
        netlink.add_route(Route(ip_network("203.0.113.0/24"), index, ip_address("172.16.0.1"), table=TABLE))


@pytest.mark.parametrize(
    "rule",
    [
        Rule(4, 100, TABLE, ip_network("198.51.100.10/32")),
        Rule(4, 101, TABLE, mark=0x10, mask=0xF0),
        Rule(6, 102, TABLE, ip_network("2001:db8::/48")),
    ],
)
def test_rules(netlink: Netlink, rule: Rule) -> None:
    assert netlink.add_rule(rule) and not netlink.add_rule(rule)
    assert rule in netlink.rules(rule.version)
    assert netlink.delete_rule(rule) and not netlink.delete_rule(rule)
    assert rule not in netlink.rules(rule.version)


def test_neighbours(netlink: Netlink) -> None:
    index = index_of(netlink, "a0")
    neighbour = Neighbour(index, ip_address("10.1.0.9"), "02:00:00:00:00:09")
    netlink.set_neighbour(neighbour)
    assert neighbour in netlink.neighbours(index)
    moved = Neighbour(index, ip_address("10.1.0.9"), "02:00:00:00:00:0a")
    netlink.set_neighbour(moved)
    assert moved in netlink.neighbours(index) and neighbour not in netlink.neighbours(index)
