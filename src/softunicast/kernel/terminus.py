# SPDX-License-Identifier: Apache-2.0
"""Makes the namespace where the TCP of an on-ramp ends, and the veth that leads there.

    here      DEVICE    no ARP, no IPv6 of its own: tc programs alone have to do with it
    there     in0       no ARP; the default route
              lo        the gateways' addresses, which ICMP errors come from
              rule      what comes in by in0 is local, whatever its destination (AnyIP)
              TPROXY    a first SYN, to any port, goes to the sockets that listen at PORT, IP_TRANSPARENT
              NFQUEUE   a first SYN waits in queue 0, if handshakes are held; with nobody to read it, it is dropped
              marks     what becomes of a held SYN whose destination cannot be had: RST or an ICMP error

Nothing there forwards, tracks or translates: without its process a client gets RST, or no answer while SYNs are held.
NFQUEUE by iptables, because a kernel that has the queue need not have nft's expression for it (CONFIG_NFT_QUEUE).

Sources: Documentation/networking/tproxy.rst; net/ipv4/netfilter/nf_reject_ipv4.c; iptables-extensions(8).
"""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from softunicast.errors import KernelError, ProbeError
from softunicast.kernel import netns, nft, sysctl
from softunicast.kernel.netlink import Netlink, versions

INSIDE: Final = "in0"
TABLE: Final = 100
QUEUE: Final = 0
TIMEOUT_S: Final = 20.0


class Mark(IntEnum):
    """What a held SYN is let go with."""

    PASS = 0
    RESET = 1
    HOST_UNREACHABLE = 2
    NO_ROUTE = 3
    PROHIBITED = 4


REJECTIONS: Final = {
    Mark.RESET: "tcp reset",
    Mark.HOST_UNREACHABLE: "icmpx host-unreachable",
    Mark.NO_ROUTE: "icmpx no-route",
    Mark.PROHIBITED: "icmpx admin-prohibited",
}


@dataclass(frozen=True, slots=True)
class Wanted:
    """`gateways` without prefix length; `port` of the listening sockets on 127.0.0.1 and ::1."""

    namespace: str
    device: str
    alias: str
    mtu: int
    gateways: tuple[str, ...]
    port: int
    held: bool


def make(wanted: Wanted, *, anew: bool) -> None:
    """Make it, or (not `anew`) mend one that is there, without harm to its connections. KernelError.

    The alias is set last: what broke off halfway has none, and is made anew.
    """
    with Netlink() as here:
        device = here.devices().get(wanted.device)
        if anew or device is None:
            remove(wanted.namespace, wanted.device)
            netns.create(wanted.namespace)
            here.add_veth(wanted.device, INSIDE, netns.path_of(wanted.namespace))
        index = socket.if_nametoindex(wanted.device)
        _quiet(wanted.device)
        with netns.enter(wanted.namespace):
            _inside(wanted)
        here.shape(index, wanted.mtu, wanted.alias)


def remove(namespace: str, device: str) -> None:
    """Take both away; what is not there is no error. Sockets in the namespace keep it, without a way to anybody."""
    with Netlink() as here:
        found = here.devices().get(device)
        if found is not None:
            here.delete_device(found.ifindex)
    netns.delete(namespace)


def _quiet(device: str) -> None:
    """It sends nothing by itself."""
    folder = f"net/ipv6/conf/{device}"
    if sysctl.path_of(folder).exists():
        sysctl.put(f"{folder}/disable_ipv6", 1)


def _inside(wanted: Wanted) -> None:
    sysctl.put("net/ipv4/ip_forward", 0)
    for place in ("all", "default", INSIDE):
        sysctl.put(f"net/ipv4/conf/{place}/rp_filter", 0)
    if 6 in versions():
        for place in ("all", "default"):
            sysctl.put(f"net/ipv6/conf/{place}/forwarding", 0)
            sysctl.put(f"net/ipv6/conf/{place}/accept_dad", 0)
        sysctl.put(f"net/ipv6/conf/{INSIDE}/addr_gen_mode", 1)
        sysctl.put(f"net/ipv6/conf/{INSIDE}/accept_ra", 0)
        sysctl.put(f"net/ipv6/conf/{INSIDE}/router_solicitations", 0)
    with Netlink() as there:
        there.lo_up()
        kept = {f"{one}/{128 if ':' in one else 32}" for one in wanted.gateways}
        for address in there.lo_addresses() - kept - {"127.0.0.1/8", "::1/128"}:
            there.delete_address(address)
        for address in kept:
            there.add_address(address)
        index = socket.if_nametoindex(INSIDE)
        there.shape(index, wanted.mtu)
        there.all_is_local(INSIDE, index, TABLE, TABLE)
    nft.run(ruleset(wanted.port))
    for version in versions():
        _restore({4: "iptables-restore", 6: "ip6tables-restore"}[version], held_rules(held=wanted.held))


def ruleset(port: int) -> str:
    """The nft script: idempotent, one transaction."""
    rejected = "\n".join(f"    meta mark {int(mark)} reject with {how}" for mark, how in REJECTIONS.items())
    return f"""\
table inet softunicast
delete table inet softunicast
table inet softunicast {{
  chain take {{
    type filter hook prerouting priority mangle
    iifname != "{INSIDE}" accept
    tcp flags & (fin | syn | rst | ack) != syn accept
{rejected}
    meta nfproto ipv4 meta l4proto tcp tproxy ip to 127.0.0.1:{port} accept
    meta nfproto ipv6 meta l4proto tcp tproxy ip6 to [::1]:{port} accept
  }}
}}
"""


def held_rules(*, held: bool) -> str:
    """For iptables-restore, which replaces the table whole."""
    rule = f"-A PREROUTING -i {INSIDE} -p tcp --syn -j NFQUEUE --queue-num {QUEUE}\n" if held else ""
    return f"*raw\n:PREROUTING ACCEPT [0:0]\n{rule}COMMIT\n"


def _restore(command: str, rules: str) -> None:
    try:
        done = subprocess.run([command], input=rules, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise ProbeError(f"{command} not found: install it (Debian: apt-get install iptables)") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"{command}: no answer after {TIMEOUT_S:.0f} s") from error
    if done.returncode:
        first = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise KernelError(f"{command}: {first}", log=done.stderr)
