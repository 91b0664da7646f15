# SPDX-License-Identifier: Apache-2.0
"""A node for tests of the socket hooks: claim.bpf.o in a namespace of its own, without an agent.

    node  up0 10.9.0.2/24 -------- 10.9.0.1/24 w0  world
    lo    198.51.100.20, .30                   lo  203.0.113.1, 203.0.113.2, 2001:db8:f::1

`SockNode` fills the maps as an agent would, attaches the hooks to the root cgroup (they only look at sockets
of the node's namespace) and leaves nothing behind. `node.tagged()` makes a socket that was born in a cgroup
with a policy.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import itertools
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path

from softunicast.agent import state
from softunicast.kernel import abi, cgroup, netns, nodes
from softunicast.kernel.abi_util import Word, addr_bytes, addr_ip, prefix_key
from softunicast.kernel.bpf import AttachType, BpfObject, Link, attach_cgroup, attach_tcx, object_path, run_iter
from softunicast.model.slice import Slice
from tests.support.wait import wait_until

WORLD, WORLD2, WORLD6 = "203.0.113.1", "203.0.113.2", "2001:db8:f::1"
ADDRESS, ADDRESS2 = "198.51.100.20", "198.51.100.30"
FOREIGN_PORT = 9500  # of ADDRESS, but another node's
U32 = struct.Struct("=I")
IP_BIND_ADDRESS_NO_PORT, IP_LOCAL_PORT_RANGE = 24, 51
NEVER = ("127.0.0.0/8", "10.9.0.0/24", "::1/128", "fd09::/64", "224.0.0.0/4", "ff00::/8")
NUMBERS = itertools.count()

HOOKS = {
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
class Held:
    """A claim as tests like to see it."""

    local: tuple[str, int]
    remote: tuple[str, int]
    proto: int
    kind: abi.Kind
    state: abi.State
    owner: int
    generation: int


def ip(*arguments: str, ns: str | None = None) -> None:
    command = ["ip", *(["-n", ns] if ns else []), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def sysctl(ns: str, name: str, value: str) -> None:
    with netns.enter(ns):
        Path("/proc/sys", name.replace(".", "/")).write_text(value)


class SockNode:
    """See the module. `slices`: (address, first, last) by index; those of ADDRESS2 are pool 2, others 1."""

    def __init__(
        self,
        *,
        slices: tuple[tuple[str, int, int], ...] = ((ADDRESS, 9000, 9009),),
        hooks: bool = True,
        wildcard: int = 0,
        linger_s: int = 60,
        pinned: bool = False,
        flows: int = 1 << 11,
        timers: Mapping[str, int] | None = None,
    ) -> None:
        """`timers`: settings of abi.Settings, by name, that are to be others than usual."""
        self.undo = contextlib.ExitStack()
        number = next(NUMBERS)
        self.name, self.world = f"t-sock-{os.getpid()}-{number}", f"t-sock-{os.getpid()}-{number}w"
        self.slices, self.pinned = slices, pinned
        self.links: dict[str, Link] = {}
        try:
            self._namespaces(f"v{os.getpid() % 100000}x{number}")
            self._load(wildcard, {"sock_linger_s": linger_s, **(timers or {})}, pinned, flows)
            self.cgroup = cgroup.CgroupDir.below_root(self.name)
            self.cgroup.create()
            self.undo.callback(self._remove_cgroup)
            self.policy(self.cgroup)
            if hooks:
                self.attach()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self.undo.close()

    def __enter__(self) -> SockNode:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _remove_cgroup(self) -> None:
        wait_until(lambda: not self.cgroup.processes(), 5, f"{self.cgroup.path} to be empty")
        self.cgroup.remove()

    def _namespaces(self, device: str) -> None:
        for name in (self.name, self.world):
            netns.create(name)
            self.undo.callback(netns.delete, name)
            for which in ("all", "default"):
                # While a link-local address is tentative, no neighbour is asked for: seconds without IPv6.
                sysctl(name, f"net.ipv6.conf.{which}.accept_dad", "0")
            ip("link", "set", "lo", "up", ns=name)
        ip(
            "link",
            "add",
            device,
            "netns",
            self.name,
            "type",
            "veth",
            "peer",
            "name",
            "w0",
            "netns",
            self.world,
        )
        ip("link", "set", device, "name", "up0", ns=self.name)
        for ns, name, here in ((self.name, "up0", "10.9.0.2/24"), (self.world, "w0", "10.9.0.1/24")):
            ip("address", "add", here, "dev", name, ns=ns)
            ip("link", "set", name, "up", ns=ns)
        ip("address", "add", "fd09::2/64", "dev", "up0", "nodad", ns=self.name)
        ip("address", "add", "fd09::1/64", "dev", "w0", "nodad", ns=self.world)
        for address in sorted({address for address, _, _ in self.slices} | {ADDRESS}):
            ip("address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []), ns=self.name)
        ip("route", "add", "default", "via", "10.9.0.1", ns=self.name)
        ip("-6", "route", "add", "default", "via", "fd09::1", ns=self.name)
        for address in (WORLD, WORLD2):
            ip("address", "add", f"{address}/32", "dev", "lo", ns=self.world)
        ip("address", "add", f"{WORLD6}/128", "dev", "lo", "nodad", ns=self.world)
        ip("route", "add", "198.51.100.0/24", "via", "10.9.0.2", ns=self.world)
        ip("-6", "route", "add", "2001:db8:51::/48", "via", "fd09::2", ns=self.world)

    def _load(self, wildcard: int, timers: Mapping[str, int], pinned: bool, flows: int) -> None:
        with netns.enter(self.name):
            cookie = netns.cookie()
        usual = abi.Settings(
            site=1,
            netns_cookie=cookie,
            full_ns=1_000_000,
            node=1,
            mark=0x100,
            mask=0x100,
            slots=2 * flows,
            tcp_transitory_s=240,
            tcp_established_s=7440,
            tcp_linger_s=120,
            sock_linger_s=60,
            sock_reuse_s=1,
            udp_s=300,
            icmp_s=60,
            gue_port=6080,
            answer_ping=1,
            underlay4=addr_bytes(IPv4Address("10.9.0.2")),
            underlay6=addr_bytes(IPv4Address("10.9.0.2")),
        )
        self.settings = replace(usual, **timers)
        sizes = {"flows": flows, "origin": 1 << 11, "slots": 2 * flows}
        pins = nodes.pin_dir(self.name) if pinned else None
        if pins:
            self.undo.callback(shutil.rmtree, pins, ignore_errors=True)
        self.object = BpfObject.load(object_path("claim"), settings=self.settings.pack(), map_sizes=sizes, pin_dir=pins)
        self.undo.callback(self.object.close)
        if pinned:
            self._pretend_agent(cookie)
        maps = self.object.maps
        bases = {address: 65536 * at for at, address in enumerate(sorted({address for address, _, _ in self.slices}))}
        for address, base in bases.items():
            maps["addresses"].update(addr_bytes(ip_address(address)), abi.Address(base=base, shift=0, site=1).pack())
        for port in range(FOREIGN_PORT, FOREIGN_PORT + 10):
            maps["owners"].update(U32.pack(bases[self.slices[0][0]] + port), abi.Owner(node=2, slice=abi.NONE).pack())
        for index, (address, first, last) in enumerate(self.slices):
            pool = 1 if address != ADDRESS2 else 2
            maps["slices"].update(
                U32.pack(index),
                abi.Slice(
                    addr=addr_bytes(ip_address(address)),
                    first=first,
                    last=last,
                    udp_exact_first=first + wildcard,
                    flags=abi.SliceFlag.LIVE,
                    pool=pool,
                    epoch=1,
                    claim_until_ns=2**63,
                ).pack(),
            )
            for port in range(first, last + 1):
                maps["owners"].update(U32.pack(bases[address] + port), abi.Owner(node=1, slice=index).pack())
        place = 0
        for pool in (1, 2):
            numbers = [at for at, (address, _, _) in enumerate(self.slices) if (address == ADDRESS2) == (pool == 2)]
            four = [at for at in numbers if ":" not in self.slices[at][0]]
            six = [at for at in numbers if ":" in self.slices[at][0]]
            for at, index in enumerate(four + six):
                maps["pool_slices"].update(U32.pack(place + at), U32.pack(index))
            maps["pools"].update(U32.pack(pool), abi.Pool(place, len(four), place + len(four), len(six)).pack())
            place += len(numbers)
        for network in NEVER:
            maps["prefixes"].update(prefix_key(abi.List.NEVER, ip_network(network)), U32.pack(1))

    def _pretend_agent(self, cookie: int) -> None:
        """What `softunicast run` looks for: the pinned program and node.json."""
        self.object.programs["su_recount"].pin(nodes.program_pin(self.name, "su_recount"))
        known = state.NodeState(
            node=self.name,
            netns_cookie=cookie,
            abi_version=abi.ABI_VERSION,
            pools={"ten": 1, "other": 2, "empty": 3},
            tags={"ten": {"country": "GB"}, "other": {"country": "FR"}},
            never=NEVER,
            slices=tuple(
                state.SliceState(
                    index, str(Slice(ip_address(address), first, last)), "other" if address == ADDRESS2 else "ten", 1
                )
                for index, (address, first, last) in enumerate(self.slices)
            ),
        )
        self.undo.callback(shutil.rmtree, nodes.run_dir(self.name), ignore_errors=True)
        known.save(nodes.node_file(self.name))
        self.undo.callback(nodes.cgroup_dir(self.name).remove)

    def policy(self, folder: cgroup.CgroupDir, policy: abi.Policy | None = None) -> None:
        """Put a cgroup under a policy (default: pool 1)."""
        policy = policy or abi.Policy(flags=abi.PolicyFlag.SET, pool=1)
        self.object.maps["cgroups"].update(struct.pack("=Q", folder.id), policy.pack())
        control = abi.Control.unpack(self.object.maps["control"].lookup(U32.pack(0)) or b"")
        self.object.maps["control"].update(U32.pack(0), replace(control, policies=1, ready=1).pack())

    def attach(self) -> None:
        """Attach the hooks to the root cgroup until the node closes."""
        folder = os.open(cgroup.root(), os.O_RDONLY | os.O_DIRECTORY)
        try:
            for name, kind in HOOKS.items():
                self.links[name] = attach_cgroup(self.object.programs[name], folder, kind)
                self.undo.callback(self.links[name].close)
                if self.pinned:
                    self.links[name].pin(nodes.link_pin(self.name, name))
        finally:
            os.close(folder)

    def attach_guard(self) -> None:
        """Put the tc programs on the uplink: nothing leaves a slice without a claim, answers need one."""
        egress = BpfObject.load(object_path("egress"), settings=self.settings.pack(), reuse=self.object.maps)
        self.undo.callback(egress.close)
        with netns.enter(self.name):
            index = socket.if_nametoindex("up0")
            self.object.maps["uplinks"].update(U32.pack(0), abi.Uplink(ifindex=index, mtu=1500).pack())
            for name, out in (("su_guard", True), ("su_uplink_in", False)):
                link = attach_tcx(egress.programs[name], index, egress=out)
                self.undo.callback(link.close)

    def adopt(self) -> None:
        """Run both iterators, as a starting agent does."""
        with netns.enter(self.name):
            run_iter(self.object.programs["su_adopt_tcp"])
            run_iter(self.object.programs["su_adopt_udp"])

    def sweep(self) -> abi.SweepArgs:
        done = self.object.programs["su_sweep"].test_run(ctx=abi.SweepArgs().pack())
        return abi.SweepArgs.unpack(done.ctx)

    def release(self, flow: abi.Flow, word: int, owner: int, *, linger: bool = False) -> int:
        """0 or a negative errno."""
        arguments = abi.ReleaseArgs(flow=flow, word=word, owner=owner, linger=int(linger))
        done = self.object.programs["su_release"].test_run(ctx=arguments.pack())
        return abi.ReleaseArgs.unpack(done.ctx).result

    # What programs do

    def plain_socket(
        self, family: int = socket.AF_INET, kind: int = socket.SOCK_STREAM, proto: int = 0
    ) -> socket.socket:
        """A socket in the node's namespace without a policy."""
        with netns.enter(self.name):
            made = socket.socket(family, kind, proto)
        made.settimeout(20)
        return made

    def tagged(
        self,
        family: int = socket.AF_INET,
        kind: int = socket.SOCK_STREAM,
        proto: int = 0,
        folder: cgroup.CgroupDir | None = None,
    ) -> socket.socket:
        """A socket that was born in the node's namespace and in a cgroup (default: the node's, pool 1)."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            child = os.fork()
            if child == 0:
                with contextlib.suppress(BaseException):
                    (folder or self.cgroup).add()
                    with netns.enter(self.name), socket.socket(family, kind, proto) as made:
                        socket.send_fds(theirs, [b"x"], [made.fileno()])
                os._exit(0)
            _, fds, _, _ = socket.recv_fds(ours, 1, 1)
            os.waitpid(child, 0)
        made = socket.socket(fileno=fds[0])
        made.settimeout(20)
        return made

    def run(self, *command: str, folder: cgroup.CgroupDir | None = None, **options: object) -> subprocess.Popen[bytes]:
        """A program in the node's namespace and cgroup."""
        where = folder or self.cgroup
        path = f"/run/netns/{self.name}"
        script = f'echo $$ > {where.path}/cgroup.procs && exec nsenter --net={path} "$@"'
        return subprocess.Popen(["sh", "-c", script, "sh", *command], **options)  # type: ignore[call-overload, no-any-return]  # options of Popen as they are

    # What the world does

    def server(self, port: int = 443, address: str = WORLD, kind: int = socket.SOCK_STREAM) -> socket.socket:
        """A listener (or a UDP socket) in the world; the kernel completes handshakes by itself."""
        with netns.enter(self.world):
            made = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        if kind == socket.SOCK_STREAM:
            made.listen(512)
        made.settimeout(20)
        self.undo.callback(made.close)
        return made

    # What is seen

    def claims(self) -> list[Held]:
        held = []
        for key, value in self.object.maps["flows"].items():
            flow, claim = abi.Flow.unpack(key), abi.Claim.unpack(value)
            word = Word.unpack(claim.word)
            held.append(
                Held(
                    (str(addr_ip(flow.local)), flow.local_port),
                    (str(addr_ip(flow.remote)), flow.remote_port),
                    flow.proto,
                    abi.Kind(claim.kind),
                    word.state,
                    claim.owner,
                    word.generation,
                )
            )
        return sorted(held, key=lambda one: (one.local, one.remote, one.proto))

    def alive(self) -> list[Held]:
        """Claims that are not LINGER."""
        return [one for one in self.claims() if one.state != abi.State.LINGER]

    def drops(self) -> dict[str, int]:
        """Drop reasons that were met, by name."""
        copies = [abi.Stats.unpack(one) for one in self.object.maps["stats"].lookup_percpu(U32.pack(0))]
        totals = {reason.name: sum(copy.drops[reason] for copy in copies) for reason in abi.Drop}
        return {name: total for name, total in totals.items() if total}

    def counter(self, counter: abi.Counter) -> int:
        copies = self.object.maps["stats"].lookup_percpu(U32.pack(0))
        return sum(abi.Stats.unpack(copy).counters[counter] for copy in copies)


@contextlib.contextmanager
def refused(number: int) -> Iterator[None]:
    """The block must raise OSError with this errno."""
    try:
        yield
    except OSError as error:
        assert error.errno == number, f"{errno.errorcode.get(error.errno or 0)}, not {errno.errorcode[number]}"
    else:
        raise AssertionError(f"nothing was refused; {errno.errorcode[number]} was due")


def cookie_of(made: socket.socket) -> int:
    """SO_COOKIE: what a SOCKET claim's owner is."""
    return int(struct.unpack("=Q", made.getsockopt(socket.SOL_SOCKET, 57, 8))[0])


def reset_close(made: socket.socket) -> None:
    """close() with linger 0: a RST goes out."""
    made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("=ii", 1, 0))
    made.close()


def boot_s() -> int:
    return int(time.clock_gettime(time.CLOCK_BOOTTIME))


def disconnect(made: socket.socket) -> None:
    """connect(AF_UNSPEC), which Python cannot say."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.connect(made.fileno(), struct.pack("=H14x", socket.AF_UNSPEC), 16) != 0:
        raise OSError(ctypes.get_errno(), "connect(AF_UNSPEC)")
