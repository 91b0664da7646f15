# SPDX-License-Identifier: Apache-2.0
"""The bindings file: `plan apply` writes it, every node reads it.

    # softunicast bindings, written by `softunicast plan apply`
    epoch: 3
    bindings:
      - {slice: "198.51.100.10:2048-4095", node: lhr1, epoch: 1, pool: gb}

The file is YAML, but it may hold a hundred thousand bindings: lines exactly as `dump_bindings` writes them
are read by a regular expression; at the first one that is not, the whole file is read as YAML. Both give the
same answer. A file that was read before is read again by the lines that differ.
"""

from __future__ import annotations

import itertools
import operator
import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from softunicast.errors import PlanError
from softunicast.model.address import IPAddress
from softunicast.model.binding import Binding, Bindings, BindingsText
from softunicast.model.document import Document, Path, load_document
from softunicast.model.slice import Slice

HEADER: Final = "# softunicast bindings, written by `softunicast plan apply`: edit the plan, not this file"
MAX_EPOCH: Final = 0xFFFFFFFF
"""Epochs are 32 bits in the kernel's maps."""

_FIRST_LINE: Final = 4
"""Where bindings begin in a file as `dump_bindings` writes it."""

_WORD: Final = r'([A-Za-z][A-Za-z0-9_.-]*|"[A-Za-z0-9_.-]+")'
_LINE: Final = re.compile(
    r'  - \{slice: "([0-9a-f.:\[\]]+):([0-9]{1,5})-([0-9]{1,5})",'
    rf" node: {_WORD}, epoch: ([1-9][0-9]{{0,9}}), pool: {_WORD}\}}"
)
_HEAD: Final = re.compile(r"epoch: (0|[1-9][0-9]{0,9})")
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_WORDS: Final = {"null", "true", "false"}
_REMAKE: Final = "make it again with `softunicast plan apply`"


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


def read_bindings(text: str, file: str, before: BindingsText | None = None) -> BindingsText:
    """As load_bindings, with the lines. `before`: what this file said earlier, so that only lines that differ are read;
    all other bindings are the very same objects.
    """
    if before is not None and (again := _read_again(text, before)) is not None:
        return BindingsText(file, again, before.lines, text)
    fast = _read_fast(text)
    epoch, found = fast if fast is not None else _read_yaml(load_document(text, file, _REMAKE))
    found.sort(key=lambda item: item[0])
    for (key, earlier, _), (next_key, binding, line) in itertools.pairwise(found):
        if key[:2] == next_key[:2] and earlier.slice.last >= binding.slice.first:
            problem = f"{binding.slice} of {binding.node} overlaps {earlier.slice} of {earlier.node}"
            raise PlanError(file, line, problem, _REMAKE)
    for _, binding, line in found:
        if binding.epoch > epoch:
            problem = f"{binding.slice}: epoch {binding.epoch} is beyond the file's {epoch}"
            raise PlanError(file, line, problem, _REMAKE)
    bindings = Bindings(epoch, tuple(binding for _, binding, _ in found))
    lines: Sequence[int] = tuple(line for _, _, line in found)
    in_order = range(_FIRST_LINE, _FIRST_LINE + len(lines))
    if fast is not None and lines == tuple(in_order):
        lines = in_order
    return BindingsText(file, bindings, lines, text)


_Found = tuple[tuple[int, int, int], Binding, int]
"""(IP version, address, first port), the binding, its line."""


class _Words:
    """What repeats in the lines of a file: addresses, names of nodes and pools."""

    def __init__(self) -> None:
        self._addresses: dict[str, IPAddress] = {}
        self._names: dict[str, str] = {}

    def binding(self, line: str) -> Binding | None:
        """What a line says that is exactly as `dump_bindings` writes it; None: it is not, or says what cannot be."""
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        host, first, last, node, since, pool = match.groups()
        try:
            if host not in self._addresses:
                self._addresses[host] = Slice.parse(f"{host}:0").address
            slice_ = Slice(self._addresses[host], int(first), int(last))
        except ValueError:
            return None
        for word in (node, pool):
            if word not in self._names:
                if word[0] != '"' and not _is_plain(word):
                    return None
                self._names[word] = word.strip('"')
        if int(since) > MAX_EPOCH:
            return None
        return Binding(slice_, self._names[node], int(since), self._names[pool])


def _epoch_of(lines: list[str]) -> int | None:
    """Of a file as `dump_bindings` writes it; None: it is not one."""
    if len(lines) < _FIRST_LINE or lines[0] != HEADER or lines[2] != "bindings:" or lines[-1] != "":
        return None
    head = _HEAD.fullmatch(lines[1])
    return int(head[1]) if head is not None and int(head[1]) <= MAX_EPOCH else None


def _read_fast(text: str) -> tuple[int, list[_Found]] | None:
    lines = text.split("\n")
    epoch = _epoch_of(lines)
    if epoch is None:
        return None
    words = _Words()
    found: list[_Found] = []
    for number, line in enumerate(lines[_FIRST_LINE - 1 : -1], start=_FIRST_LINE):
        binding = words.binding(line)
        if binding is None:
            return None
        address = binding.slice.address
        found.append(((address.version, int(address), binding.slice.first), binding, number))
    return epoch, found


def _read_again(text: str, before: BindingsText) -> Bindings | None:
    """By the lines that differ from `before`; None when that does not do, and all is to be read."""
    if not isinstance(before.lines, range):
        return None
    known, lines = before.text.split("\n"), text.split("\n")
    epoch = _epoch_of(lines)
    if epoch is None or epoch < before.bindings.epoch or len(lines) != len(known):
        return None
    words = _Words()
    bindings = list(before.bindings.bindings)
    for at in itertools.compress(range(len(lines)), map(operator.ne, known, lines)):
        if at < _FIRST_LINE - 1:
            continue
        place = at - (_FIRST_LINE - 1)
        binding = words.binding(lines[at])
        if binding is None or binding.slice != bindings[place].slice or binding.epoch > epoch:
            return None
        # Neighbours share their address, one object.
        bindings[place] = replace(binding, slice=bindings[place].slice)
    return Bindings(epoch, tuple(bindings))


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
