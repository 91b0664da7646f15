# SPDX-License-Identifier: Apache-2.0
r"""Every command in README.md and docs/*.md is run, in order, in a lab, and its output compared. Needs root.

    ```console
    $ softunicast lab up            a command on this machine
    up in ...                       each line of output must be found, in this order; "..." is anything
    $ softunicast lab shell lhr1    opens a shell: what follows behind "lhr1# " is typed into it
    lhr1# softunicast slices
    ```

A page's blocks share one lab. A block with `<!-- run: skip -->` behind it is not run: only `make demo`, `make test`
(this is one) and what installs the package on a real server may say so.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from softunicast.lab.lab import Lab

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```console\n(.*?)^```\n(<!-- run: skip -->)?", re.M | re.S)
PROMPT = re.compile(r"^(?:([a-z0-9]+)# |\$ )(.+)$")
SHELL = re.compile(r"softunicast lab shell ([a-z0-9]+)")
MAY_SKIP = re.compile(r"make (demo|test|setup)|systemctl .*|apt-get install .*|pip install .*")
PREFIX = f"docs{os.getpid()}"
PATIENCE_S = 120


@dataclass
class Typed:
    """A command, where it is typed ('' on this machine), and the output that the page shows."""

    page: Path
    line: int
    where: str
    command: str
    shown: list[str]


def typed(page: Path) -> Iterator[Typed]:
    text = page.read_text(encoding="utf-8")
    for block in BLOCK.finditer(text):
        first = text.count("\n", 0, block.start(1)) + 1
        last: Typed | None = None
        for number, line in enumerate(block[1].splitlines(), first):
            prompt = PROMPT.match(line)
            if prompt is None:
                assert last is not None, f"{page.name}:{number}: output before any command"
                last.shown.append(line)
                continue
            last = Typed(page, number, prompt[1] or "", prompt[2], [])
            if block[2]:
                assert MAY_SKIP.fullmatch(last.command), f"{page.name}:{number}: {last.command} must be run"
            else:
                yield last


def spaces(text: str) -> str:
    return " ".join(text.split())


def matches(shown: str, line: str) -> bool:
    pattern = ".*".join(re.escape(spaces(part)) for part in shown.split("..."))
    return re.fullmatch(pattern.replace(r"\ ", r"\s*"), spaces(line)) is not None


def missing(shown: list[str], output: str) -> str | None:
    """The first line shown that the output does not have at or behind the line before."""
    lines = iter(output.splitlines())
    return next((one for one in shown if spaces(one) and not any(matches(one, line) for line in lines)), None)


def shim(folder: Path) -> None:
    """`softunicast` in PATH: this very package; `lab` with this test's prefix, so that another lab may be up."""
    program = folder / "softunicast"
    program.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = lab ]; then verb=$2; shift 2; '
        f'exec {sys.executable} -m softunicast.cli lab "$verb" --prefix {PREFIX} "$@"; fi\n'
        f'exec {sys.executable} -m softunicast.cli "$@"\n'
    )
    program.chmod(0o755)


@pytest.fixture
def environment(tmp_path: Path) -> Iterator[dict[str, str]]:
    shim(tmp_path)
    path = f"{tmp_path}:{os.environ['PATH']}"
    source = f"{ROOT / 'src'}"
    yield {**os.environ, "PATH": path, "PYTHONPATH": source, "SHELL": "/bin/sh", "COLUMNS": "200"}
    Lab(PREFIX, agents=False).down()


def enter(where: str, environment: dict[str, str], command: str) -> subprocess.CompletedProcess[str]:
    """Types a command: on this machine, or into the shell that `softunicast lab shell` opens."""
    words = ["softunicast", "lab", "shell", where] if where else ["bash", "-c", command]
    return subprocess.run(
        words,
        input=command + "\n" if where else "",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        cwd=ROOT,
        timeout=PATIENCE_S,
        check=False,
    )


@pytest.mark.parametrize("page", [page for page in PAGES if any(typed(page))], ids=lambda page: str(page.name))
def test_the_page_does_what_it_shows(page: Path, environment: dict[str, str]) -> None:
    for one in typed(page):
        place = f"{page.name}:{one.line}: {one.command}"
        opened = SHELL.fullmatch(one.command)
        command = "true" if opened else one.command
        done = enter(opened[1] if opened else one.where, environment, command)
        output = done.stdout.replace(f"{PREFIX}-", "")
        assert done.returncode == 0, f"{place}: exit status {done.returncode}\n{output}"
        lost = missing(one.shown, output)
        assert lost is None, f"{place}: shown, not there: {lost}\n{output}"


def test_the_readme_is_among_them() -> None:
    assert len(list(typed(ROOT / "README.md"))) > 8


def test_how_shown_lines_are_compared() -> None:
    output = "TITLE  A\ntcp    198.51.100.20:9001  socket\nend"
    assert missing(["tcp 198.51.100... socket", "...", "end"][:2], output) is None
    assert missing(["tcp ... packet"], output) == "tcp ... packet"
    assert missing(["end", "TITLE A"], output) == "TITLE A"
    assert missing(["...100.20:9001 ..."], output) is None
