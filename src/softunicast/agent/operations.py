# SPDX-License-Identifier: Apache-2.0
"""The agent's operations: each prints as one line, and applies itself to a `Machine`.

An operation is idempotent: done twice it changes nothing the second time, so that a run that broke off
halfway is completed by the next one. Operations know nothing of Linux; `Machine` does (agent.machine
implements it, tests fake it).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from softunicast.agent.resources import Attachment, Build, Notrack
from softunicast.agent.state import NodeState
from softunicast.agent.terminus import Terminus
from softunicast.kernel.routing import Route, Rule


class Machine(Protocol):
    """What operations need of the kernel. Every method raises KernelError naming the object it failed on."""

    def mount_bpffs(self) -> None: ...
    def load_programs(self, build: Build) -> None: ...
    def fill_map(self, name: str, updates: Mapping[bytes, bytes], deletions: tuple[bytes, ...]) -> None: ...
    def attach(self, link: Attachment) -> None: ...
    def update_link(self, link: Attachment) -> None: ...
    def detach(self, name: str) -> None: ...
    def set_sysctl(self, path: str, value: str) -> None: ...
    def add_address(self, address: str) -> None: ...
    def delete_address(self, address: str) -> None: ...
    def add_rule(self, rule: Rule) -> None: ...
    def delete_rule(self, rule: Rule) -> None: ...
    def set_route(self, route: Route) -> None: ...
    def delete_route(self, route: Route) -> None: ...
    def set_notrack(self, notrack: Notrack) -> None: ...
    def set_ready(self, ready: bool) -> None: ...
    def adopt(self) -> None: ...
    def make_terminus(self, terminus: Terminus) -> None: ...
    def remove_terminus(self, terminus: Terminus) -> None: ...
    def write_file(self, name: str, text: str) -> None: ...
    def save_state(self, state: NodeState) -> None: ...


class Operation(Protocol):
    """One change. `str()` is the line that --dry-run prints."""

    def apply(self, machine: Machine) -> None: ...


@dataclass(frozen=True, slots=True)
class MountBpffs:
    def __str__(self) -> str:
        return "mount bpffs at /sys/fs/bpf"

    def apply(self, machine: Machine) -> None:
        machine.mount_bpffs()


@dataclass(frozen=True, slots=True)
class LoadPrograms:
    build: Build
    replaces: str = ""

    def __str__(self) -> str:
        what = "load programs" if not self.replaces else "replace programs, maps stay"
        return f"{what} (build {self.build.hash[:12]}, abi {self.build.abi_version})"

    def apply(self, machine: Machine) -> None:
        machine.load_programs(self.build)


@dataclass(frozen=True, slots=True)
class FillMap:
    name: str
    updates: Mapping[bytes, bytes] = field(repr=False)
    deletions: tuple[bytes, ...] = field(repr=False, default=())

    def __str__(self) -> str:
        parts = []
        if self.updates:
            parts.append(f"set {len(self.updates)}")
        if self.deletions:
            parts.append(f"delete {len(self.deletions)}")
        count = len(self.updates) + len(self.deletions)
        return f"map {self.name}: {', '.join(parts)} {'entry' if count == 1 else 'entries'}"

    def apply(self, machine: Machine) -> None:
        machine.fill_map(self.name, self.updates, self.deletions)


@dataclass(frozen=True, slots=True)
class Attach:
    link: Attachment

    def __str__(self) -> str:
        return f"attach {self.link}"

    def apply(self, machine: Machine) -> None:
        machine.attach(self.link)


@dataclass(frozen=True, slots=True)
class UpdateLink:
    link: Attachment

    def __str__(self) -> str:
        return f"replace {self.link}"

    def apply(self, machine: Machine) -> None:
        machine.update_link(self.link)


@dataclass(frozen=True, slots=True)
class Detach:
    link: Attachment

    def __str__(self) -> str:
        return f"detach {self.link}"

    def apply(self, machine: Machine) -> None:
        machine.detach(self.link.name)


@dataclass(frozen=True, slots=True)
class SetSysctl:
    path: str
    value: str
    before: str = ""

    def __str__(self) -> str:
        return f"sysctl {self.path.replace('/', '.')} = {self.value} (was {self.before or 'unknown'})"

    def apply(self, machine: Machine) -> None:
        machine.set_sysctl(self.path, self.value)


@dataclass(frozen=True, slots=True)
class AddAddress:
    address: str

    def __str__(self) -> str:
        return f"address {self.address} on lo"

    def apply(self, machine: Machine) -> None:
        machine.add_address(self.address)


@dataclass(frozen=True, slots=True)
class DeleteAddress:
    address: str

    def __str__(self) -> str:
        return f"remove address {self.address} from lo"

    def apply(self, machine: Machine) -> None:
        machine.delete_address(self.address)


@dataclass(frozen=True, slots=True)
class AddRule:
    rule: Rule

    def __str__(self) -> str:
        return f"add {self.rule}"

    def apply(self, machine: Machine) -> None:
        machine.add_rule(self.rule)


@dataclass(frozen=True, slots=True)
class DeleteRule:
    rule: Rule

    def __str__(self) -> str:
        return f"delete {self.rule}"

    def apply(self, machine: Machine) -> None:
        machine.delete_rule(self.rule)


@dataclass(frozen=True, slots=True)
class SetRoute:
    route: Route

    def __str__(self) -> str:
        return f"set {self.route}"

    def apply(self, machine: Machine) -> None:
        machine.set_route(self.route)


@dataclass(frozen=True, slots=True)
class DeleteRoute:
    route: Route

    def __str__(self) -> str:
        return f"delete {self.route}"

    def apply(self, machine: Machine) -> None:
        machine.delete_route(self.route)


@dataclass(frozen=True, slots=True)
class SetNotrack:
    notrack: Notrack

    def __str__(self) -> str:
        addresses = sorted(self.notrack.v4) + sorted(self.notrack.v6)
        return f"nft table inet softunicast: notrack {', '.join(addresses) or 'nothing'}"

    def apply(self, machine: Machine) -> None:
        machine.set_notrack(self.notrack)


@dataclass(frozen=True, slots=True)
class SetReady:
    ready: bool

    def __str__(self) -> str:
        return "open: fish may claim" if self.ready else "close: fish may not claim until living sockets are adopted"

    def apply(self, machine: Machine) -> None:
        machine.set_ready(self.ready)


@dataclass(frozen=True, slots=True)
class Adopt:
    def __str__(self) -> str:
        return "adopt living sockets (TCP, UDP)"

    def apply(self, machine: Machine) -> None:
        machine.adopt()


@dataclass(frozen=True, slots=True)
class MakeTerminus:
    terminus: Terminus

    def __str__(self) -> str:
        return f"make {self.terminus} ({self.terminus.alias.rpartition(' ')[2]} handshakes)"

    def apply(self, machine: Machine) -> None:
        machine.make_terminus(self.terminus)


@dataclass(frozen=True, slots=True)
class RemoveTerminus:
    terminus: Terminus

    def __str__(self) -> str:
        return f"remove {self.terminus}"

    def apply(self, machine: Machine) -> None:
        machine.remove_terminus(self.terminus)


@dataclass(frozen=True, slots=True)
class WriteFile:
    name: str
    text: str = field(repr=False)

    def __str__(self) -> str:
        return f"write {self.name}"

    def apply(self, machine: Machine) -> None:
        machine.write_file(self.name, self.text)


@dataclass(frozen=True, slots=True)
class SaveState:
    state: NodeState = field(repr=False)

    def __str__(self) -> str:
        return f"write node.json ({'complete' if self.state.ready else 'before the first change'})"

    def apply(self, machine: Machine) -> None:
        machine.save_state(self.state)
