# SPDX-License-Identifier: Apache-2.0
"""Bindings: which node holds which slice, and since which epoch. What `plan apply` writes and every node reads.

    # softunicast bindings, written by `softunicast plan apply`
    epoch: 3
    bindings:
      - {slice: "198.51.100.10:2048-4095", node: lhr1, epoch: 1, pool: gb}

The file's epoch grows by one whenever anything in it changes; a binding's epoch is the file's epoch at which its
owner last changed, so it only grows even when a slice goes away and comes back.

The file is YAML, but it may hold a hundred thousand bindings: lines exactly as `dump_bindings` writes them are read
by a regular expression; at the first one that is not, the whole file is read as YAML. Both give the same answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NoReturn

from softunicast.errors import PlanError
from softunicast.model.address import IPAddress
from softunicast.model.document import Document, Path, load_document
from softunicast.model.fleet import Plan
from softunicast.model.slice import Slice, parts_of

HEADER: Final = "# softunicast bindings, written by `softunicast plan apply`: edit the plan, not this file"
MAX_EPOCH: Final = 0xFFFFFFFF
"""Epochs are 32 bits in the kernel's maps."""

_LINE: Final = re.compile(
    r'  - \{slice: "([0-9a-f.:\[\]]+-[0-9]+)", node: ([A-Za-z0-9][A-Za-z0-9_.-]*), epoch: ([1-9][0-9]{0,9}),'
    r" pool: ([A-Za-z0-9][A-Za-z0-9_.-]*)\}"
)
_HEAD: Final = re.compile(r"epoch: (0|[1-9][0-9]{0,9})")
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z_-]*[0-9]*")
_WORDS: Final = {"null", "true", "false"}
_REMAKE: Final = "make it again with `softunicast plan apply`"


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


class BindingsText:
    """A parsed file with the place of each binding, for messages."""

    def __init__(self, file: str, bindings: Bindings, lines: dict[Slice, int]) -> None:
        self.file, self.bindings, self._lines = file, bindings, lines

    def line(self, binding: Binding) -> int:
        """The line the binding stands in; 0 when unknown."""
        return self._lines.get(binding.slice, 0)


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
    epoch, found = fast if fast is not None else _read_yaml(load_document(text, file))
    found.sort(key=lambda item: item[0].slice.sort_key)
    for (before, _), (binding, line) in zip(found, found[1:], strict=False):
        if before.slice.overlaps(binding.slice):
            raise PlanError(file, line, f"{binding.slice} of {binding.node} overlaps {before.slice} of {before.node}", _REMAKE)
    for binding, line in found:
        if binding.epoch > epoch:
            raise PlanError(file, line, f"{binding.slice}: epoch {binding.epoch} is beyond the file's {epoch}", _REMAKE)
    lines = {binding.slice: line for binding, line in found}
    return BindingsText(file, Bindings(epoch, tuple(binding for binding, _ in found)), lines)


def _read_fast(text: str) -> tuple[int, list[tuple[Binding, int]]] | None:
    lines = text.split("\n")
    if len(lines) < 4 or lines[0] != HEADER or lines[2] != "bindings:" or lines[-1] != "":
        return None
    head = _HEAD.fullmatch(lines[1])
    if head is None or int(head[1]) > MAX_EPOCH:
        return None
    found: list[tuple[Binding, int]] = []
    addresses: dict[str, IPAddress] = {}
    for number, line in enumerate(lines[3:-1], start=4):
        match = _LINE.fullmatch(line)
        if match is None or not (_is_plain(match[2]) and _is_plain(match[4])):
            return None
        host, _, ports = match[1].rpartition(":")
        first, _, last = ports.partition("-")
        try:
            if host not in addresses:
                addresses[host] = Slice.parse(match[1]).address
            slice_ = Slice(addresses[host], int(first), int(last))
        except ValueError:
            return None
        if not 0 < int(match[3]) <= MAX_EPOCH:
            return None
        found.append((Binding(slice_, match[2], int(match[3]), match[4]), number))
    return int(head[1]), found


def _is_plain(name: str) -> bool:
    return _PLAIN.fullmatch(name) is not None and name.lower() not in _WORDS


def _scalar(name: str) -> str:
    return name if _is_plain(name) else f'"{name}"'


def _read_yaml(document: Document) -> tuple[int, list[tuple[Binding, int]]]:
    data = document.data
    _keys(document, (), list(data), ("epoch", "bindings"))
    epoch = data["epoch"]
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch <= MAX_EPOCH:
        document.fail(("epoch",), f"a whole number from 0 to {MAX_EPOCH} is wanted", _REMAKE)
    items = data["bindings"]
    if not isinstance(items, list):
        document.fail(("bindings",), "a list is wanted", _REMAKE)
    found: list[tuple[Binding, int]] = []
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
        found.append((Binding(slice_, node, since, pool), document.line(path)))
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
    """Raise PlanError unless every binding is one that this plan can give, and the file is no older than `running`.

    A plan may have slices that nobody holds yet (not applied); bindings of things the plan does not have are refused.
    `running` is what the node runs now: an older epoch is refused, and so is another content under the same epoch.
    """
    source = bindings if isinstance(bindings, BindingsText) else BindingsText(file, bindings, {})
    _Check(plan, source).run()
    epoch = source.bindings.epoch
    if running is None:
        return
    if epoch < running.epoch:
        raise PlanError(
            source.file, 0, f"epoch {epoch} is older than {running.epoch}, which runs here", "bring the newest bindings file"
        )
    if epoch == running.epoch and source.bindings != running:
        raise PlanError(
            source.file, 0, f"differs from what runs here under the same epoch {epoch}", "write it with `plan apply` in one place"
        )


class _Check:
    def __init__(self, plan: Plan, source: BindingsText) -> None:
        self._plan, self._source = plan, source
        self._static = {static.slice: static.node for pool in plan.pools.values() for static in pool.slices}
        self._home = {address: pool.name for pool in plan.pools.values() for address in pool.addresses}
        self._home.update({static.address: pool.name for pool in plan.pools.values() for static in _statics(plan, pool.name)})
        self._parts: dict[IPAddress, frozenset[Slice]] = {}

    def _fail(self, binding: Binding, problem: str, remedy: str) -> NoReturn:
        raise PlanError(self._source.file, self._source.line(binding), f"{binding.slice}: {problem}", remedy)

    def run(self) -> None:
        nodes = self._plan.nodes
        for binding in self._source.bindings.bindings:
            pool = self._plan.pools.get(binding.pool)
            if pool is None:
                self._fail(binding, f"pool {binding.pool!r} is not in {self._plan.file}", _OTHER)
            if binding.node not in nodes:
                self._fail(binding, f"node {binding.node!r} is not in {self._plan.file}", _OTHER)
            if binding.node not in pool.nodes:
                self._fail(binding, f"{binding.node} is not among the nodes of pool {pool.name}", _OTHER)
            home = self._home.get(binding.slice.address)
            if home is None:
                self._fail(binding, f"its address is in no pool of {self._plan.file}", _OTHER)
            if home != pool.name:
                self._fail(binding, f"its address is of pool {home}, not {pool.name}", _OTHER)
            self._slice(binding)

    def _slice(self, binding: Binding) -> None:
        given = self._static.get(binding.slice)
        if given is not None:
            if given != binding.node:
                self._fail(binding, f"{self._plan.file} gives it to {given}, not {binding.node}", _OTHER)
            return
        address = binding.slice.address
        if address not in self._parts:
            pool = self._plan.pools[binding.pool]
            in_parts = address in pool.addresses
            self._parts[address] = frozenset(parts_of(address, pool.shift_of(address)) if in_parts else ())
        if binding.slice not in self._parts[address]:
            self._fail(binding, f"is no slice of pool {binding.pool}", _OTHER)


_OTHER: Final = "the bindings are of another plan, or older than this one: `softunicast plan apply`"


def _statics(plan: Plan, pool: str) -> list[Slice]:
    return [static.slice for static in plan.pools[pool].slices]
