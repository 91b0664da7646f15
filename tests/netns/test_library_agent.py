# SPDX-License-Identifier: Apache-2.0
"""The library on a node whose real agent runs: found by itself, as root, as a member of its group, as nobody; after it
was killed, and after it was taken away."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.onramp_node import ECHO, SERVER, OnrampNode, onramp_node
from tests.support.wait import wait_until

ROOT = Path(__file__).resolve().parents[2]
NOBODY, NOGROUP, STRANGERS = 65534, 65534, 12345
TEN = "198.51.100.20"

TALK = f"""
import softunicast, sys, socket
by = softunicast.dialer(**{{choice}})
with softunicast.connect(("{SERVER}", {ECHO}), by=by, timeout=10) as made:
    made.sendall(b"hello")
    assert made.recv(10) == b"hello"
    print("tcp", *made.getsockname())
with softunicast.create_datagram(by=by) as made:
    made.settimeout(10)
    made.sendto(b"hello", ("{SERVER}", {ECHO}))
    assert made.recv(10) == b"hello"
    print("udp", by.way_of(by.lanes(4)[0], connected=False).value)
"""


@pytest.fixture
def at(tmp_path: Path) -> Iterator[OnrampNode]:
    with onramp_node(tmp_path) as made:
        yield made


def library(
    at: OnrampNode, choice: dict[str, object], user: int = 0, group: int = 0, script: str = TALK
) -> tuple[str, str]:
    """A program of that user in the node's namespace: what it said, and what went wrong."""
    change = ["setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups"] if user else []
    command = ["nsenter", f"--net=/run/netns/{at.node.netns}", *change, sys.executable, "-c"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [*command, script.replace("{choice}", repr(choice))],
        capture_output=True,
        text=True,
        timeout=60,
        env=environment,
        check=False,
    )
    return done.stdout, done.stderr


@pytest.mark.parametrize(
    ("user", "group", "unconnected"),
    [(0, 0, "tag"), (NOBODY, NOGROUP, "agent"), (NOBODY, STRANGERS, "agent")],
    ids=["root", "the agent's group", "nobody"],
)
def test_whoever_asks(at: OnrampNode, user: int, group: int, unconnected: str) -> None:
    with at.node.daemon("--interval", "1", "--group", "nogroup"):
        said, wrong = library(at, {"pool": "ten"}, user, group)
        assert said.split()[:2] == ["tcp", TEN], wrong
        assert said.split()[-1] == unconnected
        assert ("a port of its own instead" in wrong) == (group == STRANGERS), "who may not ask is told so, and served"
    assert {address for _, address, _ in at.echo.seen} == {TEN}
    assert {proto for proto, _, _ in at.echo.seen} == {"tcp", "udp"}


def test_the_agent_tags_for_its_group_only(at: OnrampNode) -> None:
    choice: dict[str, object] = {"pool": "ten", "way": "agent"}
    with at.node.daemon("--interval", "1", "--group", "nogroup"):
        said, wrong = library(at, choice, NOBODY, NOGROUP)
        assert said.split()[:2] == ["tcp", TEN], wrong
        said, wrong = library(at, choice, NOBODY, STRANGERS)
        assert "not allowed; ask as root" in wrong and not said
        for pool, part, told in (
            ("ten", f"{TEN}:9000-9010", "does not hold it"),
            ("tem", None, "pool tem: not in the plan"),
        ):
            script = (
                "import softunicast.client.making as m, socket\n"
                f"m.ask_agent({at.node.name!r}, socket.socket(), {{'pool': {pool!r}, 'slice': {part!r}, 'client': 1}})"
            )
            assert told in library(at, {}, NOBODY, NOGROUP, script)[1]
        script = (
            "import softunicast.client.making as m, socket\n"
            f"m.ask_agent({at.node.name!r}, socket.socketpair()[0], {{'pool': 'ten', 'client': 1}})"
        )
        assert "a policy is for sockets of TCP" in library(at, {}, NOBODY, NOGROUP, script)[1]
    assert [address for _, address, _ in at.echo.seen] == [TEN, TEN]


FORKED = """
import os, socket, softunicast
by = softunicast.dialer(pool="ten", way="agent")
def whole():
    for _ in range(5):
        softunicast.connect(("SERVER", ECHO), by=by, timeout=10).close()
softunicast.connect(("SERVER", ECHO), by=by, timeout=10).close()
children = []
for _ in range(4):
    child = os.fork()
    if child == 0:
        whole()
        os._exit(0)
    children.append(child)
whole()
print([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children])
"""


def test_children_do_not_share_their_parents_connection(at: OnrampNode) -> None:
    script = FORKED.replace("SERVER", SERVER).replace("ECHO", str(ECHO)).replace('pool="ten"', 'pool="gb"')
    with at.node.daemon("--interval", "1"):
        said, wrong = library(at, {}, script=script)
    assert said == "[0, 0, 0, 0]\n", wrong
    wait_until(lambda: len(at.echo.seen) >= 26, 20, "all are accepted")
    assert len(at.echo.seen) == 26 and {address for _, address, _ in at.echo.seen} == {"198.51.100.10"}


def test_the_agent_may_die_and_be_taken_away(at: OnrampNode) -> None:
    with at.node.daemon("--interval", "1"):
        pass
    for user in (0, NOBODY):
        said, wrong = library(at, {"pool": "gb"}, user, user)
        assert said.startswith("tcp 198.51.100.10 "), wrong
    at.node.uninstall()
    said, wrong = library(at, {"pool": "gb"}, NOBODY, NOGROUP)
    assert not said
    assert "pool gb: no node in this network namespace" in wrong.splitlines()[-1]
