# SPDX-License-Identifier: Apache-2.0
"""Where the things of a node are, and which node one is at.

    /sys/fs/bpf/softunicast/<node>/maps/<map>      pinned by whoever loads the objects
                                  /progs/<program>
                                  /links/<link>
    /run/softunicast/<node>/node.json              "netns_cookie" says which namespace the node lives in
                           /plan.yaml, bindings.yaml
    /run/netns/softunicast-<node>-<on-ramp's id>   where terminated TCP ends
    <cgroup2>/softunicast/<node>/                  programs under `softunicast run`

Several nodes may live in one kernel (a lab), each in a network namespace of its own. A command without a
node's name means the one whose namespace it runs in; the namespace's cookie decides, because names and inodes
are reused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

from softunicast.errors import KernelError, UsageError
from softunicast.kernel import netns
from softunicast.kernel.bpf import BPFFS
from softunicast.kernel.cgroup import CgroupDir
from softunicast.kernel.maps import Map

PINS: Final = BPFFS / "softunicast"
RUN: Final = Path("/run/softunicast")
# bpffs refuses dots in names; the rest is what a folder and a DNS label can have.
NODE_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}")


def check_name(node: str) -> str:
    """`node` itself. UsageError when it cannot be a node's name, and so a folder's."""
    if not NODE_NAME.fullmatch(node):
        rule = "a name has 1 to 63 letters, digits, - and _"
        raise UsageError(f"node {node!r}: {rule}; correct it in the plan")
    return node


def pin_dir(node: str) -> Path:
    """The node's folder in bpffs: `pin_dir` of BpfObject.load."""
    return PINS / check_name(node)


def map_pin(node: str, name: str) -> Path:
    return pin_dir(node) / "maps" / name


def program_pin(node: str, name: str) -> Path:
    return pin_dir(node) / "progs" / name


def link_pin(node: str, name: str) -> Path:
    return pin_dir(node) / "links" / name


def run_dir(node: str) -> Path:
    """The node's folder of files."""
    return RUN / check_name(node)


def node_file(node: str) -> Path:
    return run_dir(node) / "node.json"


def plan_file(node: str) -> Path:
    return run_dir(node) / "plan.yaml"


def bindings_file(node: str) -> Path:
    return run_dir(node) / "bindings.yaml"


def cgroup_dir(node: str) -> CgroupDir:
    """The cgroup that holds the node's programs. ProbeError without cgroup2."""
    return CgroupDir.below_root("softunicast", check_name(node))


def terminus_namespace(node: str, onramp_id: int) -> str:
    """The name of the network namespace where the TCP of an on-ramp ends."""
    return f"softunicast-{check_name(node)}-{onramp_id}"


def terminus_namespaces(node: str) -> list[str]:
    """Those of a node that are there."""
    pattern = re.compile(re.escape(f"softunicast-{check_name(node)}-") + r"[0-9]+")
    return [name for name in netns.names() if pattern.fullmatch(name)]


def node_names() -> list[str]:
    """Nodes that an agent has set up on this machine and that were not uninstalled, sorted."""
    return sorted(file.parent.name for file in RUN.glob("*/node.json"))


def node_cookie(node: str) -> int:
    """The cookie of the namespace a node lives in. UsageError when there is no such node here."""
    file = node_file(node)
    try:
        return int(json.loads(file.read_text())["netns_cookie"])
    except FileNotFoundError as error:
        there = ", ".join(node_names()) or "none"
        raise UsageError(f"node {node}: not on this machine (here: {there}); start its agent") from error
    except (ValueError, KeyError, TypeError) as error:
        raise KernelError(f"{file}: unreadable ({error}); start the node's agent again") from error


def find_node(name: str | None) -> str:
    """The node meant: `name`, when it is here, else the one whose namespace this thread is in.

    UsageError when there is none, or (two agents in one namespace) more than one.
    """
    if name is not None:
        node_cookie(name)
        return name
    here = netns.cookie()
    found = [node for node in node_names() if node_cookie(node) == here]
    if len(found) == 1:
        return found[0]
    if found:
        raise UsageError(f"several nodes in this network namespace ({', '.join(found)}): say --node NAME")
    others = ", ".join(node_names())
    hint = f"say --node NAME or enter its namespace (nodes: {others})" if others else "start the agent"
    raise UsageError(f"no node in this network namespace: {hint}")


class NodeMaps:
    """The pinned maps of a node, each opened when first asked for: `maps["flows"]` or `maps.flows`."""

    def __init__(self, node: str) -> None:
        self.node = node
        self._open: dict[str, Map] = {}

    def __getitem__(self, name: str) -> Map:
        """KernelError when there is no such pin."""
        if name not in self._open:
            self._open[name] = Map.open_pinned(map_pin(self.node, name))
        return self._open[name]

    def __getattr__(self, name: str) -> Map:
        if name.startswith("_"):
            raise AttributeError(name)
        return self[name]

    def __iter__(self) -> Iterator[str]:
        """Names of all pinned maps, sorted."""
        folder = pin_dir(self.node) / "maps"
        return iter(sorted(entry.name for entry in folder.iterdir()) if folder.exists() else ())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close what was opened; asking again opens again."""
        while self._open:
            self._open.popitem()[1].close()


def open_maps(node: str) -> NodeMaps:
    """The node's maps. UsageError at once when it has none: its agent never ran here."""
    if not (pin_dir(node) / "maps").is_dir():
        raise UsageError(f"node {node}: no maps at {pin_dir(node)}: start its agent")
    return NodeMaps(node)
