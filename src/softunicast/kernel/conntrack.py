# SPDX-License-Identifier: Apache-2.0
"""Entries of conntrack in the current network namespace, over ctnetlink.

An entry has two tuples, the original direction's and the reply's; a second entry with either of them is refused
(EEXIST). Opening the socket loads nf_conntrack_netlink but does not make the namespace track anything: only a rule
with a ct or nat expression does. `Prepared` is for callers that reserve at the rate of new flows: a whole message
is made once by pyroute2 and only its ports are patched.

Sources: net/netfilter/nf_conntrack_netlink.c (ctnetlink_new_conntrack, ctnetlink_del_conntrack).
"""

from __future__ import annotations

import errno
import socket
import struct
from dataclasses import dataclass
from typing import Any, Final

from pyroute2 import NFCTSocket
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.nfnetlink.nfctsocket import (
    TCP_CONNTRACK_SYN_SENT,
    TCP_CONNTRACK_TO_NAME,
    NFCTAttr,
    NFCTAttrTuple,
    nfct_msg,
)

from softunicast.errors import KernelError

_NETLINK_NETFILTER: Final = 12
_SUBSYSTEM: Final = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_NEW, _DELETE = 0, 2
_REQUEST, _ACK, _EXCL, _CREATE = 0x1, 0x4, 0x200, 0x400
_HEAD: Final = struct.Struct("=IHHII")
_ERROR: Final = struct.Struct("=i")


@dataclass(frozen=True, slots=True)
class Tuple:
    """One direction of a flow."""

    proto: int
    source: str
    source_port: int
    destination: str
    destination_port: int

    def reverse(self) -> Tuple:
        return Tuple(self.proto, self.destination, self.destination_port, self.source, self.source_port)

    def __str__(self) -> str:
        """As conntrack(8) takes it."""
        name = {socket.IPPROTO_TCP: "tcp", socket.IPPROTO_UDP: "udp"}.get(self.proto, str(self.proto))
        ports = f"--sport {self.source_port} --dport {self.destination_port}"
        return f"-p {name} -s {self.source} -d {self.destination} {ports}"


class _TcpState(NFCTAttr):  # type: ignore[misc]
    """CTA_PROTOINFO with nothing but the state."""

    def attrs(self) -> list[list[Any]]:
        return [["CTA_PROTOINFO_TCP", {"attrs": [["CTA_PROTOINFO_TCP_STATE", TCP_CONNTRACK_SYN_SENT]]}]]


def _attribute(one: Tuple) -> Any:
    return NFCTAttrTuple(
        saddr=one.source, daddr=one.destination, proto=one.proto, sport=one.source_port, dport=one.destination_port
    )


def _wanted(one: Tuple, reply: Tuple | None, timeout_s: int, mark: int) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "tuple_orig": _attribute(one),
        "tuple_reply": _attribute(reply or one.reverse()),
        "timeout": timeout_s,
    }
    if mark:
        wanted["mark"] = mark
    if one.proto == socket.IPPROTO_TCP:
        wanted["protoinfo"] = _TcpState()
    return wanted


class Conntrack:
    """A ctnetlink socket of the namespace the thread is in when it is made. Context manager."""

    def __init__(self) -> None:
        self._socket: Any = NFCTSocket()

    def __enter__(self) -> Conntrack:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def add(self, one: Tuple, *, reply: Tuple | None = None, timeout_s: int = 120, mark: int = 0) -> None:
        """Make an entry; `reply` is the other direction unless given. KernelError: EEXIST, one direction is taken."""
        self._entry("add", one, **_wanted(one, reply, timeout_s, mark))

    def delete(self, one: Tuple) -> None:
        """Remove the entry with that original direction. KernelError: ENOENT, there is none."""
        self._entry("del", one, tuple_orig=_attribute(one))

    def _entry(self, verb: str, one: Tuple, **wanted: Any) -> None:
        try:
            list(self._socket.entry(verb, **wanted))
        except NetlinkError as error:
            message = f"conntrack {verb} {one}: {errno.errorcode.get(error.code, error.code)}"
            raise KernelError(message, errno=error.code) from error

    def entries(self) -> dict[Tuple, str]:
        """All TCP and UDP entries by their original direction, with the state that conntrack thinks TCP is in."""
        found = {}
        for message in self._socket.dump():
            one = NFCTAttrTuple.from_netlink(socket.AF_INET, message.get_attr("CTA_TUPLE_ORIG"))
            if one.proto in (socket.IPPROTO_TCP, socket.IPPROTO_UDP):
                state = message.get_nested("CTA_PROTOINFO", "CTA_PROTOINFO_TCP", "CTA_PROTOINFO_TCP_STATE")
                name = TCP_CONNTRACK_TO_NAME.get(state, "")
                found[Tuple(one.proto, one.saddr, one.sport, one.daddr, one.dport)] = name
        return found

    def statistics(self) -> dict[str, int]:
        """What `conntrack -S` shows, summed over CPUs: insert_failed, drop ..."""
        totals: dict[str, int] = {}
        for message in self._socket.stat():
            for name, value in message["attrs"]:
                key = name.removeprefix("CTA_STATS_").lower()
                totals[key] = totals.get(key, 0) + int(value)
        return totals


class Prepared:
    """Reservations of a few addresses' flows, fast: a message is patched, sent and acknowledged. Context manager.

    What is patched are the four bytes of ports in both tuples and the addresses; pyroute2 says where they are by
    making a message of recognisable ones.
    """

    def __init__(self, proto: int, *, mark: int = 0, timeout_s: int = 120) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_NETFILTER)
        self._socket.bind((0, 0))
        sample = Tuple(proto, "241.1.2.3", 0xF1A1, "242.4.5.6", 0xF2B2)
        create = _encode(_NEW, _REQUEST | _ACK | _EXCL | _CREATE, **_wanted(sample, None, timeout_s, mark))
        delete = _encode(_DELETE, _REQUEST | _ACK, tuple_orig=_attribute(sample))
        self._create, self._delete = (_Template(data, sample) for data in (create, delete))

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def add(self, source: bytes, source_port: int, destination: bytes, destination_port: int) -> int:
        """0, or an errno: EEXIST when either direction is taken. Addresses are four bytes."""
        return self._ask(self._create.fill(source, source_port, destination, destination_port))

    def delete(self, source: bytes, source_port: int, destination: bytes, destination_port: int) -> int:
        """0, or ENOENT."""
        return self._ask(self._delete.fill(source, source_port, destination, destination_port))

    def _ask(self, message: bytearray) -> int:
        self._socket.send(message)
        answer = self._socket.recv(4096)
        return -int(_ERROR.unpack_from(answer, _HEAD.size)[0])


class _Template:
    """A message and where its addresses and ports are."""

    def __init__(self, data: bytes, sample: Tuple) -> None:
        self._data = bytearray(data)
        parts = (
            socket.inet_aton(sample.source),
            struct.pack("!H", sample.source_port),
            socket.inet_aton(sample.destination),
            struct.pack("!H", sample.destination_port),
        )
        self._places = [[at for at in range(len(data)) if data.startswith(part, at)] for part in parts]
        if not all(self._places):
            raise KernelError("conntrack: pyroute2 made a message without the addresses asked for")

    def fill(self, source: bytes, source_port: int, destination: bytes, destination_port: int) -> bytearray:
        values = (source, source_port.to_bytes(2, "big"), destination, destination_port.to_bytes(2, "big"))
        for places, value in zip(self._places, values, strict=True):
            for at in places:
                self._data[at : at + len(value)] = value
        return self._data


def _encode(kind: int, flags: int, **wanted: Any) -> bytes:
    message: Any = nfct_msg.create_from(**wanted)
    message["header"]["type"] = kind | _SUBSYSTEM
    message["header"]["flags"] = flags
    message["header"]["sequence_number"] = 1
    message["nfgen_family"] = socket.AF_INET
    message.encode()
    return bytes(message.data)
