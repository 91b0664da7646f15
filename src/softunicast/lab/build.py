# SPDX-License-Identifier: Apache-2.0
"""Build a drawing in the kernel, and find and remove whatever is left of one.

Namespaces are named `<prefix>-<name>` (ip-netns(8), /run/netns). Devices exist in them only, so that labs
with different prefixes never meet although their addresses are the same. Everything about a lab can be found
from its prefix: its namespaces by name, its processes by the namespace they run in (/proc/PID/ns/net). That
is why a lab whose maker was killed is removed as easily as any other.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

from softunicast.errors import KernelError, UsageError

from . import topology as facts
from .drawing import End, Link, Topology, is_bridge

NETNS_FOLDER: Final = Path("/run/netns")
RUN_FOLDER: Final = facts.RUN_FOLDER
TOOLS: Final = ("ip", "nsenter", "ethtool", "tcpdump", "dnsmasq", "bird", "birdc")


def check_tools(tools: Sequence[str] = TOOLS) -> None:
    """UsageError naming the programs that are not installed, or that this is not root."""
    if os.geteuid() != 0:
        raise UsageError("lab: network namespaces need root; run it as root")
    missing = [
        tool for tool in tools if shutil.which(tool, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") is None
    ]
    if missing:
        raise UsageError(f"lab: not installed: {', '.join(missing)}; install them (`make setup` does)")


def namespace(prefix: str, name: str) -> str:
    """The kernel's name of a namespace of the drawing."""
    return f"{prefix}-{name}"


def namespaces(prefix: str, names: Iterable[str] | None = None) -> dict[str, Path]:
    """The lab's namespaces that exist now: name in the drawing -> /run/netns path."""
    wanted = names if names is not None else facts.topology().namespaces
    paths = {name: NETNS_FOLDER / namespace(prefix, name) for name in wanted}
    return {name: path for name, path in paths.items() if path.exists()}


def entering(path: Path, command: Sequence[str]) -> list[str]:
    """`command` run in a network namespace only: mounts, pids and cgroups stay those of the caller."""
    return ["nsenter", f"--net={path}", "--", *command]


def _run(command: Sequence[str], text: str = "") -> None:
    done = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines() or [f"exit status {done.returncode}"]
        raise KernelError(f"lab: `{' '.join(command)}`: {said[0]}", log=f"{done.stderr}\n{text}")


def build(prefix: str, drawing: Topology) -> None:
    """Make namespaces, devices, addresses, routes and sysctls. KernelError: a part may exist; `remove` cleans
    it.
    """
    _run(
        ["ip", "-batch", "-"],
        "".join(f"netns add {namespace(prefix, name)}\n" for name in drawing.namespaces),
    )
    for name in drawing.namespaces:
        _write_sysctls(prefix, name, {**facts.SYSCTLS_EVERYWHERE, **facts.SYSCTLS.get(name, {})})
    _run(["ip", "-batch", "-"], "".join(_veth(prefix, link) for link in drawing.links if not link.tunnel))
    for name in drawing.namespaces:
        _run(["ip", "-n", namespace(prefix, name), "-batch", "-"], _commands(drawing, name))
    # When both ends of all lines are up: IPv6 wants a next hop that is on a line.
    for name in drawing.namespaces:
        routes = "".join(f"route add {route}\n" for route in facts.ROUTES.get(name, ()))
        if routes:
            _run(["ip", "-n", namespace(prefix, name), "-batch", "-"], routes)
    for name, device in facts.NO_OFFLOAD:
        off = ["ethtool", "-K", device, "tx", "off", "gso", "off", "tso", "off", "gro", "off"]
        _run(entering(NETNS_FOLDER / namespace(prefix, name), off))


def _veth(prefix: str, link: Link) -> str:
    def end_text(end: End) -> str:
        place = f"{end.device} netns {namespace(prefix, end.namespace)}"
        return f"{place} mtu {link.mtu} address {facts.mac(end.namespace, end.device)}"

    return f"link add {end_text(link.upper)} type veth peer name {end_text(link.lower)}\n"


def _commands(drawing: Topology, name: str) -> str:
    """`ip -batch` lines that finish one namespace whose veth devices exist."""
    bridge = drawing.bridge(name)
    lines = ["link set lo up"]
    lines += [
        f"link add {end.device} address {facts.mac(name, end.device)} type bridge mcast_snooping 0"
        for end in drawing.inside
        if end.namespace == name and is_bridge(end.device)
    ]
    for link in drawing.links:
        for end in (link.upper, link.lower):
            if end.namespace != name:
                continue
            if link.tunnel:
                lines.append(f"tuntap add dev {end.device} mode tun")
                lines.append(f"link set {end.device} mtu {link.mtu} txqueuelen 10000")
            if not end.addresses and bridge is not None:
                lines.append(f"link set {end.device} master {bridge}")
    ends = [end for end in drawing.ends() if end.namespace == name]
    lines += [
        f"address add {address} dev {end.device}{' nodad' if address.version == 6 else ''}"
        for end in ends
        for address in end.addresses
    ]
    lines += [f"link set {end.device} up" for end in ends if end.device != "lo"]
    return "".join(f"{line}\n" for line in lines)


def _write_sysctls(prefix: str, name: str, values: Mapping[str, str]) -> None:
    if values:
        settings = [f"{key}={value}" for key, value in values.items()]
        _run(entering(NETNS_FOLDER / namespace(prefix, name), ["sysctl", "-qw", *settings]))


def processes(paths: Iterable[Path]) -> list[int]:
    """Processes in any of these namespaces, this one and its ancestors left out."""
    wanted = set()
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            wanted.add(_identity(path))
    mine = _ancestors()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) in mine:
            continue
        with contextlib.suppress(FileNotFoundError, PermissionError, ProcessLookupError):
            if _identity(entry / "ns" / "net") in wanted:
                found.append(int(entry.name))
    return found


def command_line(pid: int) -> list[str]:
    """A process's words; empty when it is gone or a zombie."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        words = Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8", errors="replace").split("\0")
        return [word for word in words if word]
    return []


def _identity(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_dev, status.st_ino


def _ancestors() -> set[int]:
    found, pid = {0, 1}, os.getpid()
    while pid not in found:
        found.add(pid)
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
        pid = int(status.rpartition(")")[2].split()[1])
    return found


def stop(pids: Iterable[int], *, grace_s: float = 0.0) -> None:
    """SIGTERM, then after `grace_s` SIGKILL, and wait until they are gone (children of others become theirs
    to reap).
    """
    handles = {}
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            handles[pid] = os.pidfd_open(pid)
    try:
        steps = [(signal.SIGTERM, grace_s), (signal.SIGKILL, 2.0)] if grace_s else [(signal.SIGKILL, 2.0)]
        left = dict(handles)
        for signal_number, patience_s in steps:
            for handle in left.values():
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(handle, signal_number)
            left = _wait(left, patience_s)
            if not left:
                return
    finally:
        for handle in handles.values():
            os.close(handle)


def _wait(handles: Mapping[int, int], patience_s: float) -> dict[int, int]:
    deadline = time.monotonic() + patience_s
    left = dict(handles)
    while left:
        left = {pid: handle for pid, handle in left.items() if not _ended(pid)}
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.005)
    return left


def _ended(pid: int) -> bool:
    """Gone, or a zombie (whose parent has yet to look); children of ours are reaped here."""
    with contextlib.suppress(ChildProcessError):
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except (FileNotFoundError, ProcessLookupError):
        return True
    return status.rpartition(")")[2].split()[0] in ("Z", "X")


def delete_namespaces(prefix: str, names: Iterable[str]) -> None:
    """Forget the names; the kernel frees what is in them when their last process is gone."""
    text = "".join(f"netns delete {namespace(prefix, name)}\n" for name in names)
    if text:
        _run(["ip", "-force", "-batch", "-"], text)
