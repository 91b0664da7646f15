# SPDX-License-Identifier: Apache-2.0
"""What socket(), connect() and close() cost: in a slice at several uses, and plain.

    node --u0/w0-- world, which accepts and closes on every address of 203.0.113.0/24

`plain` and `kernel` (its own port range, IP_LOCAL_PORT_RANGE) have a node of their own, without any program of ours.
For each use there are targets of their own towards which that part of the slice is claimed by forwarded flows, so that
all cases share one set of maps and are interleaved. Claims that the measured sockets leave behind (LINGER) are
removed after each round.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from socket import if_nametoindex
from typing import Final

from bench import plane, tools
from bench.tools import Helpers, run
from softunicast.kernel import cgroup, netns
from softunicast.kernel.abi import Claim, Flow, ReleaseArgs
from softunicast.kernel.bpf import AttachType, BpfObject, attach_cgroup, attach_tcx, object_path
from softunicast.kernel.libbpf import check, libbpf

PORT: Final = 443
TARGETS: Final = 40
EACH: Final = 10
FIRST_TARGET: Final = IPv4Address("203.0.113.1")
USES: Final = (0, 50, 90, 99)
CASES: Final = ("plain", "kernel", *(f"slice {use} %" for use in USES))
UNDERLAY: Final = "10.66.0.1"
HOOKS: Final = {
    "su_sock_create": AttachType.CGROUP_INET_SOCK_CREATE,
    "su_sock_release": AttachType.CGROUP_INET_SOCK_RELEASE,
    "su_connect4": AttachType.CGROUP_INET4_CONNECT,
    "su_connect6": AttachType.CGROUP_INET6_CONNECT,
    "su_sendmsg4": AttachType.CGROUP_UDP4_SENDMSG,
    "su_sendmsg6": AttachType.CGROUP_UDP6_SENDMSG,
    "su_bind4": AttachType.CGROUP_INET4_BIND,
    "su_bind6": AttachType.CGROUP_INET6_BIND,
    "su_sockops": AttachType.CGROUP_SOCK_OPS,
}


@dataclass(frozen=True)
class Dialed:
    """Nanoseconds of each connection, and how many failed, by errno."""

    ns: tuple[int, ...]
    errors: dict[int, int]


@contextmanager
def pair(stem: str, helpers: Helpers) -> Iterator[str]:
    """A node (its namespace) and a world whose server runs on the other CPU."""
    node, world = f"{stem}-n", f"{stem}-w"
    with tools.namespaces(node, world), ExitStack() as undo:
        with netns.enter(node):
            run(f"ip link add u0 type veth peer name w0 netns {world}")
            run(f"ip address add {UNDERLAY}/24 dev u0")
            run(f"ip address add {plane.SLICE}/32 dev lo")
            run("ip link set u0 up")
            run("ip route add default via 10.66.0.254")
        with netns.enter(world):
            run("ip address add 10.66.0.254/24 dev w0")
            run("ip link set w0 up")
            run("ip route add local 203.0.113.0/24 dev lo")
            run(f"ip route add 198.51.100.0/24 via {UNDERLAY}")
            tools.sysctl("net/core/somaxconn", 4096)
        command = [str(helpers.dial), "serve", f"/run/netns/{world}", str(tools.OTHER_CPU), str(PORT)]
        server = subprocess.Popen(command, stdout=subprocess.PIPE)
        undo.callback(server.wait)
        undo.callback(server.kill)
        if server.stdout is None or server.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{helpers.dial} serve: did not start")
        undo.callback(server.stdout.close)
        yield node


def dial(helpers: Helpers, node: str, first: IPv4Address, *, folder: cgroup.CgroupDir | None, kernel: bool) -> Dialed:
    """TARGETS * EACH connections, one after the other."""
    words = [helpers.dial, "dial", f"/run/netns/{node}", tools.MEASURED_CPU, PORT, first, TARGETS, TARGETS * EACH]
    if kernel:
        words += [plane.SLICE, plane.FIRST, plane.LAST]
    command = [str(word) for word in words]
    if folder is not None:
        command = ["sh", "-c", f'echo $$ > {folder.path}/cgroup.procs && exec "$@"', "sh", *command]
    done = subprocess.run(command, check=True, capture_output=True, timeout=60, text=True)
    lines = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    errors: dict[int, int] = {}
    for _, error in lines:
        if error:
            errors[error] = errors.get(error, 0) + 1
    return Dialed(tuple(ns for ns, error in lines if not error), errors)


@contextmanager
def slices(node: str, stem: str) -> Iterator[tuple[BpfObject, cgroup.CgroupDir]]:
    """Hooks, guard and delivery on the node; a cgroup whose sockets are in the slice."""
    with netns.enter(node), ExitStack() as undo:
        settings, uplink = plane.settings(UNDERLAY, netns.cookie()), if_nametoindex("u0")
        claim = BpfObject.load(object_path("claim"), settings=settings, map_sizes=plane.MAP_SIZES)
        undo.callback(claim.close)
        egress = BpfObject.load(object_path("egress"), settings=settings, map_sizes=plane.MAP_SIZES, reuse=claim.maps)
        undo.callback(egress.close)
        maps = {**egress.maps, **claim.maps}
        plane.fill(maps, UNDERLAY, uplink, "10.66.0.0/24")
        folder = cgroup.CgroupDir.below_root(stem)
        folder.create()
        undo.callback(folder.remove)
        maps["cgroups"].update(folder.id.to_bytes(8, "little"), plane.POLICY.pack())
        # To this cgroup alone: the server would be another machine, and `plain` is to have no hooks at all.
        place = os.open(folder.path, os.O_RDONLY | os.O_DIRECTORY)
        undo.callback(os.close, place)
        for name, kind in HOOKS.items():
            undo.callback(attach_cgroup(claim.programs[name], place, kind).close)
        undo.callback(attach_tcx(egress.programs["su_uplink_in"], uplink, egress=False).close)
        undo.callback(attach_tcx(egress.programs["su_guard"], uplink, egress=True).close)
        yield claim, folder


def clocked(helpers: Helpers, node: str, claim: BpfObject, folder: cgroup.CgroupDir, use: int) -> dict[str, float]:
    """Nanoseconds that each hook took of one connection, by the kernel's clock on programs."""
    with tools.program_clock():
        before = {name: tools.run_time(program)[0] for name, program in claim.programs.items()}
        first = FIRST_TARGET + USES.index(use) * TARGETS
        made = len(dial(helpers, node, first, folder=folder, kernel=False).ns)
        after = {name: tools.run_time(program)[0] for name, program in claim.programs.items()}
    return {name: (after[name] - ns) / made for name, ns in before.items() if after[name] - ns > 10 * made}


def others_hooks() -> int:
    """Programs of others that run at every connect() on this machine, also at those measured as plain."""
    flags, count = ctypes.c_uint32(), ctypes.c_uint32()
    place = os.open(cgroup.root(), os.O_RDONLY | os.O_DIRECTORY)
    try:
        kind = int(AttachType.CGROUP_INET4_CONNECT)
        asked = libbpf().bpf_prog_query(place, kind, 0, ctypes.byref(flags), None, ctypes.byref(count))
        check(asked, "query of the root cgroup's programs")
    finally:
        os.close(place)
    return count.value


@dataclass(frozen=True)
class Dialing:
    """`dialed` by case, one entry a round; `clocked` by use and hook, nanoseconds of one connection; `others`: hooks
    that other data planes on this machine had at connect() meanwhile."""

    dialed: dict[str, list[Dialed]]
    clocked: dict[int, dict[str, float]]
    others: int


def measure(helpers: Helpers, rounds: int) -> Dialing:
    """All cases, interleaved."""
    results: dict[str, list[Dialed]] = {case: [] for case in CASES}
    stem = f"bench-{os.getpid()}-d"
    with ExitStack() as undo:
        plain = undo.enter_context(pair(f"{stem}p", helpers))
        sliced = undo.enter_context(pair(f"{stem}s", helpers))
        claim, folder = undo.enter_context(slices(sliced, stem))
        slot = 0
        for number, use in enumerate(USES):
            hosts = [FIRST_TARGET + number * TARGETS + i for i in range(TARGETS)]
            slot = plane.use_up(claim.maps, plane.TCP, hosts, PORT, use, slot)
        prepared = set(claim.maps["flows"].keys())

        def forget() -> None:
            """End what the measured sockets left, as its owner would: the destination's bitmap learns of it."""
            for key, value in list(claim.maps["flows"].items()):
                if key not in prepared:
                    held = Claim.unpack(value)
                    asked = ReleaseArgs(Flow.unpack(key), held.word, held.owner).pack()
                    claim.programs["su_release"].test_run(ctx=asked)

        for number in range(rounds):
            for case in CASES[number % len(CASES) :] + CASES[: number % len(CASES)]:
                at = max(0, CASES.index(case) - 2)
                sliced_case = case.startswith("slice")
                dialed = dial(
                    helpers,
                    sliced if sliced_case else plain,
                    FIRST_TARGET + at * TARGETS,
                    folder=folder if sliced_case else None,
                    kernel=case == "kernel",
                )
                results[case].append(dialed)
            forget()
        hooks = {}
        for use in USES:
            hooks[use] = clocked(helpers, sliced, claim, folder, use)
            forget()
    return Dialing(results, hooks, others_hooks())
