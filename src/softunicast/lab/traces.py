# SPDX-License-Identifier: Apache-2.0
"""What a node's agent leaves on the machine outside of its network namespace: found by the node's name and
removed.

Removing a pinned link detaches its program (bpf_link in Documentation/bpf). This is the lab's way of ending a node
whose agent may be dead or broken; a living node is ended by `softunicast agent uninstall`.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from pathlib import Path

from softunicast.errors import ProbeError
from softunicast.kernel import netns, nodes


def _cgroup(name: str) -> Path | None:
    with contextlib.suppress(ProbeError):  # no cgroup2: no agent ever ran here
        return nodes.cgroup_dir(name).path
    return None


def traces(name: str) -> list[Path]:
    """What there is of a node: pins, files, cgroup; empty: nothing."""
    places = [nodes.pin_dir(name), nodes.run_dir(name), _cgroup(name)]
    return [place for place in places if place is not None and place.exists()]


def forget_node(name: str) -> None:
    """Remove pins, state and cgroups of a node. Processes in its cgroups are killed; what is not there is no error."""
    for place in traces(name):
        if place == _cgroup(name):
            _remove_cgroup(place)
        else:
            shutil.rmtree(place, ignore_errors=True)
        _rmdir(place.parent)
    for namespace in nodes.terminus_namespaces(name):
        netns.delete(namespace)


def _remove_cgroup(folder: Path) -> None:
    with contextlib.suppress(OSError):
        (folder / "cgroup.kill").write_text("1")  # Linux 5.14
    deadline = time.monotonic() + 1.0
    while folder.exists() and time.monotonic() < deadline:
        for inner in sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True):
            _rmdir(inner)
        if not _rmdir(folder):
            time.sleep(0.01)


def _rmdir(folder: Path) -> bool:
    """Remove a folder if it is empty (of processes, for a cgroup); True when it is gone."""
    with contextlib.suppress(OSError):
        folder.rmdir()
        return True
    return False
