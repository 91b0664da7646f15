# SPDX-License-Identifier: Apache-2.0
"""What follows when a try fails, and what is raised in the end: no sockets, no clock."""

from __future__ import annotations

import errno
import pickle
import socket
from collections.abc import Iterator

import pytest

from softunicast.dial.dialer import unmapped
from softunicast.dial.ports import kernel_range_has, ports_of
from softunicast.dial.tries import Remote, Route, Tries, Try
from softunicast.errors import DialError, DialTimeout, FamilyMissing, KernelError, SliceFull, SoftunicastError
from softunicast.model.slice import Slice

ONE, TWO = Slice.parse("198.51.100.20:9000-9009"), Slice.parse("198.51.100.21:9000-9009")
HERE, THERE = (Remote(socket.AF_INET, (f"203.0.113.{n}", 443)) for n in (1, 2))


def never() -> socket.socket:
    raise AssertionError("nobody asked for a socket")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def tries(
    remotes: list[Remote],
    *,
    lanes: tuple[Slice, ...] = (ONE, TWO),
    timeout_s: float | None = None,
    clock: Clock | None = None,
) -> Tries:
    def plan(remote: Remote, kind: socket.SocketKind) -> Iterator[Route]:
        for lane in lanes:
            yield Route(never, (lane,))

    return Tries(remotes, socket.SOCK_STREAM, plan, timeout_s, clock or Clock())


def full() -> OSError:
    return OSError(errno.EADDRNOTAVAIL, "full")


def ends(walk: Tries, *errors: OSError) -> list[tuple[str, str]]:
    """Each try fails with the next error; which they were."""
    made: list[tuple[str, str]] = []
    for one, error in zip(walk, errors, strict=False):
        made.append((one.sockaddr[0], str(one.slices[0])))
        one.failed(error)
    return made


def test_a_full_slice_leads_to_the_next_and_then_to_the_next_address() -> None:
    walk = tries([HERE, THERE])
    assert ends(walk, *(full() for _ in range(9))) == [
        (remote, str(lane)) for remote in ("203.0.113.1", "203.0.113.2") for lane in (ONE, TWO)
    ]
    error = walk.error()
    assert isinstance(error, SliceFull)
    assert (error.remote, error.slices, error.errno) == (
        ("203.0.113.1", 443),
        (str(ONE), str(TWO)),
        errno.EADDRNOTAVAIL,
    )
    assert "203.0.113.2:443" in "".join(error.__notes__)


def test_what_the_destination_says_is_not_asked_of_another_slice() -> None:
    walk = tries([HERE, THERE])
    assert ends(walk, ConnectionRefusedError(errno.ECONNREFUSED, "no"), full(), full()) == [
        ("203.0.113.1", str(ONE)),
        ("203.0.113.2", str(ONE)),
        ("203.0.113.2", str(TWO)),
    ]
    error = walk.error()
    assert isinstance(error, ConnectionRefusedError), "it says more than a full slice"
    assert "203.0.113.1:443" in str(error)
    assert "198.51.100.21:9000-9009: no port is left towards 203.0.113.2:443" in "".join(error.__notes__)


def test_one_port_taken_says_nothing_of_its_slice() -> None:
    def plan(remote: Remote, kind: socket.SocketKind) -> Iterator[Route]:
        yield Route(never, (ONE,), more=True)
        yield Route(never, (ONE,), more=False)

    walk = Tries([HERE], socket.SOCK_DGRAM, plan, None, Clock())
    made = ends(walk, OSError(errno.EADDRINUSE, "in use"), OSError(errno.EAGAIN, "again"))
    assert len(made) == 2
    error = walk.error()
    assert isinstance(error, SliceFull) and error.slices == (str(ONE),) and error.protocol == "udp"


def test_time_is_shared_by_the_addresses_and_no_try_begins_after_it() -> None:
    clock = Clock()
    walk = tries([HERE, THERE, THERE], timeout_s=6, clock=clock)
    shares: list[float | None] = []

    def late(one: Try, after_s: float) -> None:
        shares.append(one.timeout_s)
        clock.now += after_s
        one.failed(TimeoutError("timed out"))

    for one, after_s in zip(walk, (2, 2, 3), strict=False):
        late(one, after_s)
    assert shares == [2, 2, 2]
    error = walk.error()
    assert isinstance(error, DialTimeout) and isinstance(error, TimeoutError)
    assert (error.after_s, error.slices) == (3, (str(ONE),))
    spent = tries([HERE], timeout_s=0)
    assert list(spent) == []
    assert isinstance(spent.error(), DialTimeout)


def test_a_missing_family_leaves_the_other_one_to_be_tried() -> None:
    six = Remote(socket.AF_INET6, ("2001:db8::1", 443, 0, 0))

    def plan(remote: Remote, kind: socket.SocketKind) -> Iterator[Route]:
        if remote.family == socket.AF_INET6:
            raise FamilyMissing(remote.end, "pool ten")
        yield Route(never, (ONE,))

    walk = Tries([six, HERE], socket.SOCK_STREAM, plan, None, Clock())
    assert ends(walk, full()) == [("203.0.113.1", str(ONE))]
    error = walk.error()
    assert isinstance(error, FamilyMissing) and error.errno == errno.ENETUNREACH


def test_nothing_to_try() -> None:
    assert tries([]).error().errno == errno.EADDRNOTAVAIL


def test_a_socket_outside_of_its_slice_is_reset() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as made:
        (one,) = tries([HERE], lanes=(ONE,))
        with pytest.raises(KernelError, match=r"outside of 198\.51\.100\.20:9000-9009, and closed"):
            one.check(made)
        accepted, _ = server.accept()
        with accepted, pytest.raises(ConnectionResetError):
            accepted.recv(1)


@pytest.mark.parametrize(
    "error",
    [
        SliceFull(("203.0.113.1", 443), ("a", "b"), "udp"),
        DialTimeout(("2001:db8::1", 443), 2.5, ("a",)),
        FamilyMissing(("2001:db8::1", 443), "pool ten"),
    ],
)
def test_errors_survive_pickling_and_are_caught_as_what_they_are(error: DialError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), again.errno, again.remote, again.slices) == (
        type(error),
        str(error),
        error.errno,
        error.remote,
        error.slices,
    )
    assert isinstance(again, OSError) and isinstance(again, SoftunicastError) and "\n" not in str(again)


@pytest.mark.parametrize(
    ("first", "last", "local", "reserved", "safe"),
    [
        (40000, 40009, "32768\t60999\n", "\n", True),
        (9000, 9009, "32768\t60999\n", "\n", False),
        (32760, 32770, "32768\t60999\n", "\n", False),
        (60990, 61005, "32768\t60999\n", "\n", False),
        (32768, 60999, "32768\t60999\n", "\n", True),
        (40000, 40009, "32768\t60999\n", "8080,39000-40000\n", False),
        (40000, 40009, "32768\t60999\n", "39999,40010-40020\n", True),
    ],
)
def test_where_the_kernel_keeps_to_a_range(first: int, last: int, local: str, reserved: str, safe: bool) -> None:
    assert kernel_range_has(first, last, local, reserved) is safe


@pytest.mark.parametrize("size", [1, 2, 9, 10, 64, 2048])
@pytest.mark.parametrize("random", [0, 1, 12345, 2**32 - 1])
def test_every_port_comes_once(size: int, random: int) -> None:
    lane = Slice(ONE.address, 9000, 9000 + size - 1)
    assert sorted(ports_of(lane, random)) == list(range(9000, 9000 + size))


def test_a_mapped_address_is_ipv4() -> None:
    assert unmapped(Remote(socket.AF_INET6, ("::ffff:203.0.113.1", 443, 0, 0))) == HERE
    six = Remote(socket.AF_INET6, ("fe80::1%lo", 443, 0, 1))
    assert unmapped(six) is six
