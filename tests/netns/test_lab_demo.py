# SPDX-License-Identifier: Apache-2.0
"""The demonstration shows what it says, and says so when it does not."""

from __future__ import annotations

import io
import os
import re

import pytest
from rich.console import Console

from softunicast.lab import build, demo, demo_actors, scenarios
from softunicast.lab.topology import NODES, SITES, plan_name
from softunicast.lab.traces import traces


def demonstrate(prefix: str) -> tuple[int, str]:
    text = io.StringIO()
    try:
        status = demo.demonstrate(prefix, console=Console(file=text, width=60))
    finally:
        left = list(build.namespaces(prefix)), [traces(plan_name(prefix, node)) for node in NODES]
    assert left == ([], [[] for _ in NODES])
    return status, text.getvalue()


def test_all_as_told() -> None:
    status, text = demonstrate(f"demo{os.getpid()}")
    assert status == 0, text
    lines = text.splitlines()
    assert lines[-1] == "All as told."
    assert all(len(line) <= 100 for line in lines) and "\x1b" not in text
    rows = [line for line in lines if "2 MB in" in line and "ok    5 of 5" in line]
    assert len(rows) == 20, text
    assert sum("v6  2 MB in" in row and "2001:db8:100::" in row for row in rows) == 10
    ways = {line.split()[0]: [int(cell.replace(",", "")) for cell in line.split()[1:]] for line in ways_rows(lines)}
    assert set(ways) == set(NODES), text
    for node, (at_r1, at_r2, *first, to_site, to_node) in ways.items():
        assert at_r1 == 0 and sum(first) == at_r2 > 2000 and to_node > 0
        assert to_site == (at_r2 if node in SITES["lhr"] else 0)
    for what in ("left outside of a slice", "left in another node's slice", "bad checksums", "lost by the captures"):
        assert re.search(rf"^{what} +0 *$", text, re.M), text
    assert "1 reported" in text
    assert "connections broken at lhr: 0" in text
    told = text[text.index("Now cdg") :]
    for what in (
        r"the internet sends to r1 \(after .* s\)",
        r"c1 asks the web server: you are 198\.51\.100\.1[01]:",
        "c3 asks the web server: no answer",
        "cdg is back",
        r"the internet sends to r2 again \(after .* s\)",
        r"c3 asks the web server: you are 198\.51\.100\.4[01]:",
    ):
        found = re.search(what, told)
        assert found is not None, text
        told = told[found.end() :]


def ways_rows(lines: list[str]) -> list[str]:
    first = lines.index(next(line for line in lines if line.startswith("How every answer travelled"))) + 3
    return lines[first : first + len(NODES)]


def test_it_says_what_was_not_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "inject_behind_guard", lambda *_: b"")
    monkeypatch.setattr(demo_actors, "PINGS", 1)
    monkeypatch.setattr(demo_actors, "expected_digest", lambda token: "other")
    monkeypatch.setattr(scenarios, "DOWN_S", 0.1)
    status, text = demonstrate(f"demox{os.getpid()}")
    assert status == 1
    assert "not as told: t1, TUN at lhr1, download over IPv6: bytes of somebody else, or damaged ones" in text
    assert "not as told: one packet was put behind the guard, the checker reported 0" in text
    assert text.endswith("Not as told.\n")
