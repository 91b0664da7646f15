# SPDX-License-Identifier: Apache-2.0
"""An SSH server with keys of its own in one folder, and the command of a client that may log in.

Dropbear (Debian's dropbear-bin starts no daemon) and OpenSSH's client: nothing of the machine's own SSH is read or
written. Dropbear takes `authorized_keys` from the user's home, so in a mount namespace of its own the server
sees an /etc/passwd in which root lives in that folder.
"""

from __future__ import annotations

import subprocess
from pathlib import Path


def make_keys(folder: Path) -> None:
    """A host key, and a client's key that root may log in with."""
    home = folder / "home"
    (home / ".ssh").mkdir(parents=True, mode=0o700)
    for command in (
        ["dropbearkey", "-t", "ed25519", "-f", str(folder / "host_key")],
        ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "id")],
    ):
        subprocess.run(command, check=True, capture_output=True, timeout=30)
    (home / ".ssh/authorized_keys").write_bytes((folder / "id.pub").read_bytes())
    for path in (folder, home, home / ".ssh"):
        path.chmod(0o700)
    (folder / "passwd").write_text(f"root:x:0:0:root:{home}:/bin/sh\n")


def server_command(folder: Path, port: int = 22) -> list[str]:
    """In the foreground, logging to stderr, keys only."""
    keyed = f"exec dropbear -F -E -s -r {folder}/host_key -P {folder}/pid -p {port}"
    return ["unshare", "--mount", "sh", "-ec", f"mount --bind {folder}/passwd /etc/passwd; {keyed}"]


def client_command(folder: Path, address: str, *command: str, port: int = 22) -> list[str]:
    """Runs `command` over there; the environment there has SSH_CLIENT, whom the server saw."""
    options = ("BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR")
    chosen = [part for option in options for part in ("-o", option)]
    return ["ssh", *chosen, "-F", "none", "-i", str(folder / "id"), "-p", str(port), f"root@{address}", *command]
