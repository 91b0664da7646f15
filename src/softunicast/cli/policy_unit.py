# SPDX-License-Identifier: Apache-2.0
"""What systemd must be told so that a service's sockets leave from a pool. Pure: texts by path.

A policy belongs to a cgroup, and a service gets a new one each time it starts. So its first command puts the policy
on its own cgroup. ExecCondition= (systemd 243) is before every ExecStartPre=, which may speak to the network as well;
with 255 it makes the service fail, where a lesser status would only skip it (systemd.service(5)). "+" is root,
outside of the service's sandbox. Fail closed: without the policy the service does not start.

A slice has no commands. It gets a service beside it, which puts the policy on the slice's cgroup and stays "active";
whatever is started in the slice, containers for example, is ordered after that one.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Final

from softunicast.errors import UsageError

DIRECTORY: Final = "/etc/systemd/system"
DROP_IN: Final = "50-softunicast.conf"
NAMES: Final = re.compile(r"[A-Za-z0-9:_.@\\-]{1,200}")
KINDS: Final = ("service", "slice")


def unit_name(text: str) -> str:
    """With its kind, as systemctl takes it. UsageError: no unit that could have a policy."""
    stem, dot, kind = text.rpartition(".")
    name = text if dot and kind in (*KINDS, "socket", "scope", "timer", "target", "mount") else f"{text}.service"
    stem, _, kind = name.rpartition(".")
    if not NAMES.fullmatch(stem) or stem in (".", ".."):
        raise UsageError(f"unit {text!r}: no name of a unit; see `systemctl list-units`")
    if kind not in KINDS:
        raise UsageError(f"unit {name}: only a service or a slice can be put into a pool; name the service behind it")
    return name


def helper_of(slice_unit: str) -> str:
    """The service beside a slice."""
    return f"softunicast-policy-{slice_unit.removesuffix('.slice')}.service"


def place_of(unit: str) -> PurePosixPath:
    """The file that is written, below the folder of units."""
    return PurePosixPath(helper_of(unit)) if unit.endswith(".slice") else PurePosixPath(f"{unit}.d", DROP_IN)


def unit_text(unit: str, node: str, program: Sequence[str], wanted: Sequence[str]) -> str:
    """The file's text; `wanted`: --pool gb and so on, as this node understood it."""
    words = [*program, "policy", "--cgroup", "parent" if unit.endswith(".slice") else "self", "--node", node, *wanted]
    command = quoted(shlex.join(words))
    agent = f"softunicast-agent@{node}.service"
    written = f"# Written by `softunicast policy --unit {unit} {shlex.join(wanted)}`; with --remove it goes away.\n"
    if unit.endswith(".slice"):
        return (
            f"{written}# What is started in {unit} leaves from a pool; order it after this service, and require it.\n"
            f"[Unit]\nDescription=softunicast policy of {unit}\nWants={agent}\nAfter={agent}\n\n"
            f"[Service]\nType=oneshot\nRemainAfterExit=yes\nSlice={unit}\nExecStart={command}\n\n"
            f"[Install]\nWantedBy={unit} multi-user.target\n"
        )
    guarded = quoted(f"{shlex.join(words)} || exit 255")
    return (
        f"{written}# The service's sockets, and those of whatever it starts, use a pool; else it does not start.\n"
        f"[Unit]\nWants={agent}\nAfter={agent}\n\n"
        f'[Service]\nExecCondition=+/bin/sh -c "{guarded}"\n'
    )


def quoted(command: str) -> str:
    """As systemd reads a command line: % and $ are its own, \\ and " too."""
    return command.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")


def next_step(unit: str, *, removed: bool = False) -> str:
    """What to type then."""
    if not unit.endswith(".slice"):
        return f"systemctl daemon-reload && systemctl restart {unit}"
    if removed:
        return f"systemctl daemon-reload && systemctl stop {helper_of(unit)}"
    return f"systemctl daemon-reload && systemctl enable --now {helper_of(unit)}"
