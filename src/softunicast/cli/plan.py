# SPDX-License-Identifier: Apache-2.0
"""`softunicast plan`: check a plan, allocate its slices, write bindings.

Nothing here touches the kernel, and nothing but `apply` writes. The bindings file is replaced by rename, under a
lock of its folder, so that readers see the old one or the new one and two applies follow each other.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from softunicast.agent.state import write_atomically
from softunicast.cli.output import note, write_json
from softunicast.errors import SoftunicastError, UsageError
from softunicast.model.allocator import allocate
from softunicast.model.binding import Binding, Bindings, BindingsText, check_bindings
from softunicast.model.bindings_file import MAX_EPOCH, dump_bindings, read_bindings
from softunicast.model.moves import Moves, SiteMoves, by_site, moves, rehomed
from softunicast.model.plan import Plan, load_plan


@click.group()
def plan() -> None:
    """Check a plan, allocate slices, write bindings."""


_PLAN = click.argument("plan_file", metavar="PLAN", type=click.Path(path_type=Path))
_BINDINGS = click.option(
    "--bindings",
    "bindings_file",
    metavar="FILE",
    required=True,
    type=click.Path(path_type=Path),
    help="The bindings file that nodes read.",
)
_JSON = click.option("--json", "as_json", is_flag=True, help="Write JSON.")


@plan.command()
@_PLAN
@click.option(
    "--bindings",
    "bindings_file",
    metavar="FILE",
    type=click.Path(path_type=Path),
    help="Check also that these bindings are of this plan.",
)
@_JSON
def check(plan_file: Path, bindings_file: Path | None, as_json: bool) -> None:
    """Check PLAN, and with --bindings that a node would accept them together. Changes nothing."""
    checked = _read_plan(plan_file)
    bound = _read_bindings(bindings_file) if bindings_file else None
    if bound is not None:
        check_bindings(checked, bound)
    if as_json:
        write_json(_summary(checked, bound))
        return
    counts = _counts(checked)
    note(f"{plan_file}: good: " + ", ".join(_counted(count, what) for what, count in counts.items()))
    if bound is not None:
        held = Counter(binding.node for binding in bound.bindings.bindings)
        note(f"{bindings_file}: good: epoch {bound.bindings.epoch}, {_counted(sum(held.values()), 'slice')} bound")
        for node in checked.nodes:
            note(f"  {node}: {_counted(held[node], 'slice')}")
        open_ = counts["slice"] - sum(held.values())
        if open_:
            note(f"  nobody: {_counted(open_, 'slice')}; `softunicast plan apply` gives them out")


@plan.command()
@_PLAN
@_BINDINGS
@click.option("--dry-run", is_flag=True, help="Print what would move, write nothing.")
@_JSON
def apply(plan_file: Path, bindings_file: Path, dry_run: bool, as_json: bool) -> None:
    """Allocate PLAN's slices, moving as little as possible from the last bindings, and write them to FILE.

    When nothing changes the file is not touched and its epoch stays.
    """
    wanted = _read_plan(plan_file)
    with contextlib.nullcontext() if dry_run else _locked(bindings_file):
        before, after = _allocate(wanted, bindings_file)
        changed = before != after
        if changed and not dry_run:
            _write(bindings_file, dump_bindings(after))
    _report(wanted, bindings_file, before, after, as_json, "would write" if dry_run else "wrote")


@plan.command()
@_PLAN
@_BINDINGS
@_JSON
def diff(plan_file: Path, bindings_file: Path, as_json: bool) -> None:
    """Print what `plan apply` would move. Changes nothing."""
    wanted = _read_plan(plan_file)
    before, after = _allocate(wanted, bindings_file)
    _report(wanted, bindings_file, before, after, as_json, "would write")


def _read(path: Path, what: str) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"{path}: no such file; name the {what} file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UsageError(f"{path}: cannot be read ({reason}); name the {what} file") from error


def _read_plan(path: Path) -> Plan:
    return load_plan(_read(path, "plan"), str(path))


def _read_bindings(path: Path) -> BindingsText:
    return read_bindings(_read(path, "bindings"), str(path))


def _allocate(wanted: Plan, path: Path) -> tuple[Bindings | None, Bindings]:
    """The bindings in the file (None: there is no file) and those that should be."""
    before = _read_bindings(path).bindings if os.path.lexists(path) else None
    if before is not None and before.bindings:
        addresses = wanted.address_shifts()
        if not any(binding.slice.address in addresses for binding in before.bindings):
            raise UsageError(
                f"{path}: of another plan: none of its addresses is in {wanted.file}; name this plan's own file,"
                " or a new one"
            )
    after = allocate(wanted, before)
    if after.epoch > MAX_EPOCH:
        raise UsageError(f"{path}: epoch {MAX_EPOCH} is the last one; uninstall the agents and begin with a new file")
    return before, after


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One apply at a time for the files of a folder; the lock goes with the descriptor."""
    folder = path.resolve().parent
    try:
        fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise UsageError(f"{path}: its folder {folder} cannot be used ({error.strerror}); make it first") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _write(path: Path, text: str) -> None:
    try:
        # Behind a symbolic link the file is replaced, not the link.
        write_atomically(path.resolve(), text)
    except OSError as error:
        raise SoftunicastError(
            f"{path}: cannot be written ({error.strerror}); the old file, if any, is whole"
        ) from error


def _report(wanted: Plan, path: Path, before: Bindings | None, after: Bindings, as_json: bool, verb: str) -> None:
    found = moves(before, after)
    changed = before != after
    sites = {name: node.site for name, node in wanted.nodes.items()}
    if as_json:
        write_json(_json(before, after, found, sites))
        return
    for (pool, was_site, now_site), count in rehomed(found, sites).items():
        note(f"{pool}: homed at {now_site} now, was at {was_site}: {_counted(count, 'slice')} change site")
    for was, now in found.moved:
        note(f"{now.slice} {was.node} -> {now.node} ({now.pool})")
    for was, now in found.renamed:
        note(f"{now.slice} {now.node} pool {was.pool} -> {now.pool}")
    for sign, bindings in (("new", found.new), ("gone", found.gone)):
        for (pool, node), slices in _grouped(bindings):
            note(f"{pool}: {_counted(len(slices), f'{sign} slice')} of {node}, {_spoken(slices)}")
    for name, counts in by_site(found, sites).items():
        if counts.any:
            note(f"site {name}: {_site_words(counts)}")
    numbers = f"{len(found.moved)} moved, {len(found.new)} new, {len(found.gone)} gone, {found.kept} unchanged"
    if changed:
        note(f"{path}: {verb} epoch {after.epoch}: {numbers}")
    else:
        note(f"{path}: nothing to do, epoch {after.epoch}: {numbers}")


def _site_words(counts: SiteMoves) -> str:
    """Only what there is of it."""
    words = {
        "moved within": counts.within,
        "from other sites": counts.came,
        "to other sites": counts.left,
        "from nodes that are gone": counts.orphans,
        "new": counts.new,
        "gone": counts.gone,
    }
    return ", ".join(f"{count} {what}" for what, count in words.items() if count)


def _grouped(bindings: Sequence[Binding]) -> list[tuple[tuple[str, str], list[Binding]]]:
    groups: dict[tuple[str, str], list[Binding]] = {}
    for binding in bindings:
        groups.setdefault((binding.pool, binding.node), []).append(binding)
    return sorted(groups.items())


def _spoken(bindings: Sequence[Binding]) -> str:
    """The slices of a group in at most one short clause."""
    if len(bindings) <= 2:
        return " ".join(str(binding.slice) for binding in bindings)
    return f"{bindings[0].slice} to {bindings[-1].slice}"


def _counted(count: int, what: str) -> str:
    plural = what if count == 1 else f"{what}es" if what.endswith(("s", "x")) else f"{what}s"
    return f"{count} {plural}"


def _counts(wanted: Plan) -> dict[str, int]:
    return {
        "prefix": len(wanted.prefixes),
        "site": len(wanted.sites),
        "node": len(wanted.nodes),
        "pool": len(wanted.pools),
        "address": len(wanted.address_shifts()),
        "slice": sum(len(pool.parts()) + len(pool.slices) for pool in wanted.pools.values()),
    }


def _summary(wanted: Plan, bound: BindingsText | None) -> dict[str, object]:
    summary: dict[str, object] = {"plan": wanted.file, "counts": _counts(wanted)}
    if bound is not None:
        held = Counter(binding.node for binding in bound.bindings.bindings)
        summary["bindings"] = {
            "file": bound.file,
            "epoch": bound.bindings.epoch,
            "slices": {node: held[node] for node in wanted.nodes},
        }
    return summary


def _json(before: Bindings | None, after: Bindings, found: Moves, sites: Mapping[str, str]) -> dict[str, object]:
    def shown(binding: Binding) -> dict[str, object]:
        return {
            "slice": str(binding.slice),
            "node": binding.node,
            "site": sites.get(binding.node),
            "epoch": binding.epoch,
            "pool": binding.pool,
        }

    return {
        "epoch_before": before.epoch if before else 0,
        "epoch": after.epoch,
        "changed": before != after,
        "moved": [{**shown(now), "from": was.node, "from_site": sites.get(was.node)} for was, now in found.moved],
        "renamed": [{**shown(now), "from_pool": was.pool} for was, now in found.renamed],
        "new": [shown(binding) for binding in found.new],
        "gone": [shown(binding) for binding in found.gone],
        "unchanged": found.kept,
        "sites": {name: asdict(counts) for name, counts in by_site(found, sites).items()},
    }
