# SPDX-License-Identifier: Apache-2.0
"""`softunicast policy`: services of a real systemd, containers of podman and nspawn, cgroups by hand."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from softunicast.kernel import cgroup
from softunicast.kernel.cgroup import CgroupDir
from tests.support.onramp_node import ECHO, SERVER, OnrampNode, onramp_node
from tests.support.sock_node import ADDRESS, WORLD, SockNode
from tests.support.user_systemd import UserSystemd, user_systemd
from tests.support.wait import wait_until
from tests.support.whoami import serving

SLICES = ((ADDRESS, 9000, 9099),)
CURL = f"/usr/bin/curl -s -m 10 http://{WORLD}/"


@dataclass
class Place:
    node: SockNode
    systemd: UserSystemd
    folder: Path

    def softunicast(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = ["nsenter", f"--net=/run/netns/{self.node.name}", sys.executable, "-m", "softunicast.cli", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def policy(self, *arguments: str) -> str:
        done = self.softunicast("policy", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def unit(self, *arguments: str) -> str:
        return self.policy("--directory", str(self.systemd.units), *arguments)

    def policies(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.policy("--json"))["policies"]
        return found

    def ask(self, url: str) -> str:
        """Somebody at the node who is in no pool; empty: nobody answers yet."""
        whole = ["nsenter", f"--net=/run/netns/{self.node.name}", "curl", "-s", "-m", "10", url]
        return subprocess.run(whole, capture_output=True, text=True, timeout=60, check=False).stdout


@pytest.fixture
def at(tmp_path: Path) -> Iterator[Place]:
    with SockNode(pinned=True, slices=SLICES) as node, serving([node.server(80)]):
        node.object.maps["cgroups"].delete(node.cgroup.id.to_bytes(8, sys.byteorder))
        with user_systemd(tmp_path, node.name) as systemd:
            yield Place(node, systemd, tmp_path)


def in_slice(said: str) -> bool:
    host, _, port = said.strip().rpartition(":")
    return host == ADDRESS and int(port) in range(9000, 9100)


NGINX = """
daemon off; user root; pid {folder}/pid; error_log stderr;
events {{}}
http {{ access_log off; server {{ listen 127.0.0.1:8080; location / {{ proxy_pass http://{world}:80; }} }} }}
"""


def test_a_service_is_in_the_pool_from_its_first_command(at: Place) -> None:
    """Real nginx as a proxy, with a command of its own before it."""
    config, before = at.folder / "nginx.conf", at.folder / "before"
    config.write_text(NGINX.format(folder=at.folder, world=WORLD))
    at.systemd.write(
        "nginx.service",
        f"[Service]\nType=exec\nExecStartPre={CURL} -o {before}\n"
        f"ExecStart=/usr/sbin/nginx -p {at.folder} -c {config}\n",
    )
    at.systemd.systemctl("start", "nginx")
    wait_until(lambda: at.systemd.state("nginx") == "active", 20, "nginx runs")
    wait_until(lambda: (before.read_text() or "").startswith("10.9.0.2:"), 20, "no policy yet")
    said = at.unit("--unit", "nginx", "--pool", "ten")
    assert said == (
        f"{at.systemd.units}/nginx.service.d/50-softunicast.conf: written; "
        "then systemctl daemon-reload && systemctl restart nginx.service\n"
    )
    at.systemd.systemctl("daemon-reload")
    done = at.systemd.systemctl("restart", "nginx")
    assert done.returncode == 0, done.stderr + at.systemd.systemctl("status", "nginx").stdout
    assert in_slice(before.read_text()), "what comes before it, too"
    wait_until(lambda: in_slice(at.ask("http://127.0.0.1:8080/")), 20, "nginx answers")
    (held,) = at.policies()
    assert held["path"].endswith("/nginx.service") and (held["pool"], held["slice"]) == ("ten", None)
    assert "/nginx.service" in at.policy()
    at.unit("--unit", "nginx.service", "--remove")
    assert not (at.systemd.units / "nginx.service.d").exists()
    at.systemd.systemctl("daemon-reload")
    at.systemd.systemctl("restart", "nginx")
    wait_until(lambda: at.ask("http://127.0.0.1:8080/").startswith("10.9.0.2:"), 20, "as before")
    assert at.softunicast(
        "policy", "--directory", str(at.systemd.units), "--unit", "nginx", "--remove"
    ).stderr.endswith("50-softunicast.conf is not there; nothing to remove\n")


def test_a_service_without_its_policy_does_not_start(at: Place) -> None:
    out = at.folder / "out"
    at.systemd.write("fetch.service", f"[Service]\nType=oneshot\nExecStart={CURL} -o {out}\n")
    at.unit("--unit", "fetch", "--pool", "ten", "--slice", f"{ADDRESS}:9007-9007")
    at.systemd.systemctl("daemon-reload")
    assert at.systemd.systemctl("start", "fetch").returncode == 0
    assert out.read_text() == f"{ADDRESS}:9007"
    out.unlink()
    text = (at.systemd.units / "fetch.service.d" / "50-softunicast.conf").read_text()
    (at.systemd.units / "fetch.service.d" / "50-softunicast.conf").write_text(
        text.replace("--pool ten", "--pool empty")
    )
    at.systemd.systemctl("daemon-reload")
    assert at.systemd.systemctl("start", "fetch").returncode != 0
    assert at.systemd.state("fetch") == "failed" and not out.exists()


def test_a_slice_of_services(at: Place) -> None:
    """What is started in the slice, after its helper, is in the pool: services, and containers by --cgroup-parent."""
    out = at.folder / "out"
    at.unit("--unit", "egress-ten.slice", "--pool", "ten")
    helper = "softunicast-policy-egress-ten.service"
    at.systemd.write(
        "fetch.service",
        f"[Unit]\nRequires={helper}\nAfter={helper}\n"
        f"[Service]\nType=oneshot\nSlice=egress-ten.slice\nExecStart={CURL} -o {out}\n",
    )
    at.systemd.systemctl("daemon-reload")
    for _ in range(2):
        done = at.systemd.systemctl("start", "fetch")
        assert done.returncode == 0, at.systemd.systemctl("status", "fetch", helper).stdout
        assert in_slice(out.read_text())
    (held,) = at.policies()
    assert held["path"].endswith("/egress.slice/egress-ten.slice")


def tree(folder: Path) -> Path:
    """The least that is an operating system: busybox."""
    for name in ("bin", "usr/bin", "etc", "proc", "sys", "dev", "tmp", "run", "var"):
        (folder / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "bin" / "busybox")
    (folder / "bin" / "sh").symlink_to("busybox")
    (folder / "etc" / "os-release").write_text("ID=test\n")
    return folder


FETCH = f"/bin/busybox wget -q -O - http://{WORLD}/"


@contextlib.contextmanager
def cgroup_of_ours() -> Iterator[CgroupDir]:
    folder = CgroupDir.below_root(f"t-policy-{os.getpid()}")
    folder.create()
    try:
        yield folder
    finally:
        wait_until(lambda: "populated 0" in (folder.path / "cgroup.events").read_text(), 20, "nobody is left")
        folder.remove()


def test_a_container_of_nspawn(at: Place) -> None:
    """--keep-unit: the container is below the cgroup that nspawn was started in, a service's or another."""
    root = tree(at.folder / "root")
    nspawn = ("systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "-D", str(root))
    with cgroup_of_ours() as folder:
        at.policy("--cgroup", str(folder.path), "--pool", "ten")
        with at.node.run(
            *nspawn, *FETCH.split(), folder=folder, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
        ) as one:
            said = one.communicate(timeout=30)[0].decode()
    assert in_slice(said), said


# Runtimes set limits and device filters, which a machine for tests may forbid; here neither is the matter.
PODMAN = ("--cgroup-manager", "cgroupfs", "--storage-driver", "vfs")
LENIENT = ("--privileged", "--pids-limit=0", "--ulimit", "nofile=1024:1024", "--ulimit", "nproc=1000:1000")


def podman(at: Place, *options: str) -> str:
    folders = ("--root", str(at.folder / "podman"), "--runroot", str(at.systemd.runtime / "podman"))
    words = ["/usr/bin/podman", *PODMAN, *folders, "run", "--rm", "--network=host", *LENIENT, *options]
    return " ".join([*words, "--rootfs", str(tree(at.folder / "root")), FETCH])


def test_a_container_of_podman(at: Place) -> None:
    """--cgroups=split: the container is in the service's own cgroup, as Quadlet has it."""
    out = at.folder / "out"
    at.systemd.write(
        "pod.service",
        f"[Service]\nType=oneshot\nDelegate=yes\nExecStart=/bin/sh -c '{podman(at, '--cgroups=split')} > {out} 2>&1'\n",
    )
    at.unit("--unit", "pod", "--pool", "ten")
    at.systemd.systemctl("daemon-reload")
    done = at.systemd.systemctl("start", "pod")
    assert done.returncode == 0, out.read_text() if out.exists() else at.systemd.systemctl("status", "pod").stdout
    assert in_slice(out.read_text().splitlines()[-1])


def test_a_cgroup_by_hand(at: Place) -> None:
    """Whoever makes cgroups without systemd; a container runtime's --cgroup-parent, for example."""
    with cgroup_of_ours() as folder:
        below = CgroupDir(folder.path / "deeper" / "container")
        below.create()
        at.policy("--cgroup", str(folder.path), "--pool", "ten")
        with at.node.run(*CURL.split(), folder=below, stdout=subprocess.PIPE) as process:
            assert in_slice(process.communicate(timeout=20)[0].decode())
        assert [one["path"] for one in at.policies()] == [str(folder.path)]
        at.policy("--cgroup", f"/{folder.path.name}", "--remove")
        with at.node.run(*CURL.split(), folder=below, stdout=subprocess.PIPE) as process:
            assert process.communicate(timeout=20)[0].startswith(b"10.9.0.2:")
        done = at.softunicast("policy", "--cgroup", str(folder.path), "--remove")
        assert (done.returncode, "has no policy" in done.stderr) == (2, True)
        at.policy("--cgroup", str(folder.path), "--pool", "ten")
        number = folder.id
        assert cgroup.by_id(number) == folder.path
    assert cgroup.by_id(number) is None
    assert [one["path"] for one in at.policies()] == [None], "the agent's to forget"


@pytest.fixture
def ramp(tmp_path: Path) -> Iterator[OnrampNode]:
    with onramp_node(tmp_path) as made:
        yield made


def test_the_agent_forgets_cgroups_that_are_gone(ramp: OnrampNode) -> None:
    with ramp.node.daemon("--interval", "1"):
        with cgroup_of_ours() as folder:
            script = f"echo $$ > {folder.path}/cgroup.procs && exec socat - TCP:{SERVER}:{ECHO} < /dev/null"
            done = ramp.node.softunicast("policy", "--cgroup", str(folder.path), "--pool", "gb")
            assert done.returncode == 0, done.stderr
            ramp.node.inside("sh", "-c", script)
            assert [address for _, address, _ in ramp.echo.seen] == ["198.51.100.10"]
        wait_until(lambda: not ramp.json("policy")["policies"], 20, "its policy is forgotten")


@pytest.fixture(scope="module")
def idle() -> Iterator[SockNode]:
    """A node where no cgroup has a policy, and none gets one.

    Last in this file: `ip netns` binds its folder over itself when it is first used, and a namespace that was there
    before is then mounted twice.
    """
    with SockNode(pinned=True, slices=SLICES, hooks=False) as node:
        node.object.maps["cgroups"].delete(node.cgroup.id.to_bytes(8, sys.byteorder))
        yield node


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "no cgroup is in a pool"),
        (("--pool", "ten"), "of what? name it, --unit or --cgroup"),
        (("--unit", "x", "--cgroup", "y", "--pool", "ten"), "one of them"),
        (("--unit", "x"), "say --pool NAME, or --remove"),
        (("--cgroup", "self", "--pool", "ten", "--remove"), "say --pool NAME, or --remove"),
        (("--unit", "x.socket", "--pool", "ten"), "only a service or a slice"),
        (("--unit", "a/b", "--pool", "ten"), "no name of a unit"),
        (("--unit", "x", "--pool", "tem"), "did you mean ten?"),
        (("--cgroup", "/", "--pool", "ten"), "all of the machine would be in the pool"),
        (("--cgroup", "/../x", "--pool", "ten"), "all of the machine would be in the pool"),
        (("--cgroup", "/nowhere", "--pool", "ten"), "cgroup /nowhere: there is no "),
    ],
)
def test_what_is_refused(idle: SockNode, arguments: tuple[str, ...], said: str) -> None:
    command = ["nsenter", f"--net=/run/netns/{idle.name}", sys.executable, "-m", "softunicast.cli", "policy"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=60, check=False)
    assert said in done.stdout + done.stderr
    assert done.returncode == (2 if arguments else 0)
    assert not list(idle.object.maps["cgroups"].keys())
