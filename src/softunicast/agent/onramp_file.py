# SPDX-License-Identifier: Apache-2.0
"""onramps.json: on-ramps that the running agent was asked for. Importing this reads no plan: `onramp list` is quick.

| key of an entry | meaning |
|---|---|
| `name`, `device`, `keys` | as in a plan; `keys` are those of `onramps`, without `device` |
| `made` | `tun` or `tap`: the agent made the device, and takes it away again; empty: somebody else's |
| `leased` | it lives as long as the device of that `ifindex`, which a program holds by its descriptor |
| `uid` | who asked |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from softunicast.agent.state import write_atomically
from softunicast.errors import KernelError
from softunicast.kernel.routing import Device

if TYPE_CHECKING:
    from softunicast.model.document import Value

FILE: Final = "onramps.json"
FORMAT: Final = 1


@dataclass(frozen=True, slots=True)
class Added:
    """One entry of the file."""

    name: str
    device: str
    keys: Mapping[str, Value]
    made: str = ""
    leased: bool = False
    ifindex: int = 0
    uid: int = 0

    def lives(self, devices: Mapping[str, Device]) -> bool:
        """Whether a leased one's device is still there, and no later one of its name."""
        device = devices.get(self.device)
        return not self.leased or (device is not None and device.ifindex == self.ifindex)


def load(folder: Path) -> tuple[Added, ...]:
    """What is in a run folder, by name. KernelError: the file is damaged."""
    path = folder / FILE
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
        if raw["format"] != FORMAT:
            raise ValueError(f"format {raw['format']!r}, this version reads {FORMAT}")
        return tuple(sorted((Added(**item) for item in raw["onramps"]), key=lambda one: one.name))
    except FileNotFoundError:
        return ()
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise KernelError(f"{path}: cannot be read ({error}); remove it, and add its on-ramps again") from error


def save(folder: Path, added: Iterable[Added]) -> None:
    """Write them atomically."""
    entries = [asdict(one) for one in sorted(added, key=lambda one: one.name)]
    try:
        write_atomically(folder / FILE, json.dumps({"format": FORMAT, "onramps": entries}, indent=1) + "\n")
    except OSError as error:
        raise KernelError(f"write {folder / FILE}: {error.strerror}", errno=error.errno or 0) from error


def entry_json(one: Added) -> dict[str, Any]:
    """For people and programs that ask which there are."""
    return {"name": one.name, "device": one.device, "made": one.made, "leased": one.leased, "uid": one.uid}
