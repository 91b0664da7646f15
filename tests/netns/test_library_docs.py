# SPDX-License-Identifier: Apache-2.0
"""The examples of docs/library.md run, in order, as they stand there, and lead through a slice."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from softunicast.kernel import netns
from tests.support.sock_node import ADDRESS, SockNode
from tests.support.whoami import serving

PAGE = Path(__file__).resolve().parents[2] / "docs" / "library.md"
BLOCK = re.compile(r"^```python\n(.*?)^```", re.M | re.S)


def test_examples(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    assert len(blocks) == 5
    names: dict[str, object] = {}
    with SockNode(pinned=True) as node, serving([node.server(80)]), netns.enter(node.name):
        for number, block in enumerate(blocks):
            exec(compile(block, f"{PAGE.name}, example {number + 1}", "exec"), names)
            if "except softunicast.SliceFull" in block:
                # The first time there is a port; its TIME_WAIT has it then.
                exec(compile(block, PAGE.name, "exec"), names)
    said = capsys.readouterr().out
    assert said.count(ADDRESS) >= 5
    assert f"{ADDRESS}:9000-9000: no port is left towards 203.0.113.1:80" in said
