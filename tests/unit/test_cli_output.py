# SPDX-License-Identifier: Apache-2.0
"""Tables that cut nothing, JSON that streams."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterator

import pytest

from softunicast.cli.output import BATCH_ROWS, Cell, Table, duration_text, write_json, write_json_stream


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_columns_are_aligned_and_nothing_is_cut() -> None:
    out = io.StringIO()
    long = "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:65535"
    count = Table(("LOCAL", "N", "LAST"), right=("N",), stream=out).write([(long, "7", "x"), ("a", "123", "yy")])
    assert count == 2
    assert out.getvalue().splitlines() == [
        f"{'LOCAL':{len(long)}}    N  LAST",
        f"{long}    7  x",
        f"{'a':{len(long)}}  123  yy",
    ]


def test_no_rows_no_titles() -> None:
    out = io.StringIO()
    assert Table(("A", "B"), stream=out).write([]) == 0
    assert out.getvalue() == ""


def test_rows_come_out_before_the_last_one_is_known() -> None:
    """A batch is written as soon as it is full: a listing of any length begins at once."""
    out = io.StringIO()
    seen: list[int] = []

    def rows() -> Iterator[tuple[str]]:
        for number in range(3 * BATCH_ROWS):
            seen.append(len(out.getvalue()))
            yield (str(number),)

    assert Table(("N",), stream=out).write(rows()) == 3 * BATCH_ROWS
    assert seen[BATCH_ROWS - 1] == 0 and seen[BATCH_ROWS] > 0
    assert out.getvalue().count("N\n") == 1


def test_a_terminal_gets_colour_but_the_same_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "20")
    out = Terminal()
    address = "[2001:db8:aaaa:bbbb:cccc:dddd:eeee:ffff]:65535"
    Table(("LOCAL", "STATE"), stream=out).write([(address, Cell("FULL", "bold red"))])
    assert "\x1b[" in out.getvalue()
    assert address in out.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    Table(("LOCAL",), stream=plain).write([(Cell("x", "red"),)])
    assert "\x1b[" not in plain.getvalue()


@pytest.mark.parametrize("count", [0, 1, 3])
def test_streamed_json_is_one_document(count: int) -> None:
    out = io.StringIO()
    items = ({"n": number} for number in itertools.count())
    assert write_json_stream({"node": "lhr1"}, "flows", itertools.islice(items, count), stream=out) == count
    assert json.loads(out.getvalue()) == {"node": "lhr1", "flows": [{"n": number} for number in range(count)]}


def test_json() -> None:
    out = io.StringIO()
    write_json({"a": [1]}, stream=out)
    assert json.loads(out.getvalue()) == {"a": [1]} and out.getvalue().endswith("}\n")


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "-"), (0, "0s"), (59, "59s"), (61, "1m01s"), (3599, "59m59s"), (3720, "1h02m"), (90061, "1d01h")],
)
def test_durations(seconds: int | None, text: str) -> None:
    assert duration_text(seconds) == text
