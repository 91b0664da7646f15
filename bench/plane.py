# SPDX-License-Identifier: Apache-2.0
"""The data plane without an agent: objects loaded and their tables filled by hand.

One node, one address, one slice of 2,048 ports (198.51.100.10:2048-4095), whose UDP ports are split as by default: a
quarter for wildcard claims, 1,536 for exact ones.
"""

from __future__ import annotations

import random
import struct
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_address, ip_network
from typing import Final

from softunicast.kernel.abi import (
    Address,
    Claim,
    Control,
    Crowd,
    CrowdKey,
    Flow,
    Kind,
    List,
    Node,
    Onramp,
    OnrampFlag,
    Owner,
    Policy,
    PolicyFlag,
    Pool,
    Settings,
    Slice,
    SliceFlag,
    State,
    Stats,
    Uplink,
    UplinkFlag,
)
from softunicast.kernel.abi_util import Word, addr_bytes, prefix_key
from softunicast.kernel.bpf import BpfObject, Map

SLICE: Final = IPv4Address("198.51.100.10")
FIRST: Final = 2048
LAST: Final = 4095
UDP_FIRST: Final = FIRST + 512
POOL: Final = 1
ME: Final = 1
ONRAMP: Final = 1
SOURCES: Final = List.FIRST_FREE
TCP: Final = 6
UDP: Final = 17
MAP_SIZES: Final = {"flows": 1 << 18, "origin": 1 << 18, "slots": 1 << 19, "owners": 1 << 16, "crowds": 4096}
POLICY: Final = Policy(flags=PolicyFlag.SET, pool=POOL)
SETTINGS: Final = Settings(
    site=1,
    full_ns=50_000_000,
    node=ME,
    mark=0x00100000,
    mask=0x00100000,
    slots=MAP_SIZES["slots"],
    tcp_transitory_s=240,
    tcp_established_s=7440,
    tcp_linger_s=240,
    sock_linger_s=60,
    sock_reuse_s=1,
    udp_s=300,
    icmp_s=60,
    gue_port=6080,
    answer_ping=1,
)


def u32(number: int) -> bytes:
    return struct.pack("=I", number)


def packed(address: str | IPv4Address) -> bytes:
    return addr_bytes(ip_address(address))


def settings(underlay: str, cookie: int, slots: int = MAP_SIZES["slots"]) -> bytes:
    own = packed(underlay)
    return replace(SETTINGS, underlay4=own, underlay6=own, netns_cookie=cookie, slots=slots).pack()


def fill(maps: Mapping[str, Map], underlay: str, uplink: int, near: str) -> None:
    """Tables of the one node. `near`: the network of the underlay, never sliced."""
    until = time.clock_gettime_ns(time.CLOCK_BOOTTIME) + 10**15
    one = Slice(packed(SLICE), FIRST, LAST, UDP_FIRST, SliceFlag.LIVE, POOL, 1, until)
    maps["slices"].update(u32(0), one.pack())
    maps["pool_slices"].update(u32(0), u32(0))
    maps["pools"].update(u32(POOL), Pool(0, 1, 1, 0).pack())
    maps["addresses"].update(packed(SLICE), Address(0, 11, 1).pack())
    maps["owners"].update(u32(1), Owner(ME, 0).pack())
    maps["nodes"].update(u32(ME), Node(packed(underlay), 1).pack())
    maps["uplinks"].update(u32(0), Uplink(uplink, 1600, UplinkFlag.ONE_HOP | UplinkFlag.XMIT).pack())
    for number, network in (
        (List.NEVER, "127.0.0.0/8"),
        (List.NEVER, near),
        (List.INTERNAL, near),
        (List.INTERNAL, "198.51.100.0/24"),
        (SOURCES, "10.77.0.0/16"),
    ):
        maps["prefixes"].update(prefix_key(number, ip_network(network)), u32(1))
    maps["control"].update(u32(0), Control(ready=1, policies=1).pack())


def add_onramp(maps: Mapping[str, Map], ifindex: int, gateway: str) -> None:
    ramp = Onramp(OnrampFlag.SET | OnrampFlag.L2, 1, ifindex, SOURCES, packed(gateway), packed("fe80::1"), POLICY)
    maps["onramps"].update(u32(ONRAMP), ramp.pack())
    maps["onramp_devices"].update(u32(ifindex), u32(ONRAMP))


def flow_check(key: bytes) -> int:
    """su_flow_check of word.h."""
    w = struct.unpack("=8I", key[:32])
    local_port, remote_port, proto = struct.unpack("=HHB", key[32:37])
    h = w[0] ^ w[1] ^ w[2] ^ w[3]
    for part in (w[4] ^ w[5] ^ w[6], w[7], local_port << 16 | remote_port, proto):
        h = (h * 0x9E3779B1 + part) & 0xFFFFFFFF
    return int(h)


def use_up(
    maps: Mapping[str, Map], proto: int, targets: Iterable[IPv4Address], port: int, percent: int, slot: int
) -> int:
    """Claim `percent` of the slice's ports towards each target, as forwarded flows that are alive would: with slots
    and, as the destination has long been crowded, its bitmap. Next free slot.
    """
    first = UDP_FIRST if proto == UDP else FIRST
    ports = list(range(first, LAST + 1))
    chosen = random.Random(percent)
    now_s = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 10**9
    word = Word(1, State.OPEN, now_s).pack()
    flows, slots, local = maps["flows"], maps["slots"], packed(SLICE)
    for target in targets:
        remote = packed(target)
        words = [0] * 32
        for taken in chosen.sample(ports, len(ports) * percent // 100):
            key = Flow(local, remote, taken, port, proto).pack()
            claim = Claim(
                word=word,
                owner=ONRAMP << 32 | 1,
                inner=packed("10.77.0.9"),
                inner_port=taken,
                kind=Kind.PACKET,
                check=flow_check(key),
                slot=slot,
                born_s=now_s,
            )
            flows.update(key, claim.pack())
            slots.update(u32(slot), key + u32(now_s + 60))
            slot += 1
            words[(taken - FIRST) // 64] |= 1 << (taken - FIRST) % 64
        if percent:
            maps["crowds"].update(CrowdKey(remote, 0, port, proto).pack(), Crowd(taken=tuple(words)).pack())
    return slot


def drops(loaded: BpfObject) -> dict[int, int]:
    """By reason, summed over CPUs."""
    each = [Stats.unpack(value) for value in loaded.maps["stats"].lookup_percpu(u32(0))]
    return {i: n for i, n in enumerate(map(sum, zip(*(one.drops for one in each), strict=True))) if n}
