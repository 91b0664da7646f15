# SPDX-License-Identifier: Apache-2.0
"""Steering between real devices: a transfer whose answers all come to the wrong node.

      world 203.0.113.1 ---- 1500 ---- 203.0.113.254 router, bridge 10.0.1.1, fd00:1::1
        2001:db8:f::1                                 |  |  |     underlay, MTU 1600
                               10.0.1.11 a -----------'  |  '-------- c 10.0.1.13
                              fd00:1::11                 |              fd00:1::13
                                                         b 10.0.1.12, fd00:1::12

The router sends 198.51.100.20 and 2001:db8:100::20 to a. Their ports 9010-9019 are b's (or c's, as a test says): a
carries, the owner takes out. The owner's own packets go to the router directly.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import threading
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_network
from pathlib import Path

import pytest

from softunicast.kernel import netns
from softunicast.kernel.abi import NONE, Address, Counter, Drop, List, Node, Owner, Stats, Uplink
from softunicast.kernel.abi_util import prefix_key
from softunicast.kernel.bpf import BpfObject, object_path
from softunicast.kernel.links import Link, attach_tcx, attach_xdp
from tests.bpf import steer_support as support
from tests.bpf.steer_support import packed, run, u32
from tests.support.wait import wait_until

SLICE, WORLD = "198.51.100.20", "203.0.113.1"
SLICE6, WORLD6 = "2001:db8:100::20", "2001:db8:f::1"
PORT = 9012
NODES = {"a": (1, "10.0.1.11", "fd00:1::11"), "b": (2, "10.0.1.12", "fd00:1::12"), "c": (3, "10.0.1.13", "fd00:1::13")}
IP4 = dict.fromkeys(NODES, 4)
MTU = 1600
BLOCK = os.urandom(1 << 20)


class SteeringNode:
    """steer.bpf.o of one node. `owner` is whom its tables say holds ports 9010-9019, `reached`: the IP version by which
    each node is reached."""

    def __init__(self, namespace: str, letter: str, owner: str, reached: dict[str, int]) -> None:
        number, underlay4, underlay6 = NODES[letter]
        settings = replace(support.settings(underlay4, underlay6), node=number)
        sizes = {name: size for name, size in support.MAP_SIZES.items() if size}
        self.namespace, self.links = namespace, list[Link]()
        self.loaded = BpfObject.load(object_path("steer"), settings=settings.pack(), map_sizes=sizes)
        with netns.enter(namespace):
            self.ifindex = socket.if_nametoindex("up0")
        maps = self.loaded.maps
        for address in (SLICE, SLICE6):
            maps["addresses"].update(packed(address), Address(0, 0, 1).pack())
        for port in range(9000, 9020):
            holder = NODES["a" if port < 9010 else owner][0]
            maps["owners"].update(u32(port), Owner(holder, 0 if holder == number else NONE).pack())
        for name, (index, *addresses) in NODES.items():
            maps["nodes"].update(u32(index), Node(packed(addresses[reached[name] == 6]), 1).pack())
            for address in addresses:
                maps["peers"].update(packed(address), u32(index))
        for text in ("10.0.1.0/24", "fd00:1::/64", "198.51.100.0/24", "2001:db8:100::/48"):
            maps["prefixes"].update(prefix_key(List.INTERNAL, ip_network(text)), u32(1))
        self.set_mtu(MTU)

    def set_mtu(self, mtu: int) -> None:
        self.loaded.maps["uplinks"].update(u32(0), Uplink(self.ifindex, mtu).pack())

    def attach(self, *, xdp: bool) -> None:
        """The tc entry, and XDP in front of it."""
        with netns.enter(self.namespace):
            self.links.append(attach_tcx(self.loaded.programs["su_steer_tc"], self.ifindex, egress=False))
            if xdp:
                self.links.append(attach_xdp(self.loaded.programs["su_steer"], self.ifindex, generic=False))

    def stats(self) -> tuple[dict[Drop, int], dict[Counter, int]]:
        each = [Stats.unpack(value) for value in self.loaded.maps["stats"].lookup_percpu(u32(0))]
        drops = {drop: n for drop in Drop if (n := sum(stats.drops[drop] for stats in each))}
        return drops, {counter: sum(stats.counters[counter] for stats in each) for counter in Counter}

    def close(self) -> None:
        for link in self.links:
            link.close()
        self.loaded.close()


@pytest.fixture
def fleet() -> Iterator[dict[str, str]]:
    """Namespaces by role: router, world, a, b, c."""
    names = {role: f"t-steer-{os.getpid()}-{role}" for role in ("router", "world", *NODES)}
    with contextlib.ExitStack() as undo:
        for name in names.values():
            netns.create(name)
            undo.callback(netns.delete, name)
            with netns.enter(name):
                Path("/proc/sys/net/ipv6/conf/default/accept_dad").write_text("0")
            run(f"ip -n {name} link set lo up")
        router = names["router"]
        run(f"ip -n {router} link add br0 type bridge")
        run(f"ip -n {router} link set br0 up mtu {MTU}")
        run(f"ip -n {router} address add 10.0.1.1/24 dev br0")
        run(f"ip -n {router} address add fd00:1::1/64 dev br0 nodad")
        for letter, (_, underlay4, underlay6) in NODES.items():
            name = names[letter]
            ends = f"to-{letter} mtu {MTU} type veth peer name up0 mtu {MTU} netns {name}"
            run(f"ip -n {router} link add {ends}")
            run(f"ip -n {router} link set to-{letter} master br0 up")
            run(f"ip -n {name} link set up0 up")
            run(f"ip -n {name} address add {underlay4}/24 dev up0")
            run(f"ip -n {name} address add {underlay6}/64 dev up0 nodad")
            run(f"ip -n {name} address add {SLICE}/32 dev lo")
            run(f"ip -n {name} address add {SLICE6}/128 dev lo nodad")
            run(f"ip -n {name} route add default via 10.0.1.1 advmss 1460")
            run(f"ip -n {name} route add default via fd00:1::1 advmss 1440")
            with netns.enter(name):
                for family in ("ipv4", "ipv6"):
                    Path(f"/proc/sys/net/{family}/conf/lo/forwarding").write_text("1")
        run(f"ip -n {router} link add to-world type veth peer name w0 netns {names['world']}")
        run(f"ip -n {router} link set to-world up")
        run(f"ip -n {router} address add 203.0.113.254/24 dev to-world")
        run(f"ip -n {router} address add 2001:db8:f::fe/64 dev to-world nodad")
        run(f"ip -n {names['world']} link set w0 up")
        run(f"ip -n {names['world']} address add {WORLD}/24 dev w0")
        run(f"ip -n {names['world']} address add {WORLD6}/64 dev w0 nodad")
        run(f"ip -n {names['world']} route add default via 203.0.113.254")
        run(f"ip -n {names['world']} route add default via 2001:db8:f::fe")
        run(f"ip -n {router} route add {SLICE}/32 via 10.0.1.11")
        run(f"ip -n {router} route add {SLICE6}/128 via fd00:1::11")
        with netns.enter(router):
            Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
            Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
        yield names


@contextlib.contextmanager
def steering(
    names: dict[str, str], owners: dict[str, str], *, reached: dict[str, int] = IP4, xdp: bool = False
) -> Iterator[dict[str, SteeringNode]]:
    """Steering on every node; `owners`: what each believes; `reached`: each by its address of that IP version."""
    with contextlib.ExitStack() as undo:
        nodes = {}
        for letter in NODES:
            nodes[letter] = SteeringNode(names[letter], letter, owners[letter], reached)
            undo.callback(nodes[letter].close)
            nodes[letter].attach(xdp=xdp)
        yield nodes


def download(names: dict[str, str], owner: str, blocks: int, timeout_s: float = 30, *, own: int = 4) -> tuple[str, str]:
    """The owner connects from SLICE:PORT to the world (IP version `own`), which sends so many MiB. Digests: sent,
    received."""
    sent, received = hashlib.sha256(), hashlib.sha256()
    family, local, world = (socket.AF_INET, SLICE, WORLD) if own == 4 else (socket.AF_INET6, SLICE6, WORLD6)
    with contextlib.ExitStack() as undo:
        with netns.enter(names["world"]):
            listener = undo.enter_context(socket.create_server((world, 443), family=family))
        with netns.enter(names[owner]):
            client = undo.enter_context(socket.socket(family))
        listener.settimeout(timeout_s)
        client.settimeout(timeout_s)

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, contextlib.suppress(OSError):
                connection.settimeout(timeout_s)
                for _ in range(blocks):
                    connection.sendall(BLOCK)
                    sent.update(BLOCK)

        server = threading.Thread(target=serve, daemon=True)
        server.start()
        client.bind((local, PORT))
        client.connect((world, 443))
        while data := client.recv(1 << 18):
            received.update(data)
        server.join(timeout_s)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    return sent.hexdigest(), received.hexdigest()


def bad_checksums(namespace: str) -> int:
    """TCP segments that the stack refused for their checksum."""
    with netns.enter(namespace):
        lines = [line.split() for line in Path("/proc/thread-self/net/snmp").read_text().splitlines()]
    names, values = (fields for fields in lines if fields[0] == "Tcp:")
    return int(dict(zip(names, values, strict=True))["InCsumErrors"])


@pytest.mark.parametrize("own", [4, 6])
@pytest.mark.parametrize("outer", [4, 6])
def test_tc_carries_a_transfer_and_keeps_its_offloads(fleet: dict[str, str], outer: int, own: int) -> None:
    blocks = 64
    with steering(fleet, dict.fromkeys(NODES, "b"), reached=dict.fromkeys(NODES, outer)) as nodes:
        sent, received = download(fleet, "b", blocks, own=own)
        assert sent == received
        (drops_a, a), (drops_b, b) = nodes["a"].stats(), nodes["b"].stats()
        assert (drops_a, drops_b) == ({}, {})
        assert a[Counter.CARRIED_OUT] == b[Counter.CARRIED_IN] > 0
        # Whole segments crossed the tunnel, not packets of 1,460 bytes.
        assert blocks * len(BLOCK) / a[Counter.CARRIED_OUT] > 8 * 1460
        assert bad_checksums(fleet["b"]) == 0


@pytest.mark.parametrize("own", [4, 6])
@pytest.mark.parametrize("outer", [(4, 4), (6, 6), (4, 6), (6, 4)])
def test_a_second_node_that_is_not_the_owner_carries_on(
    fleet: dict[str, str], outer: tuple[int, int], own: int
) -> None:
    """a believes b, b knows better: c. The second tunnel is entered by packets that came out of the first, and may be
    of the other family."""
    reached = {"a": 4, "b": outer[0], "c": outer[1]}
    blocks = 16
    with steering(fleet, {"a": "b", "b": "c", "c": "c"}, reached=reached) as nodes:
        sent, received = download(fleet, "c", blocks, own=own)
        assert sent == received
        stats = {letter: node.stats() for letter, node in nodes.items()}
        assert [drops for drops, _ in stats.values()] == [{}, {}, {}]
        b = stats["b"][1]
        assert b[Counter.CARRIED_IN] == b[Counter.CARRIED_OUT] == stats["c"][1][Counter.CARRIED_IN] > 0
        assert blocks * len(BLOCK) / b[Counter.CARRIED_OUT] > 4 * 1460, "whole segments cross both tunnels"
        assert bad_checksums(fleet["c"]) == 0


def test_two_nodes_that_disagree_do_not_play_ping_pong(fleet: dict[str, str]) -> None:
    """a believes b, b believes c, c believes b: the packet ends at c, counted."""
    with steering(fleet, {"a": "b", "b": "c", "c": "b"}) as nodes:
        with netns.enter(fleet["world"]), socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.bind((WORLD, 443))
            for _ in range(5):
                sender.sendto(b"lost", (SLICE, PORT))
        wait_until(lambda: nodes["c"].stats()[0] == {Drop.FINAL_NOT_MINE: 5}, 5, "five packets to end at c")
        assert nodes["a"].stats()[1][Counter.CARRIED_OUT] == nodes["b"].stats()[1][Counter.CARRIED_OUT] == 5
        assert nodes["b"].stats()[0] == {}


def test_segments_too_big_for_the_underlay_are_dropped_and_counted(fleet: dict[str, str]) -> None:
    with steering(fleet, dict.fromkeys(NODES, "b")) as nodes:
        nodes["a"].set_mtu(1500)
        with contextlib.suppress(TimeoutError):
            download(fleet, "b", 1, timeout_s=1.5)
        drops, counters = nodes["a"].stats()
        assert drops[Drop.TOO_BIG] > 0
        assert counters[Counter.CARRIED_OUT] > 0, "the handshake fits"


@pytest.mark.parametrize(("outer", "own"), [(4, 4), (6, 4), (6, 6)])
def test_xdp_carries_a_transfer_with_tc_behind_it(fleet: dict[str, str], outer: int, own: int) -> None:
    """Native XDP on veth: it knows no partial checksums or segments, and XDP_TX wants XDP on the other end too.

    (veth_xdp_flush wakes only a peer that has a program: with GRO alone frames lie there until something else
    comes. So the router's end gets one that has no tables and lets everything pass.)
    """
    run(f"nsenter --net=/run/netns/{fleet['world']} ethtool -K w0 tx off tso off gso off")
    for letter in NODES:
        run(f"nsenter --net=/run/netns/{fleet['router']} ethtool -K to-{letter} tx off tso off gso off gro on")
        run(f"nsenter --net=/run/netns/{fleet[letter]} ethtool -K up0 tx off tso off gso off")
    with (
        contextlib.ExitStack() as undo,
        steering(fleet, dict.fromkeys(NODES, "b"), reached=dict.fromkeys(NODES, outer), xdp=True) as nodes,
    ):
        passing = undo.enter_context(
            BpfObject.load(object_path("steer"), settings=support.settings().pack(), map_sizes={"owners": 16})
        )
        with netns.enter(fleet["router"]):
            to_a = socket.if_nametoindex("to-a")
            undo.enter_context(attach_xdp(passing.programs["su_steer"], to_a, generic=False))
        for name in ("a", "b"):
            other = NODES["a" if name == "b" else "b"][1 if outer == 4 else 2]
            run(f"nsenter --net=/run/netns/{fleet[name]} ping -c1 -W10 {other}")
        sent, received = download(fleet, "b", 8, own=own)
        assert sent == received
        (drops_a, a), (drops_b, b) = nodes["a"].stats(), nodes["b"].stats()
        assert (drops_a, drops_b) == ({}, {})
        assert a[Counter.CARRIED_OUT] == b[Counter.CARRIED_IN] > 8 * len(BLOCK) / 1460 / 2
        assert bad_checksums(fleet["b"]) == 0
