# SPDX-License-Identifier: Apache-2.0
"""Real programs that use a proxy, at any Place: a browser, wget, ssh and git, HTTP/3, and iperf3 that knows of none."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.support import ssh_server
from tests.support.proxy_place import Place, within
from tests.support.wait import wait_until

H3 = str(Path(__file__).with_name("h3_end.py"))
CHROMIUM = (
    "chromium-headless-shell",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
)


def chromium(place: Place, by: str, url: str, profile: Path) -> str:
    """What Chromium makes of a page, as HTML, by a proxy: even of the loopback's. Certificates are a test's."""
    options = [f"--user-data-dir={profile}", f"--proxy-server={by}", "--proxy-bypass-list=<-loopback>"]
    options += ["--disable-background-networking", "--ignore-certificate-errors"]
    done = place.run(*CHROMIUM, *options, "--dump-dom", url)
    return done.stdout


def seen_in(page: str) -> dict[str, str]:
    """Who asked for Origin's page, its script and its style, by what a browser shows."""
    return dict(re.findall(r"(page|script|style) for ([0-9.]+ \d+);", page))


def http3(place: Place, folder: Path, port: int) -> None:
    """aioquic through UDP ASSOCIATE: two downloads and an upload at once, over one QUIC connection."""
    with place.server(sys.executable, H3, "serve", place.origin, str(port), str(folder), ready=b"ready"):
        proxy = ("127.0.0.1", str(place.proxy.port))
        done = place.run(sys.executable, H3, "get", *proxy, place.origin, str(port), "300000")
        answer = json.loads(done.stdout)
    assert (answer["status"], answer["right"]) == ("200", True), answer
    place.ours(answer["seen"])


def iperf3(place: Place, lan: str, *options: str, port: int = 5201) -> dict[str, Any]:
    """iperf3 from a client that knows of no proxy; its report."""
    server = ("iperf3", "--server", "--one-off", "--forceflush", "--bind", place.origin, "--port", str(port))
    with place.server(*server, ready=b"Server listening"):
        done = place.run("iperf3", "--json", "-c", place.origin, "-p", str(port), *options, ns=lan)
    return dict(json.loads(done.stdout)["end"])


def wget(place: Place, url: str, certificate: Path | None, file: Path) -> bytes:
    """A download by HTTP, or by CONNECT when the URL is https:// (then `certificate` is trusted)."""
    environment = {f"{scheme}_proxy": place.url("http") for scheme in ("http", "https")} | {"no_proxy": ""}
    trusted = [f"--ca-certificate={certificate}"] if certificate else []
    place.run("wget", "-q", *trusted, "-O", str(file), url, environment=environment)
    return file.read_bytes()


@contextmanager
def ssh_origin(place: Place, keys: Path, port: int) -> Iterator[None]:
    """An SSH server at the origin; `keys` is a new folder."""
    keys.mkdir(mode=0o700)
    ssh_server.make_keys(keys)
    command = within(place.origin_ns, ssh_server.server_command(keys, port))
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as server:
        try:
            asked = within(place.origin_ns, ["ss", "-Hltn", f"sport = :{port}"])
            wait_until(lambda: subprocess.run(asked, capture_output=True, check=True).stdout, 60, "dropbear")
            yield
        finally:
            server.terminate()


def ssh_and_git(place: Place, keys: Path, port: int, folder: Path) -> None:
    """ssh through a ProxyCommand, whom its server saw; and git, a clone and a push by that ssh."""
    through = f"ProxyCommand=socat - PROXY:127.0.0.1:%h:%p,proxyport={place.proxy.port}"
    *login, where = ssh_server.client_command(keys, place.origin, port=port)
    seen = place.run(*login, "-o", through, where, "echo $SSH_CLIENT").stdout.split()
    place.ours(f"{seen[0]} {seen[1]}")
    there, here = folder / "there", folder / "here"
    git = ("git", "-c", "user.name=x", "-c", "user.email=x@example.org", "-c", "init.defaultBranch=main")
    environment = {"GIT_SSH_COMMAND": " ".join([*login, "-o", f"'{through}'"])}
    place.run(*git, "init", "-q", "--bare", str(there))
    place.run(*git, "clone", "-q", f"{where}:{there}", str(here), environment=environment)
    (here / "file").write_bytes(bytes(range(256)) * 1000)
    place.run(*git, "-C", str(here), "add", "file")
    place.run(*git, "-C", str(here), "commit", "-q", "-m", "one")
    place.run(*git, "-C", str(here), "push", "-q", "origin", "HEAD", environment=environment)
    place.run(*git, "clone", "-q", f"{where}:{there}", str(folder / "again"), environment=environment)
    assert (folder / "again/file").read_bytes() == bytes(range(256)) * 1000
