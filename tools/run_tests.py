#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""All tests, in two pytests beside each other: those that only compute, and those that wait for packets and processes.

The second one's output is seen as it comes, the first one's when it has ended. Status: the worse of both.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
COMPUTING = ("unit", "property", "bpf", "fuzz")
WAITING = ("netns", "e2e")


def command(folders: tuple[str, ...], *options: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", *options, *(f"tests/{folder}" for folder in folders)]


def yielding(folders: tuple[str, ...], said: IO[str]) -> subprocess.Popen[bytes]:
    """By what the others leave of the processors: labs are not to wait for arithmetic, and that may take its time.

    Where the scheduler groups by sessions (sched(7), autogroup), niceness counts within one only, and labs start one
    for each of their processes: so this is one too, and the group has the same niceness.
    """
    words = ["nice", "-n", "19", *command(folders, "--timeout=1200")]
    made = subprocess.Popen(words, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT, start_new_session=True)
    with contextlib.suppress(OSError):  # no such scheduler
        Path(f"/proc/{made.pid}/autogroup").write_text("19")
    return made


def main() -> int:
    found = {entry.name for entry in (ROOT / "tests").iterdir() if any(entry.glob("test_*.py"))}
    if found != {*COMPUTING, *WAITING}:
        print(f"tools/run_tests.py: which of both are tests/{', tests/'.join(found - {*COMPUTING, *WAITING})}?")
        return 2
    with tempfile.TemporaryFile("w+") as said:
        computing = yielding(COMPUTING, said)
        try:
            print(f"tests of {', '.join(WAITING)}; meanwhile {', '.join(COMPUTING)}, told of below", flush=True)
            waiting = subprocess.run(command(WAITING), cwd=ROOT, check=False).returncode
            computed = computing.wait()
        finally:
            if computing.poll() is None:
                os.killpg(computing.pid, signal.SIGKILL)
                computing.wait()
        said.seek(0)
        print(f"tests of {', '.join(COMPUTING)}", flush=True)
        sys.stdout.write(said.read())
    return max(abs(waiting), abs(computed))


if __name__ == "__main__":
    sys.exit(main())
