# SPDX-License-Identifier: Apache-2.0
"""`softunicast policy`: whole services and containers in a pool, by their cgroup.

`softunicast run` makes a cgroup for one program; here it is somebody else's: systemd's, a container runtime's. A policy
of a cgroup holds for sockets created in it, and below it, from then on, until the cgroup is gone; then the agent
forgets it. A unit's cgroup comes and goes with each start, so for a unit a file is written that does it anew
(cli.policy_unit).
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import click

from softunicast.cli import policy_unit
from softunicast.cli.arguments import NAME, PLACE, Place, json_option, node_option
from softunicast.cli.output import Table, note, write_json
from softunicast.cli.reading import Reading, reading
from softunicast.cli.run import policy_of
from softunicast.egress.policy import CgroupPolicies, SlicePart
from softunicast.errors import KernelError, UsageError
from softunicast.kernel import abi, cgroup, nodes
from softunicast.kernel.cgroup import CgroupDir

TITLES: Final = ("CGROUP", "POOL", "SLICE", "ID")
CONTROL: Final = ".control"
"""Where systemd runs ExecStartPre= and the like of a unit with Delegate=, below the unit's cgroup."""


@click.command()
@click.option("--unit", metavar="UNIT", help="Write what systemd needs: a drop-in of a service, a helper of a slice.")
@click.option("--cgroup", "folder", metavar="PATH", help="Now, for this cgroup; also `self`, `parent`.")
@click.option("--pool", type=NAME, metavar="NAME", help="The pool whose slices to use.")
@click.option("--slice", "place", type=PLACE, metavar="A:FIRST-LAST", help="Stay within this part of one slice.")
@click.option("--remove", is_flag=True, help="Take it away; sockets that are there keep their policy.")
@click.option(
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=policy_unit.DIRECTORY,
    show_default=True,
    help="The folder of units.",
)
@node_option
@json_option
def policy(
    unit: str | None,
    folder: str | None,
    pool: str | None,
    place: Place | None,
    remove: bool,
    directory: Path,
    node: str | None,
    as_json: bool,
) -> None:
    """Put a service, a slice of services or a cgroup into a pool; without options, show which are.

    Sockets created from then on leave from the pool's slices, as with `softunicast run`. A service that cannot have its
    policy does not start.
    """
    if unit is None and folder is None:
        if pool or place or remove:
            raise UsageError("policy: of what? name it, --unit or --cgroup")
        show(node, as_json)
        return
    if unit is not None and folder is not None:
        raise UsageError("policy: --unit and --cgroup: one of them")
    if remove == (pool is not None):
        raise UsageError("policy: say --pool NAME, or --remove")
    if unit is not None:
        name = policy_unit.unit_name(unit)
        file = directory / policy_unit.place_of(name)
        if remove:
            remove_unit(file, name)
        else:
            write_unit(file, name, str(pool), place, node)
        return
    at = CgroupDir(find_cgroup(str(folder)))
    if os.geteuid() != 0:
        raise UsageError("policy: only root may put a cgroup under a policy; use sudo")
    if remove:
        drop(at, nodes.find_node(node))
    else:
        put(at, str(pool), place, nodes.find_node(node))


def part_of(place: Place | None) -> SlicePart | None:
    return SlicePart(place.address, place.first, place.last) if place else None


def find_cgroup(text: str) -> Path:
    """A folder below cgroup2, from an absolute path, one as /proc/PID/cgroup has it, `self` or `parent`. UsageError."""
    root = cgroup.root()
    if text in ("self", "parent"):
        found = cgroup.of_process()
        found = found.parent if found.name == CONTROL else found
        found = found.parent if text == "parent" else found
    else:
        inside = text.removeprefix(str(root)).lstrip("/")
        found = root / inside
    if found == root or ".." in found.parts:
        raise UsageError(f"cgroup {text}: all of the machine would be in the pool; name one below {root}")
    if not found.is_dir():
        raise UsageError(f"cgroup {text}: there is no {found}; see /proc/PID/cgroup of a process in it")
    return found


def put(at: CgroupDir, pool: str, place: Place | None, node: str) -> None:
    """Set it. Everything is checked first."""
    wanted = policy_of(node, pool, part_of(place))
    policies = CgroupPolicies(node)
    try:
        policies.put(at.id, wanted)
    finally:
        policies.close()
    note(f"{at.path}: sockets from now on use pool {pool}")


def drop(at: CgroupDir, node: str) -> None:
    policies = CgroupPolicies(node)
    try:
        if not policies.drop(at.id):
            raise UsageError(f"cgroup {at.path}: has no policy; see `softunicast policy`")
    finally:
        policies.close()
    note(f"{at.path}: sockets from now on are plain")


def write_unit(file: Path, unit: str, pool: str, place: Place | None, node: str | None) -> None:
    name = nodes.find_node(node)
    policy_of(name, pool, part_of(place))
    wanted = ["--pool", pool, *(["--slice", str(part_of(place))] if place else [])]
    text = policy_unit.unit_text(unit, name, this_program(), wanted)
    new = file.with_suffix(".new")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        new.write_text(text, encoding="utf-8")
        new.rename(file)
    except OSError as error:
        raise KernelError(f"{file}: {error.strerror}; as root, or --directory", errno=error.errno or 0) from error
    note(f"{file}: written; then {policy_unit.next_step(unit)}")


def remove_unit(file: Path, unit: str) -> None:
    try:
        file.unlink()
    except FileNotFoundError as error:
        raise UsageError(f"unit {unit}: {file} is not there; nothing to remove") from error
    except OSError as error:
        raise KernelError(f"{file}: {error.strerror}; as root, or --directory", errno=error.errno or 0) from error
    if file.name == policy_unit.DROP_IN:
        # Others' drop-ins may be there, too.
        with contextlib.suppress(OSError):
            file.parent.rmdir()
    note(f"{file}: removed; then {policy_unit.next_step(unit, removed=True)}")


def this_program() -> Sequence[str]:
    """How to call softunicast again, from anywhere."""
    called = shutil.which(sys.argv[0]) if not sys.argv[0].endswith(".py") else None
    return [str(Path(called).absolute())] if called else [sys.executable, "-m", "softunicast.cli"]


def show(node: str | None, as_json: bool) -> None:
    with reading(node) as at:
        found = sorted(read_policies(at), key=lambda one: (one["path"] or "", one["cgroup_id"]))
        if as_json:
            write_json({"node": at.node, "policies": found})
            return
        if not found:
            note(f"{at.node}: no cgroup is in a pool; `softunicast run`, `softunicast policy --unit`")
            return
        rows = ((one["path"] or "gone", one["pool"], one["slice"] or "all", str(one["cgroup_id"])) for one in found)
        Table(TITLES, right=("ID",)).write(rows)


def read_policies(at: Reading) -> list[dict[str, Any]]:
    """As the kernel has them."""
    pools = {number: name for name, number in at.state.pools.items()}
    slices = {one.index: one.slice for one in at.state.slices}
    result = []
    for key, value in at.maps["cgroups"].items():
        number, wanted = int.from_bytes(key, sys.byteorder), abi.Policy.unpack(value)
        path = cgroup.by_id(number)
        part = None
        if wanted.flags & abi.PolicyFlag.RANGE:
            part = f"{slices.get(wanted.slice, '?').rpartition(':')[0]}:{wanted.first}-{wanted.last}"
        result.append(
            {
                "cgroup_id": number,
                "path": str(path) if path else None,
                "pool": pools.get(wanted.pool, f"#{wanted.pool}"),
                "slice": part,
            }
        )
    return result
