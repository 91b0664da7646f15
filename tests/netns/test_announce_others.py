# SPDX-License-Identifier: Apache-2.0
"""The snippets of docs/bgp.md for FRR and ExaBGP, as they stand there, with the real daemons and a real neighbour."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.dump import RUN
from tests.support.speakers import V4, V6, Speakers, both, none, speakers
from tests.support.wait import wait_until

DOCS = Path(__file__).parents[2] / "docs" / "bgp.md"
FRR = """\
hostname node
router bgp 65101
 bgp router-id 10.0.1.11
 no bgp ebgp-requires-policy
 no bgp network import-check
 neighbor 10.0.9.1 remote-as 65001
 neighbor 10.0.9.1 timers connect 1
 neighbor fd00:1::1 remote-as 65001
 neighbor fd00:1::1 timers connect 1
 address-family ipv6 unicast
  neighbor fd00:1::1 activate
 exit-address-family
"""


def snippet(language: str) -> str:
    """The code block of docs/bgp.md in that language."""
    found = re.search(rf"```{language}\n(.*?)```", DOCS.read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None, f"no {language} in {DOCS}"
    return found[1]


def tools(there: Speakers, **scripts: str) -> dict[str, str]:
    """An environment in whose PATH `softunicast` is this package, and each of `scripts` a shell script."""
    folder = there.folder / "bin"
    folder.mkdir()
    scripts["softunicast"] = f'exec {sys.executable} -m softunicast.cli "$@"'
    for name, text in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{text}\n")
        (folder / name).chmod(0o755)
    return {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}


@contextmanager
def running(there: Speakers, name: str, command: list[str], environment: dict[str, str]) -> Iterator[None]:
    """A program in the node's namespace, in a group of its own, killed whole at the end."""
    inside = ["nsenter", f"--net=/run/netns/{there.node.netns}", *command]
    with (there.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(inside, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        process.wait()


def announced_and_withdrawn(there: Speakers) -> None:
    """Fit, unfit, fit again: the neighbour follows."""
    there.wait(both, "announced")
    there.node.ip("address", "delete", "10.0.1.11/24", "dev", "up0")
    took_s = there.wait(none, "withdrawn")
    print(f"withdrawn at the neighbour after {took_s:.2f} s")
    there.node.ip("address", "add", "10.0.1.11/24", "dev", "up0")
    there.wait(both, "announced again")


def test_frr(tmp_path: Path) -> None:
    with speakers(tmp_path, bird=False) as there, there.node.daemon():
        (tmp_path / "bgpd.conf").write_text(FRR)
        environment = tools(there, vtysh=f'exec /usr/bin/vtysh --vty_socket {tmp_path} -d bgpd "$@"')
        bgpd = ["/usr/lib/frr/bgpd", "-f", str(tmp_path / "bgpd.conf"), "-i", str(tmp_path / "bgpd.pid")]
        bgpd += ["--vty_socket", str(tmp_path), "-n", "-Z", "-S", "-P", "0", "--log", "stdout"]
        script = snippet("sh frr").replace("lhr1", there.node.name)
        with running(there, "bgpd", bgpd, environment):
            wait_until(lambda: (tmp_path / "bgpd.vty").exists(), 10, "bgpd listens")
            with running(there, "follow", ["sh", "-c", script], environment):
                announced_and_withdrawn(there)


def test_exabgp(tmp_path: Path) -> None:
    with speakers(tmp_path, bird=False) as there, there.node.daemon():
        environment = tools(there)
        text = snippet("exabgp").replace("lhr1", there.node.name)
        text = text.replace("run softunicast", f"run {tmp_path}/bin/softunicast")
        (tmp_path / "exabgp.conf").write_text(text)
        environment |= {"exabgp.daemon.user": "root", "exabgp.daemon.drop": "false", "exabgp.api.cli": "false"}
        with running(there, "exabgp", ["exabgp", str(tmp_path / "exabgp.conf")], environment):
            announced_and_withdrawn(there)
            there.node.softunicast("announce", "drain", "--node", there.node.name)
            drained = "BGP.med: 1000;BGP.community: (65535,0);"
            there.wait(lambda routes: routes == {V4: drained, V6: drained}, "drains with MED and community")


def test_watch_prints_changes_only(tmp_path: Path) -> None:
    with speakers(tmp_path, bird=False) as there, there.node.daemon():
        wait_until(lambda: (RUN / there.node.name / "announce.json").exists(), 10, "the agent has judged")
        watch = there.node.command("announce", "watch", "--node", there.node.name)
        process = subprocess.Popen(watch, stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "announced\n"
            there.node.softunicast("announce", "drain", "--node", there.node.name)
            assert process.stdout.readline() == "draining\n"
        finally:
            process.kill()
            process.wait()
