# SPDX-License-Identifier: Apache-2.0
"""How answers are written: JSON with stable keys, or tables for people.

A table is aligned plain text, coloured when standard output is a terminal and NO_COLOR is unset. Cells are
never cut: an address that does not fit makes the line longer. Rows may come as a stream of any length; they
are aligned a batch at a time, so that a listing of a million flows begins at once and needs no memory.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

BATCH_ROWS = 512


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell's text with a rich style ('' for none)."""

    text: str
    style: str = ""


Row = Sequence[str | Cell]


def batches(rows: Iterable[Row], size: int = BATCH_ROWS) -> Iterator[list[Row]]:
    """Rows in lists of at most `size`, in order."""
    iterator = iter(rows)
    while batch := list(itertools.islice(iterator, size)):
        yield batch


class Table:
    """Columns with titles; `right` names the columns aligned to the right."""

    def __init__(self, titles: Sequence[str], *, right: Iterable[str] = (), stream: TextIO | None = None) -> None:
        self._titles = tuple(titles)
        self._right = tuple(title in set(right) for title in titles)
        self._widths = [len(title) for title in titles]
        self._stream = stream if stream is not None else sys.stdout
        coloured = self._stream.isatty() and not os.environ.get("NO_COLOR")
        self._console = _console(self._stream) if coloured else None
        self._begun = False

    def write(self, rows: Iterable[Row]) -> int:
        """Writes rows as they come and returns how many there were. The titles come before the first."""
        count = 0
        for batch in batches(rows):
            texts = [[value.text if isinstance(value, Cell) else value for value in row] for row in batch]
            self._widths = [
                max(width, *map(len, column))
                for width, column in zip(self._widths, zip(*texts, strict=True), strict=True)
            ]
            if not self._begun:
                self._line(self._titles, [Cell(title, "bold") for title in self._titles])
                self._begun = True
            for text, row in zip(texts, batch, strict=True):
                self._line(text, row)
            count += len(batch)
        return count

    def _line(self, texts: Sequence[str], row: Row) -> None:
        columns = zip(texts, self._widths, self._right, strict=True)
        parts = [text.rjust(width) if right else text.ljust(width) for text, width, right in columns]
        if self._console is None:
            self._stream.write("  ".join(parts).rstrip() + "\n")
            return
        from rich.text import Text

        line = Text()
        for place, (text, value) in enumerate(zip(parts, row, strict=True)):
            line.append("  " if place else "")
            line.append(text, style=value.style if isinstance(value, Cell) else "")
        line.rstrip()
        self._console.print(line)


def _console(stream: TextIO) -> Console:
    """Colours. rich takes 40 ms to import, which a script that reads plain text need not wait for."""
    from rich.console import Console

    return Console(file=stream, soft_wrap=True, highlight=False)


def note(text: str, *, stream: TextIO | None = None) -> None:
    """A sentence for people on standard output."""
    (stream if stream is not None else sys.stdout).write(text + "\n")


def write_json(document: Mapping[str, Any], *, stream: TextIO | None = None) -> None:
    """One JSON object, indented, with a newline."""
    out = stream if stream is not None else sys.stdout
    json.dump(document, out, indent=2)
    out.write("\n")


def write_json_stream(
    head: Mapping[str, Any], name: str, items: Iterable[Mapping[str, Any]], *, stream: TextIO | None = None
) -> int:
    """One JSON object: the keys of `head`, then `name` with an array written an item a line as they come.

    Returns how many items there were. What is written is a whole JSON document even when there were none.
    """
    out = stream if stream is not None else sys.stdout
    out.write("{\n")
    for key, value in head.items():
        out.write(f"  {json.dumps(key)}: {json.dumps(value)},\n")
    out.write(f"  {json.dumps(name)}: [")
    count = 0
    for item in items:
        out.write(("," if count else "") + "\n    " + json.dumps(item))
        count += 1
    out.write("\n  ]\n}\n" if count else "]\n}\n")
    return count


def duration_text(seconds: int | None) -> str:
    """`5s`, `2m05s`, `1h02m`, `3d04h`; `-` for none."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02}s"
    if seconds < 86400:
        return f"{seconds // 3600}h{seconds % 3600 // 60:02}m"
    return f"{seconds // 86400}d{seconds % 86400 // 3600:02}h"
