# SPDX-License-Identifier: Apache-2.0
"""Write what `softunicast escape` sees on this machine into docs/strategies.md (root, some minutes)."""

from __future__ import annotations

import sys
from pathlib import Path

from softunicast.lab.escape import pages
from softunicast.lab.escape.steps import STEPS

PAGE = Path(__file__).resolve().parents[1] / "docs" / "strategies.md"


def main() -> int:
    """Nothing is written when something was not as expected."""
    done = []
    for step in STEPS:
        print(f"{step.number}. {step.title}", file=sys.stderr)
        done.append(step.perform())
    wrong = [check for notes in done for check in notes.checks if not check.ok]
    for check in wrong:
        print(f"not as expected: {check}", file=sys.stderr)
    if not wrong:
        text = PAGE.read_text(encoding="utf-8")
        before, _, rest = text.partition(pages.BEGIN)
        after = rest.partition(pages.END)[2]
        PAGE.write_text(before + pages.markdown(done).rstrip("\n") + after, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
