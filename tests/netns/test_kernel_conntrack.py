# SPDX-License-Identifier: Apache-2.0
"""Conntrack entries over ctnetlink, whole messages and prepared ones, in a namespace of their own."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator

import pytest

from softunicast.errors import KernelError
from softunicast.kernel import netns
from softunicast.kernel.conntrack import Conntrack, Prepared, Tuple

FLOW = Tuple(socket.IPPROTO_TCP, "198.51.100.10", 9000, "203.0.113.1", 443)
UDP = Tuple(socket.IPPROTO_UDP, "198.51.100.10", 9000, "203.0.113.1", 53)


@pytest.fixture
def table() -> Iterator[Conntrack]:
    name = f"t-conntrack-{os.getpid()}"
    netns.create(name)
    try:
        with netns.enter(name), Conntrack() as made:
            yield made
    finally:
        netns.delete(name)


def refusal(work: object, *arguments: object) -> int:
    with pytest.raises(KernelError) as caught:
        work(*arguments)  # type: ignore[operator]
    return caught.value.errno


def test_entries_come_and_go(table: Conntrack) -> None:
    table.add(FLOW)
    table.add(UDP, mark=42)
    assert table.entries() == {FLOW: "SYN_SENT", UDP: ""}
    assert refusal(table.add, FLOW) == errno.EEXIST
    assert refusal(table.add, FLOW.reverse()) == errno.EEXIST
    table.delete(FLOW)
    assert refusal(table.delete, FLOW) == errno.ENOENT
    assert list(table.entries()) == [UDP]


def test_the_reply_may_be_another_flow(table: Conntrack) -> None:
    inner = Tuple(socket.IPPROTO_TCP, "10.8.0.2", 5000, "203.0.113.1", 443)
    table.add(inner, reply=FLOW.reverse())
    assert refusal(table.add, FLOW) == errno.EEXIST


def test_prepared_messages_say_the_same(table: Conntrack) -> None:
    source, target = socket.inet_aton(FLOW.source), socket.inet_aton(FLOW.destination)
    with Prepared(socket.IPPROTO_TCP, mark=42) as fast:
        assert [fast.add(source, 9000 + number, target, 443) for number in range(3)] == [0, 0, 0]
        assert fast.add(source, 9001, target, 443) == errno.EEXIST
        assert {one.source_port for one in table.entries()} == {9000, 9001, 9002}
        assert FLOW in table.entries()
        assert fast.delete(source, 9001, target, 443) == 0
        assert fast.delete(source, 9001, target, 443) == errno.ENOENT
    assert {one.source_port for one in table.entries()} == {9000, 9002}


def test_statistics_are_sums(table: Conntrack) -> None:
    totals = table.statistics()
    assert totals["insert_failed"] == totals["drop"] == 0
