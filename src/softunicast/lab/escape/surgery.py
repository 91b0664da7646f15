# SPDX-License-Identifier: Apache-2.0
"""The operation on a host's routing that the older ways need, and its undoing.

The kernel looks up the table `local` first (rule 0), so that a packet for an address of the host never leaves it
again. Programs that forward packets under the host's own address move that rule behind one of their own, which picks
answers by a mark. The mark comes from conntrack: what enters through the TUN gives its connection the mark, answers
get it back. The new rule is there before the old one goes, both ways, so that the host always has its addresses.

Sources: net/ipv4/fib_rules.c, fib_frontend.c (fib_validate_source: accept_local, rp_filter, src_valid_mark).
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from softunicast.kernel import sysctl

from .stage import Stage

MARK: Final = 42
TABLE: Final = 100
MARKS: Final = f"""\
table ip moved {{
  chain pre {{
    type filter hook prerouting priority mangle
    iifname "fishtun" ct mark set {MARK}
    iifname "up0" ct mark {MARK} meta mark set ct mark
  }}
}}
"""
TAKES_LOCAL: Final = {"net.ipv4.conf.fishtun.accept_local": 1, "net.ipv4.conf.fishtun.rp_filter": 0}
NO_DEMUX: Final = {"net.ipv4.tcp_early_demux": 0, "net.ipv4.udp_early_demux": 0}
TABLE_LOCAL: Final = 255
_RTMGRP_IPV4_RULE: Final = 1 << 7
_RTM_NEWRULE: Final = 32
_RTM_DELRULE: Final = 33


@contextmanager
def changed(stage: Stage, values: dict[str, int]) -> Iterator[None]:
    """Sysctls of the host, set and put back."""
    with ExitStack() as stack:
        for name, value in values.items():
            stack.callback(stage.put, name, stage.put(name, value))
        yield


@contextmanager
def marked(stage: Stage) -> Iterator[None]:
    """The marks of connections that enter through the TUN, put back."""
    stage.nft(MARKS)
    try:
        yield
    finally:
        stage.run("host", "nft delete table ip moved")


@contextmanager
def moved_rule(stage: Stage) -> Iterator[None]:
    """The local rule behind the marks' own, and back in front."""
    with ExitStack() as stack:
        for do, undo in (
            (f"route add default dev fishtun table {TABLE}", f"route del default dev fishtun table {TABLE}"),
            (
                f"rule add fwmark {MARK} table {TABLE} priority 10",
                f"rule del fwmark {MARK} table {TABLE} priority 10",
            ),
            ("rule add lookup local priority 11", "rule del lookup local priority 11"),
            ("rule del lookup local priority 0", "rule add lookup local priority 0"),
        ):
            stage.run("host", f"ip {do}")
            stack.callback(stage.run, "host", f"ip {undo}")
        yield


@contextmanager
def operated(stage: Stage, *, early_demux: bool = False) -> Iterator[None]:
    """All of it: sysctls, marks, rules, and early demultiplexing off unless asked for."""
    wanted = TAKES_LOCAL if early_demux else {**TAKES_LOCAL, **NO_DEMUX}
    with changed(stage, wanted), marked(stage), moved_rule(stage):
        yield


def state(stage: Stage) -> dict[str, str]:
    """Everything that the operation touches, to compare before and after."""
    found = {name: sysctl.get(name, netns=stage.host) for name in (*TAKES_LOCAL, *NO_DEMUX)}
    for command in ("ip rule", "ip route show table all", "nft list ruleset"):
        found[command] = stage.quiet("host", command)
    return found


@contextmanager
def fewest_local_rules(stage: Stage) -> Iterator[list[int]]:
    """Counts the rules that look up `local`, by the kernel's own notices; the list gets the number after each."""
    with stage.at("host"):
        sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
    with sock:
        sock.bind((0, _RTMGRP_IPV4_RULE))
        sock.setblocking(False)
        counts = [1]
        yield counts
        while True:
            try:
                data = sock.recv(65535)
            except BlockingIOError:
                return
            (kind,) = struct.unpack_from("=H", data, 4)
            table = data[16 + 4]  # struct fib_rule_hdr behind struct nlmsghdr
            if table == TABLE_LOCAL and kind in (_RTM_NEWRULE, _RTM_DELRULE):
                counts.append(counts[-1] + (1 if kind == _RTM_NEWRULE else -1))
