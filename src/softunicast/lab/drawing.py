# SPDX-License-Identifier: Apache-2.0
"""The drawing is the topology: read boxes and lines of text into namespaces, links and addresses.

A box is a network namespace. Its first line is the namespace's name, what follows the name is a remark. A
later line `DEVICE ADDRESS...` (at least one address, each with or without `/length`) gives addresses of a
device: `lo`, `brN`, a bridge, or the box's end of a link; several lines of one device add up. A line that begins
with `#` is a remark.

A vertical line from a `┬` in the lower edge of one box to the `┴` in the upper edge of another is a link. On
its way it passes through labels (text that covers the line's column): the first is the device in the upper
box, the last the device in the lower box, each with its addresses, `DEVICE [ADDRESS/LENGTH...]`; labels that are
addresses only belong to the device above them. A label that begins with `mtu` sets both ends' MTU. A device without
address is a port of the bridge in its box. `│` is a veth pair, `┆` a tunnel: a TUN device at each end and a process
that pumps packets between them. A horizontal line from a `├` in the right edge of one box to the `┤` in the left
edge of another is a veth pair too; its labels stand between its `─`.

Nothing else is read from anywhere: what is drawn is built, and tests compare the kernel with the drawing.
Pure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

Interface = IPv4Interface | IPv6Interface


class DrawingError(ValueError):
    """The drawing cannot be read; the message names line and column, counted from 1."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a link: a device in a namespace, and its addresses."""

    namespace: str
    device: str
    addresses: tuple[Interface, ...] = ()


@dataclass(frozen=True, slots=True)
class Link:
    """Two devices that see each other. `tunnel`: TUN devices and a pump instead of a veth pair."""

    upper: End
    lower: End
    mtu: int = 1500
    tunnel: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """What a drawing says. `inside` are devices that are no link's end: `lo` and bridges."""

    namespaces: tuple[str, ...]
    inside: tuple[End, ...]
    links: tuple[Link, ...]

    def bridge(self, namespace: str) -> str | None:
        """The bridge in a namespace, if it has one."""
        return next((end.device for end in self.inside if end.namespace == namespace and is_bridge(end.device)), None)

    def ends(self) -> tuple[End, ...]:
        """Every device drawn."""
        return self.inside + tuple(end for link in self.links for end in (link.upper, link.lower))

    def facts(self) -> frozenset[tuple[str, str, str]]:
        """(namespace, device, address/length) of every address drawn, and ("" as address) of every device."""
        found = {(end.namespace, end.device, "") for end in self.ends()}
        found |= {(end.namespace, end.device, str(address)) for end in self.ends() for address in end.addresses}
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class _Box:
    name: str
    top: int
    bottom: int
    left: int
    right: int
    lines: tuple[str, ...]


def is_bridge(device: str) -> bool:
    """Bridges are known by their names, br0, br1 ..."""
    return device.startswith("br") and device[2:].isdigit()


def read_drawing(text: str) -> Topology:
    """Read a drawing; DrawingError when it is not one."""
    canvas = text.splitlines()
    boxes = [box for row, line in enumerate(canvas) for box in _boxes(canvas, row, line)]
    names = [box.name for box in boxes]
    if len(set(names)) != len(names):
        raise DrawingError(f"a name is drawn twice: {', '.join(names)}")
    links = tuple(
        _follow(canvas, boxes, box, column)
        for box in boxes
        for column in range(box.left, box.right + 1)
        if canvas[box.bottom][column] == "┬"
    )
    across = tuple(
        _across(canvas, boxes, box, row)
        for box in boxes
        for row in range(box.top, box.bottom + 1)
        if canvas[row][box.right] == "├"
    )
    reached = sum(canvas[box.top][box.left : box.right + 1].count("┴") for box in boxes)
    if reached != len(links):
        raise DrawingError(f"{reached} lines arrive at boxes, {len(links)} leave them")
    inside: dict[tuple[str, str], End] = {}
    for box in boxes:
        for line in box.lines:
            end = _device(line, box.name, box.top)
            before = inside.get((end.namespace, end.device), End(end.namespace, end.device))
            inside[end.namespace, end.device] = _more(before, end)

    def whole(link: Link) -> Link:
        upper, lower = (
            _more(end, inside.pop((end.namespace, end.device), End(end.namespace, end.device)))
            for end in (link.upper, link.lower)
        )
        return replace(link, upper=upper, lower=lower)

    every = tuple(whole(link) for link in (*links, *across))
    return Topology(tuple(names), tuple(inside.values()), every)


def _more(end: End, other: End) -> End:
    return replace(end, addresses=end.addresses + other.addresses)


def _boxes(canvas: list[str], row: int, line: str) -> list[_Box]:
    found = []
    for left, character in enumerate(line):
        if character != "┌":
            continue
        right = line.find("┐", left)
        bottom = next((below for below in range(row + 1, len(canvas)) if canvas[below][left : left + 1] == "└"), None)
        if right < 0 or bottom is None or canvas[bottom][right : right + 1] != "┘":
            raise DrawingError(f"line {row + 1}, column {left + 1}: a box that does not close")
        content = [canvas[inner][left + 1 : right].strip() for inner in range(row + 1, bottom)]
        if not content or not content[0]:
            raise DrawingError(f"line {row + 1}, column {left + 1}: a box without a name")
        kept = tuple(text for text in content[1:] if text and not text.startswith("#"))
        found.append(_Box(content[0].split()[0], row, bottom, left, right, kept))
    return found


def _device(label: str, namespace: str, row: int) -> End:
    device, *addresses = label.split()
    try:
        return End(namespace, device, tuple(ip_interface(address) for address in addresses))
    except ValueError as error:
        raise DrawingError(f"line {row + 1}: {namespace}: {label!r} is no device with addresses: {error}") from error


def _follow(canvas: list[str], boxes: list[_Box], upper: _Box, column: int) -> Link:
    labels: list[str] = []
    tunnel = False
    for row in range(upper.bottom + 1, len(canvas)):
        character = canvas[row][column : column + 1]
        if character == "┴":
            break
        if character == "┆":
            tunnel = True
        elif character not in ("│", ""):
            label = _label(canvas[row], column, row)
            if labels and "/" in label.split()[0]:
                labels[-1] += f" {label}"
            else:
                labels.append(label)
        if character == "":
            raise DrawingError(f"line {row + 1}, column {column + 1}: the line ends in nothing")
    else:
        raise DrawingError(f"line {len(canvas)}, column {column + 1}: the line ends in nothing")
    lower = next((box for box in boxes if box.top == row and box.left < column < box.right), None)
    if lower is None:
        raise DrawingError(f"line {row + 1}, column {column + 1}: no box here")
    return _link(upper, lower, labels, f"line {row + 1}, column {column + 1}", tunnel=tunnel)


def _across(canvas: list[str], boxes: list[_Box], left: _Box, row: int) -> Link:
    place = f"line {row + 1}, column {left.right + 1}"
    end = canvas[row].find("┤", left.right)
    right = next((box for box in boxes if box.left == end and box.top < row < box.bottom), None)
    if right is None:
        raise DrawingError(f"{place}: the line ends in nothing")
    labels = [label.strip() for label in re.split("─+", canvas[row][left.right + 1 : end])]
    return _link(left, right, [label for label in labels if label], place)


def _link(upper: _Box, lower: _Box, labels: list[str], place: str, *, tunnel: bool = False) -> Link:
    mtus = [int(label.split()[1]) for label in labels if label.startswith("mtu ")]
    ends = [label for label in labels if not label.startswith("mtu ")]
    if len(ends) != 2:
        raise DrawingError(f"{place}: {len(ends)} devices on a line, 2 are needed: {ends}")
    first = _device(ends[0], upper.name, upper.bottom)
    last = _device(ends[1], lower.name, lower.top)
    return Link(first, last, mtus[0] if mtus else 1500, tunnel)


def _label(line: str, column: int, row: int) -> str:
    """The text around a column; two spaces, or a line character, end it."""
    if line[column] == " " and "  " in line[max(column - 1, 0) : column + 2]:
        raise DrawingError(f"line {row + 1}, column {column + 1}: the line is broken")
    start, end = column, column
    while start > 0 and line[start - 1] not in "│┆" and line[max(start - 2, 0) : start] != "  ":
        start -= 1
    while end + 1 < len(line) and line[end + 1] not in "│┆" and line[end + 1 : end + 3] != "  ":
        end += 1
    return line[start : end + 1].strip()
