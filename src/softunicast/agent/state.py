# SPDX-License-Identifier: Apache-2.0
"""node.json: what the agent knows about its node that neither plan nor kernel can tell.

One file a node, /run/softunicast/<node>/node.json, beside the copies of plan and bindings that the kernel's
maps were filled from. Written atomically (temporary file, fsync, rename) *before* the first change to the
kernel, and again after the last, so that `agent uninstall` finds what to put back even after a kill in the
middle. It is lost with the tmpfs at reboot, like everything it describes.

Readers: the agent; `softunicast slices|flows|counters|drops|explain|run` for names and indices;
`kernel.nodes.find_node` for `netns_cookie`. Unknown fields are refused by `format`, not guessed.

| field | meaning |
|---|---|
| `format` | of this file; another one is refused |
| `node`, `netns_cookie` | whose kernel state this is: SO_NETNS_COOKIE of its network namespace |
| `abi_version`, `build_hash` | of the loaded programs: equal hash, nothing to load; see agent.loader |
| `settings` | the constants of the loaded programs: struct su_settings in hexadecimal |
| `bindings_epoch` | of bindings.yaml; the agent refuses an older one |
| `ready` | the last reconciliation went through |
| `pools`, `slices`, `onramps`, `uplinks` | names <-> indices used in the maps |
| `tags` | of pools that have any, for programs that choose by them |
| `never` | destinations that are never sliced, networks |
| `numbers` | of pools, on-ramps, tenants and lists of prefixes, those that left too: egress.numbers |
| `places` | where nodes, sites, owners and lists of sites are in the maps: steering.places |
| `map_sizes` | max_entries of the maps that were not left at their default |
| `array_used` | how many elements of an array map were filled; beyond them it is zeros |
| `cgroup` | folder of `softunicast run`'s cgroups; `cgroup_root` where the hooks are attached |
| `sysctls_before` | values to put back by uninstall, by name; devices that went away are left out |
| `addresses_added` | slice addresses this agent put on lo (others were there before and stay) |
| `started_s` | seconds since 1970 of the first successful start of this data plane |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Final

from softunicast.egress.numbers import FRESH, Numbers
from softunicast.errors import KernelError
from softunicast.steering.places import NOWHERE, Block, Places, SiteList

FORMAT: Final = 2


@dataclass(frozen=True, slots=True)
class SliceState:
    """A slice this node holds. `index`: its place in the map `slices`; `slice`: text, as Slice.parse reads
    it."""

    index: int
    slice: str
    pool: str
    epoch: int


@dataclass(frozen=True, slots=True)
class OnrampState:
    """An on-ramp. `id`: its place in `onramps`; `ifindex` 0: the device is not there (yet).

    `generation` grows when ifindex, sources or policy change (`fingerprint` tells); claims of older ones are
    dead.
    """

    id: int
    device: str
    ifindex: int
    generation: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class NodeState:
    """The contents of node.json. Frozen: change with dataclasses.replace, then save."""

    node: str
    netns_cookie: int
    abi_version: int
    build_hash: str = ""
    settings: str = ""
    format: int = FORMAT
    bindings_epoch: int = 0
    ready: bool = False
    pools: Mapping[str, int] = field(default_factory=dict)
    tags: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    never: tuple[str, ...] = ()
    places: Places = NOWHERE
    numbers: Numbers = FRESH
    slices: tuple[SliceState, ...] = ()
    onramps: Mapping[str, OnrampState] = field(default_factory=dict)
    uplinks: Mapping[str, int] = field(default_factory=dict)
    map_sizes: Mapping[str, int] = field(default_factory=dict)
    array_used: Mapping[str, int] = field(default_factory=dict)
    cgroup: str = ""
    cgroup_root: str = ""
    sysctls_before: Mapping[str, str] = field(default_factory=dict)
    addresses_added: tuple[str, ...] = ()
    started_s: int = 0

    def pool_name(self, index: int) -> str | None:
        """The name of the pool with this index in `pools`; None: unknown (tables and file differ)."""
        return next((name for name, at in self.pools.items() if at == index), None)

    def node_name(self, index: int) -> str | None:
        """The name of the node with this index in the map `nodes`."""
        return next((name for name, at in self.places.nodes.items() if at == index), None)

    def onramp_name(self, id_: int) -> str | None:
        """The name of the on-ramp with this id."""
        return next((name for name, onramp in self.onramps.items() if onramp.id == id_), None)

    def tenant_name(self, number: int) -> str | None:
        """The tenant with this number in claims and counters."""
        return next((name for name, at in self.numbers.tenants.items() if at == number), None)

    def slice_at(self, index: int) -> SliceState | None:
        """The slice with this index in `slices`."""
        return next((held for held in self.slices if held.index == index), None)

    def dumps(self) -> str:
        """JSON, a line for each field, keys sorted, so that equal states are equal files."""
        lines = (
            f" {json.dumps(name)}: {json.dumps(getattr(self, name), sort_keys=True, default=_by_fields)}"
            for name in sorted(item.name for item in fields(self))
        )
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def save(self, path: Path) -> None:
        """Write atomically, mode 0644; on OSError the old file is whole."""
        write_atomically(path, self.dumps())


def _by_fields(part: Any) -> dict[str, Any]:
    return {item.name: getattr(part, item.name) for item in fields(part)}


def loads(text: str, path: Path) -> NodeState:
    """Parse node.json; KernelError when it is not one (then `agent uninstall` and a new start are the way
    out)."""
    remedy = "stop the agent, `softunicast agent uninstall`, and start it again"
    try:
        raw: dict[str, Any] = json.loads(text)
        if raw.get("format") != FORMAT:
            raise KernelError(f"{path}: format {raw.get('format')!r}, this version reads {FORMAT}; {remedy}")
        known = {item.name for item in fields(NodeState)}
        values = {name: value for name, value in raw.items() if name in known}
        values["slices"] = tuple(SliceState(**item) for item in raw["slices"])
        values["onramps"] = {name: OnrampState(**item) for name, item in raw["onramps"].items()}
        values["addresses_added"] = tuple(raw["addresses_added"])
        values["never"] = tuple(raw.get("never", ()))
        values["places"] = _places(raw["places"])
        values["numbers"] = Numbers(**raw.get("numbers", {}))
        return NodeState(**values)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise KernelError(f"{path}: not a node file ({error}); {remedy}") from error


def _places(raw: Mapping[str, Any]) -> Places:
    return Places(
        nodes=raw["nodes"],
        sites=raw["sites"],
        owners={address: Block(*block) for address, block in raw["owners"].items()},
        lists={site: SiteList(first, tuple(nodes)) for site, (first, nodes) in raw["lists"].items()},
    )


def load(path: Path) -> NodeState | None:
    """Read node.json; None: there is none, the agent never ran here (or was uninstalled)."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return loads(text, path)


def write_atomically(path: Path, text: str, *, lasting: bool = True) -> bool:
    """Write `text` to `path` by rename; readers see the old file or the new one. False: it was the same,
    untouched. Not `lasting`: the disk need not have it when this returns, for it is written again in a moment."""
    try:
        if path.read_text(encoding="utf-8") == text:
            return False
    except FileNotFoundError:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    except UnicodeDecodeError:
        path.unlink()
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(text)
            if lasting:
                file.flush()
                os.fsync(file.fileno())
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)
    return True
