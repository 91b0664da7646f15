# SPDX-License-Identifier: Apache-2.0
"""The lab's network: the drawing (which is what is built), and what a drawing cannot say: routes, sysctls,
the plan.

The router spreads 198.51.100.0/24 over both nodes by a hash of the flow (`fib_multipath_hash_policy=1`), so
that half of the answers come to the wrong one. The internet has no route to 10.0.0.0/8: nothing that left
unrewritten can be answered. On the line between router and internet checksum offload, GSO, TSO and GRO are
off, so that a capture at `inet0` sees final checksums and packets of wire size.
"""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network
from typing import Final

from .drawing import Topology, read_drawing

DRAWING: Final = """\
        ┌───────────────────────────────────────────────────────────────┐
        │ inet                                                          │
        │ # web 203.0.113.1, .2  tcp 80 443 8080    dns 203.0.113.53    │
        │ # echo 203.0.113.1, .2, .7  tcp and udp 7                     │
        │ lo 203.0.113.1 203.0.113.2 203.0.113.7 203.0.113.53           │
        └───────────────────────────────┬───────────────────────────────┘
                                 r0 192.0.2.2/30
                                        │
                                    mtu 1500
                                        │
                               inet0 192.0.2.1/30
        ┌───────────────────────────────┴───────────────────────────────┐
        │ r1          198.51.100.0/24 over both nodes, by flow          │
        │ br0 10.0.1.1/24                                               │
        └───────────┬───────────────────────────────────────┬───────────┘
                  lhr1                                    lhr2
                    │                                       │
                mtu 1600                                mtu 1600
                    │                                       │
            eth0 10.0.1.11/24                       eth0 10.0.1.12/24
    ┌───────────────┴───────────────┐       ┌───────────────┴───────────────┐
    │ lhr1                          │       │ lhr2                          │
    └─────┬───────────────────┬─────┘       └─────┬───────────────────┬─────┘
   c1 10.64.1.1/24     t1 10.65.1.1/24     c2 10.64.2.1/24     t2 10.65.2.1/24
          │                   ┆                   │                   ┆
          │                   ┆                   │                   ┆
  eth0 10.64.1.2/24   tun0 10.65.1.2/24   eth0 10.64.2.2/24   tun0 10.65.2.2/24
      ┌───┴───┐           ┌───┴───┐           ┌───┴───┐           ┌───┴───┐
      │ c1    │           │ t1    │           │ c2    │           │ t2    │
      └───────┘           └───────┘           └───────┘           └───────┘
"""

NODES: Final = ("lhr1", "lhr2")
FLEET: Final = IPv4Network("198.51.100.0/24")
UNDERLAY: Final = IPv4Network("10.0.1.0/24")

WEB: Final = ("203.0.113.1", "203.0.113.2")
WEB_PORTS: Final = (80, 443, 8080)
DNS: Final = "203.0.113.53"
ECHO: Final = ("203.0.113.1", "203.0.113.2", "203.0.113.7")
ECHO_PORT: Final = 7
NAMES: Final = {"web.example": "203.0.113.1", "www.example": "203.0.113.2", "echo.example": "203.0.113.7"}
ANY_NAME: Final = "any.example"  # every name below it is 203.0.113.1, so that each asker can have its own

# Where a capture at the router's internet side is taken, and where one that tells the nodes apart.
INTERNET_SIDE: Final = ("r1", "inet0")
RACK_SIDE: Final = ("r1", "br0")

ROUTES: Final[dict[str, tuple[str, ...]]] = {
    "inet": (f"{FLEET} via 192.0.2.1",),
    "r1": (
        "default via 192.0.2.2",
        f"{FLEET} nexthop via 10.0.1.11 dev br0 nexthop via 10.0.1.12 dev br0",
    ),
    "lhr1": ("default via 10.0.1.1 mtu 1500",),
    "lhr2": ("default via 10.0.1.1 mtu 1500",),
    "c1": ("default via 10.64.1.1",),
    "c2": ("default via 10.64.2.1",),
    "t1": ("default dev tun0",),
    "t2": ("default dev tun0",),
}

# The internet and the clients speak IPv4 only; on the nodes IPv6 is alive, so that refusing it can be seen.
SYSCTLS_ELSEWHERE: Final = {"net.ipv6.conf.all.disable_ipv6": "1", "net.ipv6.conf.default.disable_ipv6": "1"}
SYSCTLS: Final[dict[str, dict[str, str]]] = {
    "lhr1": {},
    "lhr2": {},
    "inet": {
        **SYSCTLS_ELSEWHERE,
        "net.core.somaxconn": "8192",
        "net.ipv4.tcp_max_syn_backlog": "8192",
        "net.ipv4.conf.all.rp_filter": "0",
        "net.ipv4.icmp_ratelimit": "0",
    },
    "r1": {
        **SYSCTLS_ELSEWHERE,
        "net.ipv4.ip_forward": "1",
        "net.ipv4.fib_multipath_hash_policy": "1",
        "net.ipv4.conf.all.rp_filter": "0",
        "net.ipv4.conf.all.send_redirects": "0",
        "net.ipv4.conf.default.send_redirects": "0",
    },
}

# Devices whose packets must be of wire size and whose checksums must be final.
NO_OFFLOAD: Final = (("r1", "inet0"), ("inet", "r0"))


def topology() -> Topology:
    """What DRAWING says."""
    return read_drawing(DRAWING)


def plan_name(prefix: str, node: str) -> str:
    """A node's name in the plan. It names folders of this machine, so labs beside the default one put their
    prefix in.
    """
    return node if prefix == "su" else f"{prefix}-{node}"


def mac(namespace: str, device: str) -> str:
    """A device's fixed, locally administered address: the same in every lab, so that captures can be read."""
    ends = sorted((end.namespace, end.device) for end in topology().ends())
    return f"02:00:5e:00:00:{ends.index((namespace, device)) + 1:02x}"


def plan_text(prefix: str) -> str:
    """plan.yaml of a lab: the pools of the demonstration and of the contests, and timers short enough to be
    waited for.
    """
    lhr1, lhr2 = (plan_name(prefix, node) for node in NODES)
    nodes = "\n".join(_node_text(plan_name(prefix, node), number) for number, node in enumerate(NODES, 1))
    return f"""\
# The lab's plan. Written by `softunicast lab up`; every change is lost with the lab.
prefixes:
  - {{prefix: {FLEET}, announce: [lhr]}}
sites:
  lhr:
    nodes:
{nodes}
pools:
  gb:
    addresses: [198.51.100.10-198.51.100.11]
    site: lhr
    slice_ports: 2048
    tags: {{country: GB, product: gateway}}
  ten:
    site: lhr
    slices:
      - {{slice: "198.51.100.20:9000-9009", node: {lhr1}}}
      - {{slice: "198.51.100.20:9010-9019", node: {lhr2}}}
  sixtyfour:
    site: lhr
    slices:
      - {{slice: "198.51.100.21:9000-9063", node: {lhr1}}}
  wide:
    site: lhr
    slices:
      - {{slice: "198.51.100.22:4096-6143", node: {lhr1}}}
settings:
  timers:
    tcp_transitory_s: 20
    tcp_established_s: 300
    tcp_linger_s: 5
    sock_linger_s: 60
    sock_reuse_s: 1
    udp_s: 10
    icmp_s: 5
"""


def _node_text(name: str, number: int) -> str:
    return f"""\
      {name}:
        underlay: 10.0.1.1{number}
        uplinks: [eth0]
        onramps:
          c{number}: {{device: c{number}, pool: gb, sources: [10.64.{number}.0/24], gateway: 10.64.{number}.1}}
          t{number}: {{device: t{number}, pool: gb, sources: [10.65.{number}.0/24], gateway: 10.65.{number}.1}}"""


# Slices of the plan above that two drawings of it must agree on: (address, first, last, node); `gb` is
# allocated.
STATIC_SLICES: Final = (
    (IPv4Address("198.51.100.20"), 9000, 9009, "lhr1"),
    (IPv4Address("198.51.100.20"), 9010, 9019, "lhr2"),
    (IPv4Address("198.51.100.21"), 9000, 9063, "lhr1"),
    (IPv4Address("198.51.100.22"), 4096, 6143, "lhr1"),
)
