# SPDX-License-Identifier: Apache-2.0
"""YAML text -> plain data, with the line of every key and value.

The text is composed into a graph of nodes (ruamel.yaml, YAML 1.2: `yes` and `on` are strings) that knows
where each thing stands; the graph is then walked here rather than by the library's constructor, because a
plan wants less than YAML offers and clearer answers: no key twice, no tags, no merge keys, keys are strings
as written, and whatever is not a number, a boolean or null is a string. Any input gives a Document or a
PlanError, never another exception.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final, NoReturn

from ruamel.yaml import YAML
from ruamel.yaml.error import MarkedYAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.reader import ReaderError

from softunicast.errors import PlanError

Value = None | bool | int | float | str | list["Value"] | dict[str, "Value"]
Path = tuple[str | int, ...]

MAX_VALUES: Final = 1_000_000
"""Values in a file, aliases expanded: a few lines of YAML can otherwise stand for billions."""
MAX_DEPTH: Final = 32

_BRACKET: Final = re.compile(r"[\[\]{}]")
_CORE: Final = "tag:yaml.org,2002:"


def path_text(path: Path) -> str:
    """("pools", "gb", "slices", 0) -> pools.gb.slices[0]"""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        else:
            shown = step if step.isprintable() and step else repr(step)
            text += f".{shown}" if text else shown
    return text if len(text) <= 100 else f"{text[:97]}..."


@dataclass(slots=True)
class Document:
    """`data` is the file's mapping; lines count from 1."""

    file: str
    data: dict[str, Value]
    _lines: dict[Path, int] = field(default_factory=dict)
    _key_lines: dict[Path, int] = field(default_factory=dict)

    def line(self, path: Path) -> int:
        """The line of the value at `path`, or of the nearest thing around it that is in the file."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def key_line(self, path: Path) -> int:
        """The line of the key at `path` (or, for a list's element, of the element)."""
        return self._key_lines.get(path) or self.line(path)

    def fail(self, path: Path, problem: str, remedy: str = "", *, key: bool = False) -> NoReturn:
        """Raise PlanError at a path. `problem` may itself be "problem; remedy"."""
        if not remedy and "; " in problem:
            problem, _, remedy = problem.partition("; ")
        line = self.key_line(path) if key else self.line(path)
        if path and isinstance(path[-1], int) and path not in self._lines:
            path = path[:-1]  # one value, written where a list of one may stand
        where = path_text(path)
        raise PlanError(self.file, line, f"{where}: {problem}" if where else problem, remedy)


def load_document(text: str, file: str, begin: str = "begin with the example in docs/plan.md") -> Document:
    """Read a file's text whose top is a mapping. PlanError names line and remedy (`begin`: of a file that is none)."""
    root = _compose(text, file)
    if root is None:
        raise PlanError(file, 1, "the file is empty", begin)
    if not isinstance(root, MappingNode):
        raise PlanError(file, _line(root), "the file is no mapping of keys to values", begin)
    if _values(root, {}) > MAX_VALUES:
        raise PlanError(file, 0, f"more than {MAX_VALUES} values", "use fewer aliases, or ranges")
    document = Document(file, {})
    data = _Walk(document).value(root, ())
    if isinstance(data, dict):
        document.data = data
    return document


def _compose(text: str, file: str) -> Node | None:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and "\t" in line[: len(line) - len(line.lstrip())]:
            raise PlanError(file, number, "a tab in the indentation", "indent with spaces")
    _bracket_depth(text, file)
    yaml = YAML(typ="rt", pure=True)
    try:
        node: Node | None = yaml.compose(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        problem = " ".join(str(error.problem or error.context or "not YAML").split())[:200]
        raise PlanError(file, mark.line + 1 if mark else 0, f"not YAML: {problem}", _remedy(problem)) from error
    except ReaderError as error:
        where = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else 0
        raise PlanError(file, where, "a character that YAML does not allow", "remove it; save as UTF-8") from error
    except RecursionError as error:
        raise PlanError(file, 0, "nested too deeply", f"a plan has at most {MAX_DEPTH} levels") from error
    except Exception as error:  # the parser trips over some texts (AttributeError, ValueError ...)
        raise PlanError(
            file, 0, f"not YAML: {type(error).__name__}", "begin with the example in docs/plan.md"
        ) from error
    return node


def _bracket_depth(text: str, file: str) -> None:
    """Refuse what the parser would take quadratic time for. Quotes are not looked at: no plan comes near."""
    depth = 0
    for match in _BRACKET.finditer(text):
        depth = depth + 1 if match[0] in "[{" else max(0, depth - 1)
        if depth > 4 * MAX_DEPTH:
            line = text.count("\n", 0, match.start()) + 1
            raise PlanError(file, line, "nested too deeply", f"a plan has at most {MAX_DEPTH} levels")


def _remedy(problem: str) -> str:
    if "cannot start any token" in problem:
        return "put the text in quotes"
    if "mapping values are not allowed" in problem:
        return "put text with `: ` in quotes, or mend the indentation"
    if "end of stream" in problem:
        return "close the quote or bracket"
    if "undefined alias" in problem:
        return "define it with & before, or put the text in quotes"
    if "another document" in problem:
        return "one file holds one document: remove the second `---`"
    return "mend the indentation, quotes and brackets near that line"


def _line(node: Node) -> int:
    return int(node.start_mark.line) + 1


def _values(node: Node, known: dict[int, int]) -> int:
    """How many values a node stands for with its aliases written out; more than MAX_VALUES when it holds itself."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1
        children: list[Node] = []
        if isinstance(node, MappingNode):
            children = [value for _, value in node.value]
        elif isinstance(node, SequenceNode):
            children = list(node.value)
        known[id(node)] = 1 + sum(_values(child, known) for child in children)
    return known[id(node)]


class _Walk:
    """Nodes to plain data, aliases written out."""

    def __init__(self, document: Document) -> None:
        self._document = document

    def _fail(self, node: Node, path: Path, problem: str, remedy: str) -> NoReturn:
        where = path_text(path)
        raise PlanError(self._document.file, _line(node), f"{where}: {problem}" if where else problem, remedy)

    def value(self, node: Node, path: Path) -> Value:
        if len(path) > MAX_DEPTH:
            self._fail(node, path, "nested too deeply", f"a plan has at most {MAX_DEPTH} levels")
        self._document._lines[path] = _line(node)
        if isinstance(node, MappingNode):
            return self._mapping(node, path)
        if isinstance(node, SequenceNode):
            self._tag(node, path, "seq")
            return [self.value(item, (*path, index)) for index, item in enumerate(node.value)]
        return self._scalar(node, path)

    def _mapping(self, node: MappingNode, path: Path) -> dict[str, Value]:
        self._tag(node, path, "map")
        made: dict[str, Value] = {}
        for key_node, value_node in node.value:
            if not isinstance(key_node, ScalarNode):
                self._fail(key_node, path, "a key that is a list or mapping", "keys are words")
            key = str(key_node.value)
            if key_node.tag == f"{_CORE}merge":
                self._fail(key_node, path, "merge keys (<<) are not used here", "write the keys out")
            if key in made:
                before = self._document.key_line((*path, key))
                self._fail(key_node, (*path, key), f"given twice, first in line {before}", "keep one of them")
            self._document._key_lines[(*path, key)] = _line(key_node)
            made[key] = self.value(value_node, (*path, key))
        return made

    def _tag(self, node: Node, path: Path, usual: str) -> None:
        tag = str(node.tag or "")
        if tag and tag != f"{_CORE}{usual}":
            self._fail(node, path, f"the tag {tag[:40]!r} is not used here", "remove it")

    def _scalar(self, node: Node, path: Path) -> Value:
        tag, text = str(node.tag or ""), str(node.value)
        kind = tag.removeprefix(_CORE)
        if tag and kind == tag:
            self._fail(node, path, f"the tag {tag[:40]!r} is not used here", "remove it, or put the text in quotes")
        if kind == "null":
            return None
        if kind == "bool":
            return text.lower() == "true"
        if kind == "int":
            number = _integer(text)
            return text if number is None else number
        if kind == "float":
            try:
                return float(text)
            except ValueError:
                return text
        return text


def _integer(text: str) -> int | None:
    digits = text.replace("_", "")
    if len(digits) > 40:
        return None
    try:
        return int(digits, 0)
    except ValueError:
        pass
    try:
        return int(digits, 10)
    except ValueError:
        return None
