# SPDX-License-Identifier: Apache-2.0
"""The web through the proxy: curl over TLS and Chromium, on the host's loopback and out of a slice."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.proxy_node import BIG, curl, origin
from tests.support.proxy_place import PLACES, Place, chromium, seen_in
from tests.support.quic_end import certificate


@pytest.fixture(params=PLACES, scope="module")
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with PLACES[request.param](tmp_path_factory.mktemp("proxy")) as made:
        yield made


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
