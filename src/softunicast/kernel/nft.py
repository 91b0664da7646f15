# SPDX-License-Identifier: Apache-2.0
"""nftables, through `nft -j`, whose JSON is documented (libnftables-json(5)) and stable.

A script is one transaction: all of it happens or nothing does. nft works on the namespace of the thread that
starts it, which a child inherits.
"""

from __future__ import annotations

import json
import subprocess
from typing import Any, Final

from softunicast.errors import KernelError, ProbeError

TIMEOUT_S: Final = 20.0


def run(script: str) -> None:
    """Apply an nft script, all or nothing. KernelError has nft's first line; `.log` all of it."""
    call(["-f", "-"], script)


def list_ruleset(family: str | None = None) -> list[dict[str, Any]]:
    """All objects of the ruleset (of one family), as libnftables-json(5) writes them, its header left out."""
    return listed(["list", "ruleset", *([family] if family else [])])


def list_table(family: str, name: str) -> list[dict[str, Any]] | None:
    """The objects of one table; None when there is no such table."""
    tables = {(entry["table"]["family"], entry["table"]["name"]) for entry in listed(["list", "tables"])}
    return listed(["list", "table", family, name]) if (family, name) in tables else None


def delete_table(family: str, name: str) -> bool:
    """Delete a table; False when there was none."""
    if list_table(family, name) is None:
        return False
    run(f"delete table {family} {name}\n")
    return True


def listed(arguments: list[str]) -> list[dict[str, Any]]:
    text = call(["-j", *arguments])
    objects: list[dict[str, Any]] = json.loads(text)["nftables"] if text.strip() else []
    return [entry for entry in objects if "metainfo" not in entry]


def call(arguments: list[str], script: str | None = None) -> str:
    """Run nft; what it printed. ProbeError when it is not installed, KernelError when it fails."""
    command = ["nft", *arguments]
    try:
        done = subprocess.run(command, input=script, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    except FileNotFoundError as error:
        raise ProbeError("nft not found: install it (Debian: apt-get install nftables)") from error
    except subprocess.TimeoutExpired as error:
        raise KernelError(f"nft {' '.join(arguments)}: no answer after {TIMEOUT_S:.0f} s") from error
    if done.returncode != 0:
        first = (done.stderr.strip().splitlines() or ["no reason given"])[0]
        raise KernelError(f"nft {' '.join(arguments)}: {first}", log=done.stderr)
    return done.stdout
