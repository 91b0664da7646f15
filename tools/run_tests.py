#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""All tests, in two pytests beside each other: those that only compute, and those that wait for packets and processes.

The second one's output is seen as it comes, the first one's when it has ended. Status: the worse of both.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMPUTING = ("unit", "property", "bpf", "fuzz")
WAITING = ("netns", "e2e")


def command(folders: tuple[str, ...]) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", *(f"tests/{folder}" for folder in folders)]


def yielding(folders: tuple[str, ...]) -> list[str]:
    """By what the others leave of the processors: labs are not to wait for arithmetic."""
    return ["nice", "-n", "19", *command(folders)]


def main() -> int:
    found = {entry.name for entry in (ROOT / "tests").iterdir() if any(entry.glob("test_*.py"))}
    if found != {*COMPUTING, *WAITING}:
        print(f"tools/run_tests.py: which of both are tests/{', tests/'.join(found - {*COMPUTING, *WAITING})}?")
        return 2
    with tempfile.TemporaryFile("w+") as said:
        computing = subprocess.Popen(yielding(COMPUTING), cwd=ROOT, stdout=said, stderr=subprocess.STDOUT)
        try:
            print(f"tests of {', '.join(WAITING)}; meanwhile {', '.join(COMPUTING)}, told of below", flush=True)
            waiting = subprocess.run(command(WAITING), cwd=ROOT, check=False).returncode
            computed = computing.wait()
        finally:
            computing.kill()
            computing.wait()
        said.seek(0)
        print(f"tests of {', '.join(COMPUTING)}", flush=True)
        sys.stdout.write(said.read())
    return max(abs(waiting), abs(computed))


if __name__ == "__main__":
    sys.exit(main())
