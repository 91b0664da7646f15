# SPDX-License-Identifier: Apache-2.0
"""A lab: brought up, used and brought down.

    with Lab(prefix="t123", agents=True) as lab:
        lab.node("lhr1").run(["softunicast", "run", "--pool", "gb", "--", "curl", "-s", "http://203.0.113.1/"])
        with lab.capture() as capture:
            lab.node("c1").run(["curl", "-s", "http://203.0.113.1/bytes/10000000"])
        assert capture.report().ok

What it leaves on the machine while it lives: namespaces `<prefix>-*`, processes in them,
/run/softunicast-lab/<prefix>/, and for each node, by its name in the plan, what its agent makes (pins,
cgroups, /run/softunicast/<node>/). `down` finds all of it again from the prefix alone, so a lab whose maker
was killed goes the same way.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Final, Self

import softunicast
from softunicast.errors import KernelError, UsageError

from . import bird, build
from . import topology as facts
from .traces import forget_node
from .web_log import Seen, read_web_log

if TYPE_CHECKING:
    from .capture import Capture

READY_S: Final = 10.0
BGP_READY_S: Final = 90.0
FEED_PER_S: Final = 5000
"""Routes that a router takes in at the least, on a busy machine."""
AGENT_READY_S: Final = 60.0  # four agents verify their programs at the same time
PACKAGE_FOLDER: Final = Path(softunicast.__path__[0]).parent


def wait_until(condition: Callable[[], bool], what: str, *, patience_s: float = READY_S) -> None:
    """Poll until it holds; KernelError naming `what` after `patience_s`."""
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise KernelError(f"lab: {what}: not within {patience_s:g} s")
        time.sleep(0.01)


def environment() -> dict[str, str]:
    """What lab processes run with: this Python's programs first, and this very package."""
    path = f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return {**os.environ, "PATH": path, "PYTHONPATH": str(PACKAGE_FOLDER), "PYTHONUNBUFFERED": "1"}


class Host:
    """A namespace of the lab. `plan_name` is what the plan calls it, when it is a node."""

    def __init__(self, lab: Lab, name: str) -> None:
        self.name = name
        self.lab = lab
        self.netns = build.NETNS_FOLDER / build.namespace(lab.prefix, name)
        self.plan_name = facts.plan_name(lab.prefix, name)

    def popen(self, command: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program in this namespace; `options` as for subprocess.Popen. The lab's end kills it."""
        options.setdefault("env", environment())
        child = subprocess.Popen(build.entering(self.netns, _program(command)), **options)
        self.lab.children.append(child)
        return child

    def run(
        self, command: Sequence[str], *, timeout: float = 60, check: bool = False, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, output captured as text. subprocess.TimeoutExpired kills it."""
        whole = build.entering(self.netns, _program(command))
        return subprocess.run(
            whole,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=check,
            input=input,
            env=environment(),
        )

    def softunicast(self, *arguments: str, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run this package's own command line here."""
        return self.run(["softunicast", *arguments], timeout=timeout)

    @contextlib.contextmanager
    def enter(self) -> Iterator[None]:
        """Be in this namespace: sockets this thread makes belong to it. Other threads stay where they are."""
        from softunicast.kernel import netns

        with netns.enter(str(self.netns)):
            yield


def _program(command: Sequence[str]) -> list[str]:
    """`softunicast` is run as a module, so that it is this very package whether or not it is installed."""
    if command and command[0] == "softunicast":
        return [sys.executable, "-m", "softunicast.cli", *command[1:]]
    return list(command)


class Lab:
    """One lab. `agents=False` leaves the nodes bare until start_agents(); their BIRDs announce as if they were fit.
    `feed`: routes that the internet's BIRD has besides a default route.
    """

    def __init__(self, prefix: str = "su", *, agents: bool = True, feed: int = 0) -> None:
        if not (prefix.isascii() and prefix.isalnum() and len(prefix) <= 24):
            raise UsageError(f"lab: prefix {prefix!r}: letters and digits only, 24 at most; choose another")
        self.prefix = prefix
        self.topology = facts.topology()
        self.folder = build.RUN_FOLDER / prefix
        self.plan_path = self.folder / "plan.yaml"
        self.bindings_path = self.folder / "bindings.yaml"
        self.children: list[subprocess.Popen[Any]] = []
        self._agents_wanted = agents
        self._feed = feed
        self._hosts = {name: Host(self, name) for name in self.topology.namespaces}

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.down()

    # -- life

    def up(self) -> None:
        """Build, start servers and, if wanted, agents. On any error everything is taken down again and it is
        raised.
        """
        build.check_tools()
        self.down()
        try:
            self.folder.mkdir(parents=True)
            self.plan_path.write_text(self.plan_text(), encoding="utf-8")
            build.build(self.prefix, self.topology)
            self._start_routing()
            self._start_servers()
            if self._agents_wanted:
                self.start_agents()
            self.wait_routes()
            self._wait_feed()
        except BaseException:
            self.down()
            raise

    def down(self) -> None:
        """Remove every trace of the lab of this prefix, whoever made it. Nothing there: nothing happens."""
        present = build.namespaces(self.prefix)
        build.stop(build.processes(present.values()))
        for child in self.children:
            if child.poll() is None:
                child.kill()  # one that was just started and is not in its namespace yet
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(2)
            for pipe in (child.stdin, child.stdout, child.stderr):
                if pipe is not None:
                    with contextlib.suppress(BrokenPipeError):
                        pipe.close()
        self.children.clear()
        for node in facts.NODES:
            forget_node(facts.plan_name(self.prefix, node))
        build.delete_namespaces(self.prefix, present)
        shutil.rmtree(self.folder, ignore_errors=True)
        with contextlib.suppress(OSError):
            self.folder.parent.rmdir()

    def is_up(self) -> bool:
        """All namespaces are there and the internet's servers run."""
        present = build.namespaces(self.prefix)
        return len(present) == len(self._hosts) and bool(build.processes([present["inet"]]))

    def plan_text(self) -> str:
        """The plan that `up` writes; a lab with another plan says so here."""
        return facts.plan_text(self.prefix)

    # -- routing

    def _start_routing(self) -> None:
        bird.feed_path(self.folder).write_text(bird.feed_text(self._feed), encoding="ascii")
        for node in () if self._agents_wanted else facts.NODES:
            text = bird.announced_without_agent(self.node(node).plan_name)
            facts.bird_include(self.folder, node).write_text(text, encoding="ascii")
        for name in bird.SPEAKERS:
            bird.config_path(self.folder, name).write_text(bird.config(self.folder, name), encoding="utf-8")
            self.start_bird(name)

    def start_bird(self, name: str) -> subprocess.Popen[Any]:
        """Start a speaker's BIRD; what it says goes to bird-NAME.log."""
        files = ["-c", str(bird.config_path(self.folder, name)), "-s", str(facts.bird_control(self.folder, name))]
        command = ["bird", "-f", *files, "-P", str(self.folder / f"bird-{name}.pid")]
        with (self.folder / f"bird-{name}.log").open("ab") as output:
            return self.node(name).popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
            )

    def birdc(self, name: str, *words: str) -> str:
        """What a speaker's BIRD answers; KernelError when it does not."""
        done = self.node(name).run(["birdc", "-r" if words[0] == "show" else "-v", "-s",
                                    str(facts.bird_control(self.folder, name)), *words])  # fmt: skip
        if done.returncode:
            raise KernelError(f"lab: birdc {' '.join(words)} at {name}: {(done.stdout + done.stderr).strip()}")
        return done.stdout

    def next_hops(self, name: str, network: str) -> list[str]:
        """Where a host's kernel sends a network or, without such a route, nowhere: addresses of next hops, sorted."""
        family = "-6" if ":" in network else "-4"
        routes = json.loads(self.node(name).run(["ip", "-j", family, "route", "show", network], check=True).stdout)
        found = {str(hop["gateway"]) for route in routes for hop in route.get("nexthops", [route]) if "gateway" in hop}
        return sorted(found)

    def feed_routes(self, router: str) -> int:
        """How many routes of the feed are in a router's kernel."""
        shown = self.node(router).run(["ip", "-4", "route", "show", "proto", "bird", "root", "16.0.0.0/4"]).stdout
        return shown.count("\n") + self.node(router).run(
            ["ip", "-4", "route", "show", "proto", "bird", "root", "32.0.0.0/3"]
        ).stdout.count("\n")

    def wait_routes(self, *, patience_s: float = BGP_READY_S) -> None:
        """Until BGP has settled: each router knows its nodes and the internet, and the internet prefers r2."""

        def settled() -> bool:
            wanted = [("inet", "192.0.2.5", "2001:db8:e:2::1")]
            if any(
                self.next_hops("inet", str(fleet)) != [hop]
                for _, *hops in wanted
                for fleet, hop in zip((facts.FLEET, facts.FLEET6), hops, strict=True)
            ):
                return False
            return all(
                len(self.next_hops(router, str(fleet))) == len(facts.SITES[site]) and self.next_hops(router, every)
                for site, router in facts.ROUTERS.items()
                for fleet, every in ((facts.FLEET, "0.0.0.0/0"), (facts.FLEET6, "::/0"))
            )

        wait_until(settled, "BGP settles", patience_s=patience_s)

    def _wait_feed(self) -> None:
        """Until the routers' kernels have all of the feed."""
        for router in facts.ROUTERS.values() if self._feed else ():
            wait_until(
                lambda router=router: self.feed_routes(router) >= self._feed,  # type: ignore[misc]
                f"{router} has {self._feed:,} routes of the feed",
                patience_s=BGP_READY_S + self._feed / FEED_PER_S,
            )

    # -- servers

    def _start_servers(self) -> None:
        web = ",".join(f"{address}:{port}" for address in (*facts.WEB, *facts.WEB6) for port in facts.WEB_PORTS)
        echo = ",".join(f"{address}:{facts.ECHO_PORT}" for address in (*facts.ECHO, *facts.ECHO6))
        servers = ["--log", str(self.folder / "web.jsonl"), "--web", web, "--echo", echo]
        waiting = [
            (
                "servers",
                self._spawn("inet", "servers", [sys.executable, "-m", "softunicast.lab.servers", *servers]),
            )
        ]
        for link in self.topology.links:
            if link.tunnel:
                ends = [
                    str(part)
                    for end in (link.upper, link.lower)
                    for part in (self.node(end.namespace).netns, end.device)
                ]
                command = [sys.executable, "-m", "softunicast.lab.pump", *ends]
                waiting.append(
                    (
                        link.upper.device,
                        self._spawn(link.upper.namespace, f"pump-{link.upper.device}", command),
                    )
                )
        self._spawn("inet", "dnsmasq", self._dnsmasq())
        for name, child in waiting:
            stream: IO[bytes] | None = child.stdout
            if stream is None or stream.readline() != b"ready\n":
                raise KernelError(f"lab: {name} did not start: {self.log(name) or self.log(f'pump-{name}')}")
        wait_until(self._resolves, f"dnsmasq: {self.log('dnsmasq')}")

    def _dnsmasq(self) -> list[str]:
        names = [f"--host-record={name},{','.join(addresses)}" for name, addresses in facts.NAMES.items()]
        names += [f"--address=/{facts.ANY_NAME}/{address}" for address in (facts.WEB[0], facts.WEB6[0])]
        return [
            "dnsmasq", "--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts",
            "--user=root", "--pid-file=",
            "--bind-interfaces", f"--listen-address={facts.DNS},{facts.DNS6}",
            "--log-queries=extra", "--log-facility=-", *names,
        ]  # fmt: skip

    def _resolves(self) -> bool:
        """dnsmasq is bound to 203.0.113.53:53 (proc(5), /proc/PID/net/udp, of the namespace of PID)."""
        for pid in build.processes([self.node("inet").netns]):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                return "357100CB:0035" in Path(f"/proc/{pid}/net/udp").read_text(encoding="utf-8")
        return False

    def _spawn(self, name: str, log: str, command: Sequence[str]) -> subprocess.Popen[Any]:
        with (self.folder / f"{log}.log").open("ab") as errors:
            return self.node(name).popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                start_new_session=True,
            )

    def log(self, name: str) -> str:
        """What a process of the lab wrote to standard error: servers, dnsmasq, pump-t1, bird-r1, agent-lhr1 ..."""
        path = self.folder / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace").strip() if path.exists() else ""

    # -- agents

    def write_bindings(self) -> None:
        """Allocate the plan's slices and write them beside the plan."""
        from softunicast.model.allocator import allocate
        from softunicast.model.bindings_file import dump_bindings
        from softunicast.model.plan import load_plan

        plan = load_plan(self.plan_path.read_text(encoding="utf-8"), str(self.plan_path))
        self.bindings_path.write_text(dump_bindings(allocate(plan, None)), encoding="utf-8")

    def start_agents(self, names: Sequence[str] = facts.NODES) -> None:
        """Start an agent on each node and wait until it says it is ready. KernelError with its last words
        otherwise.
        """
        if not self.bindings_path.exists():
            self.write_bindings()
        started = {name: self.start_agent(name) for name in names}
        for name, child in started.items():
            self.wait_agent(name, child)

    def start_agent(self, name: str) -> subprocess.Popen[Any]:
        """Start one node's agent; its output goes to agent-NAME.log. It is not waited for."""
        host = self.node(name)
        files = ["--plan", str(self.plan_path), "--bindings", str(self.bindings_path)]
        command = ["softunicast", "agent", *files, "--node", host.plan_name]
        with (self.folder / f"agent-{name}.log").open("ab") as output:
            return host.popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True)

    def wait_agent(self, name: str, child: subprocess.Popen[Any], *, patience_s: float = AGENT_READY_S) -> None:
        """Until node.json says ready; KernelError when the agent ended or took longer."""
        path = Path("/run/softunicast") / self.node(name).plan_name / "node.json"
        began_s = time.time()

        def ready() -> bool:
            if child.poll() is not None:
                raise KernelError(
                    f"lab: agent of {name} ended with status {child.returncode}: {self.log(f'agent-{name}')}"
                )
            with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
                return bool(json.loads(path.read_text(encoding="utf-8"))["ready"])
            return False

        try:
            wait_until(ready, f"agent of {name} ready", patience_s=patience_s)
        except KernelError as error:
            raise KernelError(
                f"{error}; after {time.time() - began_s:.1f} s its log says: {self.log(f'agent-{name}')}"
            ) from error

    # -- use

    def node(self, name: str) -> Host:
        """A namespace by its name in the drawing; UsageError naming those there are."""
        if name not in self._hosts:
            raise UsageError(f"lab: no {name!r} here; there are {', '.join(self._hosts)}")
        return self._hosts[name]

    def enter(self, name: str) -> contextlib.AbstractContextManager[None]:
        """node(name).enter()"""
        return self.node(name).enter()

    def capture(self, place: str = "internet", *, folder: Path | None = None) -> Capture:
        """A capture at both routers, on their "internet" sides or in the "rack"s; see softunicast.lab.capture."""
        from .capture import Capture

        return Capture(self, place, folder=folder)

    def web_log(self) -> list[Seen]:
        """Every TCP connection the internet's servers saw so far, in order."""
        path = self.folder / "web.jsonl"
        if not path.exists():
            return []
        with path.open(encoding="utf-8") as lines:
            return read_web_log(lines)

    def dns_log(self) -> list[tuple[str, str, int]]:
        """Every question the DNS server saw so far: (name, peer's address, peer's port)."""
        asked = re.findall(r" (\S+)/(\d+) query\[\w+\] (\S+) from ", self.log("dnsmasq"))
        return [(name, peer, int(port)) for peer, port, name in asked]

    def macs(self) -> Mapping[str, str]:
        """MAC address -> node, as seen on the racks."""
        return {facts.mac(node, "eth0"): node for node in facts.NODES}
