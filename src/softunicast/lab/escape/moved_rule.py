# SPDX-License-Identifier: Apache-2.0
"""Step 7: the local rule is moved behind one that picks answers by their mark. It works, and the whole host pays.

Every packet of the namespace now asks one rule more, `fishtun` must accept the host's own address as a source, reverse
path filters have to go, and a mark in the wrong place sends packets round in a circle. Sources: see surgery.
"""

from __future__ import annotations

from typing import Final

from softunicast.wire.packet import ACK, RST, SYN

from .notes import Notes
from .sockopts import answer, tcp
from .stage import FIRST, SERVER, SHARED, Stage, Tap, syn
from .surgery import MARKS, TAKES_LOCAL, changed, fewest_local_rules, marked, moved_rule, operated, state

NAME: Final = "moved-rule"
TITLE: Final = "Moving the local rule"
TRIED: Final = (
    "The same packet as before. Connections that enter through fishtun are marked, answers get the mark back, a rule "
    "in front of the local one sends marked packets to fishtun. Then everything is put back."
)


def run(notes: Notes) -> None:
    """It works; what it needs; what it must not do; it leaves no trace."""
    with Stage(notes) as stage, stage.listening(), stage.tap() as world:
        before = state(stage)
        with fewest_local_rules(stage) as counts:
            with operated(stage, early_demux=True):
                notes.check("the SYN-ACK is", "at fishtun, no RST", _answer(notes, stage, world, FIRST))
                with stage.at("host"), tcp() as sock:
                    sock.bind((SHARED, FIRST + 500))
                    seen = answer(lambda: sock.connect((SERVER, 443)))
                    notes.check("a socket of the host on that address", "works", seen)
                with changed(stage, {"net.ipv4.conf.up0.rp_filter": 1, "net.ipv4.conf.up0.src_valid_mark": 1}):
                    seen = _answer(notes, stage, world, FIRST + 1)
                    notes.check("with rp_filter=1, src_valid_mark=1 at the uplink it is", "nowhere, no RST", seen)
        notes.check("rules to the local table, the fewest at any instant", 1, min(counts))
        notes.check("how often they changed", 4, len(counts) - 1)
        with marked(stage), moved_rule(stage):
            seen = _answer(notes, stage, world, FIRST + 2)
            notes.check("without accept_local at fishtun the SYN is", "dropped", seen)
        _circle(notes, stage, world)
        after = state(stage)
        different = [name for name in before if before[name] != after[name]]
        notes.check("what is different when all is put back", "nothing", ", ".join(different) or "nothing")


def _answer(notes: Notes, stage: Stage, world: Tap, port: int) -> str:
    """Where a SYN's answer went."""
    stage.received()
    world.forget()
    notes.command("fishtun", f"write a SYN from {SHARED}:{port}")
    stage.inject(syn(SHARED, port))
    stage.fence(world)
    notes.wire("world", world.packets())
    if not world.packets(out=False):
        return "dropped"
    got = [one for one in stage.received() if one.tcp_flags == SYN | ACK]
    reset = any(one.tcp_flags & RST for one in world.packets(out=False))
    return f"{'at fishtun' if got else 'nowhere'}, {'a RST' if reset else 'no RST'}"


def _circle(notes: Notes, stage: Stage, world: Tap) -> None:
    """The mark on packets that come out of the TUN themselves."""
    with changed(stage, TAKES_LOCAL):
        stage.nft(MARKS.replace("ct mark set 42", "ct mark set 42 meta mark set 42"))
        with moved_rule(stage):
            stage.received()
            world.forget()
            stage.inject(syn(SHARED, FIRST + 3))
            stage.fence(world)
            sent = [one for one in world.packets(out=False) if one.source_port == FIRST + 3]
            back = [one for one in stage.received() if one.source_port == FIRST + 3]
            seen = f"{'back at fishtun' if back else 'gone'}, {len(sent)} on the wire"
            notes.check("marked itself, a client's SYN is", "back at fishtun, 0 on the wire", seen)
        stage.run("host", "nft delete table ip moved")
