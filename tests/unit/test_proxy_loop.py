# SPDX-License-Identifier: Apache-2.0
"""The proxy's loop and its machinery in C: turns, errors, numbers given again, timers, and nothing left behind."""

from __future__ import annotations

import errno
import gc
import os
import socket
import weakref
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from softunicast.proxy._relay import accept, connect, tune
from softunicast.proxy.loop import IN, OUT, Loop
from softunicast.proxy.relay import Pipe, Pipes, Relay


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as made:
        yield made


def pair(stack: ExitStack) -> tuple[socket.socket, socket.socket]:
    here, there = socket.socketpair()
    for one in (here, there):
        one.setblocking(False)
        stack.enter_context(one)
    return here, there


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_a_number_given_again_gets_no_events_of_its_predecessor(stack: ExitStack) -> None:
    loop = Loop()
    first, second = pair(stack), pair(stack)
    heard: list[str] = []

    def one_closes_the_other(mine: socket.socket, other: socket.socket) -> None:
        heard.append("handler")
        number = other.fileno()
        loop.close(other)
        fresh, _ = pair(stack)
        assert fresh.fileno() == number, "the kernel gave another number; nothing is tested"
        loop.add(number, IN, lambda _: heard.append("stale event"))
        loop.remove(mine.fileno())

    loop.add(first[0].fileno(), IN, lambda _: one_closes_the_other(first[0], second[0]))
    loop.add(second[0].fileno(), IN, lambda _: one_closes_the_other(second[0], first[0]))
    first[1].send(b"x")
    second[1].send(b"x")
    loop.later(0.05, loop.stop)
    loop.run()
    assert heard == ["handler"]


def test_closed_behind_its_back_a_number_can_be_added_again(stack: ExitStack) -> None:
    loop = Loop()
    before, _ = pair(stack)
    number = before.fileno()
    loop.add(number, IN, lambda _: pytest.fail("nobody is there"))
    before.close()
    after, peer = pair(stack)
    assert after.fileno() == number
    loop.add(number, IN, lambda _: loop.stop())
    loop.later(20, lambda: pytest.fail("no event"))
    peer.send(b"x")
    loop.run()


def test_when_one_handler_fails_the_others_have_their_turn(stack: ExitStack) -> None:
    loop = Loop()
    told: list[str] = []
    turns: list[int] = []
    loop.on_error = lambda error: told.append(str(error))

    def turn(fd: int, events: int) -> None:
        loop.remove(fd)
        turns.append(fd)
        if len(turns) == 3:
            loop.stop()
        raise ValueError(f"turn {len(turns)}")

    for _ in range(3):
        here, there = pair(stack)
        there.send(b"x")
        loop.add(here.fileno(), IN, partial(turn, here.fileno()))
    loop.run()
    assert told == ["turn 1", "turn 2", "turn 3"]
    assert len(set(turns)) == 3


def test_without_somebody_to_tell_the_loop_ends(stack: ExitStack) -> None:
    loop = Loop()
    here, _ = pair(stack)

    def fail(events: int) -> None:
        raise ValueError("mine")

    loop.add(here.fileno(), OUT, fail)
    with pytest.raises(ValueError, match="mine"):
        loop.run()


def test_modify_and_handle(stack: ExitStack) -> None:
    loop = Loop()
    here, there = pair(stack)
    fd = here.fileno()
    with pytest.raises(OSError) as caught:
        loop.modify(fd, IN)
    assert caught.value.errno == errno.ENOENT
    loop.add(fd, 0, lambda _: pytest.fail("it waits for nothing"))
    there.send(b"x")
    loop.later(0.02, lambda: loop.modify(fd, 0))
    loop.later(0.04, lambda: loop.handle(fd, 0, lambda _: loop.stop()))
    loop.later(0.06, lambda: loop.modify(fd, IN))
    loop.run()
    loop.remove(fd)
    loop.remove(fd)


def test_timers_come_in_their_order_and_cancelled_ones_do_not() -> None:
    loop = Loop()
    came: list[str] = []
    for name, delay_s in (("c", 0.03), ("a", 0.01), ("d", 0.03), ("never", 0.01), ("b", 0.02)):
        timer = loop.later(delay_s, lambda name=name: came.append(name))
        if name == "never":
            timer.cancel()
            timer.cancel()
    loop.later(0.02, lambda: loop.later(0.0, lambda: came.append("at once")))
    loop.later(0.05, loop.stop)
    loop.run()
    assert came == ["a", "b", "at once", "c", "d"] or came == ["a", "b", "c", "d", "at once"]


def test_a_timer_may_cancel_another_that_is_due() -> None:
    loop = Loop()
    other = loop.later(0.02, lambda: pytest.fail("it was cancelled"))
    loop.later(0.01, other.cancel)
    loop.later(0.03, loop.stop)
    loop.run()


def test_a_cancelled_timer_holds_nothing() -> None:
    class Dial:
        def __init__(self, loop: Loop) -> None:
            self.timer = loop.later(20, self.late)

        def late(self) -> None: ...

    loop = Loop()
    gc.disable()
    try:
        one = Dial(loop)
        gone = weakref.ref(one)
        one.timer.cancel()
        del one
        assert gone() is None, "a cycle: it waits for the collector"
    finally:
        gc.enable()


def test_relays_leave_nothing_behind(stack: ExitStack) -> None:
    loop, pipes = Loop(), Pipes()

    def once(name: str) -> None:
        client, near = socket.socketpair()
        far, origin = socket.socketpair()
        for one in (near, far):
            one.setblocking(False)
        relay = Relay(loop, pipes, near, far, lambda relay: relay.close())
        relay.start()
        client.send(b"hello")
        if name == "ended":
            client.shutdown(socket.SHUT_WR)
            origin.shutdown(socket.SHUT_WR)
        loop.wait(1)
        loop.dispatch()
        assert origin.recv(9) == b"hello"
        if name == "closed":
            relay.close()
            relay.close()
        elif name == "dropped":
            relay.pause()
        elif name == "ended":
            while not relay.over:
                loop.wait(1)
                loop.dispatch()
            assert relay.why == "closed"
        client.close()
        origin.close()
        if name == "dropped":
            near.close()
            far.close()

    for name in ("closed", "dropped", "ended"):
        once(name)
    gc.collect()
    gc.disable()
    try:
        objects, files = len(gc.get_objects()), descriptors()
        for _ in range(200):
            for name in ("closed", "dropped", "ended"):
                once(name)
        assert descriptors() == files
        assert len(gc.get_objects()) - objects < 100
    finally:
        gc.enable()


def test_a_loop_that_is_dropped_drops_its_relays(stack: ExitStack) -> None:
    """Loop and relay hold each other while it runs: the collector finds them."""
    (_, near), (far, _) = pair(stack), pair(stack)

    class Owner:
        def __init__(self, loop: Loop) -> None:
            self.relay = Relay(loop, Pipes(), near, far, self.over)

        def over(self, relay: Relay) -> None: ...

    loop = Loop()
    owner = Owner(loop)
    owner.relay.start()
    gone = weakref.ref(owner)
    del loop, owner
    gc.collect()
    assert gone() is None


def test_what_done_raises_reaches_the_loop(stack: ExitStack) -> None:
    (client, near), (far, _) = pair(stack), pair(stack)
    loop = Loop()

    def done(relay: Relay) -> None:
        relay.close()
        loop.stop()
        raise ValueError(relay.why)

    relay = Relay(loop, Pipes(), near, far, done)
    relay.start()
    told: list[str] = []
    loop.on_error = lambda error: told.append(str(error))
    loop.later(0, lambda: relay.reset("enough"))
    loop.run()
    assert told == ["enough"]
    assert client.recv(1) == b""


def test_what_is_no_relay_is_refused(stack: ExitStack) -> None:
    (_, near), (far, _) = pair(stack), pair(stack)
    loop, pipes = Loop(), Pipes()
    with pytest.raises(TypeError):
        Relay(object(), pipes, near, far, print)  # type: ignore[arg-type]
    with pytest.raises(TypeError):
        Relay(loop, pipes, object(), far, print)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="left"):
        Relay(loop, pipes, near, far, print, -1)
    relay = Relay(loop, pipes, near, far, print, 5)
    assert (relay.up.left, relay.down.left, relay.up.pipe, relay.up.held) == (5, None, None, 0)
    with pytest.raises(TypeError):
        relay.up.pipe = 3  # type: ignore[assignment]
    with pytest.raises(TypeError):
        pipes.give(object())  # type: ignore[arg-type]
    relay.down.left = None
    relay.up.pipe = Pipe(*os.pipe())
    relay.close()


@pytest.mark.parametrize(("family", "host"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_accept_connect_tune(stack: ExitStack, family: socket.AddressFamily, host: str) -> None:
    server = stack.enter_context(socket.create_server((host, 0), family=family))
    server.setblocking(False)
    assert accept(server.fileno()) is None
    sock = stack.enter_context(socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    tune(sock.fileno(), 60)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 60
    address = IPv4Address(host) if family == socket.AF_INET else IPv6Address(host)
    number, *here = connect(sock.fileno(), address.packed, server.getsockname()[1], 0)
    assert number == 0
    assert tuple(here) == sock.getsockname()[:2]
    fd, *there = accept(server.fileno()) or (-1,)
    with socket.socket(fileno=fd):
        assert there == here
        assert not os.get_blocking(fd)
        assert not os.get_inheritable(fd)


def test_what_cannot_be_is_said(stack: ExitStack) -> None:
    sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK))
    assert connect(sock.fileno(), IPv6Address("::1").packed, 1, 0)[0] == errno.EAFNOSUPPORT
    with pytest.raises(ValueError):
        connect(sock.fileno(), b"123", 1, 0)
    here, _ = pair(stack)
    with pytest.raises(OSError):
        tune(here.fileno(), 60)
    with pytest.raises(OSError) as caught:
        accept(here.fileno())
    assert caught.value.errno in (errno.EOPNOTSUPP, errno.EINVAL)
