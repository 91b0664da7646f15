# SPDX-License-Identifier: Apache-2.0
"""Step 11: ten downloads through ten ports by each strategy, and an eleventh; then what each costs.

The ten are curl programs behind fishtun. Each fetches a file under a name of its own and then keeps its connection
open, so that all ten ports are in use when the eleventh comes; the server says which port it saw.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from softunicast.lab import build
from softunicast.wire.packet import SYN

from .cost import measure
from .notes import Notes
from .sockopts import answer, tcp, udp
from .stage import ECHO_PORT, FIRST, LAST, PATIENCE_S, SERVER, SERVER2, SHARED, Stage, Tap, slice_text, wait
from .strategies import STRATEGIES, Strategy
from .surgery import fewest_local_rules, state

NAME: Final = "strategies"
TITLE: Final = "Four ways, side by side"
TRIED: Final = (
    "Each way carries ten curl downloads through the ten-port slice at the same time; an eleventh client comes, and a "
    "program of the host that binds a port in use; when the ten have ended, one more client. Then each is measured."
)
FILE_BYTES: Final = 200_000
EXITS: Final = {0: "works", 7: "refused at once", 28: "hangs until it gives up"}
GIVES_UP_S: Final = 5


def run(notes: Notes) -> None:
    """Everything, for all strategies."""
    build.check_tools(("ip", "nsenter", "nft", "curl"))
    measure(notes, {strategy.name: carry(notes, strategy) for strategy in STRATEGIES})


def carry(notes: Notes, strategy: Strategy) -> dict[str, str]:
    """Ten downloads, an eleventh and what follows, by one strategy; what was seen."""
    notes.line(f"--- {strategy.name}")
    with Stage(notes, strategy.name) as stage, stage.web():
        before = state(stage)
        with fewest_local_rules(stage) as rules, strategy.up(stage) as mover, mover.running():
            seen = _carry(notes, strategy, stage)
        notes.check(f"{strategy.name}: rules to the local table, the fewest at any instant", 1, min(rules))
        different = [name for name, value in state(stage).items() if before[name] != value]
        notes.check(f"{strategy.name}: different at the end", "nothing", ", ".join(different) or "nothing")
    return seen


def _curl(stage: Stage, *arguments: str, who: str = "client", patience_s: float = GIVES_UP_S) -> str:
    """How a curl ends that waits so long for an answer to its SYN."""
    words = ["curl", "-sS", "--connect-timeout", str(patience_s), "-m", "60", *arguments]
    done = subprocess.run(stage.words(who, words), capture_output=True, text=True, check=False, timeout=60)
    return EXITS.get(done.returncode, f"curl exits with {done.returncode}: {done.stderr.strip()}")


def _carry(notes: Notes, strategy: Strategy, stage: Stage) -> dict[str, str]:
    name = strategy.name
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="softunicast-escape-")))
        world = stack.enter_context(stage.tap())
        files = [(folder / f"{number}", folder / f"{number}.held") for number in range(10)]
        address = f"http://{SERVER}"
        notes.command("client", f"curl {address}/bytes/{FILE_BYTES}?token=N {address}/hold    (ten times at once)")
        children = []
        for number, (file, held) in enumerate(files):
            urls = [
                "-o",
                str(file),
                f"{address}/bytes/{FILE_BYTES}?token=client{number}",
                "-o",
                str(held),
                f"{address}/hold",
            ]
            command = ["curl", "-sS", "-N", "-m", "240", *urls]
            children.append(stack.enter_context(stage.popen("client", command, stderr=subprocess.PIPE)))
        wait(
            lambda: all(held.exists() and held.read_text().endswith("\n") for _, held in files),
            f"{name}: ten downloads",
        )
        notes.wire("world", [one for one in world.packets(out=False) if one.tcp_flags == SYN])
        whole = sum(file.read_bytes() == _file(f"client{number}") for number, (file, _) in enumerate(files))
        notes.check(f"{name}: downloads whole, of ten", 10, whole)
        seen = slice_text(int(held.read_text().split()[-1].removeprefix(f"{SHARED}:")) for _, held in files)
        notes.check(f"{name}: the ports of {SHARED} that the server saw", slice_text(range(FIRST, LAST + 1)), seen)
        notes.check(f"{name}: a datagram and its answer", "from a port of the slice", _datagram(stage))
        eleventh = _curl(stage, "-o", "/dev/null", f"{address}/")
        notes.check(f"{name}: an eleventh client", strategy.eleventh, eleventh)
        notes.check(
            f"{name}: a client to another server", "works", _curl(stage, "-o", "/dev/null", f"http://{SERVER2}/")
        )
        world.forget()
        program = _program(stage, world)
        notes.check(f"{name}: a program that binds {SHARED}:{FIRST}", strategy.program, program)
        notes.wire("world", [one for one in world.packets(out=False) if one.tcp_flags == SYN])
        _curl(stage, "-o", "/dev/null", f"{address}/release", who="world")
        ended = [child.wait(60) for child in children]
        notes.check(f"{name}: of the ten, how many end well", 10, ended.count(0))
        # Where it is to get in, it may wait for the mover to see the last of the ten's FINs.
        patience_s = PATIENCE_S if strategy.after == "works" else GIVES_UP_S
        after = _curl(stage, "-o", "/dev/null", f"{address}/", patience_s=patience_s)
        notes.check(f"{name}: one more client, right after them", strategy.after, after)
    return {"eleventh": eleventh, "program": program, "after": after}


def _file(token: str) -> bytes:
    line = f"{token}\n".encode()
    return (line * (FILE_BYTES // len(line) + 1))[:FILE_BYTES]


def _datagram(stage: Stage) -> str:
    """A client's question to the world's UDP echo server, which says whom it saw."""
    with stage.at("client"), udp() as sock:
        sock.settimeout(GIVES_UP_S)
        sock.sendto(b"question", (SERVER, ECHO_PORT))
        try:
            seen, _, said = sock.recv(100).decode().partition(" ")
        except TimeoutError:
            return "no answer"
    address, _, port = seen.partition(":")
    inside = address == SHARED and FIRST <= int(port) <= LAST and said == "question"
    return "from a port of the slice" if inside else f"{said} from {seen}"


def _program(stage: Stage, world: Tap) -> str:
    """A program of the host wants a flow that a client has."""
    with stage.at("host"), tcp() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((SHARED, FIRST))
        sock.setblocking(False)
        said = answer(lambda: sock.connect((SERVER, 80)))
        if said != "EINPROGRESS":
            return said
        stage.fence(world)
        sent = [one.source_port for one in world.packets(out=False) if one.tcp_flags == SYN]
    if not sent:
        return "connects, and nothing leaves"
    if sent[0] == FIRST:
        return "its SYN leaves under the client's five-tuple"
    return "connects, and the wire shows another port"
