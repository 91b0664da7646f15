# SPDX-License-Identifier: Apache-2.0
"""What this kernel can do: each thing needed is tried, not concluded from a version.

Programs and helpers are tried by loading programs of two instructions (libbpf_probe_*). TCX is tried by
attaching to a device that cannot exist: a kernel that knows TCX looks for the device (ENODEV), an older one
does not know the attach type (EINVAL). clsact, needed only where TCX is absent, is tried in a throwaway
namespace. Nothing stays behind.

The floor is Linux 6.1 (Debian 12). Sources: tools/lib/bpf/libbpf_probes.c; tcx_link_attach() in
kernel/bpf/tcx.c.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from softunicast.errors import KernelError, ProbeError
from softunicast.kernel import clsact, netns
from softunicast.kernel.libbpf import libbpf
from softunicast.kernel.links import attach_tcx
from softunicast.kernel.maps import MapType
from softunicast.kernel.programs import Program, ProgramType

FLOOR: Final = (6, 1)
NEWER: Final = f"boot Linux {FLOOR[0]}.{FLOOR[1]} or newer"
CONFIG: Final = f"{NEWER}, with CONFIG_BPF_SYSCALL, CONFIG_CGROUP_BPF and CONFIG_NET_CLS_BPF"
BTF: Final = Path("/sys/kernel/btf/vmlinux")
NO_DEVICE: Final = 0x7FFFFFFF
RETURN_0: Final = bytes.fromhex("b7000000000000009500000000000000")

PROGRAMS: Final = {
    ProgramType.SCHED_CLS: "forwarded packets, the guard, steering (tc)",
    ProgramType.XDP: "steering on real network cards",
    ProgramType.CGROUP_SOCK: "sockets' policies and their end",
    ProgramType.CGROUP_SOCK_ADDR: "sockets that claim (connect, bind, sendmsg)",
    ProgramType.SOCK_OPS: "the end of TCP connections",
    ProgramType.SYSCALL: "releasing and sweeping claims",
}
MAPS: Final = {
    MapType.HASH: "flows, origin",
    MapType.ARRAY: "slices, owners, on-ramps",
    MapType.LPM_TRIE: "lists of prefixes",
    MapType.LRU_HASH: "hints about crowded destinations",
    MapType.PERCPU_ARRAY: "counters",
    MapType.SK_STORAGE: "what a socket has claimed",
}
# (number, name, program type, what for); include/uapi/linux/bpf.h, __BPF_FUNC_MAPPER
HELPERS: Final = (
    (64, "bpf_bind", ProgramType.CGROUP_SOCK_ADDR, "giving a socket its port"),
    (187, "bpf_set_retval", ProgramType.CGROUP_SOCK_ADDR, "refusing with a precise errno"),
    (99, "bpf_skc_lookup_tcp", ProgramType.CGROUP_SOCK_ADDR, "seeing ports in use by older sockets"),
    (85, "bpf_sk_lookup_udp", ProgramType.CGROUP_SOCK_ADDR, "seeing ports in use by older sockets"),
    (107, "bpf_sk_storage_get", ProgramType.CGROUP_SOCK_ADDR, "remembering a socket's claim"),
    (122, "bpf_get_netns_cookie", ProgramType.CGROUP_SOCK_ADDR, "keeping to one network namespace"),
    (125, "bpf_ktime_get_boot_ns", ProgramType.SCHED_CLS, "the age of claims"),
    (181, "bpf_loop", ProgramType.SCHED_CLS, "searching a port"),
    (99, "bpf_skc_lookup_tcp", ProgramType.SCHED_CLS, "seeing ports in use by older sockets"),
    (152, "bpf_redirect_neigh", ProgramType.SCHED_CLS, "sending to the uplink"),
    (50, "bpf_skb_adjust_room", ProgramType.SCHED_CLS, "carrying answers to their owner"),
    (43, "bpf_skb_change_head", ProgramType.SCHED_CLS, "packets from TUN devices"),
)


@dataclass(frozen=True, slots=True)
class Feature:
    """One thing that was tried. `remedy` is what to do when it is not `present`.

    What is not `required` only costs something; `needed_for` says what.
    """

    name: str
    present: bool
    needed_for: str
    remedy: str
    required: bool = True


def probe() -> list[Feature]:
    """Try everything, about 0.1 s. ProbeError when this is not allowed at all (not root, no libbpf)."""
    if try_load(ProgramType.SCHED_CLS) == errno.EPERM:
        raise ProbeError("bpf(2) is not permitted: run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON")
    library = libbpf()
    features = [version_feature(platform.release()), *file_features()]
    for program, purpose in PROGRAMS.items():
        present = library.libbpf_probe_bpf_prog_type(program, None) == 1
        features.append(Feature(f"program type {program.name.lower()}", present, purpose, CONFIG))
    for kind, purpose in MAPS.items():
        present = library.libbpf_probe_bpf_map_type(kind, None) == 1
        features.append(Feature(f"map type {kind.name.lower()}", present, purpose, CONFIG))
    for number, name, program, purpose in HELPERS:
        present = library.libbpf_probe_bpf_helper(program, number, None) == 1
        features.append(Feature(f"{name} in {program.name.lower()}", present, purpose, NEWER))
    return [*features, *tc_features()]


def missing(features: Iterable[Feature]) -> list[Feature]:
    """Those that are required and not there."""
    return [feature for feature in features if feature.required and not feature.present]


def require(features: Sequence[Feature]) -> None:
    """ProbeError with a line for each thing that is missing: what it is needed for, and what to do about it."""
    absent = missing(features)
    if absent:
        raise ProbeError(
            "\n".join(
                f"this kernel lacks {feature.name} (needed for {feature.needed_for}): {feature.remedy}"
                for feature in absent
            )
        )


def version_feature(release: str) -> Feature:
    match = re.match(r"(\d+)\.(\d+)", release)
    running = (int(match[1]), int(match[2])) if match else (0, 0)
    return Feature(f"Linux {FLOOR[0]}.{FLOOR[1]}", running >= FLOOR, f"everything (running: {release})", NEWER)


def file_features() -> list[Feature]:
    """What shows in /proc and /sys."""
    kernel_types = BTF.read_bytes() if BTF.exists() else b""
    systems = Path("/proc/filesystems").read_text().split()
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    jit = Path("/proc/sys/net/core/bpf_jit_enable")
    return [
        Feature("BTF", bool(kernel_types), "programs that fit every kernel", "boot one with CONFIG_DEBUG_INFO_BTF"),
        Feature(
            "socket iterators",
            b"\0bpf_iter__tcp\0" in kernel_types and b"\0bpf_iter__udp\0" in kernel_types,
            "adopting sockets that were there first",
            CONFIG,
        ),
        Feature("bpffs", "bpf" in systems, "a data plane that outlives the agent", CONFIG),
        Feature(
            "cgroup2",
            any(fields[2] == "cgroup2" for fields in mounts),
            "sockets' hooks and `softunicast run`",
            "mount -t cgroup2 none /sys/fs/cgroup",
        ),
        Feature(
            "TUN devices",
            Path("/dev/net/tun").exists(),
            "on-ramps that are TUN or TAP devices",
            "modprobe tun",
            required=False,
        ),
        Feature(
            "BPF JIT",
            not jit.exists() or jit.read_text().strip() != "0",
            "speed",
            "sysctl -w net.core.bpf_jit_enable=1",
            required=False,
        ),
    ]


def tc_features() -> list[Feature]:
    """TCX, or clsact where it is absent."""
    purpose = "programs on devices"
    tcx = has_tcx()
    features = [Feature("TCX", tcx, f"{purpose} that are replaced in place", "boot Linux 6.6 or newer", required=False)]
    if not tcx:
        features.append(Feature("clsact", has_clsact(), f"{purpose} without TCX", "modprobe sch_ingress cls_bpf"))
    return features


def load_trivial(kind: ProgramType) -> Program:
    """`return 0` as a program of a type. Raises OSError."""
    code = ctypes.create_string_buffer(RETURN_0, len(RETURN_0))
    fd = int(libbpf().bpf_prog_load(kind, b"su_probe", b"GPL", code, len(RETURN_0) // 8, None))
    if fd < 0:
        raise OSError(-fd, os.strerror(-fd))
    return Program(fd)


def try_load(kind: ProgramType) -> int:
    """0, or the errno of loading the trivial program."""
    try:
        load_trivial(kind).close()
    except OSError as error:
        return error.errno or errno.EIO
    return 0


def has_tcx() -> bool:
    """Whether the kernel attaches tc programs as links (6.6)."""
    try:
        with load_trivial(ProgramType.SCHED_CLS) as program:
            attach_tcx(program, NO_DEVICE, egress=False).close()
    except KernelError as error:
        return error.errno == errno.ENODEV
    except OSError:
        return False
    return True


def has_clsact() -> bool:
    """Whether a filter can be put on a clsact qdisc: tried on lo of a namespace that goes at once."""

    def attempt() -> None:
        netns.unshare()
        with load_trivial(ProgramType.SCHED_CLS) as program:
            clsact.attach(program, 1, egress=False)

    try:
        netns.in_thread(attempt)
    except (KernelError, OSError):
        return False
    return True
