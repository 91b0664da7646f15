# SPDX-License-Identifier: Apache-2.0
"""Tags (802.1Q): a VLAN device is an uplink or an on-ramp like any other, and what carries it leaves its frames alone.

The node reaches the world by a trunk: up0 carries tagged frames of VLAN 100, and up0.100 is the uplink. It is a
stand-in (vlan_device.bpf.c), as not every kernel has VLAN devices; what passes up0 is what one would send and get.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from softunicast.kernel import netns
from softunicast.kernel.abi import Counter, Drop, Uplink, UplinkFlag
from softunicast.kernel.bpf import BpfObject, attach_tcx
from softunicast.wire.craft import udp
from softunicast.wire.packet import parse
from tests.support.dataplane import (
    CLIENT,
    GATEWAY,
    SERVER,
    SERVER6,
    SLICE,
    SLICE6,
    TUN_GATEWAY,
    TUN_ONRAMP,
    UNDERLAY,
    VETH_ONRAMP,
    Dataplane,
    Place,
    place,
    run,
    u32,
)
from tests.support.kernel_place import compile_bpf
from tests.support.wait import wait_until

VLAN = 100
SIOCGIFHWADDR = 0x8927


@dataclass
class Trunk:
    """Where the uplink is up0.100, and all of it runs."""

    where: Place
    plane: Dataplane
    uplink: int

    def reset(self) -> None:
        """As if just loaded: loading takes long."""
        plane = self.plane
        plane.clear()
        plane.fill(self.uplink)
        plane.add_slice(SLICE6, 9000, 9009)
        plane.put("uplinks", u32(0), Uplink(self.uplink, 1600, UplinkFlag.ONE_HOP, self.where.uplink).pack())
        plane.add_onramp(VETH_ONRAMP, self.where.veth, l2=True, gateway=GATEWAY)
        plane.add_onramp(TUN_ONRAMP, self.where.tun_ifindex, l2=False, gateway=TUN_GATEWAY)


@contextmanager
def vlan_device(loaded: BpfObject, below: str) -> Iterator[int]:
    """In this namespace, up0.100 or the like; its ifindex."""
    name = f"{below}.{VLAN}"
    address = mac_of(below).hex(":")
    run(f"ip link add {name} address {address} type veth peer name inside")
    run(f"ip link set {name} up")
    run("ip link set inside up")
    inside = socket.if_nametoindex("inside")
    under = socket.if_nametoindex(below)
    loaded.maps["ends"].update(u32(0), u32(under))
    loaded.maps["ends"].update(u32(1), u32(inside))
    with ExitStack() as stack:
        stack.callback(attach_tcx(loaded.programs["vlan_out"], inside, egress=False).close)
        stack.callback(attach_tcx(loaded.programs["vlan_in"], under, egress=False).close)
        yield socket.if_nametoindex(name)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """The usual place, but the line between node and world has a VLAN."""
    built = compile_bpf(
        Path(__file__).parent / "vlan_device.bpf.c", tmp_path_factory.mktemp("vlan") / "vlan_device.bpf.o"
    )
    with place() as made, ExitStack() as stack:
        for namespace, device, last in ((made.node, "up0", "11"), (made.world, "eth0", "1")):
            loaded = stack.enter_context(BpfObject.load(built))
            with netns.enter(namespace):
                run(f"ip address flush dev {device} scope global")
                stack.enter_context(vlan_device(loaded, device))
                run(f"ip address add 192.0.2.{last}/24 dev {device}.{VLAN}")
                run(f"ip address add 2001:db8:2::{last}/64 dev {device}.{VLAN} nodad")
        with netns.enter(made.node):
            run("ip route replace default via 192.0.2.1")
            run("ip -6 route replace default via 2001:db8:2::1")
        with netns.enter(made.world):
            run(f"ip route replace 198.51.100.0/24 via {UNDERLAY}")
            run("ip -6 route replace 2001:db8:1::/48 via 2001:db8:2::11")
        yield made


@pytest.fixture(scope="module", params=["su_guard_other", "su_guard"])
def loaded(where: Place, request: pytest.FixtureRequest) -> Iterator[Trunk]:
    """The device below has the guard of other devices, or that of an uplink of its own."""
    plane = Dataplane.load()
    with ExitStack() as stack:
        stack.callback(plane.close)
        programs = plane.object.programs
        with netns.enter(where.node):
            uplink = socket.if_nametoindex(f"up0.{VLAN}")
            for ifindex, name, egress in (
                (where.veth, "su_onramp_in", False),
                (where.tun_ifindex, "su_onramp_in", False),
                (uplink, "su_uplink_in", False),
                (uplink, "su_guard", True),
                (where.uplink, request.param, True),
                (where.uplink, "su_uplink_in", False),
                (where.veth, "su_guard_other", True),
            ):
                stack.callback(attach_tcx(programs[name], ifindex, egress=egress).close)
        yield Trunk(where, plane, uplink)


@pytest.fixture
def trunk(loaded: Trunk) -> Trunk:
    loaded.reset()
    return loaded


def udp_socket(namespace: str, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    with netns.enter(namespace):
        made = socket.socket(family, socket.SOCK_DGRAM)
    made.settimeout(5)
    return made


def asks(where: Place, who: str, server_address: str, *, source: str = "", size: int = 100) -> str:
    """One question and its answer; where the server saw it come from."""
    family = socket.AF_INET6 if ":" in server_address else socket.AF_INET
    with udp_socket(where.world, family) as server, udp_socket(where.of(who), family) as client:
        server.bind((server_address, 53))
        if source:
            client.bind((source, 9003))
        client.sendto(b"q" * size, (server_address, 53))
        question, peer = server.recvfrom(65536)
        server.sendto(question, peer)
        assert client.recv(65536) == b"q" * size
        return str(peer[0])


@pytest.mark.parametrize("who", ["client", "tun", "node"])
def test_the_uplink_is_a_vlan_device(trunk: Trunk, who: str) -> None:
    ends = [(SERVER, SLICE), (SERVER6, SLICE6)]
    for server, address in ends[:1] if who == "node" else ends:  # the place has no IPv6 slice on lo
        for size in (100, 4000):
            source = address if who == "node" else ""
            assert asks(trunk.where, who, server, source=source, size=size) == address
    assert trunk.plane.drops() == {}
    assert trunk.plane.count(Counter.GUARD_PASSED if who == "node" else Counter.OUT_PACKETS) > 0


def test_what_is_carried_goes_by_the_vlan_device(trunk: Trunk) -> None:
    """An answer for another node comes in with a tag and leaves in GUE with one, to a peer behind the trunk."""
    with netns.enter(trunk.where.world):
        run("ip address add 192.0.2.12/24 dev eth0.100")
    try:
        with udp_socket(trunk.where.world) as peer, udp_socket(trunk.where.world) as server:
            peer.bind(("192.0.2.12", 6080))
            server.bind((SERVER, 53))
            server.sendto(b"answer", (SLICE, 9012))
            carried = parse(peer.recv(65536)[4:])
            assert (str(carried.destination), carried.destination_port) == (SLICE, 9012)
    finally:
        with netns.enter(trunk.where.world):
            run("ip address del 192.0.2.12/24 dev eth0.100")
    assert trunk.plane.count(Counter.CARRIED_OUT) == 1
    assert trunk.plane.drops() == {}


def test_the_device_below_leaves_other_vlans_alone(trunk: Trunk) -> None:
    """Tagged for a VLAN that nobody has: not carried, not delivered, and not even looked at."""
    packet = udp(SERVER, 53, SLICE, 9012, b"other network")
    send(trunk.where.world, "eth0", trunk.where.node, "up0", packet, tag=7)
    send(trunk.where.world, "eth0", trunk.where.node, "up0", packet, tag=VLAN)  # in order behind it
    wait_until(lambda: trunk.plane.count(Counter.CARRIED_OUT) > 0, 5, "the one for us")
    assert trunk.plane.count(Counter.CARRIED_OUT) == 1
    assert trunk.plane.drops() == {}


def test_tags_open_no_device_that_carries_no_uplink(trunk: Trunk) -> None:
    """Had the VLAN device no guard (its uplink is not below there, as far as is known): the one below drops."""
    trunk.plane.put("uplinks", u32(0), Uplink(trunk.uplink, 1600, UplinkFlag.ONE_HOP).pack())
    with udp_socket(trunk.where.of("client")) as sock:
        sock.sendto(b"x", (SERVER, 53))
    wait_until(lambda: bool(trunk.plane.drops()), 5, "dropped")
    assert set(trunk.plane.drops()) <= {Drop.GUARD_DEVICE, Drop.GUARD_FOREIGN}


@pytest.mark.parametrize("tag", [7, VLAN])
def test_a_client_cannot_choose_a_vlan_of_the_uplink(trunk: Trunk, tag: int) -> None:
    """Tagged frames of an on-ramp are its VLAN devices', of which there are none here."""
    with udp_socket(trunk.where.world) as server:
        server.bind((SERVER, 53))
        server.settimeout(0.3)
        send(trunk.where.client, "eth0", trunk.where.node, "fish0", udp(CLIENT, 40000, SERVER, 53, b"hop"), tag=tag)
        with pytest.raises(TimeoutError):
            server.recv(100)
    assert trunk.plane.flows() == {}


def test_a_tag_that_says_priority_only_is_none(trunk: Trunk) -> None:
    """802.1p: VLAN 0, priority 7. It is served, and the tag does not come out at the other end."""
    with udp_socket(trunk.where.world) as server:
        server.bind((SERVER, 53))
        packet = udp(CLIENT, 40000, SERVER, 53, b"urgent")
        send(trunk.where.client, "eth0", trunk.where.node, "fish0", packet, tag=7 << 13)
        assert server.recv(100) == b"urgent"
    assert len(trunk.plane.flows()) == 1


def send(sender: str, device: str, receiver: str, by: str, packet: bytes, *, tag: int) -> None:
    """A tagged frame, written as it is."""
    with netns.enter(receiver):
        mac = mac_of(by)
    with netns.enter(sender), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as sock:
        sock.bind((device, 0))
        sock.send(mac + mac_of(device) + struct.pack("!HHH", 0x8100, tag, 0x0800) + packet)


def mac_of(device: str) -> bytes:
    """Of a device in the namespace of this thread (/sys shows another's)."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFHWADDR, struct.pack("16s16x", device.encode()))
    return bytes(answer[18:24])
