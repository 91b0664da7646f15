# SPDX-License-Identifier: Apache-2.0
"""The steering lookup in Python."""

from __future__ import annotations

import itertools
from ipaddress import ip_address
from pathlib import Path

from softunicast.model.allocator import allocate
from softunicast.model.binding import Bindings
from softunicast.model.owner import OwnerTable
from softunicast.model.plan import load_plan

FULL = load_plan((Path(__file__).parents[2] / "examples/full.yaml").read_text(), "full.yaml")
BINDINGS = allocate(FULL)
TABLE = OwnerTable.build(FULL, BINDINGS)


def owner(address: str, port: int) -> str | None:
    found = TABLE.owner(ip_address(address), port)
    return found.node if found else None


def test_owners() -> None:
    assert owner("198.51.100.20", 8999) is None
    assert owner("198.51.100.20", 9000) == "lhr1"
    assert owner("198.51.100.20", 9010) == "lhr2"
    assert owner("198.51.100.20", 9020) is None
    assert owner("198.51.100.10", 0) is None
    assert owner("198.51.100.10", 2047) is None
    assert owner("198.51.100.10", 2048) is not None
    assert owner("198.51.100.40", 65535) == "cdg1"
    assert owner("203.0.113.1", 443) is None
    assert owner("198.51.100.10", -1) is None
    assert owner("198.51.100.10", 65536) is None


def test_a_whole_address_is_not_its_system_ports() -> None:
    assert owner("2001:db8:0:100::1", 1023) is None
    assert owner("2001:db8:0:100::1", 1024) is not None


def test_packing() -> None:
    entries = list(TABLE.entries.values())
    assert entries[0].base == 0
    for before, after in itertools.pairwise(entries):
        assert after.base == before.base + before.count
    assert len(TABLE) == entries[-1].base + entries[-1].count
    assert len(list(TABLE.owners())) == len(TABLE)


def test_what_is_not_bound_is_nobodys() -> None:
    empty = OwnerTable.build(FULL, Bindings(0, ()))
    assert all(binding is None for _, binding in empty.owners())
