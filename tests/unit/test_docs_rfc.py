# SPDX-License-Identifier: Apache-2.0
"""docs/rfc.md is whole and true as far as can be checked: every requirement is there, every test it names exists."""

from __future__ import annotations

import ast
import re
from collections import Counter
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from softunicast.model.plan import Timers

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/rfc.md").read_text(encoding="utf-8")
STATUSES = {"done", "setting", "partly", "no", "n/a"}


def numbered(letters: str) -> list[str]:
    """`1 2a 3ab` -> REQ-1, REQ-2, REQ-2a, REQ-3, REQ-3a, REQ-3b."""
    found = []
    for word in letters.split():
        number = re.match(r"\d+", word)
        assert number is not None
        found += [f"REQ-{number[0]}", *(f"REQ-{number[0]}{letter}" for letter in word[number.end() :])]
    return found


REQUIREMENTS = {
    # RFC 4787 section 12, RFC 5382 section 8, RFC 5508 section 9, RFC 6888 section 3: as they are numbered there.
    "4787": numbered("1 2 3a 4 5abc 6a 7 8a 9a 10a 11 12ab 13a 14a"),
    "5382": numbered("1 2a 3ab 4a 5a 6 7 8a 9 10"),
    "5508": numbered("1a 2a 3abcd 4abc 5abc 6 7a 8 9 10abcdef 11"),
    "6888": numbered("1 2 3 4 5 6 7 8 9 10 11 12 13 14 15"),
    # Not numbered: the sections that ask for something.
    "7857": ["2", "2.1", "2.2", "3", "4", "5", "6", "7", "7.1", "8", "9", "10", "11", "12"],
    "6056": ["3.1", "3.2", "3.3", "3.5", "4"],
}


class Row(NamedTuple):
    requirement: str
    short: str
    status: str
    how: str
    tests: tuple[str, ...]


def rows(rfc: str) -> list[Row]:
    section = re.search(rf"^## RFC {rfc}:.*?(?=^## )", TEXT, re.MULTILINE | re.DOTALL)
    assert section is not None, f"no section for RFC {rfc}"
    lines = [line for line in section[0].splitlines() if line.startswith("| ")][1:]
    found = []
    for line in lines:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert len(cells) == 5, line
        found.append(Row(cells[0], cells[1], cells[2].strip("`"), cells[3], tuple(re.findall(r"`([^`]+)`", cells[4]))))
    return found


@cache
def names_in(path: str) -> set[str]:
    tree = ast.parse((ROOT / "tests" / path).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")}


@pytest.mark.parametrize("rfc", REQUIREMENTS)
def test_no_requirement_is_missing(rfc: str) -> None:
    assert Counter(row.requirement for row in rows(rfc)) == Counter(REQUIREMENTS[rfc])


@pytest.mark.parametrize("rfc", REQUIREMENTS)
def test_each_row_has_a_status_and_says_how_or_why_not(rfc: str) -> None:
    for row in rows(rfc):
        assert row.status in STATUSES, row
        assert row.short, row
        if row.status in ("done", "setting"):
            assert row.tests, f"{row.requirement} is {row.status}, and no test shows it"
        if row.status in ("partly", "no", "n/a"):
            assert row.how, f"{row.requirement}: why not?"


def test_each_test_named_exists() -> None:
    named = re.findall(r"`((?:unit|property|bpf|netns|e2e|fuzz)/test_\w+\.py)::(\w+)`", TEXT)
    assert len(named) == TEXT.count("::"), "a test that is not named as FOLDER/test_FILE.py::test_NAME"
    missing = [f"{path}::{name}" for path, name in named if name not in names_in(path)]
    assert missing == []


def test_default_timers_are_what_the_rfcs_want() -> None:
    """RFC 4787 REQ-5, 5c; RFC 5382 REQ-5; RFC 5508 REQ-2; RFC 7857 sections 2.1 and 2.2; RFC 6888 REQ-8 for TCP."""
    timers = Timers()
    assert timers.udp_s >= 5 * 60
    assert timers.tcp_established_s >= 2 * 3600 + 4 * 60
    assert min(timers.tcp_transitory_s, timers.tcp_linger_s) >= 4 * 60
    assert timers.icmp_s >= 60
