# SPDX-License-Identifier: Apache-2.0
"""rtnetlink: what is written is read back as it was written, and may be written twice. Needs root."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import pytest

from softunicast.errors import KernelError
from softunicast.kernel import clsact, netns
from softunicast.kernel.netlink import Netlink, below
from softunicast.kernel.probe import load_trivial
from softunicast.kernel.programs import ProgramType
from softunicast.kernel.routing import DefaultRoute, NextHop, Route, Rule
from tests.support.kernel_place import ip, namespace

UNREACHABLE = 1 << 31


@pytest.fixture
def netlink() -> Iterator[Netlink]:
    """In a namespace with two pairs, a0-b0 10.1.0.1/24 2001:db8:1::1/64 and a1-b1 10.2.0.1/24, up."""
    with namespace() as name, netns.enter(name), Netlink() as found:
        for number in ("0", "1"):
            ip("link", "add", f"a{number}", "type", "veth", "peer", "name", f"b{number}")
            for device in (f"a{number}", f"b{number}"):
                ip("link", "set", device, "addrgenmode", "none", "up")
        ip("address", "add", "10.1.0.1/24", "dev", "a0")
        ip("address", "add", "2001:db8:1::1/64", "dev", "a0", "nodad")
        ip("address", "add", "10.2.0.1/24", "dev", "a1")
        found.lo_up()
        yield found


def hop(gateway: str, device: str = "a0") -> NextHop:
    return NextHop(socket.if_nametoindex(device), gateway, device)


def test_devices_have_addresses_and_headers(netlink: Netlink) -> None:
    ip("link", "set", "a0", "mtu", "1600")
    ip("tuntap", "add", "t0", "mode", "tun")
    devices = netlink.devices()
    assert {"lo", "a0", "b0", "a1", "b1", "t0"} == set(devices)
    assert {device.below for device in devices.values()} == {0}, "a veth's link is its peer, none is a VLAN device"
    assert (devices["a0"].ifindex, devices["a0"].mtu) == (socket.if_nametoindex("a0"), 1600)
    assert set(devices["a0"].addresses) == {"10.1.0.1", "2001:db8:1::1"}
    assert devices["b0"].addresses == ()
    assert devices["a0"].ethernet and not devices["t0"].ethernet


@pytest.mark.parametrize(
    ("link", "index"),
    [
        ({"linkinfo": {"kind": "vlan"}, "link": 4}, 4),
        ({"linkinfo": {"kind": "vlan"}}, 0),  # the one below is in another namespace
        ({"linkinfo": {"kind": "veth"}, "link": 4}, 0),
        ({}, 0),
    ],
)
def test_what_a_vlan_device_sends_by(link: dict[str, object], index: int) -> None:
    """Of messages as they come: not every kernel has VLAN devices."""
    assert below(link) == index


@pytest.mark.parametrize("address", ["198.51.100.10/32", "2001:db8::10/128"])
def test_addresses_of_slices(netlink: Netlink, address: str) -> None:
    for _ in range(2):
        netlink.add_address(address)
        assert address in netlink.lo_addresses()
    for _ in range(2):
        netlink.delete_address(address)
        assert address not in netlink.lo_addresses()


def test_the_kernel_never_picks_a_slices_address_by_itself(netlink: Netlink) -> None:
    netlink.add_address("2001:db8:1::10/128")
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as chosen:
        chosen.connect(("2001:db8:1::2", 9))
        assert chosen.getsockname()[0] == "2001:db8:1::1"
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as bound:
        bound.bind(("2001:db8:1::10", 0))


@pytest.mark.parametrize(
    ("version", "metric", "gateways"),
    [
        (4, 1, [("10.1.0.254", "a0")]),
        (4, 2, [("", "a0")]),
        (4, 3, [("2001:db8:1::2", "a0")]),
        (4, 4, [("10.1.0.254", "a0"), ("10.2.0.254", "a1")]),
        (4, UNREACHABLE, []),
        (6, 1, [("2001:db8:1::2", "a0")]),
        (6, UNREACHABLE, []),
    ],
)
def test_routes(netlink: Netlink, version: int, metric: int, gateways: list[tuple[str, str]]) -> None:
    route = Route(version, metric, tuple(hop(*gateway) for gateway in gateways))
    for _ in range(2):
        netlink.set_route(route)
        assert netlink.routes() == {route}
    for _ in range(2):
        netlink.delete_route(route)
        assert netlink.routes() == frozenset()


@pytest.mark.parametrize(("version", "gateway"), [(4, "10.1.0.254"), (6, "2001:db8:1::2")])
def test_what_a_route_says_of_its_path(netlink: Netlink, version: int, gateway: str) -> None:
    """All that iproute2 can say (it locks rto_min itself) is read, written into our table, and changed there."""
    said = (
        "mtu lock 1400 advmss 1300 initcwnd 20 initrwnd 30 hoplimit 70 quickack 1 rto_min 50ms window 60000 rtt 30ms "
        "rttvar 10ms ssthresh 20 cwnd 40 reordering 5 features ecn congctl reno"
    )
    ip(*f"-{version} route add default via {gateway} dev a0 metric 10 {said}".split())
    (default,) = netlink.default_routes()
    assert len(default.options) == 16
    assert {("mtu", 1400), ("lock", 1 << 2 | 1 << 13), ("advmss", 1300), ("cc_algo", "reno")} <= set(default.options)
    copy = Route(version, 1, default.hops, options=default.options)
    netlink.set_route(copy)
    assert netlink.routes() == {copy}
    shown = [shown_route(version, table) for table in ("main", "1717")]
    assert shown[0] == shown[1] and "mtu lock 1400" in shown[0]
    for options in ((("mtu", 1350),), ()):
        changed = Route(version, 1, default.hops, options=options)
        netlink.set_route(changed)
        assert netlink.routes() == {changed}


def shown_route(version: int, table: str) -> str:
    """What iproute2 says of the default route of a table, behind its metric."""
    command = ["ip", f"-{version}", "route", "show", "default", "table", table]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.partition(" metric ")[2].partition(" ")[2].strip()


def test_a_route_is_replaced_by_its_metric(netlink: Netlink) -> None:
    netlink.set_route(Route(4, 1, (hop("10.1.0.254"),)))
    netlink.set_route(Route(4, UNREACHABLE))
    moved = Route(4, 1, (hop("10.1.0.253"),))
    netlink.set_route(moved)
    assert netlink.routes() == {moved, Route(4, UNREACHABLE)}


def test_default_routes_are_those_of_the_main_table(netlink: Netlink) -> None:
    ip("route", "add", "default", "via", "10.2.0.254", "metric", "20")
    ip("route", "add", "default", "via", "10.1.0.254", "metric", "10")
    ip("-6", "route", "add", "default", "via", "2001:db8:1::2", "metric", "5")
    ip("route", "add", "unreachable", "default", "metric", "90")
    ip("route", "add", "203.0.113.0/24", "via", "10.1.0.254")
    netlink.set_route(Route(4, 1, (hop("10.1.0.253"),)))
    assert netlink.default_routes() == (
        DefaultRoute(4, 10, (hop("10.1.0.254"),)),
        DefaultRoute(4, 20, (hop("10.2.0.254", "a1"),)),
        DefaultRoute(6, 5, (hop("2001:db8:1::2"),)),
    )


@pytest.mark.parametrize("rule", [Rule(4, "198.51.100.10"), Rule(6, "2001:db8::10"), Rule(4, "all")])
def test_rules(netlink: Netlink, rule: Rule) -> None:
    ip("rule", "add", "from", "198.51.100.10", "lookup", "99", "priority", "98")
    for _ in range(2):
        netlink.add_rule(rule)
        assert netlink.rules() == {rule}
    for _ in range(2):
        netlink.delete_rule(rule)
        assert netlink.rules() == frozenset()


def test_a_qdisc_that_somebody_uses_stays(netlink: Netlink) -> None:
    index = socket.if_nametoindex("a0")
    netlink.remove_idle_clsact(index)
    with load_trivial(ProgramType.SCHED_CLS) as program:
        clsact.attach(program, index, egress=False)
    netlink.remove_idle_clsact(index)
    assert "clsact" in qdiscs()
    clsact.detach(index, egress=False)
    netlink.remove_idle_clsact(index)
    assert "clsact" not in qdiscs()


def qdiscs() -> str:
    done = subprocess.run(["tc", "qdisc", "show", "dev", "a0"], check=True, capture_output=True, text=True, timeout=30)
    return done.stdout


def test_what_the_kernel_refuses_is_named(netlink: Netlink) -> None:
    named = r"set ip -4 route default via 172\.16\.0\.1 dev a0 table 1717 metric 1: "
    with pytest.raises(KernelError, match=named) as caught:
        netlink.set_route(Route(4, 1, (hop("172.16.0.1"),)))
    assert caught.value.errno
