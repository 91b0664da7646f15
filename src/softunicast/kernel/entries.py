# SPDX-License-Identifier: Apache-2.0
"""What already stands at the entries of devices, and what their drivers can do at XDP. Reads only.

- Which driver can do what: the generic netlink family "netdev" (Linux 6.3). Attaching to find out would make real
  cards set up their rings anew, and the link may go down for a moment.
- Who is attached at XDP: IFLA_XDP of the link. At tc: BPF_PROG_QUERY, in the order in which they run (Linux 6.6;
  before, filters have priorities, and ours is asked for by its own: kernel.clsact).

Sources: Documentation/netlink/specs/netdev.yaml, net/core/rtnetlink.c (rtnl_xdp_fill), kernel/bpf/tcx.c
(tcx_prog_query), net/core/dev.c (sch_handle_ingress: TCX before filters).
"""

from __future__ import annotations

import ctypes
import errno
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from enum import IntFlag
from typing import Any, Final

from pyroute2 import IPRoute
from pyroute2.netlink import NLM_F_DUMP, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from softunicast.errors import KernelError
from softunicast.kernel.libbpf import Command, bpf
from softunicast.kernel.links import AttachType
from softunicast.kernel.programs import Program

NETDEV_CMD_DEV_GET: Final = 1
ROOM: Final = 64
"""Programs at one hook, as many as TCX takes (BPF_MPROG_MAX)."""
XDP_IDS: Final = ("IFLA_XDP_PROG_ID", "IFLA_XDP_DRV_PROG_ID", "IFLA_XDP_SKB_PROG_ID", "IFLA_XDP_HW_PROG_ID")


class XdpFeature(IntFlag):
    """enum netdev_xdp_act: those asked for here."""

    BASIC = 1
    REDIRECT = 2
    NDO_XMIT = 4


@dataclass(frozen=True, slots=True)
class Entries:
    """One device. `kind`: rtnetlink's word for a virtual device ("veth", "bond"), empty for a card.

    `features` None: the kernel does not tell. `foreign_xdp` and `ahead`: others' programs, as "NAME (id 7)"; `ahead`
    are those that run before ours at tc, ingress and egress.
    """

    kind: str = ""
    features: XdpFeature | None = None
    foreign_xdp: tuple[str, ...] = ()
    ahead: tuple[str, ...] = ()


class _NetdevMessage(genlmsg):  # type: ignore[misc]
    prefix = ""
    nla_map = ((1, "IFINDEX", "uint32"), (3, "XDP_FEATURES", "uint64"))


def entries(names: Iterable[str], ours: Collection[int]) -> dict[str, Entries]:
    """Those of these devices of the current network namespace that are there. `ours`: ids of our programs.

    KernelError when the kernel cannot be asked.
    """
    wanted = set(names)
    features = xdp_features()
    found = {}
    try:
        with IPRoute(strict_check=True) as route:
            links: list[Any] = [link for link in route.get_links() if link.get("ifname") in wanted]
    except (NetlinkError, OSError) as error:
        raise KernelError(f"list devices: {error}", errno=getattr(error, "errno", 0) or 0) from error
    for link in links:
        index = int(link["index"])
        at_xdp = {int(number) for name in XDP_IDS if (number := (link.get("xdp") or {}).get(name))}
        found[link.get("ifname")] = Entries(
            kind=(link.get("linkinfo") or {}).get("kind") or "",
            features=None if features is None else features.get(index, XdpFeature(0)),
            foreign_xdp=tuple(describe(number) for number in sorted(at_xdp - set(ours))),
            ahead=tuple(
                describe(number)
                for side in (AttachType.TCX_INGRESS, AttachType.TCX_EGRESS)
                for number in ahead(attached(index, side), ours)
            ),
        )
    return found


def xdp_features() -> dict[int, XdpFeature] | None:
    """By ifindex, for this network namespace; None before Linux 6.3."""
    request = _NetdevMessage()
    request["cmd"], request["version"] = NETDEV_CMD_DEV_GET, 1
    try:
        with GenericNetlinkSocket() as generic:
            generic.bind("netdev", _NetdevMessage)
            answers: list[Any] = list(
                generic.nlm_request(request, msg_type=generic.prid, msg_flags=NLM_F_REQUEST | NLM_F_DUMP)
            )
    except (NetlinkError, OSError):
        # No such family; a kernel that does not tell is not broken.
        return None
    return {int(answer.get("IFINDEX")): XdpFeature(int(answer.get("XDP_FEATURES") or 0)) for answer in answers}


def attached(ifindex: int, attach_type: AttachType) -> list[int]:
    """Ids of the programs at a TCX hook, in the order they run. Empty: none, no such device, or no TCX."""
    area = (ctypes.c_uint32 * ROOM)()
    attribute = bytearray(
        struct.pack("=IIIIQI", ifindex, attach_type, 0, 0, ctypes.addressof(area), ROOM).ljust(72, b"\0")
    )
    try:
        bpf(Command.PROG_QUERY, attribute)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENODEV, errno.ENOENT):
            return []
        raise KernelError(f"list programs of device {ifindex}: {error.strerror}", errno=error.errno or 0) from error
    (count,) = struct.unpack_from("=I", attribute, 24)
    return list(area[:count])


def ahead(running: Iterable[int], ours: Collection[int]) -> list[int]:
    """Those that run before the first of ours; none when ours are not there (they will be attached first)."""
    order = list(running)
    first = next((at for at, number in enumerate(order) if number in ours), 0)
    return order[:first]


def describe(number: int) -> str:
    """A program by its kernel id, as a reader can find it with bpftool."""
    try:
        with Program(bpf(Command.PROG_GET_FD_BY_ID, struct.pack("=III", number, 0, 0))) as program:
            return f"{program.name or 'a program without name'} (id {number})"
    except OSError:
        return f"a program that is gone (id {number})"
