# SPDX-License-Identifier: Apache-2.0
"""The lab's network: the drawing (which is what is built), and what a drawing cannot say: routes, sysctls,
the plan. Who speaks BGP to whom is in `bird.py`.

Both sites announce the fleet's prefixes; the internet's best path leads to cdg, so that every answer to lhr comes to
the wrong site. Each router spreads over its site's nodes by a hash of the flow (`fib_multipath_hash_policy=1`), so
that half of the answers to cdg come to the wrong node. The internet has no route to 10.0.0.0/8 and fd00::/8: nothing
that left unrewritten can be answered. On the lines between routers and internet checksum offload, GSO, TSO and GRO are
off, so that captures at `inet0` see final checksums and packets of wire size.
"""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Final

from .drawing import Topology, read_drawing

DRAWING: Final = """\
    ┌─────────────────────────────────────────────────────────────────────────────────────────────┐
    │ inet   AS 65000: the best path to the fleet leads to r2                                     │
    │ # web 203.0.113.1, .2, 2001:db8:f::1, ::2  tcp 80 443 8080                                  │
    │ # dns 203.0.113.53, 2001:db8:f::53                                                          │
    │ # echo 203.0.113.1, .2, .7, 2001:db8:f::1, ::2, ::7  tcp and udp 7                          │
    │ lo 203.0.113.1 203.0.113.2 203.0.113.7 203.0.113.53                                         │
    │ lo 2001:db8:f::1 2001:db8:f::2 2001:db8:f::7 2001:db8:f::53                                 │
    └───────────────────────┬───────────────────────────────────────────────────┬─────────────────┘
                     r1 192.0.2.2/30                                     r2 192.0.2.6/30
                   2001:db8:e:1::2/64                                  2001:db8:e:2::2/64
                            │                                                   │
                        mtu 1500                                            mtu 1500
                            │                                                   │
                   inet0 192.0.2.1/30                                  inet0 192.0.2.5/30
                   2001:db8:e:1::1/64                                  2001:db8:e:2::1/64
    ┌───────────────────────┴──────────────┐                    ┌───────────────┴─────────────────┐
    │ r1   AS 65001, site lhr              │                    │ r2   AS 65001, site cdg         │
    │ br0 10.0.1.1/24 fd00:1::1/64         ├bb0 ─ mtu 1600 ─ bb0┤ br0 10.0.2.1/24 fd00:2::1/64    │
    │ bb0 10.9.0.1/30 fd00:9::1/64         │                    │ bb0 10.9.0.2/30 fd00:9::2/64    │
    └─────────┬───────────────────────────┬┘                    └──────┬─────────────────┬────────┘
            lhr1                        lhr2                         cdg1              cdg2
              │                           │                            │                 │
          mtu 1600                    mtu 1600                     mtu 1600          mtu 1600
              │                           │                            │                 │
            eth0                        eth0                         eth0              eth0
        10.0.1.11/24                10.0.1.12/24                 10.0.2.11/24      10.0.2.12/24
        fd00:1::11/64               fd00:1::12/64                fd00:2::11/64     fd00:2::12/64
 ┌────────────┴────────────┐ ┌────────────┴────────────┐         ┌─────┴─────┐     ┌─────┴─────┐
 │ lhr1                    │ │ lhr2                    │         │ cdg1      │     │ cdg2      │
 └─────┬─────────────┬─────┘ └─────┬─────────────┬─────┘         └─────┬─────┘     └─────┬─────┘
      c1            t1            c2            t2                    c3                t4
 10.64.1.1/24  10.65.1.1/24  10.64.2.1/24  10.65.2.1/24          10.64.3.1/24      10.65.4.1/24
 fd64:1::1/64  fd65:1::1/64  fd64:2::1/64  fd65:2::1/64          fd64:3::1/64      fd65:4::1/64
       │             ┆             │             ┆                     │                 ┆
     eth0          tun0          eth0          tun0                  eth0              tun0
 10.64.1.2/24  10.65.1.2/24  10.64.2.2/24  10.65.2.2/24          10.64.3.2/24      10.65.4.2/24
 fd64:1::2/64  fd65:1::2/64  fd64:2::2/64  fd65:2::2/64          fd64:3::2/64      fd65:4::2/64
   ┌───┴───┐     ┌───┴───┐     ┌───┴───┐     ┌───┴───┐             ┌───┴───┐         ┌───┴───┐
   │ c1    │     │ t1    │     │ c2    │     │ t2    │             │ c3    │         │ t4    │
   └───────┘     └───────┘     └───────┘     └───────┘             └───────┘         └───────┘
"""

SITES: Final[dict[str, tuple[str, ...]]] = {"lhr": ("lhr1", "lhr2"), "cdg": ("cdg1", "cdg2")}
NODES: Final = tuple(node for nodes in SITES.values() for node in nodes)
ROUTERS: Final = {"lhr": "r1", "cdg": "r2"}
BEST_SITE: Final = "cdg"  # where the internet sends all answers, while it is there
FLEET: Final = IPv4Network("198.51.100.0/24")
FLEET6: Final = IPv6Network("2001:db8:100::/48")
RACKS: Final = {"lhr": ("10.0.1.0/24", "fd00:1::/64"), "cdg": ("10.0.2.0/24", "fd00:2::/64")}
# What is sent there is on its way to a neighbour or a peer, not to the internet.
UNDERLAY: Final = (IPv4Network("10.0.0.0/8"), IPv6Network("fd00::/8"))
# The lines between routers and internet: routers send from them themselves.
LINES: Final = (IPv4Network("192.0.2.0/29"), IPv6Network("2001:db8:e::/48"))

WEB: Final = ("203.0.113.1", "203.0.113.2")
WEB6: Final = ("2001:db8:f::1", "2001:db8:f::2")
WEB_PORTS: Final = (80, 443, 8080)
DNS: Final = "203.0.113.53"
DNS6: Final = "2001:db8:f::53"
ECHO: Final = ("203.0.113.1", "203.0.113.2", "203.0.113.7")
ECHO6: Final = ("2001:db8:f::1", "2001:db8:f::2", "2001:db8:f::7")
ECHO_PORT: Final = 7
NAMES: Final = {
    "web.example": ("203.0.113.1", "2001:db8:f::1"),
    "www.example": ("203.0.113.2", "2001:db8:f::2"),
    "echo.example": ("203.0.113.7", "2001:db8:f::7"),
}
ANY_NAME: Final = "any.example"  # every name below it is the first web server, so that each asker can have its own

# Where captures at the routers' internet sides are taken, and where those that tell the nodes apart.
RUN_FOLDER: Final = Path("/run/softunicast-lab")

INTERNET_SIDES: Final = (("r1", "inet0"), ("r2", "inet0"))
RACK_SIDES: Final = (("r1", "br0"), ("r2", "br0"))


def site_of(node: str) -> str:
    """The site of a node of the drawing."""
    return next(site for site, nodes in SITES.items() if node in nodes)


def router_of(node: str) -> str:
    """The router of a node's site."""
    return ROUTERS[site_of(node)]


def _client(node_side: int, number: int) -> tuple[str, ...]:
    return f"default via 10.{node_side}.{number}.1", f"::/0 via fd{node_side}:{number}::1"


_NODE_ROUTES: Final = {
    node: (
        f"10.0.0.0/16 via 10.0.{rack}.1",
        f"default via 10.0.{rack}.1 mtu 1500",
        f"::/0 via fd00:{rack}::1 mtu 1500",
    )
    for rack, nodes in enumerate(SITES.values(), 1)
    for node in nodes
}

# What BIRD does not bring.
ROUTES: Final[dict[str, tuple[str, ...]]] = {
    "r1": ("10.0.2.0/24 via 10.9.0.2", "fd00:2::/64 via fd00:9::2"),
    "r2": ("10.0.1.0/24 via 10.9.0.1", "fd00:1::/64 via fd00:9::1"),
    **_NODE_ROUTES,
    **{f"c{number}": _client(64, number) for number in (1, 2, 3)},
    **{f"t{number}": ("default dev tun0", "::/0 dev tun0") for number in (1, 2, 4)},
}

# Addresses are the lab's own: nobody has to be asked whether they are free.
SYSCTLS_EVERYWHERE: Final = {"net.ipv6.conf.all.accept_dad": "0", "net.ipv6.conf.default.accept_dad": "0"}
_ROUTER_SYSCTLS: Final = {
    "net.ipv4.ip_forward": "1",
    "net.ipv4.fib_multipath_hash_policy": "1",
    "net.ipv4.conf.all.rp_filter": "0",
    "net.ipv4.conf.all.send_redirects": "0",
    "net.ipv4.conf.default.send_redirects": "0",
    "net.ipv4.icmp_ratelimit": "0",
    "net.ipv6.conf.all.forwarding": "1",
    "net.ipv6.fib_multipath_hash_policy": "1",
    "net.ipv6.icmp.ratelimit": "0",
}
SYSCTLS: Final[dict[str, dict[str, str]]] = {
    "inet": {
        "net.core.somaxconn": "8192",
        "net.ipv4.tcp_max_syn_backlog": "8192",
        "net.ipv4.conf.all.rp_filter": "0",
        "net.ipv4.icmp_ratelimit": "0",
        "net.ipv6.icmp.ratelimit": "0",
    },
    "r1": _ROUTER_SYSCTLS,
    "r2": _ROUTER_SYSCTLS,
}

# Devices whose packets must be of wire size and whose checksums must be final.
NO_OFFLOAD: Final = (("r1", "inet0"), ("inet", "r1"), ("r2", "inet0"), ("inet", "r2"))

# Who is behind which node: (device on the node, second octet of its network, number), pool.
CLIENTS: Final[dict[str, tuple[str, ...]]] = {
    "lhr1": ("c1", "t1"),
    "lhr2": ("c2", "t2"),
    "cdg1": ("c3",),
    "cdg2": ("t4",),
}
POOL_OF_SITE: Final = {"lhr": "gb", "cdg": "fr"}


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
    lhr1, lhr2 = (plan_name(prefix, node) for node in SITES["lhr"])
    sites = "".join(
        f"  {site}:\n    nodes:\n" + "".join(_node_text(prefix, node) for node in nodes)
        for site, nodes in SITES.items()
    )
    return f"""\
# The lab's plan. Written by `softunicast lab up`; every change is lost with the lab.
prefixes:
  - {{prefix: {FLEET}, announce: [lhr, cdg]}}
  - {{prefix: "{FLEET6}", announce: [lhr, cdg]}}
sites:
{sites}pools:
  gb:
    addresses: [198.51.100.10-198.51.100.11, "2001:db8:100::10"]
    site: lhr
    slice_ports: 2048
    slice_ports6: 2048
    tags: {{country: GB, product: gateway}}
  fr:
    addresses: [198.51.100.40-198.51.100.41, "2001:db8:100::40"]
    site: cdg
    slice_ports: 2048
    slice_ports6: 2048
    tags: {{country: FR, product: gateway}}
  ten:
    site: lhr
    slices:
      - {{slice: "198.51.100.20:9000-9009", node: {lhr1}}}
      - {{slice: "198.51.100.20:9010-9019", node: {lhr2}}}
      - {{slice: "[2001:db8:100::20]:9000-9009", node: {lhr1}}}
      - {{slice: "[2001:db8:100::20]:9010-9019", node: {lhr2}}}
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
    tcp_linger_s: 20
    sock_linger_s: 60
    sock_reuse_s: 1
    udp_s: 10
    icmp_s: 5
"""


def bird_control(folder: Path, speaker: str) -> Path:
    """The socket of a speaker's birdc, in a lab whose files are in `folder`."""
    return folder / f"bird-{speaker}.ctl"


def bird_include(folder: Path, node: str) -> Path:
    """The file by which a node's agent has its BIRD announce."""
    return folder / f"announce-{node}.conf"


def underlay(node: str) -> str:
    """A node's underlay address: that of its eth0 in the drawing."""
    return next(
        str(address.ip)
        for end in topology().ends()
        if (end.namespace, end.device) == (node, "eth0")
        for address in end.addresses
        if address.version == 4
    )


def _node_text(prefix: str, node: str) -> str:
    ramps = "".join(_onramp_text(client, POOL_OF_SITE[site_of(node)]) for client in CLIENTS[node])
    folder = RUN_FOLDER / prefix
    return f"""\
      {plan_name(prefix, node)}:
        underlay: {underlay(node)}
        uplinks: [eth0]
        bird:
          control: {bird_control(folder, node)}
          include: {bird_include(folder, node)}
          drain: {{settle_s: 5}}
        onramps:
{ramps}"""


def _onramp_text(client: str, pool: str) -> str:
    kind, number = ("64" if client[0] == "c" else "65"), client[1:]
    sources = f'[10.{kind}.{number}.0/24, "fd{kind}:{number}::/64"]'
    gateways = f'gateway: 10.{kind}.{number}.1, gateway6: "fd{kind}:{number}::1"'
    return f"          {client}: {{device: {client}, pool: {pool}, sources: {sources}, {gateways}}}\n"
