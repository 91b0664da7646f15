# SPDX-License-Identifier: Apache-2.0
"""The machine that operations work on: one node's maps, programs, links, addresses and files.

State lives in the kernel, never here: a Machine is made, used and thrown away, and a second one finds all
again.

- Programs are loaded against the pinned maps, pinned beside the old ones and renamed over them; `update_link`
  then moves each link to the new program, with no packet in between (BPF_LINK_UPDATE).
- A link is pinned before its descriptor is closed; if pinning fails it falls off, so no link is ever
  nobody's.
- Without TCX (Linux before 6.6) the tc programs hang on clsact filters, which need no pin.

Every method may be repeated. Errors are KernelError and name the object.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Final

from softunicast.agent import notrack as notrack_table
from softunicast.agent.desired import CGROUP_HOOKS, XDP_ROLES
from softunicast.agent.resources import Attachment, Build, Hook, Notrack
from softunicast.agent.state import NodeState, write_atomically
from softunicast.agent.terminus import Terminus, of_device
from softunicast.errors import KernelError
from softunicast.kernel import abi, cgroup, clsact, links, nodes, sysctl
from softunicast.kernel import terminus as kernel_terminus
from softunicast.kernel.bpf import BpfObject, Map, MapType, Program, mount_bpffs, object_path
from softunicast.kernel.netlink import Netlink
from softunicast.kernel.routing import Route, Rule
from softunicast.proxy.terminate import PORT

OBJECTS: Final[Mapping[str, frozenset[str] | None]] = {"claim": None, "egress": None, "steer": frozenset({"su_steer"})}
"""What is loaded: of `steer` the XDP program only; at tc su_uplink_in steers."""
CONTROL_KEY: Final = bytes(4)


def objects_digest() -> str:
    """sha256 over the object files the agent loads."""
    digest = hashlib.sha256()
    for name in OBJECTS:
        digest.update(object_path(name).read_bytes())
    return digest.hexdigest()


class Machine:
    """The node `node` in the current network namespace. Context manager: closes descriptors, nothing else."""

    def __init__(self, node: str, *, tcx: bool = True) -> None:
        self.node = node
        self.tcx = tcx
        self.pins = nodes.pin_dir(node)
        self.run = nodes.run_dir(node)
        self.netlink = Netlink()
        self.maps = nodes.NodeMaps(node)

    def __enter__(self) -> Machine:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.netlink.close()
        self.maps.close()

    def map(self, name: str) -> Map:
        """A pinned map of this node, opened once."""
        return self.maps[name]

    def program(self, name: str) -> Program:
        """A pinned program of this node; the caller closes it."""
        return Program.open_pinned(self.pins / "progs" / name)

    # Programs and maps

    def mount_bpffs(self) -> None:
        """Mount bpffs where it belongs, unless it is."""
        mount_bpffs()

    def load_programs(self, build: Build) -> None:
        """Load all objects against the pinned maps (made when missing), then pin their programs over the old
        ones."""
        # Should somebody have removed the pins, the maps made now are others than those that are open.
        self.maps.close()
        folder = self.pins / "progs"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        loaded: list[BpfObject] = []
        try:
            for name, programs in OBJECTS.items():
                loaded.append(
                    BpfObject.load(
                        object_path(name),
                        programs=programs,
                        settings=build.settings,
                        pin_dir=self.pins,
                        map_sizes=build.map_sizes,
                    )
                )
            for object_ in loaded:
                for name, program in object_.programs.items():
                    fresh = folder / f"{name}_new"
                    fresh.unlink(missing_ok=True)
                    program.pin(fresh)
                    fresh.rename(folder / name)
        except OSError as error:
            raise KernelError(f"pin programs in {folder}: {error}", errno=error.errno or 0) from error
        finally:
            for object_ in loaded:
                object_.close()

    def fill_map(self, name: str, updates: Mapping[bytes, bytes], deletions: tuple[bytes, ...]) -> None:
        """Write entries, then take entries away (an array's are zeroed)."""
        map_ = self.map(name)
        try:
            map_.update_many(updates)
            for key in deletions:
                if map_.type == MapType.ARRAY:
                    map_.update(key, bytes(map_.value_size))
                else:
                    map_.delete(key)
        except (OSError, ValueError) as error:
            number = error.errno or 0 if isinstance(error, OSError) else 0
            raise KernelError(
                f"map {name}: {error} (room for {map_.max_entries} entries, {len(updates)} to write)",
                errno=number,
            ) from error

    def set_ready(self, ready: bool) -> None:
        """Open or close the door for fish: control.ready. The clock hand and the policy count stay."""
        self.write_control(replace(self.read_control(), ready=int(ready)))

    def read_control(self) -> abi.Control:
        """The map `control`."""
        return abi.Control.unpack(self.map("control").lookup(CONTROL_KEY) or bytes(abi.Control.SIZE))

    def write_control(self, value: abi.Control) -> None:
        """Write `control`. `softunicast run` may have raised `policies` since it was read: then it is raised again,
        long before the program that `run` starts makes its first socket."""
        self.map("control").update(CONTROL_KEY, value.pack())
        if value.policies == 0 and next(self.map("cgroups").keys(), None) is not None:
            with self.program("su_recount") as program:
                program.test_run()

    def adopt(self) -> None:
        """Claim for living sockets, by running the iterators over them once."""
        for name in ("su_adopt_tcp", "su_adopt_udp"):
            with self.program(name) as program:
                links.run_iter(program)

    # Links

    def attach(self, link: Attachment) -> None:
        """Attach and pin. An old pin of that name, whatever it was, gives way."""
        with self.program(link.program) as program:
            if self._filter(link.hook):
                clsact.attach(program, link.ifindex, egress=link.hook is Hook.EGRESS)
                return
            path = self.pins / "links" / link.name
            self.detach(link.name)
            if link.hook is Hook.CGROUP:
                fd = cgroup.CgroupDir(cgroup.root()).open()
                try:
                    made = links.attach_cgroup(program, fd, CGROUP_HOOKS[link.program])
                finally:
                    os.close(fd)
            elif link.hook.xdp:
                made = links.attach_xdp(program, link.ifindex, generic=link.hook is Hook.XDP_GENERIC)
            else:
                made = links.attach_tcx(program, link.ifindex, egress=link.hook is Hook.EGRESS)
            with made:
                try:
                    made.pin(path)
                except OSError as error:
                    raise KernelError(f"pin {path}: {error.strerror}", errno=error.errno or 0) from error

    def _filter(self, hook: Hook) -> bool:
        """Whether a program hangs there on a clsact filter, not on a link."""
        return hook in (Hook.INGRESS, Hook.EGRESS) and not self.tcx

    def update_link(self, link: Attachment) -> None:
        """Move an attached link to the pinned program of its name."""
        if self._filter(link.hook):
            self.attach(link)
            return
        with (
            self.program(link.program) as program,
            links.Link.open_pinned(self.pins / "links" / link.name) as old,
        ):
            old.update(program)

    def detach(self, name: str) -> None:
        """Detach the link of that name and remove its pin."""
        role, _, index = name.rpartition("-")
        if role and role not in XDP_ROLES.values() and not self.tcx:
            clsact.detach(int(index), egress=role.startswith("guard"))
            return
        path = self.pins / "links" / name
        if not path.exists():
            return
        with links.Link.open_pinned(path) as link:
            link.detach()
        path.unlink(missing_ok=True)

    # The network

    def set_sysctl(self, path: str, value: str) -> None:
        sysctl.put(path, value)

    def add_address(self, address: str) -> None:
        self.netlink.lo_up()
        self.netlink.add_address(address)

    def delete_address(self, address: str) -> None:
        self.netlink.delete_address(address)

    def add_rule(self, rule: Rule) -> None:
        self.netlink.add_rule(rule)

    def delete_rule(self, rule: Rule) -> None:
        self.netlink.delete_rule(rule)

    def set_route(self, route: Route) -> None:
        self.netlink.set_route(route)

    def delete_route(self, route: Route) -> None:
        self.netlink.delete_route(route)

    def set_notrack(self, notrack: Notrack) -> None:
        notrack_table.replace(notrack)

    def make_terminus(self, terminus: Terminus) -> None:
        """Make it, or mend the one that is there for the same on-ramp."""
        device = self.netlink.devices().get(terminus.device)
        found = of_device(device) if device is not None else None
        ours = found is not None and (found.node, found.onramp) == (terminus.node, terminus.onramp)
        there = terminus.namespace in nodes.terminus_namespaces(self.node)
        kernel_terminus.make(
            kernel_terminus.Wanted(
                terminus.namespace,
                terminus.device,
                terminus.alias,
                terminus.mtu,
                tuple(one for one in (terminus.gateway4, terminus.gateway6) if one),
                PORT,
                terminus.held,
            ),
            anew=not (ours and there),
        )

    def remove_terminus(self, terminus: Terminus) -> None:
        kernel_terminus.remove(terminus.namespace, terminus.device)

    # Files

    def write_file(self, name: str, text: str, *, lasting: bool = True) -> None:
        self._write(self.run / name, text, lasting)

    def save_state(self, state: NodeState) -> None:
        self._write(self.run / "node.json", state.dumps())

    def _write(self, path: Path, text: str, lasting: bool = True) -> None:
        try:
            write_atomically(path, text, lasting=lasting)
        except OSError as error:
            raise KernelError(f"write {path}: {error.strerror}", errno=error.errno or 0) from error
