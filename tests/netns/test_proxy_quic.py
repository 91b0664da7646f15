# SPDX-License-Identifier: Apache-2.0
"""HTTP/3 through UDP ASSOCIATE: aioquic on the host's loopback and out of a slice."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.proxy_node import free_port
from tests.support.proxy_place import PLACES
from tests.support.proxy_users import http3


@pytest.mark.parametrize("kind", PLACES)
def test_http3(tmp_path: Path, kind: str) -> None:
    with PLACES[kind](tmp_path) as place:
        http3(place, tmp_path, free_port())
        entry = place.proxy.entries(1)[0]
        assert entry["protocol"] == "udp"
        assert entry["bytes_down"] > 300_000
        assert entry["bytes_up"] > 100_000
        assert place.proxy.status()["associations"] == 0
