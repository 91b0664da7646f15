# SPDX-License-Identifier: Apache-2.0
"""Real clients of the proxy on the host's loopback and out of a slice: curl over TLS, wget, Chromium, ssh and git."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.proxy_node import BIG, curl, free_port, origin
from tests.support.proxy_place import PLACES, Place
from tests.support.proxy_users import chromium, seen_in, ssh_and_git, ssh_origin, wget
from tests.support.quic_end import certificate


@pytest.fixture(params=PLACES, scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with PLACES[request.param](tmp_path_factory.mktemp("proxy")) as made:
        yield made


@pytest.fixture(autouse=True)
def afresh(place: Place) -> None:
    """Origins' ports are random and come back: lines of an earlier test would be taken for this one's."""
    os.truncate(place.proxy.access, 0)


def test_curl_over_tls(place: Place, tmp_path: Path) -> None:
    """An https:// URL: CONNECT or SOCKS, and TLS with the origin itself, whose certificate curl verifies."""
    files = certificate(tmp_path, place.origin)
    with origin(place.origin, 0, place.origin_ns, files) as port:
        for scheme in ("http", "socks5", "socks5h"):
            by = ("-x", place.url(scheme), "--cacert", str(files[0]))
            done = curl(*by, f"https://{place.origin}:{port}/who", ns=place.ns)
            assert done.returncode == 0, done.stderr
            place.ours(done.stdout)
            done = curl(*by, f"https://{place.origin}:{port}/big", "-o", str(tmp_path / "big"), ns=place.ns)
            assert done.returncode == 0, done.stderr
            assert (tmp_path / "big").read_bytes() == BIG
    assert [one["protocol"] for one in place.passed(port, 6)] == ["connect"] * 2 + ["socks5"] * 4


@pytest.mark.parametrize(
    ("by", "scheme", "protocols"),
    [("http", "http", {"http"}), ("http", "https", {"connect"}), ("socks5", "http", {"socks5"})],
)
def test_chromium(place: Place, tmp_path: Path, by: str, scheme: str, protocols: set[str]) -> None:
    """A page with a script and a style sheet, all of them through the proxy."""
    files = certificate(tmp_path, place.origin) if scheme == "https" else None
    with origin(place.origin, 0, place.origin_ns, files) as port:
        page = f"{scheme}://{place.origin}:{port}/page"
        seen = seen_in(chromium(place, place.url(by), page, tmp_path / "profile"))
        for what in ("page", "script", "style"):
            assert what in seen, f"no {what}"
            place.ours(seen[what])
    assert {entry["protocol"] for entry in place.passed(port, 1)} == protocols


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_wget(place: Place, tmp_path: Path, scheme: str) -> None:
    files = certificate(tmp_path, place.origin) if scheme == "https" else None
    with origin(place.origin, 0, place.origin_ns, files) as port:
        url = f"{scheme}://{place.origin}:{port}/big"
        assert wget(place, url, files and files[0], tmp_path / "big") == BIG
    assert place.passed(port, 1)[0]["protocol"] == {"http": "http", "https": "connect"}[scheme]


def test_ssh_and_git_through_a_proxy_command(place: Place, tmp_path: Path) -> None:
    port = free_port()
    with ssh_origin(place, tmp_path / "keys", port):
        ssh_and_git(place, tmp_path / "keys", port, tmp_path)
    assert {entry["protocol"] for entry in place.passed(port, 4)} == {"connect"}
