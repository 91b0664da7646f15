# SPDX-License-Identifier: Apache-2.0
"""What a node's agent leaves on the machine, outside of its network namespace: found by the node's name and
removed.

Removing a pinned link detaches its program (Documentation/bpf/libbpf, bpf_link). This is the lab's way of
ending a node whose agent may be dead or broken; a living node is ended by `softunicast agent uninstall`.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path
from typing import Final

BPF_FOLDER: Final = Path("/sys/fs/bpf/softunicast")
STATE_FOLDER: Final = Path("/run/softunicast")


def cgroup_root() -> Path | None:
    """Where cgroup2 is mounted, if it is."""
    for line in Path("/proc/mounts").read_text(encoding="utf-8").splitlines():
        _, place, kind, *_ = line.split()
        if kind == "cgroup2":
            return Path(place)
    return None


def forget_node(name: str) -> None:
    """Remove pins, state and cgroups of a node. Processes in its cgroups are killed. What is not there is no
    error.
    """
    shutil.rmtree(BPF_FOLDER / name, ignore_errors=True)
    shutil.rmtree(STATE_FOLDER / name, ignore_errors=True)
    root = cgroup_root()
    if root is not None:
        _remove_cgroup(root / "softunicast" / name)
        _rmdir(root / "softunicast")
    for parent in (BPF_FOLDER, STATE_FOLDER):
        _rmdir(parent)


def traces(name: str) -> list[Path]:
    """What there is of a node; empty: nothing."""
    root = cgroup_root()
    places = [
        BPF_FOLDER / name,
        STATE_FOLDER / name,
        *([root / "softunicast" / name] if root is not None else []),
    ]
    return [place for place in places if place.exists()]


def _remove_cgroup(folder: Path) -> None:
    if not folder.exists():
        return
    with contextlib.suppress(OSError):
        (folder / "cgroup.kill").write_text("1")  # Linux 5.14
    deadline = time.monotonic() + 1.0
    while folder.exists() and time.monotonic() < deadline:
        for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            _rmdir(inner)
        if not _rmdir(folder):
            time.sleep(0.01)


def _rmdir(folder: Path) -> bool:
    """Remove a folder if it is empty (of processes, for a cgroup)."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        return True
    return False
