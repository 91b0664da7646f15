# SPDX-License-Identifier: Apache-2.0
"""The way of an answer is read off its frames."""

from __future__ import annotations

import struct
from ipaddress import ip_address

from softunicast.lab.checker import Owned
from softunicast.lab.demo_ways import Owners, Ways, read_ways
from softunicast.lab.topology import mac, underlay
from softunicast.wire import probe
from softunicast.wire.craft import echo, ethernet, tcp, udp
from softunicast.wire.gue import IPV4, IPV6, PORT, Gue
from softunicast.wire.pcap import write_pcap

WEB, SLICE = "203.0.113.1", "198.51.100.10"
WEB6, SLICE6 = "2001:db8:f::1", "2001:db8:100::40"
OWNERS = Owners([Owned(ip_address(SLICE), 2048, 4095, "lhr1"), Owned(ip_address(SLICE6), 2048, 4095, "cdg1")])


def frame(sender: tuple[str, str], receiver: tuple[str, str], packet: bytes) -> bytes:
    kind = 0x86DD if packet[0] >> 4 == 6 else 0x0800
    return ethernet(mac(*receiver), mac(*sender), packet, kind)


def carried(by: str, to: str, router: str | None, packet: bytes) -> bytes:
    """By a node to another one: to its MAC address in the same rack, else to the router's."""
    head = Gue(IPV6 if packet[0] >> 4 == 6 else IPV4).pack()
    outer = udp(underlay(by), 50000, underlay(to), PORT, head + packet)
    return frame((by, "eth0"), (router, "br0") if router else (to, "eth0"), outer)


def read(internet: dict[str, list[bytes]], rack: dict[str, list[bytes]]) -> Ways:
    def pcap(frames: list[bytes]) -> bytes:
        return write_pcap([(number, one) for number, one in enumerate(frames)])

    return read_ways(
        {router: pcap(internet.get(router, [])) for router in ("r1", "r2")},
        {router: pcap(rack.get(router, [])) for router in ("r1", "r2")},
        OWNERS,
    )


def test_an_answer_that_is_carried_to_its_site_and_there_to_its_node() -> None:
    answer = tcp(WEB, 80, SLICE, 2048)
    tunnelled = carried("cdg2", "lhr2", "r2", answer)
    ways = read(
        {"r2": [frame(("inet", "r2"), ("r2", "inet0"), answer)]},
        {
            "r2": [frame(("r2", "br0"), ("cdg2", "eth0"), answer), tunnelled],
            # From the router on it is the same datagram, which is not counted again.
            "r1": [frame(("r1", "br0"), ("lhr2", "eth0"), tunnelled[14:]), carried("lhr2", "lhr1", None, answer)],
        },
    )
    way = ways.by_owner["lhr1"]
    assert (way.at_router, way.first_at, way.to_site, way.to_node) == ({"r2": 1}, {"cdg2": 1}, 1, 1)
    assert (ways.answers, ways.carries, ways.to_site, ways.strays) == (1, 2, 1, 0)
    assert ways.problems() == [f"no answer came for {node}" for node in ("lhr2", "cdg1", "cdg2")]


def test_pings_and_ipv6() -> None:
    answer = echo(WEB6, SLICE6, 4095, reply=True)
    ways = read(
        {"r1": [frame(("inet", "r1"), ("r1", "inet0"), answer)]},
        {"r1": [frame(("r1", "br0"), ("lhr1", "eth0"), answer), carried("lhr1", "cdg1", "r1", answer)]},
    )
    way = ways.by_owner["cdg1"]
    assert (way.at_router, way.first_at, way.to_site, way.to_node) == ({"r1": 1}, {"lhr1": 1}, 1, 0)


def test_an_icmp_error_is_its_flow_owners() -> None:
    quoted = udp(SLICE, 3000, WEB, 9)
    body = struct.pack("!BBHI", 3, 3, 0, 0) + quoted
    head = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0, 64, 1, 0)
    error = head + ip_address(WEB).packed + ip_address(SLICE).packed + body
    ways = read({"r2": [frame(("inet", "r2"), ("r2", "inet0"), error)]}, {})
    assert ways.by_owner["lhr1"].at_router == {"r2": 1}


def test_what_is_no_answer_is_left_out_and_what_is_nobodys_is_told() -> None:
    question = udp(underlay("cdg1"), 40000, underlay("cdg2"), PORT, probe.Probe(probe.ASK, 0, 1).pack())
    request = tcp(SLICE, 2048, WEB, 80)
    ways = read(
        {
            "r2": [
                frame(("r2", "inet0"), ("inet", "r2"), request),
                frame(("inet", "r2"), ("r2", "inet0"), tcp(WEB, 80, SLICE, 1)),
            ]
        },
        {"r2": [frame(("cdg1", "eth0"), ("cdg2", "eth0"), question), frame(("cdg1", "eth0"), ("r2", "br0"), request)]},
    )
    assert (ways.answers, ways.carries, ways.strays) == (0, 0, 1)
    assert "1 answers came for ports that are nobody's" in ways.problems()
