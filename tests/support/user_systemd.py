# SPDX-License-Identifier: Apache-2.0
"""A real systemd of one's own, as root's user manager, in a network namespace, whatever the machine was booted by.

It wants cgroup2, and nothing else, at /sys/fs/cgroup, and /run/systemd/system: both are made in a mount namespace of
its own. Its units are in `folder`/units; their cgroups are below one that is gone at the end.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from softunicast.kernel.cgroup import CgroupDir
from tests.support.wait import wait_until

START = """
set -e
echo $$ > "$1/cgroup.procs"
umount -l /sys/fs/cgroup/unified 2>/dev/null || true
while umount -l /sys/fs/cgroup 2>/dev/null; do :; done
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/systemd
mount -t tmpfs tmpfs /run/systemd
mkdir -p /run/systemd/system
exec /lib/systemd/systemd --user --unit=basic.target
"""


@dataclass
class UserSystemd:
    """`units`: where units are read from; `inside`: the cgroup that all are below."""

    units: Path
    runtime: Path
    inside: CgroupDir
    pid: int

    def systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "XDG_RUNTIME_DIR": str(self.runtime)}
        command = ["nsenter", "-t", str(self.pid), "-m", "systemctl", "--user", *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=environment)

    def write(self, name: str, text: str) -> None:
        (self.units / name).write_text(text)

    def state(self, unit: str) -> str:
        return self.systemctl("show", "--value", "-p", "ActiveState", unit).stdout.strip()


@contextlib.contextmanager
def user_systemd(folder: Path, namespace: str) -> Iterator[UserSystemd]:
    """It runs, and `systemctl` may be asked."""
    # Not in `folder`: paths of unix sockets are short.
    runtime = Path(f"/run/t-systemd-{os.getpid()}")
    inside = CgroupDir.below_root(f"t-systemd-{os.getpid()}")
    units = folder / "config" / "systemd" / "user"
    units.mkdir(parents=True)
    runtime.mkdir(mode=0o700)
    inside.create()
    environment = {
        **os.environ,
        "XDG_RUNTIME_DIR": str(runtime),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "SYSTEMD_LOG_TARGET": "console",
    }
    command = ["nsenter", f"--net=/run/netns/{namespace}", "unshare", "-m", "--propagation", "private"]
    log = folder / "systemd.log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            [*command, "sh", "-c", START, "sh", str(inside.path)], env=environment, stdout=stream, stderr=stream
        )
    at = UserSystemd(units, runtime, inside, process.pid)
    try:
        wait_until(
            lambda: (
                at.systemctl("is-system-running").stdout.strip() in ("running", "degraded")
                or process.poll() is not None
            ),
            20,
            "systemd runs",
        )
        assert process.poll() is None, log.read_text()
        yield at
    finally:
        (inside.path / "cgroup.kill").write_text("1")
        process.wait(20)
        wait_until(lambda: "populated 0" in (inside.path / "cgroup.events").read_text(), 20, "nobody is left")
        inside.remove()
        shutil.rmtree(runtime, ignore_errors=True)
