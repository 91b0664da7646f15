# SPDX-License-Identifier: Apache-2.0
"""The strategy `terminate`: a real agent, its terminator, clients behind veth and TUN. Needs root."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.agent import children
from softunicast.kernel import netns, nodes
from tests.support.agent_node import Daemon
from tests.support.dump import RUN
from tests.support.onramp_node import ECHO, SERVER, OnrampNode, onramp_node, run
from tests.support.wait import wait_until

NETWORK, CLIENT, GATEWAY = "10.64.1.0/24", "10.64.1.2", "10.64.1.1"
TEN = "198.51.100.20"
DARK = "203.0.113.99"
"""Routed to the world, where nobody answers for it."""
ADD = ("--source", NETWORK, "--gateway", GATEWAY, "--strategy", "terminate")


@pytest.fixture
def at(tmp_path: Path) -> Iterator[OnrampNode]:
    with onramp_node(tmp_path) as made:
        yield made


@pytest.fixture
def daemon(at: OnrampNode) -> Iterator[Daemon]:
    with at.node.daemon("--interval", "1") as running:
        yield running


@pytest.fixture(scope="module")
def lasting(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OnrampNode]:
    """A node whose agent runs for all tests that leave it as they found it."""
    with onramp_node(tmp_path_factory.mktemp("node")) as made, made.node.daemon("--interval", "1"):
        yield made


@pytest.fixture
def shared(lasting: OnrampNode) -> Iterator[OnrampNode]:
    """That one, without the on-ramps of the test before, and what the echo saw of them."""
    lasting.echo.seen.clear()
    yield lasting
    for name, one in lasting.listed().items():
        if one["from"] != "plan":
            assert lasting.onramp("remove", name).returncode == 0
    for name in [one for one in devices(lasting) if one.endswith("0") and one.startswith(("box", "one", "two"))]:
        lasting.node.ip("link", "delete", name)  # the kernel takes its time when its namespace goes
    while lasting.namespaces:
        netns.delete(lasting.namespaces.pop())


def add(at: OnrampNode, name: str, device: str, *more: str) -> str:
    """An on-ramp whose TCP ends here, with a client behind a veth; the client's namespace."""
    client = at.veth_client(name, device, CLIENT, GATEWAY)
    at.add(name, "--device", device, *ADD, *more)
    return client


def pid(at: OnrampNode) -> int | None:
    return children.running(RUN / at.node.name, "terminator")


def begin(namespace: str, port: int, address: str = SERVER) -> socket.socket:
    """A connect that is under way."""
    with netns.enter(namespace):
        made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    made.setblocking(False)
    assert made.connect_ex((address, port)) == errno.EINPROGRESS
    return made


def outcome(namespace: str, port: int, address: str = SERVER) -> int:
    """The errno that a connect ends with."""
    with netns.enter(namespace), socket.socket(socket.AF_INET, socket.SOCK_STREAM) as made:
        made.settimeout(20)
        return made.connect_ex((address, port))


@pytest.mark.parametrize("handshake", ["held", "early"])
def test_tcp_ends_here_and_goes_on_from_the_slice(shared: OnrampNode, handshake: str) -> None:
    client = add(shared, "box", "box0", "--pool", "ten", "--handshake", handshake)
    talking = shared.talk(client, b"hello" * 100000, keep=True)
    proto, address, port = shared.echo.seen[-1]
    assert (proto, address) == ("tcp", TEN)
    assert 9000 <= port <= 9009
    (flow,) = (one for one in shared.json("flows")["flows"] if one["state"] == "open")
    assert (flow["kind"], flow["remote"], flow["remote_port"], flow["local_port"]) == ("socket", SERVER, ECHO, port)
    counted = {one["name"]: one["count"] for one in shared.json("counters")["counters"]}
    assert counted["terminated_out"] > 3
    assert counted["terminated_in"] > 3
    talking.shutdown(socket.SHUT_WR)
    assert talking.recv(1) == b"", "the end is passed on"
    talking.close()


def test_a_client_sees_what_it_would_see_without_us(at: OnrampNode, daemon: Daemon) -> None:
    """Refused, no answer, no route, a full slice: each at connect(), none with a handshake before it."""
    client = add(at, "box", "box0", "--pool", "ten")
    first = at.talk(client, keep=True)
    assert outcome(client, 9) == errno.ECONNREFUSED
    with netns.enter(at.world):
        dark = socket.create_server((SERVER, 11), backlog=1)
    waiting = begin(client, ECHO, DARK)
    rejecting = (
        "add table ip no; add chain ip no in { type filter hook input priority 0; }; "
        "add rule ip no in tcp dport 13 reject with icmp host-unreachable; "
        "add rule ip no in tcp dport 14 reject with icmp admin-prohibited"
    )
    run_in(at.world, "nft", rejecting)
    assert outcome(client, 13) == errno.EHOSTUNREACH
    assert outcome(client, 14) == errno.EHOSTUNREACH
    held = [at.talk(client, keep=True) for _ in range(9)]
    assert outcome(client, ECHO) == errno.ECONNREFUSED, "the slice is full: ten ports, all held"
    assert waiting.connect_ex((DARK, ECHO)) == errno.EALREADY, "nobody answered, nobody says otherwise"
    for one in (first, *held, waiting, dark):
        one.close()


def test_without_holding_a_refusal_is_a_reset_after_the_handshake(shared: OnrampNode) -> None:
    client = add(shared, "box", "box0", "--pool", "ten", "--handshake", "early")
    with netns.enter(client), pytest.raises(ConnectionResetError):  # the RST may come before connect() returns
        with socket.create_connection((SERVER, 9), 20) as made:
            made.recv(1)


def test_clients_with_the_same_addresses_and_ports_do_not_meet(shared: OnrampNode) -> None:
    first = add(shared, "one", "one0", "--pool", "ten")
    second = add(shared, "two", "two0", "--pool", "gb")
    here, there = (shared.talk(client, name, port=40000, keep=True) for client, name in ((first, b"1"), (second, b"2")))
    shared.say(here, b"still one")
    shared.say(there, b"still two")
    assert {address for _, address, _ in shared.echo.seen} == {TEN, "198.51.100.10"}
    here.close()
    there.close()


def test_udp_and_ping_stay_with_fish(shared: OnrampNode) -> None:
    client = add(shared, "box", "box0", "--pool", "gb")
    shared.talk(client)
    asked(client, CLIENT)
    run_in(client, "ping", "-c1", "-W5", SERVER)
    kinds = {(flow["kind"], flow["proto"]) for flow in shared.json("flows")["flows"]}
    assert kinds == {("packet", "icmp"), ("packet", "udp"), ("socket", "tcp")}


def test_a_client_has_one_address_for_tcp_and_udp(at: OnrampNode) -> None:
    """Of a pool of several, and different clients different ones (RFC 4787 REQ-2)."""
    at.node.write(("addresses: [198.51.100.10]", "addresses: [198.51.100.10-198.51.100.17]"))
    with at.node.daemon("--interval", "1"):
        client = add(at, "box", "box0", "--pool", "gb")
        found = {}
        for last in range(2, 12):
            here = f"10.64.1.{last}"
            if here != CLIENT:
                run_in(client, "ip", "address", "add", f"{here}/24", "dev", "eth0")
            at.echo.seen.clear()
            asked(client, here)
            with netns.enter(client), socket.create_connection((SERVER, ECHO), 20, (here, 0)) as made:
                at.say(made, b"by TCP")
            found[here] = {proto: address for proto, address, _ in at.echo.seen}
    assert all(one["tcp"] == one["udp"] for one in found.values()), found
    assert len({one["tcp"] for one in found.values()}) > 2, found


def asked(client: str, address: str) -> None:
    """The echo's UDP, from that address of the client's."""
    with netns.enter(client), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
        made.bind((address, 0))
        made.settimeout(20)
        made.sendto(b"question", (SERVER, ECHO))
        assert made.recv(100) == b"question"


def test_another_mtu_breaks_nothing(at: OnrampNode, daemon: Daemon) -> None:
    """Its place is mended, not made anew."""
    client = add(at, "box", "box0", "--pool", "gb")
    open_ = at.talk(client, keep=True)
    (place,) = nodes.terminus_namespaces(at.node.name)
    at.node.ip("link", "set", "box0", "mtu", "1400")
    wait_until(lambda: "mtu 1400" in run_in(place, "ip", "link", "show", "in0"), 20, "it follows the device")
    at.say(open_, b"as before" * 1000)
    at.talk(client)
    open_.close()


def test_by_a_tun_too(shared: OnrampNode) -> None:
    """Bare IP, without Ethernet, as a WireGuard device has it; the lab's VPN carries its packets to a client."""
    client = shared.namespace("far")
    shared.add("far", "--tun", "--pool", "ten", *ADD)
    run_in(client, "ip", "tuntap", "add", "dev", "tun0", "mode", "tun")
    run_in(client, "ip", "address", "add", f"{CLIENT}/24", "dev", "tun0")
    run_in(client, "ip", "link", "set", "tun0", "up")
    run_in(client, "ip", "route", "add", "default", "dev", "tun0")
    command = [sys.executable, "-m", "softunicast.lab.pump", shared.node.netns, "far", client, "tun0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as pump:
        try:
            assert pump.stdout is not None
            assert pump.stdout.readline() == b"ready\n"
            shared.talk(client, b"by a tunnel" * 1000)
            assert shared.echo.seen[-1][1] == TEN
            assert outcome(client, 9) == errno.ECONNREFUSED
        finally:
            pump.kill()


def test_what_is_open_goes_on_whatever_becomes_of_the_agent(at: OnrampNode) -> None:
    with at.node.daemon("--interval", "1") as first:
        client = add(at, "box", "box0", "--pool", "gb")
        open_ = at.talk(client, keep=True)
        number = pid(at)
        first.process.send_signal(signal.SIGKILL)
        first.process.wait()
    at.say(open_, b"the agent is dead")
    at.talk(client, b"and new ones come")
    with at.node.daemon("--interval", "1") as second:
        wait_until(lambda: second.events("told"), 20, "the next agent has the terminator read all anew")
        assert pid(at) == number
        at.say(open_, b"there is another agent")
        wait_until(lambda: second.process.poll() is None and reloaded(at, number), 20, "its workers are new")
        at.say(open_, b"and a new worker")
        at.talk(client)
        os.kill(number or 0, signal.SIGKILL)
        wait_until(lambda: ended(open_), 20, "its connections end")
        wait_until(lambda: pid(at) not in (None, number), 20, "it is started again")
        wait_until(lambda: outcome(client, ECHO) == 0, 20, "and serves")
    at.node.uninstall()
    assert pid(at) is None
    assert nodes.terminus_namespaces(at.node.name) == []


def ended(connection: socket.socket) -> bool:
    """Reset, or closed by a worker that found its master gone."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True


def reloaded(at: OnrampNode, number: int | None) -> bool:
    """Whether the master has children that are younger than its last HUP: the handover is over when none is left."""
    return number is not None and len(offspring(number)) == 1


def offspring(number: int) -> list[int]:
    text = Path(f"/proc/{number}/task/{number}/children").read_text()
    return [int(word) for word in text.split()]


def test_a_reload_breaks_nothing_that_is_open_or_begins(at: OnrampNode, daemon: Daemon) -> None:
    client = add(at, "box", "box0", "--pool", "gb")
    open_ = [at.talk(client, b"%d" % number, keep=True) for number in range(20)]
    with netns.enter(at.world):
        slow = socket.create_server((SERVER, 12), backlog=256)
    waiting = begin(client, ECHO, DARK)
    number = pid(at)
    assert number is not None
    for _ in range(3):
        before = offspring(number)
        os.kill(number, signal.SIGHUP)
        begun = [begin(client, ECHO) for _ in range(5)]
        wait_until(lambda before=before: reloaded(at, number) and offspring(number) != before, 30, "a new worker")  # type: ignore[misc]
        for one in begun:
            one.settimeout(20)
            wait_until(lambda one=one: one.connect_ex((SERVER, ECHO)) in (0, errno.EISCONN), 20, "begun meanwhile")  # type: ignore[misc]
            at.say(one, b"begun meanwhile")
            one.close()
        for one in open_:
            at.say(one, b"as before")
    assert waiting.connect_ex((DARK, ECHO)) == errno.EALREADY
    for one in (*open_, waiting, slow):
        one.close()


def test_an_onramp_that_goes_takes_its_place_along(at: OnrampNode, daemon: Daemon) -> None:
    add(at, "one", "one0", "--pool", "ten")
    client = add(at, "two", "two0", "--pool", "gb")
    open_ = at.talk(client, keep=True)
    assert len(nodes.terminus_namespaces(at.node.name)) == 2
    assert at.onramp("remove", "one").returncode == 0
    wait_until(lambda: len(nodes.terminus_namespaces(at.node.name)) == 1, 10, "its namespace is gone")
    at.say(open_, b"the other one stays")
    assert at.onramp("remove", "two").returncode == 0
    wait_until(lambda: pid(at) is None, 20, "nothing is left to do for the terminator")
    assert nodes.terminus_namespaces(at.node.name) == []
    assert not [name for name in devices(at) if name.startswith("suterm")]
    open_.close()


def test_quotas_hold_for_terminated_tcp(shared: OnrampNode) -> None:
    client = add(shared, "box", "box0", "--pool", "gb", "--max-flows", "3")
    held = [shared.talk(client, keep=True) for _ in range(3)]
    assert outcome(client, ECHO) == errno.ECONNREFUSED
    held.pop().close()
    wait_until(lambda: outcome(client, ECHO) == 0, 20, "one ended, one may begin")
    for one in held:
        one.close()


def devices(at: OnrampNode) -> set[str]:
    return {one["ifname"] for one in json.loads(at.node.inside("ip", "-json", "link"))}


def run_in(namespace: str, *command: str) -> str:
    with netns.enter(namespace):
        return run(*command)
