# SPDX-License-Identifier: Apache-2.0
"""Bindings: which node holds which slice, and since which epoch. `plan apply` writes, every node reads.

    # softunicast bindings, written by `softunicast plan apply`
    epoch: 3
    bindings:
      - {slice: "198.51.100.10:2048-4095", node: lhr1, epoch: 1, pool: gb}

The file's epoch grows by one whenever anything in it changes; a binding's epoch is the file's epoch at which
its owner last changed, so it only grows even when a slice goes away and comes back.

The file is YAML, but it may hold a hundred thousand bindings: lines exactly as `dump_bindings` writes them
are read by a regular expression; at the first one that is not, the whole file is read as YAML. Both give the
same answer.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from typing import Final

from softunicast.errors import PlanError
from softunicast.model.address import IPAddress
from softunicast.model.document import Document, Path, load_document
from softunicast.model.fleet import Plan
from softunicast.model.slice import Slice, is_part

HEADER: Final = "# softunicast bindings, written by `softunicast plan apply`: edit the plan, not this file"
MAX_EPOCH: Final = 0xFFFFFFFF
"""Epochs are 32 bits in the kernel's maps."""

_WORD: Final = r'([A-Za-z][A-Za-z0-9_.-]*|"[A-Za-z0-9_.-]+")'
_LINE: Final = re.compile(
    r'  - \{slice: "([0-9a-f.:\[\]]+):([0-9]{1,5})-([0-9]{1,5})",'
    rf" node: {_WORD}, epoch: ([1-9][0-9]{{0,9}}), pool: {_WORD}\}}"
)
_HEAD: Final = re.compile(r"epoch: (0|[1-9][0-9]{0,9})")
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_WORDS: Final = {"null", "true", "false"}
_REMAKE: Final = "make it again with `softunicast plan apply`"
_OTHER: Final = "the bindings are of another plan, or older than this one: `softunicast plan apply`"


@dataclass(frozen=True, slots=True)
class Binding:
    """One slice, its node, the epoch since which it is that node's, and the pool it is of."""

    slice: Slice
    node: str
    epoch: int
    pool: str


@dataclass(frozen=True, slots=True)
class Bindings:
    """All bindings, sorted by slice. `epoch` 0: nothing was ever bound."""

    epoch: int
    bindings: tuple[Binding, ...]


@dataclass(frozen=True, slots=True)
class BindingsText:
    """A parsed file: `lines` has the line of each of `bindings.bindings` (empty: unknown), for messages."""

    file: str
    bindings: Bindings
    lines: tuple[int, ...] = ()


def dump_bindings(bindings: Bindings) -> str:
    """The file's text; equal bindings give equal texts."""
    lines = [HEADER, f"epoch: {bindings.epoch}"]
    if not bindings.bindings:
        return "\n".join([*lines, "bindings: []", ""])
    lines.append("bindings:")
    for binding in bindings.bindings:
        node, pool = _scalar(binding.node), _scalar(binding.pool)
        lines.append(f'  - {{slice: "{binding.slice}", node: {node}, epoch: {binding.epoch}, pool: {pool}}}')
    return "\n".join([*lines, ""])


def load_bindings(text: str, file: str) -> Bindings:
    """Parse a bindings file. PlanError: file, line, what is wrong; also when two bindings share a port."""
    return read_bindings(text, file).bindings


def read_bindings(text: str, file: str) -> BindingsText:
    """As load_bindings, with the lines."""
    fast = _read_fast(text)
    epoch, found = fast if fast is not None else _read_yaml(load_document(text, file, _REMAKE))
    found.sort(key=lambda item: item[0])
    for (key, before, _), (next_key, binding, line) in itertools.pairwise(found):
        if key[:2] == next_key[:2] and before.slice.last >= binding.slice.first:
            problem = f"{binding.slice} of {binding.node} overlaps {before.slice} of {before.node}"
            raise PlanError(file, line, problem, _REMAKE)
    for _, binding, line in found:
        if binding.epoch > epoch:
            problem = f"{binding.slice}: epoch {binding.epoch} is beyond the file's {epoch}"
            raise PlanError(file, line, problem, _REMAKE)
    bindings = Bindings(epoch, tuple(binding for _, binding, _ in found))
    return BindingsText(file, bindings, tuple(line for _, _, line in found))


_Found = tuple[tuple[int, int, int], Binding, int]
"""(IP version, address, first port), the binding, its line."""


def _read_fast(text: str) -> tuple[int, list[_Found]] | None:
    lines = text.split("\n")
    if len(lines) < 4 or lines[0] != HEADER or lines[2] != "bindings:" or lines[-1] != "":
        return None
    head = _HEAD.fullmatch(lines[1])
    if head is None or int(head[1]) > MAX_EPOCH:
        return None
    found: list[_Found] = []
    addresses: dict[str, tuple[IPAddress, int]] = {}
    names: dict[str, str] = {}
    for number, line in enumerate(lines[3:-1], start=4):
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        host, first, last, node, since, pool = match.groups()
        try:
            if host not in addresses:
                address = Slice.parse(f"{host}:0").address
                addresses[host] = address, int(address)
            address, value = addresses[host]
            slice_ = Slice(address, int(first), int(last))
        except ValueError:
            return None
        for word in (node, pool):
            if word not in names:
                if word[0] != '"' and not _is_plain(word):
                    return None
                names[word] = word.strip('"')
        if int(since) > MAX_EPOCH:
            return None
        found.append(
            ((address.version, value, slice_.first), Binding(slice_, names[node], int(since), names[pool]), number)
        )
    return int(head[1]), found


def _is_plain(name: str) -> bool:
    return _PLAIN.fullmatch(name) is not None and name.lower() not in _WORDS


def _scalar(name: str) -> str:
    return name if _is_plain(name) else f'"{name}"'


def _read_yaml(document: Document) -> tuple[int, list[_Found]]:
    data = document.data
    _keys(document, (), list(data), ("epoch", "bindings"))
    epoch = data["epoch"]
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch <= MAX_EPOCH:
        document.fail(("epoch",), f"a whole number from 0 to {MAX_EPOCH} is wanted", _REMAKE)
    items = data["bindings"]
    if not isinstance(items, list):
        document.fail(("bindings",), "a list is wanted", _REMAKE)
    found: list[_Found] = []
    for index, item in enumerate(items):
        path: Path = ("bindings", index)
        if not isinstance(item, dict):
            document.fail(path, "a mapping is wanted", _REMAKE)
        _keys(document, path, list(item), ("slice", "node", "epoch", "pool"))
        text, node, since, pool = item["slice"], item["node"], item["epoch"], item["pool"]
        if not isinstance(text, str):
            document.fail((*path, "slice"), "text is wanted", _REMAKE)
        if not isinstance(node, str):
            document.fail((*path, "node"), "text is wanted", _REMAKE)
        if not isinstance(pool, str):
            document.fail((*path, "pool"), "text is wanted", _REMAKE)
        if not isinstance(since, int) or isinstance(since, bool) or not 0 < since <= MAX_EPOCH:
            document.fail((*path, "epoch"), f"a whole number from 1 to {MAX_EPOCH} is wanted", _REMAKE)
        try:
            slice_ = Slice.parse(text)
        except ValueError as error:
            document.fail((*path, "slice"), str(error))
        found.append((slice_.sort_key[:3], Binding(slice_, node, since, pool), document.line(path)))
    return epoch, found


def _keys(document: Document, path: Path, given: list[str], wanted: tuple[str, ...]) -> None:
    for key in given:
        if key not in wanted:
            document.fail((*path, key), "unknown key", f"known keys: {', '.join(wanted)}", key=True)
    for key in wanted:
        if key not in given:
            document.fail((*path, key), "missing", _REMAKE)


def check_bindings(
    plan: Plan, bindings: Bindings | BindingsText, *, running: Bindings | None = None, file: str = "bindings"
) -> None:
    """Raise PlanError unless every binding is one that this plan can give, and the file no older than `running`.

    A plan may have slices that nobody holds yet (not applied); bindings of what the plan does not have are
    refused. `running` is what the node runs now: an older epoch is refused, and so is another content under
    the same epoch. `file` is for messages when the bindings come without their text.
    """
    source = bindings if isinstance(bindings, BindingsText) else BindingsText(file, bindings)
    homes = _homes(plan)
    nodes = {pool.name: frozenset(pool.nodes) for pool in plan.pools.values()}
    for at, binding in enumerate(source.bindings.bindings):
        problem = _mismatch(plan, homes, nodes, binding)
        if problem:
            line = source.lines[at] if source.lines else 0
            raise PlanError(source.file, line, f"{binding.slice}: {problem}", _OTHER)
    epoch = source.bindings.epoch
    if running is None:
        return
    if epoch < running.epoch:
        problem = f"epoch {epoch} is older than {running.epoch}, which runs here"
        raise PlanError(source.file, 0, problem, "bring the newest bindings file")
    if epoch == running.epoch and source.bindings != running:
        problem = f"differs from what runs here under the same epoch {epoch}"
        raise PlanError(source.file, 0, problem, "write it with `softunicast plan apply`, in one place")


def _homes(plan: Plan) -> dict[IPAddress, tuple[str, int, dict[Slice, str] | None]]:
    """Address -> pool, shift and, where slices are static, each one's node."""
    homes: dict[IPAddress, tuple[str, int, dict[Slice, str] | None]] = {}
    for pool in plan.pools.values():
        homes.update((address, (pool.name, pool.shift_of(address), None)) for address in pool.addresses)
        for address in pool.static_addresses:
            given = {static.slice: static.node for static in pool.slices if static.slice.address == address}
            homes[address] = (pool.name, 0, given)
    return homes


def _mismatch(
    plan: Plan,
    homes: dict[IPAddress, tuple[str, int, dict[Slice, str] | None]],
    nodes: dict[str, frozenset[str]],
    binding: Binding,
) -> str:
    """Why the plan cannot give this binding; empty: it can."""
    if binding.pool not in nodes:
        return f"pool {binding.pool!r} is not in {plan.file}"
    if binding.node not in nodes[binding.pool]:
        if binding.node not in plan.nodes:
            return f"node {binding.node!r} is not in {plan.file}"
        return f"{binding.node} is not among the nodes of pool {binding.pool}"
    home = homes.get(binding.slice.address)
    if home is None:
        return f"its address is in no pool of {plan.file}"
    pool, shift, given = home
    if pool != binding.pool:
        return f"its address is of pool {pool}, not {binding.pool}"
    if given is not None:
        if binding.slice not in given:
            return f"is no slice of pool {pool}"
        owner = given[binding.slice]
        return "" if owner == binding.node else f"{plan.file} gives it to {owner}, not {binding.node}"
    return "" if is_part(binding.slice, shift) else f"is no slice of pool {pool}"
