# SPDX-License-Identifier: Apache-2.0
"""`softunicast run`: a program whose sockets use a pool's slices, without knowing it.

The program is started in a cgroup of its own, <cgroup2>/softunicast/<node>/run-<pid>, which has a policy in
the map `cgroups`; its children are in there too. This process only waits: it passes signals on, exits as the
program does (128 + n when a signal ended it), and removes the cgroup when nobody is left in it. What a killed
`run` leaves behind, and programs that stay in the background, are the agent's to sweep once the cgroup is
empty.

Signals that the terminal sends reach the program by themselves, as it is in the same process group; only
those sent by a process (`kill`, systemd) are passed on, so that none arrives twice.
"""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Collection, Sequence
from typing import Final, NoReturn

import click

from softunicast.agent import state
from softunicast.cli.arguments import NAME, PLACE, Place, node_option
from softunicast.egress.policy import CgroupPolicies, HeldSlice, SlicePart, resolve
from softunicast.errors import SoftunicastError, UsageError
from softunicast.kernel import abi, netns, nodes
from softunicast.kernel.cgroup import CgroupDir
from softunicast.model.slice import Slice

FORWARDED: Final = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
NOT_FOUND, NOT_EXECUTABLE = 127, 126


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.option("--pool", type=NAME, required=True, metavar="NAME", help="The pool whose slices to use.")
@click.option("--slice", "place", type=PLACE, metavar="A:FIRST-LAST", help="Stay within this part of one slice.")
@node_option
@click.argument("command", metavar="-- PROGRAM [ARGUMENTS]...", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def run(ctx: click.Context, pool: str, place: Place | None, node: str | None, command: tuple[str, ...]) -> None:
    """Run PROGRAM; its sockets, and its children's, leave from slices of a pool.

    Exits as PROGRAM does; 127 when there is no such program, 2 when the arguments are wrong.
    """
    part = SlicePart(place.address, place.first, place.last) if place else None
    ctx.exit(run_program(command, pool, part, node))


def run_program(command: Sequence[str], pool: str, part: SlicePart | None = None, node: str | None = None) -> int:
    """Run a program under a pool's policy and return the status to exit with.

    Everything is checked before anything is changed: UsageError when the pool, the slice or the node is not
    to be had, or the caller is not root.
    """
    if os.geteuid() != 0:
        raise UsageError("run: only root may put a program under a policy; use sudo")
    name = nodes.find_node(node)
    if nodes.node_cookie(name) != netns.cookie():
        raise UsageError(f"run: node {name} lives in another network namespace; enter it first (nsenter --net=...)")
    policy = policy_of(name, pool, part)
    program = shutil.which(command[0])
    if program is None:
        click.echo(f"softunicast: run: {command[0]}: no such program in PATH; check the name", err=True)
        return NOT_FOUND
    policies = CgroupPolicies(name)
    folder = CgroupDir(nodes.cgroup_dir(name).path / f"run-{os.getpid()}")
    try:
        folder.create()
        try:
            number = folder.id
            policies.put(number, policy)
            status = wait(start(program, command, folder))
        finally:
            remove(folder, policies)
    finally:
        policies.close()
    return status


def policy_of(node: str, pool: str, part: SlicePart | None) -> abi.Policy:
    """What the arguments mean on this node, by its node.json. UsageError."""
    known = state.load(nodes.node_file(node))
    if known is None:
        raise UsageError(f"node {node}: not on this machine; start its agent")
    held = [HeldSlice(one.index, Slice.parse(one.slice), one.pool) for one in known.slices]
    return resolve(node, known.pools, held, pool, part)


def start(program: str, command: Sequence[str], folder: CgroupDir) -> int:
    """Fork and exec in that cgroup; the child's process id. Signals stay blocked in this process."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*FORWARDED, signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        become(program, command, folder, before)
    return child


def become(program: str, command: Sequence[str], folder: CgroupDir, mask: Collection[int]) -> NoReturn:
    """In the child: enter the cgroup, then be the program. Never returns: what fails is told in one line."""
    status = NOT_EXECUTABLE
    try:
        folder.add()
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
        os.execv(program, list(command))
    except OSError as error:
        os.write(2, f"softunicast: run: {program}: {error.strerror}; is it an executable?\n".encode())
    except SoftunicastError as error:
        os.write(2, f"softunicast: {error}\n".encode())
        status = error.exit_status
    finally:
        os._exit(status)


def wait(child: int) -> int:
    """Pass signals on until the child ends; its exit status as a shell has it."""
    while True:
        got = signal.sigwaitinfo({*FORWARDED, signal.SIGCHLD})
        if got.si_signo != signal.SIGCHLD:
            if got.si_code <= 0:  # SI_USER, SI_QUEUE, SI_TKILL: a process sent it
                os.kill(child, got.si_signo)
            continue
        done, status = os.waitpid(child, os.WNOHANG)
        if done == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def remove(folder: CgroupDir, policies: CgroupPolicies) -> None:
    """Take the cgroup and its policy away if nobody is left inside; else the agent does it later."""
    number = folder.id
    try:
        folder.path.rmdir()
    except OSError:
        # Somebody the program started still runs in there, and keeps the policy.
        return
    policies.drop(number)
