# SPDX-License-Identifier: Apache-2.0
"""Which steps there are, in the order of the story."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from softunicast.errors import KernelError

from . import (
    contest,
    early_demux,
    holds,
    local_input,
    moved_rule,
    ours,
    reservations,
    silent_rewrite,
    snat_full,
    terminate,
    two_sockets,
)
from .notes import Notes


@dataclass(frozen=True, slots=True)
class Step:
    """One experiment; `run` does it and fills the notes."""

    number: int
    name: str
    title: str
    tried: str
    run: Callable[[Notes], None]

    def perform(self, say: Callable[[str], None] = lambda _: None) -> Notes:
        """Run it whole. What stops it, such as an option that this kernel lacks, is one more check that fails."""
        notes = Notes(self.number, self.name, self.title, self.tried, say)
        try:
            self.run(notes)
        except (OSError, KernelError) as error:
            notes.check("the experiment as a whole", "done", f"stopped by: {error}")
        return notes


_MODULES: Final = (
    two_sockets,
    snat_full,
    silent_rewrite,
    reservations,
    holds,
    local_input,
    moved_rule,
    early_demux,
    terminate,
    ours,
    contest,
)
STEPS: Final = tuple(
    Step(number, module.NAME, module.TITLE, module.TRIED, module.run) for number, module in enumerate(_MODULES, 1)
)
