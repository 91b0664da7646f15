# SPDX-License-Identifier: Apache-2.0
"""What a step says while it runs: lines for people, expectations beside what was seen, figures.

A check compares two short texts. An expectation is written down before the experiment, what was seen is made from the
kernel's answer, so that a kernel that behaves otherwise shows up as a difference and not as an exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from softunicast.wire.packet import Packet

MOST_PACKETS: Final = 24


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was tried: what was expected and what was seen."""

    what: str
    expected: str
    seen: str

    @property
    def ok(self) -> bool:
        return self.expected == self.seen


@dataclass(frozen=True, slots=True)
class Figure:
    """Something measured in this run, on this machine."""

    what: str
    value: float
    unit: str


@dataclass
class Notes:
    """Of one step. `say` gets each line as it comes."""

    number: int
    name: str
    title: str
    tried: str
    say: Callable[[str], None] = lambda _: None
    lines: list[str] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        return bool(self.checks) and all(check.ok for check in self.checks)

    def line(self, text: str) -> None:
        """A line for people."""
        self.lines.append(text)
        self.say(text)

    def command(self, where: str, text: str) -> None:
        """What was typed, or would be, and where."""
        self.line(f"{where}# {text}")

    def wire(self, where: str, packets: Iterable[Packet]) -> None:
        """What was captured somewhere."""
        seen = list(packets)
        self.line(f"on the wire at {where}: {'' if seen else 'nothing'}".rstrip())
        for packet in seen[:MOST_PACKETS]:
            self.line(f"    {packet}")
        if len(seen) > MOST_PACKETS:
            self.line(f"    and {len(seen) - MOST_PACKETS} more")

    def check(self, what: str, expected: object, seen: object) -> None:
        """Compare; both are kept as text."""
        check = Check(what, str(expected), str(seen))
        self.checks.append(check)
        self.line(f"{'ok  ' if check.ok else 'NOT '} {what}: expected {check.expected}; seen {check.seen}")

    def figure(self, what: str, value: float, unit: str) -> None:
        """Something measured."""
        self.figures.append(Figure(what, value, unit))
        self.line(f"     {what}: {value:,.3g} {unit}")

    def as_json(self) -> dict[str, Any]:
        return {
            "step": self.number,
            "name": self.name,
            "title": self.title,
            "tried": self.tried,
            "ok": self.ok,
            "checks": [
                {"what": one.what, "expected": one.expected, "seen": one.seen, "ok": one.ok} for one in self.checks
            ],
            "figures": [{"what": one.what, "value": one.value, "unit": one.unit} for one in self.figures],
            **self.tables,
            "lines": self.lines,
        }
