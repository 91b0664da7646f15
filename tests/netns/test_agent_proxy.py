# SPDX-License-Identifier: Apache-2.0
"""A proxy beside the agent (`softunicast agent --proxy`). Needs root."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.agent import children
from softunicast.kernel import netns
from tests.support.dump import RUN
from tests.support.onramp_node import ECHO, SERVER, OnrampNode, onramp_node, run
from tests.support.wait import wait_until

POLICY = 'listeners: {{main: {{listen: "127.0.0.1:{port}", anonymous: me}}}}\nusers: {{me: {{pool: ten}}}}\n'


@pytest.fixture
def at(tmp_path: Path) -> Iterator[OnrampNode]:
    with onramp_node(tmp_path) as made:
        yield made


def asks(at: OnrampNode, port: int) -> bool:
    """Whether the echo is reached by that port of the proxy, from the slice."""
    with netns.enter(at.node.netns):
        done = run("sh", "-c", f"echo hello | socat -t 5 - PROXY:127.0.0.1:{SERVER}:{ECHO},proxyport={port} || true")
    return done == "hello\n" and at.echo.seen[-1][1] == "198.51.100.20"


def test_it_comes_and_goes_with_the_agents_word_and_outlives_it(at: OnrampNode, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.format(port=1080))
    folder = RUN / at.node.name
    with at.node.daemon("--interval", "1", "--proxy", str(policy)) as first:
        with netns.enter(at.node.netns):
            run("ip", "link", "set", "lo", "up")
        wait_until(lambda: asks(at, 1080), 30, "the proxy serves")
        pid = children.running(folder, "proxy")
        policy.write_text(POLICY.format(port=1081))
        wait_until(lambda: asks(at, 1081), 30, "it has read the changed policy")
        wait_until(lambda: not asks(at, 1080), 30, "the old place is closed")
        assert children.running(folder, "proxy") == pid
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    assert asks(at, 1081)
    with at.node.daemon("--interval", "1", "--proxy", str(policy)):
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: children.running(folder, "proxy") not in (None, pid), 30, "it is started again")
        wait_until(lambda: asks(at, 1081), 30, "and serves")
    with at.node.daemon("--interval", "1"):
        wait_until(lambda: children.running(folder, "proxy") is None, 30, "nobody wants it any more")
    with at.node.daemon("--interval", "1", "--proxy", str(tmp_path / "none.yaml")) as last:
        wait_until(lambda: last.events("failed"), 30, "a policy that is not there is told, and the node goes on")
        assert last.process.poll() is None
