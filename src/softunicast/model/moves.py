# SPDX-License-Identifier: Apache-2.0
"""What changes between two sets of bindings, slice by slice. Pure; `plan apply` and `plan diff` print it."""

from __future__ import annotations

from dataclasses import dataclass

from softunicast.model.binding import Binding, Bindings
from softunicast.model.slice import Slice


@dataclass(frozen=True, slots=True)
class Moves:
    """`moved`: (before, after) of a slice whose node changed; `new`, `gone`: slices of one side only;
    `renamed`: same slice and node, another pool; `kept`: how many did not change at all.
    """

    moved: tuple[tuple[Binding, Binding], ...]
    new: tuple[Binding, ...]
    gone: tuple[Binding, ...]
    renamed: tuple[tuple[Binding, Binding], ...]
    kept: int

    @property
    def any(self) -> bool:
        """Whether there is a change."""
        return bool(self.moved or self.new or self.gone or self.renamed)


def moves(before: Bindings | None, after: Bindings) -> Moves:
    """Compare by slice; order is that of the bindings."""
    old: dict[Slice, Binding] = {binding.slice: binding for binding in before.bindings} if before else {}
    found = {binding.slice for binding in after.bindings}
    pairs = [(old[binding.slice], binding) for binding in after.bindings if binding.slice in old]
    return Moves(
        moved=tuple((was, now) for was, now in pairs if was.node != now.node),
        new=tuple(binding for binding in after.bindings if binding.slice not in old),
        gone=tuple(binding for slice_, binding in old.items() if slice_ not in found),
        renamed=tuple((was, now) for was, now in pairs if was.node == now.node and was.pool != now.pool),
        kept=sum(was.node == now.node and was.pool == now.pool for was, now in pairs),
    )
