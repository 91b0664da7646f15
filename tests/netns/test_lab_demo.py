# SPDX-License-Identifier: Apache-2.0
"""The demonstration shows what it says, and says so when it does not."""

from __future__ import annotations

import io
import os

import pytest
from rich.console import Console

from softunicast.lab import build, demo
from softunicast.lab.topology import NODES, plan_name
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
    assert "All as told." in text
    rows = [line for line in text.splitlines() if line.startswith("│") and "198.51.100.10" in line]
    assert len(rows) == 18, text
    assert sum("10 MB in" in row for row in rows) == 6
    assert sum("5 of 5 answered" in row for row in rows) == 6
    for line in ("packets outside their slice             0", "bad checksums                           0"):
        assert line in text
    assert "1 reported" in text


def test_it_says_what_was_not_as_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "inject_behind_guard", lambda *_: b"")
    monkeypatch.setattr(demo, "PINGS", 1)
    monkeypatch.setattr(demo, "expected_digest", lambda token: "other" if token == "t1" else "")
    status, text = demonstrate(f"demox{os.getpid()}")
    assert status == 1
    assert "not as told: client t1, TUN at lhr1, curl, 10 MB: bytes of somebody else, or damaged ones" in text
    assert "not as told: one packet was put behind the guard, the checker reported 0" in text
    assert "All as told." not in text
