# SPDX-License-Identifier: Apache-2.0
"""When the maps are read, and when what is known of them will do."""

from __future__ import annotations

from softunicast.agent.reconcile import MAPS_EVERY_S, Memory

OLD, NEW, NEWER = {"owners": {b"a": b"1"}}, {"owners": {b"a": b"2"}}, {"owners": {b"a": b"3"}}


def test_nobody_knows_at_first() -> None:
    assert Memory().trusted(OLD, 1000.0) is None


def test_what_was_read_or_written_is_known() -> None:
    memory = Memory()
    memory.looked(OLD, 1000.0)
    assert memory.trusted(OLD, 1001.0) is OLD
    assert memory.trusted(NEW, 1001.0) is OLD, "a change is written without a look before it"
    memory.reached(NEW)
    assert memory.trusted(NEWER, 1002.0) is NEW, "nor is the next one's in its way"


def test_what_was_written_is_read_when_nothing_else_is_to_do() -> None:
    memory = Memory()
    memory.looked(OLD, 1000.0)
    memory.reached(NEW)
    assert memory.trusted(NEW, 1001.0) is None
    memory.looked(NEW, 1001.0)
    assert memory.trusted(NEW, 1002.0) is NEW


def test_all_is_read_once_a_minute_however_much_is_written() -> None:
    memory = Memory()
    memory.looked(OLD, 1000.0)
    memory.reached(NEW)
    assert memory.trusted(NEWER, 1000.0 + MAPS_EVERY_S) is None
