# SPDX-License-Identifier: Apache-2.0
"""The positive control: put a packet on a node's uplink *behind* the guard, where no program of ours can stop
it.

An AF_PACKET socket with PACKET_QDISC_BYPASS hands the frame to the driver without passing tc egress
(packet(7), net/packet/af_packet.c packet_xmit(), net/core/dev.c __dev_direct_xmit()). If the checker at the
router does not report exactly one packet for it, its zeros mean nothing.
"""

from __future__ import annotations

import socket
from typing import Final

from softunicast.wire.craft import ethernet, udp

from . import topology as facts
from .lab import Host

SOL_PACKET: Final = 263
PACKET_QDISC_BYPASS: Final = 20


def send_frame(host: Host, device: str, frame: bytes, *, bypass: bool = False, count: int = 1) -> None:
    """Send a frame `count` times from a namespace. OSError when the device is down."""
    with host.enter(), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
        if bypass:
            sock.setsockopt(SOL_PACKET, PACKET_QDISC_BYPASS, 1)
        sock.bind((device, 0))
        for _ in range(count):
            sock.send(frame)


def inject_behind_guard(
    host: Host,
    source: str = "198.51.100.10",
    port: int = 1,
    destination: str = "203.0.113.1",
    destination_port: int = 9,
) -> bytes:
    """Send one UDP packet from a node as if there were no guard; returns the frame.

    The default port 1 is in no slice at all: ports 0-1023 are never given out.
    """
    packet = udp(source, port, destination, destination_port, b"positive control")
    frame = ethernet(facts.mac(facts.router_of(host.name), "br0"), facts.mac(host.name, "eth0"), packet)
    send_frame(host, "eth0", frame, bypass=True)
    return frame
