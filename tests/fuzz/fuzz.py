# SPDX-License-Identifier: Apache-2.0
"""Fuzz the readers of packets: parse.h in the kernel against the oracle's reader, and the Python readers of `wire`;
then the programs of egress.bpf.c against their stateful oracle.

    make fuzz SECONDS=600        or: python -m tests.fuzz.fuzz --seconds 600 [--seed N]

Frames near every decision (those of the steering tests) are damaged at random. For each, su_parse and the oracle must
say the same of every field, offsets included; readers in `wire` may refuse it by their own exception, and no other;
what `wire.packet` accepts, it must read as the kernel does. What ever failed is kept in corpus/*.hex and comes first.

Two thirds of the time go to sequences of packets through su_onramp_in, su_uplink_in and su_guard, most of them damaged
(tests/support/fish_traffic.py). Claims, bytes, counters and reasons must be what the oracle says. Such a failure is
told with its seed and frame; the ports that the data plane chose at random are not repeated.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import random
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from softunicast.egress.arbiter_oracle import Broken
from softunicast.kernel.abi import Drop
from softunicast.kernel.abi_util import addr_bytes
from softunicast.kernel.bpf import BpfObject
from softunicast.steering.oracle_packet import parse as model_parse
from softunicast.wire import gue, pcap
from softunicast.wire.packet import Malformed, checksum_errors, parse
from tests.bpf.steer_support import Generator
from tests.bpf.steer_support import frame as plain_frame
from tests.fuzz.damage import damaged
from tests.support.fish_traffic import Traffic
from tests.support.fish_world import world

HERE: Final = Path(__file__).parent
CORPUS: Final = HERE / "corpus"
HEADERS: Final = HERE.parents[1] / "bpf" / "include"
ETHERNET: Final = 14
LEAST: Final = 4000
"""Packets, however little of the time the machine has for them: fewer say nothing."""
LAYOUT: Final = struct.Struct("=i16s16s16s16s8s8H4sHH7Bx")
IP6, FRAG, PORTS, ERROR, QUOTE, ECHO_REQUEST, ECHO_REPLY, OPTIONS = (1 << bit for bit in range(8))


class Different(AssertionError):
    """Two readers disagree, or one of them failed in a way it must not."""


@dataclass(frozen=True)
class Seen:
    """A frame as one of the readers has it; of a malformed one nothing else is compared."""

    malformed: bool
    not_ip: bool = False
    source: bytes = b""
    target: bytes = b""
    proto: int = 0
    ttl: int = 0
    tos: int = 0
    total: int = 0
    layer4: int = 0
    ip6: bool = False
    options: bool = False
    fragment: bool = False
    fragment_at: int = 0
    ident: int = 0
    ports: tuple[int, int] | None = None
    error: bool = False
    echo_request: bool = False
    quoted: tuple[bytes, int, int] | None = None


def by_model(frame: bytes) -> Seen:
    """What the oracle reads."""
    packet = model_parse(frame, ETHERNET, int.from_bytes(frame[12:14], "big"))
    if packet is None:
        return Seen(malformed=False, not_ip=True)
    if packet.malformed:
        return Seen(malformed=True)
    return Seen(
        False, False, packet.source, packet.target, packet.proto, packet.ttl, packet.tos, packet.total, packet.layer4,
        packet.ip6, packet.options, packet.fragment, packet.fragment_at, packet.ident, packet.ports, packet.error,
        packet.echo_request, packet.quoted,
    )  # fmt: skip


def by_kernel(loaded: BpfObject, frame: bytes) -> Seen:
    """What su_parse reads."""
    loaded.programs["parse_frame"].test_run(frame)
    raw = loaded.maps["parsed"].lookup(struct.pack("=I", 0))
    assert raw is not None
    error, source, target, q_source, _, ports, *rest = LAYOUT.unpack(raw)
    if error == -Drop.MALFORMED:
        return Seen(malformed=True)
    if error == -Drop.PROTOCOL:
        return Seen(malformed=False, not_ip=True)
    if error:
        raise Different(f"su_parse answers {error}")
    (_, _, layer4, _, _, _, total, fragment_at, ident, _, flags, proto, ttl, tos, _, _, _, q_proto) = rest
    number = int.from_bytes(ident if flags & IP6 else ident[:2], "big") if flags & FRAG else 0
    source_port, target_port, q_port, _ = struct.unpack("!4H", ports)
    return Seen(
        False, False, source, target, proto, ttl, tos, total, layer4, bool(flags & IP6), bool(flags & OPTIONS),
        bool(flags & FRAG), fragment_at, number, (source_port, target_port) if flags & PORTS else None,
        bool(flags & ERROR), bool(flags & ECHO_REQUEST), (q_source, q_port, q_proto) if flags & QUOTE else None,
    )  # fmt: skip


def check_wire(frame: bytes, seen: Seen) -> None:
    """`wire` refuses by its own exceptions only, and reads as the kernel what it accepts."""
    data = frame[ETHERNET:]
    for read in (gue.unpack, pcap.read_pcap, checksum_errors):
        try:
            read(data)
        except (Malformed, pcap.NotPcap, gue.Malformed):
            pass
        except Exception as error:
            raise Different(f"{read.__module__}.{read.__name__}: {type(error).__name__}: {error}") from error
    try:
        packet = parse(data)
    except Malformed:
        return
    str(packet)
    if seen.malformed or seen.not_ip:
        return  # it asks for less, e.g. of TCP's data offset
    wire = (addr_bytes(packet.source), addr_bytes(packet.destination), packet.proto, packet.ttl, packet.transport)
    kernel = (seen.source, seen.target, seen.proto, seen.ttl, seen.layer4 - ETHERNET)
    if wire != kernel or packet.is_fragment != seen.fragment:
        raise Different(f"wire.packet has {packet!r}, the kernel {seen}")
    if packet.source_port is not None and (packet.source_port, packet.destination_port) != seen.ports:
        raise Different(f"wire.packet has ports of {packet!r}, the kernel {seen.ports}")


def check(loaded: BpfObject, frame: bytes) -> Seen:
    """All of it for one frame; raises Different."""
    model, kernel = by_model(frame), by_kernel(loaded, frame)
    if model != kernel:
        raise Different(f"the oracle has {model}, the kernel {kernel}")
    check_wire(frame, kernel)
    return kernel


@contextmanager
def loaded_parser() -> Iterator[BpfObject]:
    """parse_fuzz.bpf.c, built against the product's headers."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "parse_fuzz.bpf.o"
        subprocess.run(
            ["clang", "-O2", "-g", "-Wall", "-Werror", "-Wno-unused-function", "-target", "bpf", "-mcpu=v3",
             f"-I/usr/include/{platform.machine()}-linux-gnu", f"-I{HEADERS}",
             "-c", str(HERE / "parse_fuzz.bpf.c"), "-o", str(target)],
            check=True, timeout=300,
        )  # fmt: skip
        with BpfObject.load(target) as loaded:
            yield loaded


def corpus() -> list[bytes]:
    """Frames that failed once."""
    return [bytes.fromhex(path.read_text()) for path in sorted(CORPUS.glob("*.hex"))]


def keep(frame: bytes) -> Path:
    """Put a frame into the corpus."""
    path = CORPUS / f"{hashlib.sha256(frame).hexdigest()[:16]}.hex"
    path.write_text(frame.hex() + "\n")
    return path


def fuzz(loaded: BpfObject, seed: int, seconds: float) -> dict[str, int]:
    """So long, and LEAST; how many frames were of which kind. Raises Different, which names the seed and the frame."""
    source, generator = random.Random(seed), Generator(seed)
    kinds = {"frames": 0, "malformed": 0, "with ports": 0, "fragments": 0, "errors that quote": 0, "behind options": 0}
    end = time.monotonic() + seconds
    while time.monotonic() < end or kinds["frames"] < LEAST:
        near = plain_frame(generator.plain()) if source.random() < 0.85 else generator.frame()
        frame = damaged(near, source)
        try:
            seen = check(loaded, frame)
        except Different as error:
            raise Different(f"seed {seed}, frame {kinds['frames']}, {frame.hex()}: {error}") from error
        kinds["frames"] += 1
        kinds["malformed"] += seen.malformed
        kinds["with ports"] += seen.ports is not None
        kinds["fragments"] += seen.fragment
        kinds["errors that quote"] += seen.quoted is not None
        kinds["behind options"] += seen.options
    return kinds


def fuzz_fish(seed: int, seconds: float) -> dict[str, int]:
    """So long, and LEAST; how many cases were of which kind. Raises Broken."""
    with world() as node:
        traffic = Traffic(node, seed, damage=0.6)
        end = time.monotonic() + seconds
        while time.monotonic() < end or traffic.tally.total() < LEAST:
            traffic.run(200)
        node.compare()
        return dict(traffic.tally)


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare readers and programs with their oracles on damaged packets.")
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--seed", type=int, default=time.time_ns() % 1_000_000_007)
    arguments = parser.parse_args()
    print(f"seed {arguments.seed}", flush=True)
    with loaded_parser() as loaded:
        for frame in corpus():
            check(loaded, frame)
        try:
            kinds = fuzz(loaded, arguments.seed, arguments.seconds / 3)
        except Different as error:
            print(error)
            frame = bytes.fromhex(str(error).split(", ")[2].split(":")[0])
            print(f"kept as {keep(frame)}")
            return 1
    print(", ".join(f"{count} {name}" for name, count in kinds.items()))
    try:
        cases = fuzz_fish(arguments.seed, arguments.seconds * 2 / 3)
    except Broken as error:
        print(error)
        return 1
    print(f"{sum(cases.values())} packets in sequence, {len(cases)} cases")
    return 0


if __name__ == "__main__":
    sys.exit(main())
