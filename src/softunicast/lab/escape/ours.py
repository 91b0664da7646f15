# SPDX-License-Identifier: Apache-2.0
"""Step 10: the situation of all steps before, with softunicast's own agent and data plane.

Programs of the host and clients behind fishtun take ports of one slice in one table, at tc and in socket hooks, before
the host's routes, its netfilter and its demultiplexing are asked. Nothing of the host is rebuilt for it.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from softunicast.kernel.conntrack import Conntrack
from softunicast.wire import craft
from softunicast.wire.packet import RST, SYN

from .agent import POOL, agent
from .mover import Mover
from .notes import Notes
from .reservations import STRAY
from .stage import FIRST, LAST, SERVER, SERVER2, SHARED, Stage, Tap, slice_text, wait
from .surgery import state

NAME: Final = "softunicast"
TITLE: Final = "The same under softunicast"
TRIED: Final = (
    "The agent runs on the host; fishtun is an on-ramp. Five programs of the host and five clients hold connections to "
    "one server through the ten ports, an eleventh of each comes, and strangers send what they sent before."
)
PROGRAM: Final = f"""\
import errno, socket
sock = socket.socket()
print(errno.errorcode.get(sock.connect_ex(("{SERVER}", 80)), "works"))
"""


def run(notes: Notes) -> None:
    """Five and five, the eleventh of each kind, strangers, and what the host looks like meanwhile."""
    with Stage(notes) as stage, stage.web(), stage.tap() as world:
        before = state(stage)
        with agent(stage), Mover(stage.tun0, stage.fishtun, stage.host).running():
            _host(notes, stage, before)
            _flows(notes, stage, world)
        different = [name for name, value in state(stage).items() if before[name] != value]
        notes.check("what is different after `agent uninstall`", "nothing", ", ".join(different) or "nothing")


def _host(notes: Notes, stage: Stage, before: dict[str, str]) -> None:
    now = state(stage)
    first = now["ip rule"].splitlines()[0].split()
    notes.check("the host's first rule", "0: from all lookup local", " ".join(first))
    changed = [name for name in before if name.startswith("net.") and before[name] != now[name]]
    notes.check("sysctls of step 7 and 8 that are different", "none", ", ".join(changed) or "none")


def _flows(notes: Notes, stage: Stage, world: Tap) -> None:
    run_it = [sys.executable, "-m", "softunicast.cli", "run", "--pool", POOL, "--"]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="softunicast-escape-")))
        children, files = [], []
        for number in range(10):
            files.append(folder / str(number))
            curl = ["curl", "-sSN", "-m", "240", "-o", str(files[-1]), f"http://{SERVER}/hold"]
            who, command = ("host", [*run_it, *curl]) if number % 2 else ("client", curl)
            children.append(stack.enter_context(stage.popen(who, command)))
        notes.command("host", f"softunicast run --pool {POOL} -- curl http://{SERVER}/hold    (five times)")
        notes.command("client", f"curl http://{SERVER}/hold    (five times)")
        wait(lambda: all(file.exists() and file.read_text().endswith("\n") for file in files), "ten connections")
        ports = [int(file.read_text().split()[-1].rpartition(":")[2]) for file in files]
        notes.wire("world", [one for one in world.packets(out=False) if one.tcp_flags == SYN])
        notes.check("ports of five programs and five clients", slice_text(range(FIRST, LAST + 1)), slice_text(ports))
        said = _output(stage, "host", [*run_it, sys.executable, "-c", PROGRAM])
        notes.check("an eleventh program", "EADDRNOTAVAIL", said)
        said = _output(stage, "client", [sys.executable, "-c", PROGRAM])
        notes.check("an eleventh client", "ECONNREFUSED", said)
        _strangers(notes, stage, world)
        with stage.at("host"), Conntrack() as table:
            notes.check("conntrack entries", 0, len(table.entries()))
        _output(stage, "world", ["curl", "-sS", f"http://{SERVER}/release"])
        ended = [child.wait(60) for child in children]
        notes.check("of the ten, how many end well after all that", 10, ended.count(0))
        stage.fence(world)
        out = [one.source_port or 0 for one in world.packets(out=False) if str(one.source) == SHARED]
        notes.check("packets outside the slice", 0, sum(not FIRST <= port <= LAST for port in out))


def _strangers(notes: Notes, stage: Stage, world: Tap) -> None:
    """What ended reservations in step 4 and drew RSTs in 5 and 6."""
    world.forget()
    for name, flags in STRAY.items():
        notes.command("world", f"a {name} to each port, as of the flow itself, another port, another server")
        for port in range(FIRST, LAST + 1):
            # No sequence number of the flow: the owner's TCP answers by an ACK or not at all (RFC 5961).
            for place in ((SERVER, 80), (SERVER, 81), (SERVER2, 80)):
                packet = craft.tcp(*place, SHARED, port, flags=flags, sequence=7, acknowledgement=1001)
                stage.from_world(packet)
    stage.fence(world)
    said = [one for one in world.packets(out=False) if str(one.source) == SHARED and one.tcp_flags & RST]
    notes.check("RSTs that strangers draw", 0, len(said))


def _output(stage: Stage, who: str, command: list[str]) -> str:
    from softunicast.lab.lab import environment

    words = stage.words(who, command)
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=60, env=environment())
    return done.stdout.strip() or done.stderr.strip()
