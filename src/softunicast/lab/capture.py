# SPDX-License-Identifier: Apache-2.0
"""Captures at the routers, that know when they listen and when they have seen everything.

tcpdump writes the file; it listens once it says so, and it has caught up when a marker frame (local
experimental ethertype 0x88b5, a random token) sent through the captured device stands in the file. Packets
are queued in the order in which they passed, so what was sent before the marker is in front of it. tcpdump's
own count of packets that the kernel dropped becomes part of the report.

Two places: `internet`, the routers' sides towards the internet, where packets have wire size and final
checksums; and `rack`, the routers' bridges, where frames bear the MAC address of the node that sent them but
checksums are not final.
"""

from __future__ import annotations

import re
import secrets
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from softunicast.errors import KernelError
from softunicast.wire.craft import ethernet
from softunicast.wire.pcap import merge_pcaps

from . import topology as facts
from .checker import MARKER_ETHERTYPE, Owned, Report, check
from .inject import send_frame
from .lab import Host, Lab, wait_until

PLACES: Final = {"internet": facts.INTERNET_SIDES, "rack": facts.RACK_SIDES}
ROUTING: Final = "tcp port 179 or udp port 3784"
BUFFER_KIB: Final = 131072
SNAPLEN: Final = {"internet": 1600, "rack": 192}
# libpcap's ring has blocks of 256 KiB, which the kernel hands over when they are full or a second old: fill
# one.
BLOCK_BYTES: Final = 262144
MARKER_BYTES: Final = 1400
CATCH_UP_S: Final = 30.0


class _Tap:
    """One tcpdump, at one device."""

    def __init__(self, lab: Lab, name: str, device: str, path: Path, words: Sequence[str], snaplen: int) -> None:
        self.host: Host = lab.node(name)
        self.device = device
        self.path = path
        self._mac = facts.mac(name, device)
        self._words = words
        self._snaplen = snaplen
        self._child: subprocess.Popen[Any] | None = None

    def start(self) -> None:
        words = [
            "tcpdump", "-n", "-i", self.device, "-w", str(self.path), "-U", "-Z", "root",
            "-B", str(BUFFER_KIB), "-s", str(self._snaplen), *self._words,
        ]  # fmt: skip
        self._child = self.host.popen(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def listening(self) -> None:
        said = []
        assert self._child is not None and self._child.stderr is not None
        for line in self._child.stderr:
            said.append(line)
            if "listening on" in line:
                return
        raise KernelError(f"lab: tcpdump on {self.device}: {' '.join(said).strip() or 'ended at once'}")

    def catch_up(self, patience_s: float) -> None:
        token = secrets.token_bytes(16)
        # To the sending device itself: nobody else takes it.
        frame = ethernet(self._mac, self._mac, token.ljust(MARKER_BYTES, b"\0"), MARKER_ETHERTYPE)
        send_frame(self.host, self.device, frame, count=BLOCK_BYTES // min(MARKER_BYTES, self._snaplen) + 1)
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

    def stop(self) -> tuple[int, int]:
        """Catch up and end; packets captured, packets that the kernel dropped, by tcpdump's own count."""
        child, self._child = self._child, None
        assert child is not None
        try:
            if child.poll() is None:
                self.catch_up(CATCH_UP_S)
                child.send_signal(signal.SIGINT)
            _, said = child.communicate(timeout=10)
        finally:
            if child.poll() is None:
                child.kill()
                child.communicate()
        numbers = {what: int(count) for count, what in re.findall(r"(\d+) packets (captured|dropped by kernel)", said)}
        if len(numbers) != 2:
            raise KernelError(f"lab: tcpdump on {self.device} did not count: {said.strip()}")
        return numbers["captured"], numbers["dropped by kernel"]


class Capture:
    """A tcpdump at each router. A context manager: inside it listens, behind it `data` is complete and `report`
    judges it.
    """

    def __init__(
        self, lab: Lab, place: str = "internet", *, folder: Path | None = None, filter_: str = "", router: str = ""
    ) -> None:
        """`place`: "internet" or "rack". `folder`: keep the pcap files there; by default they go when the capture
        does. `router`: at this one only.
        """
        self.lab = lab
        self.place = place
        self._filter = filter_
        self._router = router
        self._kept = folder
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._taps: list[_Tap] = []
        self._running = False
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
        folder = self._kept
        if folder is None:
            self._folder = tempfile.TemporaryDirectory(prefix="softunicast-capture-")
            folder = Path(self._folder.name)
        # Who speaks BGP and BFD with whom is the routers' own affair.
        words = f"not ({ROUTING})"
        if self._filter:
            words = f"({words} and ({self._filter})) or ether proto {MARKER_ETHERTYPE:#x}"
        self._taps = [
            _Tap(self.lab, name, device, folder / f"{self.place}-{name}.pcap", [words], SNAPLEN[self.place])
            for name, device in PLACES[self.place]
            if self._router in ("", name)
        ]
        for tap in self._taps:
            tap.start()
        self._running = True
        for tap in self._taps:
            tap.listening()

    def catch_up(self, *, patience_s: float = CATCH_UP_S) -> None:
        """Return when everything that has passed so far is in the files."""
        for tap in self._taps:
            tap.catch_up(patience_s)

    def stop(self) -> None:
        """Catch up and end tcpdump; then `captured` and `kernel_dropped` are its own numbers."""
        if not self._running:
            return
        self._running = False
        for tap in self._taps:
            captured, dropped = tap.stop()
            self.captured += captured
            self.kernel_dropped += dropped

    @property
    def data(self) -> bytes:
        """What was captured so far, at all routers, in the order of time."""
        return merge_pcaps([tap.path.read_bytes() for tap in self._taps])

    def data_at(self, router: str) -> bytes:
        """What was captured so far at one router."""
        return next(tap.path.read_bytes() for tap in self._taps if tap.host.name == router)

    def report(self, owners: Iterable[Owned] | None = None) -> Report:
        """Judge what was captured; `owners`: by default who owns what by the lab's bindings. May be called
        while it runs.
        """
        if self._running:
            self.catch_up()
        held = list(owners) if owners is not None else lab_owners(self.lab)
        if self.place == "internet":
            senders: dict[str, str | None] = {facts.mac(*side): None for side in facts.INTERNET_SIDES}
            return check(
                self.data,
                held,
                senders=senders,
                fleet=[facts.FLEET, facts.FLEET6],
                own=facts.LINES,
                kernel_dropped=self.kernel_dropped,
            )
        report = check(
            self.data,
            held,
            senders={**self.lab.macs()},
            fleet=[facts.FLEET, facts.FLEET6],
            ignored_destinations=facts.UNDERLAY,
            checksums=False,
            kernel_dropped=self.kernel_dropped,
        )
        report.cut_off = 0  # only heads are kept there
        return report


def lab_owners(lab: Lab) -> list[Owned]:
    """Who owns what by the lab's bindings file; nodes by their names in the drawing."""
    from softunicast.model.bindings_file import load_bindings

    names = {facts.plan_name(lab.prefix, node): node for node in facts.NODES}
    bindings = load_bindings(lab.bindings_path.read_text(encoding="utf-8"), str(lab.bindings_path))
    return [
        Owned(binding.slice.address, binding.slice.first, binding.slice.last, names[binding.node])
        for binding in bindings.bindings
    ]
