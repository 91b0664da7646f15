# SPDX-License-Identifier: Apache-2.0
"""The process that holds the listeners and looks after the workers; no byte of a client comes here.

    master  binds, forks --> worker 0, 1, ...     all accept from the same sockets (EPOLLEXCLUSIVE: one is woken)
      | HUP: new code and policy are tried (`--check`), then the master becomes them by execve(2), and keeps its process
      v      id, its listeners, and its children
    master  forks new workers; each old one is told to give its connections to a new one (handover.py), and ends

No connection is refused meanwhile: the listening sockets are never closed, new workers accept before old ones stop. A
worker that dies is replaced. Signals: HUP reload or upgrade, USR1 open the access log again, USR2 log the counters,
TERM and INT end (those that are relayed have `stop_s`).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from softunicast.errors import KernelError
from softunicast.kernel import netns, nfqueue
from softunicast.kernel.terminus import QUEUE
from softunicast.proxy._relay import tune
from softunicast.proxy.access_log import AccessLog
from softunicast.proxy.dial import KEEPALIVE_S
from softunicast.proxy.dns import Resolver, system_servers
from softunicast.proxy.egress import Egress
from softunicast.proxy.limits import Counts, Limits
from softunicast.proxy.loop import Loop
from softunicast.proxy.policy import Listener, ProxyConfig
from softunicast.proxy.service import Service
from softunicast.proxy.worker import Worker

STATE: Final = "SOFTUNICAST_PROXY_STATE"
"""Environment: what the image before left, {"listeners": {place: fd}, "queues": ..., "workers": [[pid, fd], ...]}."""
HEARD: Final = (signal.SIGHUP, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCHLD)
LOOK_S: Final = 1.0
CHECK_S: Final = 60
REST_S: Final = 0.5
"""A worker that ends by itself is not started again sooner than this."""
ANSWER_S: Final = 2.0
GC_EVERY: Final = 50_000
"""Objects. Connections leave no cycles behind; looking for them every 700 objects costs a tenth of Python's share."""


@dataclass(slots=True)
class Child:
    """A worker as its master sees it; `control` is this side's end."""

    pid: int
    control: socket.socket

    def tell(self, what: str, *fds: int) -> None:
        """It may be ending: then it needs no telling."""
        with contextlib.suppress(OSError):
            socket.send_fds(self.control, [json.dumps({"do": what}).encode()], fds)


def listen(listener: Listener) -> socket.socket:
    """A listening socket; accepted ones inherit its options, which spares them three calls each. KernelError.

    UsageError: its network namespace is not there.
    """
    host = listener.listen.host
    family = socket.AF_INET6 if ":" in str(host) else socket.AF_INET
    with netns.enter(listener.namespace or None):
        made = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        tune(made.fileno(), KEEPALIVE_S)
        if listener.transparent:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_TRANSPARENT, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((str(host), listener.listen.port))
        made.listen(4096)
    except OSError as error:
        made.close()
        why = os.strerror(error.errno or 0)
        raise KernelError(
            f"listener {listener.name}: {listener.listen}: {why}; see who listens there: ss -ltnp",
            errno=error.errno or 0,
        ) from error
    return made


class Master:
    """`run()` until a signal ends it. `watched`: a file whose change means that pools are to be asked for anew."""

    def __init__(
        self,
        config: ProxyConfig,
        egress: Egress,
        watched: Path | None,
        log: Any,
        ready: Callable[[str], object],
    ) -> None:
        """`ready` is told systemd's words. KernelError: a listener's place is taken, the log cannot be written."""
        self._config = config
        self._egress = egress
        self._watched = watched
        self._log = log
        self._ready = ready
        self._counts = Counts(config.workers, len(config.users))
        self._workers: dict[int, Child] = {}
        self._old: list[Child] = []
        self._listeners: list[tuple[Listener, socket.socket]] = []
        self._queues: dict[str, socket.socket] = {}
        self._stopping = False
        self._changed = self._change()

    def run(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, HEARD)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        self._more_descriptors()
        AccessLog(Loop(), self._config.access_log).close()
        self._inherit(json.loads(os.environ.pop(STATE, "{}")))
        gc.collect()
        gc.freeze()
        for number in range(self._config.workers):
            self._start(number)
        self._hand_over()
        self._ready("READY=1")
        places = ", ".join(str(one.listen) for one, _ in self._listeners)
        self._log.info("serving", listeners=places, workers=len(self._workers), predecessors=len(self._old))
        while self._workers or self._old:
            got = signal.sigtimedwait(HEARD, LOOK_S)
            self._reap()
            if got is not None:
                self._heard(got.si_signo)
            self._look()
        self._log.info("ended")

    @staticmethod
    def _more_descriptors() -> None:
        """As many as root may have without asking anybody: a relayed connection needs two, and pipes while it moves."""
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def _inherit(self, state: Mapping[str, Any]) -> None:
        """Listeners and workers of the image before; listeners that are wanted no more are closed."""
        there = {place: socket.socket(fileno=fd) for place, fd in state.get("listeners", {}).items()}
        self._old = [Child(pid, socket.socket(fileno=fd)) for pid, fd in state.get("workers", [])]
        for child in self._old:
            child.control.set_inheritable(False)
        for listener in self._config.listeners:
            sock = there.pop(place_of(listener), None) or listen(listener)
            sock.set_inheritable(False)
            self._listeners.append((listener, sock))
        for sock in there.values():
            sock.close()
        queues = {place: socket.socket(fileno=fd) for place, fd in state.get("queues", {}).items()}
        for namespace in dict.fromkeys(one.namespace for one in self._config.listeners if one.held):
            queue = queues.pop(namespace_mark(namespace), None)
            if queue is None:
                with netns.enter(namespace):
                    queue = nfqueue.open_queue(QUEUE)
            queue.set_inheritable(False)
            self._queues[namespace] = queue
        for queue in queues.values():
            queue.close()

    def _start(self, number: int) -> None:
        """A worker, as a process."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pid = os.fork()
        if pid == 0:
            ours.close()
            self._become_worker(number, theirs)
        theirs.close()
        self._workers[number] = Child(pid, ours)

    def _become_worker(self, number: int, control: socket.socket) -> NoReturn:
        """In the child. It hears its master only, and ends when that is gone."""
        status = 1
        try:
            for child in (*self._workers.values(), *self._old):
                child.control.close()
            for one in HEARD:
                signal.signal(one, signal.SIG_IGN if one is not signal.SIGCHLD else signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, HEARD)
            config, loop = self._config, Loop()
            service = Service(
                loop,
                config,
                self._egress,
                self._resolver(loop),
                Limits(self._counts, number),
                AccessLog(loop, config.access_log),
            )
            worker = Worker(service, self._listeners, control, self._log.bind(worker=number), self._queues)
            worker.start()
            gc.set_threshold(GC_EVERY)
            loop.run()
            status = 0
        except BaseException as error:  # noqa: BLE001 - told, and then this process is over
            self._log.error("a worker failed", worker=number, error=repr(error), exc_info=error)
        finally:
            os._exit(status)

    def _resolver(self, loop: Loop) -> Resolver:
        config = self._config
        servers = config.servers or system_servers()
        if config.dns_user is None:
            return Resolver(loop, servers, config.dns_timeout_s, config.dns_entries)
        opened = self._egress.opener(config.users[config.dns_user])
        return Resolver(loop, servers, config.dns_timeout_s, config.dns_entries, opened=opened)

    def _hand_over(self) -> None:
        """Each old worker gives what it has to one of the new ones. Who gives already, takes no notice."""
        numbers = sorted(self._workers)
        for at, old in enumerate(self._old):
            giver, taker = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with giver, taker:
                self._workers[numbers[at % len(numbers)]].tell("take", taker.fileno())
                old.tell("give", giver.fileno())

    def _reap(self) -> None:
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                self._ended(pid, os.waitstatus_to_exitcode(status))

    def _ended(self, pid: int, code: int) -> None:
        for old in [one for one in self._old if one.pid == pid]:
            self._old.remove(old)
            old.control.close()
            self._log.info("a predecessor has ended", pid=pid, code=code)
        for number, child in list(self._workers.items()):
            if child.pid != pid:
                continue
            del self._workers[number]
            child.control.close()
            self._counts.clear(number)
            if not self._stopping:
                self._log.error("a worker died; there is a new one", worker=number, code=code)
                time.sleep(REST_S)
                self._start(number)
                self._hand_over()

    def _heard(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stopping = True
            self._ready("STOPPING=1")
            for child in (*self._workers.values(), *self._old):
                child.tell("stop")
        elif number == signal.SIGHUP and not self._stopping:
            self._reload()
        elif number == signal.SIGUSR1:
            for child in (*self._workers.values(), *self._old):
                child.tell("reopen")
        elif number == signal.SIGUSR2:
            for index, child in self._workers.items():
                child.control.settimeout(0)
                with contextlib.suppress(OSError):
                    while child.control.recv(65536):  # answers to earlier questions that came too late
                        pass
                child.tell("status")
                child.control.settimeout(ANSWER_S)
                with contextlib.suppress(OSError):
                    self._log.info("status", worker=index, **json.loads(child.control.recv(65536))["status"])

    def _reload(self) -> None:
        """Be the program and the policy as they are now, if they are sound. Returns only when they are not."""
        command = [sys.executable, *sys.orig_argv[1:]]
        try:
            done = subprocess.run([*command, "--check"], capture_output=True, text=True, timeout=CHECK_S, check=False)
        except (OSError, subprocess.SubprocessError) as error:
            self._log.error("not reloaded", why=str(error))
            return
        if done.returncode:
            self._log.error("not reloaded", why=done.stderr.strip())
            return
        state: dict[str, Any] = {
            "listeners": {place_of(one): sock.fileno() for one, sock in self._listeners},
            "queues": {namespace_mark(name): queue.fileno() for name, queue in self._queues.items()},
            "workers": [[one.pid, one.control.fileno()] for one in (*self._workers.values(), *self._old)],
        }
        self._ready(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        controls = (one.control for one in self._workers.values())
        for sock in (*(one for _, one in self._listeners), *self._queues.values(), *controls):
            sock.set_inheritable(True)
        for child in self._old:
            child.control.set_inheritable(True)
        sys.stderr.flush()
        os.execve(sys.executable, command, {**os.environ, STATE: json.dumps(state)})

    def _look(self) -> None:
        """Has the node's file changed?"""
        changed = self._change()
        if changed != self._changed:
            self._changed = changed
            self._egress.refresh()
            for child in self._workers.values():
                child.tell("refresh")

    def _change(self) -> int:
        try:
            return self._watched.stat().st_mtime_ns if self._watched else 0
        except FileNotFoundError:
            return 0


def place_of(listener: Listener) -> str:
    """What makes a listening socket the same one in the next image."""
    where = f" in {namespace_mark(listener.namespace)}" if listener.namespace else ""
    return f"{listener.listen}{' transparent' if listener.transparent else ''}{where}"


def namespace_mark(name: str) -> str:
    """A network namespace, told from a later one of its name. A mark that nothing has, when there is none."""
    try:
        return f"{name} {netns.path_of(name).stat().st_ino}"
    except OSError:
        return f"{name} gone"
