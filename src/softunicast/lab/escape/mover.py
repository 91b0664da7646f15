# SPDX-License-Identifier: Apache-2.0
"""The program that stands between a client's device and the host's, as every VPN server does.

    client's kernel -> tun0 -> Mover.outbound -> fishtun -> the host's stack -> up0 -> world, and back

`Mover` copies: the kernel (or BPF) rewrites. `Nat` is the userspace NAT of the older ways `ctnetlink` and `hold`: it
chooses a port, asks Reservations for it, rewrites and undoes. That a packet passes through Python is the lab's
licence, not the product's: these are exhibits, they carry a few downloads and are measured, their share of Python
apart. They know TCP and UDP over IPv4 without options or fragments, and no timers.

Checksums are updated, not computed (RFC 1624): a flow adds the same to each packet.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final, Protocol

from softunicast.kernel import netns
from softunicast.kernel.conntrack import Prepared
from softunicast.wire import craft
from softunicast.wire.checksum import ones_sum
from softunicast.wire.packet import ACK, FIN, RST, SYN

from .sockopts import hold, udp

_LARGEST: Final = 65535
_BATCH: Final = 64
_TCP: Final = socket.IPPROTO_TCP
_UDP: Final = socket.IPPROTO_UDP
_CHECKSUM_AT: Final = {_TCP: 36, _UDP: 26}
_FLAGS_AT: Final = 33
_PORT_UNREACHABLE: Final = (3, 3)
_WORD: Final = struct.Struct("!H")


class Mover:
    """Copies packets between two TUN descriptors. `running` does it in a thread of its own, in namespace `where`."""

    def __init__(self, client: int, host: int, where: str) -> None:
        self._client = client
        self._host = host
        self._where = where

    def outbound(self, packet: bytes) -> None:
        """A client's packet."""
        os.write(self._host, packet)

    def inbound(self, packet: bytes) -> None:
        """A packet for a client."""
        os.write(self._client, packet)

    def close(self) -> None:
        """Give back what flows hold."""

    @contextmanager
    def running(self) -> Iterator[None]:
        """Moves until the end. An error in the thread is raised here."""
        stop = os.eventfd(0)
        errors: list[BaseException] = []

        def work() -> None:
            try:
                with netns.enter(self._where):
                    self._loop(stop)
            except BaseException as error:  # noqa: BLE001 handed to the thread that started this one
                errors.append(error)

        thread = threading.Thread(target=work, name="mover")
        thread.start()
        try:
            yield
        finally:
            os.eventfd_write(stop, 1)
            thread.join()
            os.close(stop)
            if errors:
                raise errors[0]

    def _loop(self, stop: int) -> None:
        poller = select.poll()
        for fd in (self._client, self._host, stop):
            poller.register(fd, select.POLLIN)
        ways = ((self._client, self.outbound), (self._host, self.inbound))
        while True:
            ready = {fd for fd, _ in poller.poll()}
            if stop in ready:
                return
            for fd, move in ways:
                if fd in ready:
                    with contextlib.suppress(BlockingIOError):
                        for _ in range(_BATCH):
                            packet = os.read(fd, _LARGEST)
                            if packet[0] == 0x45:
                                move(packet)


class Reservations(Protocol):
    """Who may have a five-tuple of the shared address."""

    def take(self, proto: int, port: int, remote: bytes, remote_port: int) -> bool:
        """False: somebody else has it."""

    def release(self, proto: int, port: int, remote: bytes, remote_port: int) -> None: ...

    def close(self) -> None: ...


class ByConntrack:
    """A conntrack entry each, made by ctnetlink. Make it in the host's namespace."""

    def __init__(self, shared: str, mark: int) -> None:
        self._shared = socket.inet_aton(shared)
        self._by_proto = {proto: Prepared(proto, mark=mark) for proto in (_TCP, _UDP)}

    def take(self, proto: int, port: int, remote: bytes, remote_port: int) -> bool:
        return self._by_proto[proto].add(self._shared, port, remote, remote_port) == 0

    def release(self, proto: int, port: int, remote: bytes, remote_port: int) -> None:
        self._by_proto[proto].delete(self._shared, port, remote, remote_port)

    def close(self) -> None:
        for one in self._by_proto.values():
            one.__exit__()


class BySocket:
    """A hold socket each. `take` must be called in the host's namespace."""

    def __init__(self, shared: str) -> None:
        self._shared = shared
        self._held: dict[tuple[int, int, bytes, int], socket.socket] = {}

    def take(self, proto: int, port: int, remote: bytes, remote_port: int) -> bool:
        local, to = (self._shared, port), (socket.inet_ntoa(remote), remote_port)
        try:
            held = hold(local, to) if proto == _TCP else self._datagram(local, to)
        except OSError:
            return False
        self._held[proto, port, remote, remote_port] = held
        return True

    @staticmethod
    def _datagram(local: tuple[str, int], to: tuple[str, int]) -> socket.socket:
        made = udp()
        try:
            made.bind(local)
            made.connect(to)
        except BaseException:
            made.close()
            raise
        return made

    def release(self, proto: int, port: int, remote: bytes, remote_port: int) -> None:
        held = self._held.pop((proto, port, remote, remote_port), None)
        if held is not None:
            held.close()

    def close(self) -> None:
        for held in self._held.values():
            held.close()
        self._held.clear()


@dataclass(slots=True, eq=False)
class _Flow:
    """What to write over a packet's source (out) and destination (in), and what that adds to its checksums."""

    proto: int
    inner: bytes
    outer: bytes
    port: int
    remote: bytes
    remote_port: int
    keys: tuple[bytes, bytes]
    change: int
    change_all: int
    fins: int = 0


class Nat(Mover):
    """Rewrites between clients and ports of one address, as many as Reservations give."""

    def __init__(
        self, client: int, host: int, where: str, shared: str, ports: range, reservations: Reservations
    ) -> None:
        super().__init__(client, host, where)
        self._shared = socket.inet_aton(shared)
        self._ports = ports
        self._reservations = reservations
        self._out: dict[bytes, _Flow] = {}
        self._in: dict[bytes, _Flow] = {}
        self.refused = 0

    def close(self) -> None:
        self._reservations.close()

    def outbound(self, packet: bytes) -> None:
        """Rewritten under the flow's port; a new flow without a port is refused at once."""
        flow = self._out.get(packet[9:10] + packet[12:24])
        if flow is None:
            if packet[9] not in _CHECKSUM_AT or not _begins(packet):
                return
            flow = self._begin(packet)
            if flow is None:
                self.refused += 1
                os.write(self._client, _refusal(packet))
                return
        os.write(self._host, self.rewritten(flow, packet))
        if flow.proto == _TCP:
            self._follow(flow, packet[_FLAGS_AT], 1)

    def inbound(self, packet: bytes) -> None:
        """Undone for the client whose flow it is; others are dropped."""
        flow = self._in.get(packet[9:10] + packet[12:24])
        if flow is None:
            return
        data = bytearray(packet)
        data[16:20] = flow.inner[:4]
        data[22:24] = flow.inner[4:]
        _adjust(data, flow.proto, -flow.change, -flow.change_all)
        os.write(self._client, data)
        if flow.proto == _TCP:
            self._follow(flow, packet[_FLAGS_AT], 2)

    def flow(self, packet: bytes) -> _Flow:
        """The flow of a client's packet that has passed before."""
        return self._out[packet[9:10] + packet[12:24]]

    @staticmethod
    def rewritten(flow: _Flow, packet: bytes) -> bytearray:
        """A client's packet under the flow's outer source."""
        data = bytearray(packet)
        data[12:16] = flow.outer[:4]
        data[20:22] = flow.outer[4:]
        _adjust(data, flow.proto, flow.change, flow.change_all)
        return data

    def _begin(self, packet: bytes) -> _Flow | None:
        proto, inner = packet[9], packet[12:16] + packet[20:22]
        remote, (remote_port,) = packet[16:20], _WORD.unpack_from(packet, 22)
        count = len(self._ports)
        first = random.randrange(count)  # RFC 6056, algorithm 1
        for number in range(count):
            port = self._ports[(first + number) % count]
            if self._reservations.take(proto, port, remote, remote_port):
                break
        else:
            return None
        outer = self._shared + _WORD.pack(port)
        keys = (packet[9:10] + packet[12:24], packet[9:10] + remote + outer[:4] + packet[22:24] + outer[4:])
        change, change_all = (ones_sum(outer[:to]) - ones_sum(inner[:to]) for to in (4, 6))
        flow = _Flow(proto, inner, outer, port, remote, remote_port, keys, change, change_all)
        self._out[keys[0]] = self._in[keys[1]] = flow
        return flow

    def _follow(self, flow: _Flow, flags: int, side: int) -> None:
        """Both FINs and an ACK behind them, or a RST, end a flow."""
        if flags & FIN:
            flow.fins |= side
        elif flags & RST or (flow.fins == 3 and flags & ACK):
            del self._out[flow.keys[0]], self._in[flow.keys[1]]
            self._reservations.release(flow.proto, flow.port, flow.remote, flow.remote_port)


def _begins(packet: bytes) -> bool:
    """Whether a packet without a flow may begin one: UDP, or a SYN."""
    return packet[9] == _UDP or packet[_FLAGS_AT] & (SYN | ACK | RST | FIN) == SYN


def _adjust(data: bytearray, proto: int, change: int, change_all: int) -> None:
    """Add to the sums behind both checksums (RFC 1624, equation 3); a UDP checksum of 0 is none."""
    for at, more in ((10, change), (_CHECKSUM_AT[proto], change_all)):
        (old,) = _WORD.unpack_from(data, at)
        if old or proto == _TCP or at == 10:
            new = 65535 - (65535 - old + more) % 65535
            _WORD.pack_into(data, at, new if proto == _UDP and at != 10 else new % 65535)


def _refusal(packet: bytes) -> bytes:
    """What tells a client at once: a RST, or for UDP "port unreachable"."""
    source, target = socket.inet_ntoa(packet[12:16]), socket.inet_ntoa(packet[16:20])
    port, remote_port, sequence = struct.unpack_from("!HHI", packet, 20)
    if packet[9] == _UDP:
        return craft.icmp_error(target, source, *_PORT_UNREACHABLE, packet[:28])
    return craft.tcp(target, remote_port, source, port, flags=RST | ACK, acknowledgement=sequence + 1)
