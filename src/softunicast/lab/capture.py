# SPDX-License-Identifier: Apache-2.0
"""Captures at the router, that know when they listen and when they have seen everything.

tcpdump writes the file; it listens once it says so, and it has caught up when a marker frame (local
experimental ethertype 0x88b5, a random token) sent through the captured device stands in the file. Packets
are queued in the order in which they passed, so what was sent before the marker is in front of it. tcpdump's
own count of packets that the kernel dropped becomes part of the report.

Two places: `internet`, the router's side towards the internet, where packets have wire size and final
checksums; and `rack`, the router's bridge, where frames bear the MAC address of the node that sent them but
checksums are not final.
"""

from __future__ import annotations

import re
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterable
from ipaddress import IPv4Network
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from softunicast.errors import KernelError
from softunicast.wire.craft import ethernet

from . import topology as facts
from .checker import MARKER_ETHERTYPE, Owned, Report, check
from .inject import send_frame
from .lab import Host, Lab, wait_until

PLACES: Final = {"internet": facts.INTERNET_SIDE, "rack": facts.RACK_SIDE}
BUFFER_KIB: Final = 131072
SNAPLEN: Final = {"internet": 1600, "rack": 192}
# libpcap's ring has blocks of 256 KiB, which the kernel hands over when they are full or a second old: fill
# one.
BLOCK_BYTES: Final = 262144
MARKER_BYTES: Final = 1400


class Capture:
    """One tcpdump. A context manager: inside it listens, behind it `data` is complete and `report`
    judges it.
    """

    def __init__(self, lab: Lab, place: str = "internet", *, path: Path | None = None, filter_: str = "") -> None:
        """`place`: "internet" or "rack". `path`: keep the pcap there; by default it goes when the capture
        does.
        """
        name, self.device = PLACES[place]
        self._mac = facts.mac(name, self.device)
        self.lab = lab
        self.place = place
        self.host: Host = lab.node(name)
        self._filter = filter_
        self._kept = path
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._child: subprocess.Popen[Any] | None = None
        self.path = path if path is not None else Path()
        self.kernel_dropped = 0
        self.captured = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Returns when packets are being captured. KernelError with tcpdump's words otherwise."""
        if self._kept is None:
            self._folder = tempfile.TemporaryDirectory(prefix="softunicast-capture-")
            self.path = Path(self._folder.name) / f"{self.place}.pcap"
        words = [
            "tcpdump", "-n", "-i", self.device, "-w", str(self.path), "-U", "-Z", "root",
            "-B", str(BUFFER_KIB), "-s", str(SNAPLEN[self.place]),
        ]  # fmt: skip
        if self._filter:
            words.append(f"({self._filter}) or ether proto {MARKER_ETHERTYPE:#x}")
        self._child = self.host.popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        said = []
        assert self._child.stderr is not None
        for line in self._child.stderr:
            said.append(line)
            if "listening on" in line:
                return
        raise KernelError(f"lab: tcpdump on {self.device}: {' '.join(said).strip() or 'ended at once'}")

    def catch_up(self, *, patience_s: float = 30.0) -> None:
        """Return when everything that has passed so far is in the file."""
        token = secrets.token_bytes(16)
        # To the sending device itself: nobody else takes it.
        frame = ethernet(self._mac, self._mac, token.ljust(MARKER_BYTES, b"\0"), MARKER_ETHERTYPE)
        send_frame(self.host, self.device, frame, count=BLOCK_BYTES // min(MARKER_BYTES, SNAPLEN[self.place]) + 1)
        with self.path.open("rb") as file:
            tail = b""

            def arrived() -> bool:
                nonlocal tail
                while piece := file.read(1 << 20):
                    tail = tail[-len(token) :] + piece
                    if token in tail:
                        return True
                return False

            wait_until(arrived, f"capture on {self.device}: marker in {self.path}", patience_s=patience_s)

    def stop(self) -> None:
        """Catch up and end tcpdump; then `captured` and `kernel_dropped` are its own numbers."""
        child, self._child = self._child, None
        if child is None:
            return
        try:
            if child.poll() is None:
                self.catch_up()
                child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=10)
        finally:
            if child.poll() is None:
                child.kill()
                child.communicate()
        numbers = {what: int(count) for count, what in re.findall(r"(\d+) packets (captured|dropped by kernel)", said)}
        if len(numbers) != 2:
            raise KernelError(f"lab: tcpdump on {self.device} did not count: {said.strip()}")
        self.captured = numbers["captured"]
        self.kernel_dropped = numbers["dropped by kernel"]

    @property
    def data(self) -> bytes:
        """The pcap file so far."""
        return self.path.read_bytes()

    def report(self, owners: Iterable[Owned] | None = None) -> Report:
        """Judge what was captured; `owners`: by default who owns what by the lab's bindings. May be called
        while it runs.
        """
        if self._child is not None:
            self.catch_up()
        held = list(owners) if owners is not None else lab_owners(self.lab)
        if self.place == "internet":
            senders: dict[str, str | None] = {facts.mac(*facts.INTERNET_SIDE): None}
            line = IPv4Network("192.0.2.0/30")
            return check(
                self.data,
                held,
                senders=senders,
                fleet=[facts.FLEET],
                own=[line],
                kernel_dropped=self.kernel_dropped,
            )
        report = check(
            self.data,
            held,
            senders={**self.lab.macs()},
            fleet=[facts.FLEET],
            ignored_destinations=[facts.UNDERLAY],
            checksums=False,
            kernel_dropped=self.kernel_dropped,
        )
        report.cut_off = 0  # only heads are kept there
        return report


def lab_owners(lab: Lab) -> list[Owned]:
    """Who owns what by the lab's bindings file; nodes by their names in the drawing."""
    from softunicast.model.binding import load_bindings

    names = {facts.plan_name(lab.prefix, node): node for node in facts.NODES}
    bindings = load_bindings(lab.bindings_path.read_text(encoding="utf-8"), str(lab.bindings_path))
    return [
        Owned(binding.slice.address, binding.slice.first, binding.slice.last, names[binding.node])
        for binding in bindings.bindings
    ]
