# SPDX-License-Identifier: Apache-2.0
"""On-ramps that a running agent is asked for, by the command line and over its socket. Needs root."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from softunicast.api.client import Client
from softunicast.api.protocol import socket_path
from softunicast.errors import SoftunicastError
from softunicast.kernel import netns, nodes
from tests.support.agent_node import Daemon
from tests.support.dump import RUN
from tests.support.onramp_node import ECHO, POOL_ADDRESS, SERVER, OnrampNode, onramp_node, question, read_answer
from tests.support.wait import wait_until

NETWORK = "10.64.1.0/24"
CLIENT = "10.64.1.2"
GATEWAY = "10.64.1.1"
KEYS: dict[str, Any] = {"pool": "gb", "sources": [NETWORK]}
NOBODY = 65534


@pytest.fixture
def at(tmp_path: Path) -> Iterator[OnrampNode]:
    with onramp_node(tmp_path) as made:
        yield made


@pytest.fixture
def daemon(at: OnrampNode) -> Iterator[Daemon]:
    with at.node.daemon("--interval", "1") as running:
        yield running


def devices(at: OnrampNode) -> set[str]:
    return {one["ifname"] for one in json.loads(at.node.inside("ip", "-json", "link"))}


def test_add_list_remove(at: OnrampNode, daemon: Daemon) -> None:
    client = at.veth_client("c", "cl0", CLIENT, GATEWAY)
    at.add("acme", "--device", "cl0", "--pool", "gb", "--source", NETWORK, "--gateway", GATEWAY, "--tenant", "acme")
    at.talk(client)
    assert [(proto, address) for proto, address, _ in at.echo.seen] == [("tcp", POOL_ADDRESS)]
    shown = at.listed()
    assert shown["fish"]["from"] == "plan"
    assert (shown["acme"]["from"], shown["acme"]["attached"], shown["acme"]["tenant"]) == ("added", True, "acme")
    assert (shown["acme"]["flows"], shown["acme"]["begun"], shown["acme"]["pool"]) == (1, 1, "gb")
    acme = at.tenants()["acme"]
    assert (acme["flows"], acme["refused"]) == (1, 0)
    assert acme["out_packets"] > 3 and acme["in_packets"] > 3 and acme["out_bytes"] > 200 and acme["in_bytes"] > 200
    flow = at.json("flows")["flows"][0]
    assert (flow["owner_name"], flow["tenant"]) == ("acme", 1)
    text = at.onramp("list").stdout
    assert "acme" in text and "OUT BYTES" in text
    talking = at.talk(client, keep=True)
    assert {flow["state"] for flow in at.json("flows")["flows"]} == {"linger", "open"}
    done = at.onramp("remove", "acme")
    assert (done.returncode, done.stdout) == (0, "on-ramp acme: removed\n")
    assert "cl0" in devices(at), "it is somebody else's"
    assert set(at.listed()) == {"fish"}
    with pytest.raises((TimeoutError, OSError)), netns.enter(client):
        socket.create_connection((SERVER, ECHO), timeout=1)
    assert at.tenants()["acme"]["flows"] == 2, "a tenant's counters outlive its on-ramps"
    wait_until(
        lambda: {flow["state"] for flow in at.json("flows")["flows"]} == {"linger"},
        10,
        "what was open does not hold its port for hours",
    )
    with nodes.open_maps(at.node.name) as maps:
        wait_until(lambda: not dict(maps["uses"].items()), 10, "what it held is forgotten")
    talking.close()


REFUSED = {
    "no pool": (("x", "--source", NETWORK), "names no pool, and"),
    "unknown pool": (("x", "--source", NETWORK, "--pool", "uk"), "onramps.x.pool: no pool 'uk' ; there are: gb, ten"),
    "uplink": (("x", "--device", "up0", "--pool", "gb", "--source", NETWORK), "up0 is an uplink"),
    "planned device": (("x", "--device", "fish0", "--pool", "gb", "--source", NETWORK), "fish0 is on-ramp fish's"),
    "planned name": (("fish", "--device", "d9", "--pool", "gb", "--source", NETWORK), "has an on-ramp of this name"),
    "the fleet's": (("x", "--pool", "gb", "--source", "198.51.100.0/24"), "overlaps the fleet's prefix"),
    "the world": (("x", "--pool", "gb", "--source", "0.0.0.0/0"), "is wider than /8"),
    "no network": (("x", "--pool", "gb", "--source", "here"), "'here' is no prefix"),
    "no slice": (("x", "--pool", "gb", "--slice", "198.51.100.20:9000-9009", "--source", NETWORK), "is not of pool gb"),
    "no flows": (("x", "--pool", "gb", "--source", NETWORK, "--max-flows", "0"), "quotas.flows: 0 is out of range"),
    "device there": (("up0", "--tun", "--pool", "gb", "--source", NETWORK), "device up0: is there already"),
    "long name": (("a" * 20, "--tun", "--pool", "gb", "--source", NETWORK), "must have 1 to 15 characters"),
    "two kinds": (("x", "--tun", "--tap", "--pool", "gb", "--source", NETWORK), "keep one"),
}


def test_refused_with_one_line_and_nothing_changed(at: OnrampNode, daemon: Daemon) -> None:
    before = at.node.dump()
    there = devices(at)
    for what, (arguments, words) in REFUSED.items():
        done = at.onramp("add", *arguments)
        assert done.returncode == 2, (what, done)
        assert done.stderr.startswith("softunicast: ") and done.stderr.count("\n") == 1, (what, done.stderr)
        assert words in done.stderr, (what, done.stderr)
    for name, words in (("fish", "stands in the plan"), ("nobody", "none was added; there are: none")):
        done = at.onramp("remove", name)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert devices(at) == there
    assert at.node.dump() == before
    assert daemon.process.poll() is None


def test_without_an_agent_one_is_told_to_start_it(at: OnrampNode) -> None:
    at.node.once()
    done = at.onramp("add", "x", "--pool", "gb", "--source", NETWORK)
    assert done.returncode == 1
    assert "agent.sock: No such file or directory; start the node's agent" in done.stderr
    assert set(at.listed()) == {"fish"}


def test_a_program_gets_a_tun_and_the_on_ramp_ends_with_it(at: OnrampNode, daemon: Daemon) -> None:
    with Client.of(at.node.name) as agent:
        mine = agent.tun({**KEYS, "tenant": "acme"})
    name = mine.onramp["name"]
    assert (mine.onramp["device"], mine.onramp["pool"], mine.onramp["tenant"]) == (name, "gb", "acme")
    for port in (4000, 4001):
        text = f"from {port}".encode()
        os.write(mine.fd, question(CLIENT, port, text))
        answer = read_answer(mine.fd, text)
        assert (str(answer.destination), answer.destination_port) == (CLIENT, port)
    assert {address for _, address, _ in at.echo.seen} == {POOL_ADDRESS}
    os.write(mine.fd, question("10.64.9.9", 1, b"forged"))
    wait_until(lambda: {one["name"]: one["count"] for one in at.json("drops")["drops"]}["spoofed"], 5, "it is dropped")
    assert at.listed()[name]["from"] == "lease"
    mine.close()
    wait_until(lambda: set(at.listed()) == {"fish"}, 10, "the on-ramp is gone")
    assert name not in devices(at)
    wait_until(lambda: daemon.events("on-ramp ended with its device"), 10, "the agent says so")
    assert daemon.events("failed") == []


def test_a_socket_handed_over_outlives_the_agent(at: OnrampNode) -> None:
    mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine:
        with at.node.daemon("--interval", "1") as first:
            with Client.of(at.node.name) as agent, theirs:
                onramp = agent.hand_over(theirs, KEYS, name="prog")
            assert onramp["name"] == "prog"
            mine.send(question(CLIENT, 4000, b"one"))
            assert str(read_answer(mine.fileno(), b"one").destination) == CLIENT
            first.kill()
        mine.send(question(CLIENT, 4000, b"two"))
        read_answer(mine.fileno(), b"two")
        with at.node.daemon("--interval", "1"):
            mine.send(question(CLIENT, 4000, b"three" + b"." * 1400))
            assert str(read_answer(mine.fileno(), b"three" + b"." * 1400).destination) == CLIENT
            mine.send(question(CLIENT, 4001, b"four"))
            read_answer(mine.fileno(), b"four")
            assert len({seen for seen in at.echo.seen if seen[0] == "udp"}) == 2, "the first flow went on"
            mine.close()
            wait_until(lambda: set(at.listed()) == {"fish"}, 10, "the on-ramp is gone")


@pytest.mark.parametrize("kind", ["none", "stream", "datagram", "file"])
def test_other_things_handed_over_are_refused(at: OnrampNode, daemon: Daemon, kind: str) -> None:
    one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
    with one, other, Client.of(at.node.name) as agent, Path("/dev/null").open("rb") as file:
        handed = {"none": [], "file": [file.fileno()]}.get(kind, [one.fileno()])
        with pytest.raises(SoftunicastError, match=r"socket handed over is none of|no socket was handed over"):
            agent.ask({"do": "socket", "keys": KEYS}, handed)
        assert agent.ask({"do": "list"})[0]["onramps"] == []


def test_added_on_ramps_and_their_flows_outlive_the_agent(at: OnrampNode) -> None:
    client = at.veth_client("c", "cl0", CLIENT, GATEWAY)
    with at.node.daemon("--interval", "1") as first:
        at.add("acme", "--device", "cl0", "--pool", "gb", "--source", NETWORK, "--gateway", GATEWAY)
        at.add("made", "--tun", "--pool", "gb", "--source", NETWORK)
        with Client.of(at.node.name) as agent:
            mine = agent.tun(KEYS)
        os.write(mine.fd, question(CLIENT, 4000, b"one"))
        read_answer(mine.fd, b"one")
        talking = at.talk(client, keep=True)
        before = at.listed()
        first.kill()
    assert at.listed() == before
    at.say(talking, b"nobody")
    with at.node.daemon("--interval", "1"):
        assert at.listed() == before
        # Others come and go, with names before and behind: nobody's id, generation or claim changes.
        at.add("aaa", "--tun", "--pool", "gb", "--source", "10.99.0.0/24")
        at.add("zzz", "--tun", "--pool", "gb", "--source", "10.98.0.0/24")
        assert at.onramp("remove", "aaa").returncode == 0
        at.add("bbb", "--tun", "--pool", "gb", "--source", "10.97.0.0/24")
        at.say(talking, b"still there")
        os.write(mine.fd, question(CLIENT, 4000, b"two"))
        read_answer(mine.fd, b"two")
        assert len({seen for seen in at.echo.seen if seen[0] == "udp"}) == 1
        after = at.listed()
        assert {name: after[name] for name in before} == before
        assert (
            after["bbb"]["generation"] > after["zzz"]["generation"] > max(one["generation"] for one in before.values())
        )
        # A lease that ends while no agent lives ends with the next one.
    mine.close()
    with at.node.daemon("--interval", "1"):
        wait_until(lambda: "su0" not in at.listed(), 10, "the lease is over")
        assert set(at.listed()) == {"fish", "acme", "made", "zzz", "bbb"}
        at.say(talking, b"the last")
    talking.close()
    at.node.uninstall()
    assert {"made", "zzz", "bbb"} & devices(at) == set()
    assert "cl0" in devices(at)
    assert not (RUN / at.node.name).exists()


def test_same_inner_addresses_behind_different_devices(at: OnrampNode, daemon: Daemon) -> None:
    """Two clients of the same address, with the same ports, to the same destination; and a third on a TUN."""
    clients = [at.veth_client(f"c{number}", f"cl{number}", CLIENT, GATEWAY) for number in (1, 2)]
    for number in (1, 2):
        device = f"cl{number}"
        at.add(device, "--pool", "gb", "--source", NETWORK, "--gateway", GATEWAY, "--tenant", f"t{number}")
    with Client.of(at.node.name) as agent:
        mine = agent.tun({**KEYS, "tenant": "t3"})
    talking = [at.talk(client, b"hello", port=5000, keep=True) for client in clients]
    assert len({port for _, _, port in at.echo.seen}) == 2
    for number, one in enumerate(talking):
        at.say(one, f"client {number} ".encode() * 1000)
    with netns.enter(clients[0]):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    datagrams.settimeout(10)
    datagrams.bind((CLIENT, 5000))
    os.write(mine.fd, question(CLIENT, 5000, b"tun"))
    datagrams.sendto(b"veth", (SERVER, ECHO))
    assert datagrams.recv(100) == b"veth"
    read_answer(mine.fd, b"tun")
    for one in (*talking, datagrams):
        one.close()
    mine.close()
    assert [at.tenants()[name]["flows"] for name in ("t1", "t2", "t3")] == [2, 1, 1]
    drops = {one["name"]: one["count"] for one in at.json("drops")["drops"]}
    assert (drops["no_claim"], drops["spoofed"], drops["inbound_new"]) == (0, 0, 0)


def test_quotas_hold_and_change_while_flows_live(at: OnrampNode, daemon: Daemon) -> None:
    client = at.veth_client("c", "cl0", CLIENT, GATEWAY)
    planned = f"          cl0: {{pool: gb, sources: [{NETWORK}], gateway: {GATEWAY}, quotas: {{flows: 2}}}}\n"
    mark = f"      {at.node.name}x:"
    at.node.write((mark, planned + mark))
    wait_until(lambda: "cl0" in at.listed() and at.listed()["cl0"]["attached"], 20, "the plan is read")
    talking = [at.talk(client, keep=True) for _ in range(2)]
    with pytest.raises(ConnectionRefusedError):
        at.talk(client)
    shown = at.listed()["cl0"]
    assert (shown["flows"], shown["quotas"]["flows"], shown["refused_flows"]) == (2, 2, 1)
    at.node.write((mark, planned.replace("flows: 2", "flows: 3, new_flows_per_s: 1") + mark))
    wait_until(lambda: at.listed()["cl0"]["quotas"] == {"flows": 3, "new_flows_per_s": 1}, 20, "the plan is read")
    assert at.listed()["cl0"]["generation"] == shown["generation"]
    talking.append(at.talk(client, keep=True))
    with pytest.raises(ConnectionRefusedError):
        at.talk(client)
    for one in talking:
        at.say(one, b"goes on")
        one.close()
    drops = {one["name"]: one["count"] for one in at.json("drops")["drops"]}
    assert drops["quota_flows"] == 2


def as_user(uid: int, group: int, work: Any) -> str:
    """What `work` returned, or its error, in a child of that user and group."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups([])
            os.setresgid(group, group, group)
            os.setresuid(uid, uid, uid)
            said = str(work())
        except (SoftunicastError, OSError, AssertionError) as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as stream:
        said = stream.read().decode()
    os.waitpid(pid, 0)
    return said


def test_who_may_ask_for_what(at: OnrampNode) -> None:
    name = at.node.name

    def ask(question: dict[str, Any]) -> Any:
        with Client.of(name) as agent:
            return agent.ask(question)[0]

    tun = {"do": "tun", "name": "mine", "keys": KEYS}
    with at.node.daemon("--interval", "1"):
        assert "not allowed; ask as root" in as_user(NOBODY, NOBODY, lambda: ask(tun))
    assert "--group nobodys: no such group" in at.node.agent("--group", "nobodys").stderr
    with at.node.daemon("--interval", "1", "--group", "nogroup") as daemon:
        at.add("roots", "--tun", "--pool", "gb", "--source", NETWORK)
        assert "not allowed; ask as root" in as_user(NOBODY, 12345, lambda: ask(tun))
        for asked in (
            {"do": "add", "name": "x", "keys": KEYS},
            {"do": "add", "name": "x", "make": "tap", "keys": KEYS},
        ):
            assert "is root's" in as_user(NOBODY, NOBODY, lambda asked=asked: ask(asked))
        assert "user 0 asked for it" in as_user(NOBODY, NOBODY, lambda: ask({"do": "remove", "name": "roots"}))

        def whole_life() -> str:
            with Client.of(name) as agent:
                mine = agent.tun(KEYS, name="mine")
                os.write(mine.fd, question(CLIENT, 4000, b"hello"))
                answer = read_answer(mine.fd, b"hello")
                gone = agent.ask({"do": "remove", "name": "mine"})[0]["onramp"]
            return f"{answer.source} {gone['name']} {gone['uid']}"

        assert as_user(NOBODY, NOBODY, whole_life) == f"{SERVER} mine {NOBODY}"
        assert set(at.listed()) == {"fish", "roots"}
        assert daemon.terminate() == 0
    assert not socket_path(name).exists()


def test_nonsense_is_answered_and_the_agent_goes_on(at: OnrampNode, daemon: Daemon) -> None:
    records = [
        b"x", b"\xff\xfe", b"[]", b"{}", b'{"softunicast": 2, "do": "list"}', b'{"softunicast": 1}',
        b'{"softunicast": 1, "do": "fly"}', b'{"softunicast": 1, "do": "list", "more": 1}',
        b'{"softunicast": 1, "do": "tun", "keys": {"sources": "\\ud800"}}', b"[" * 60_000,
        b'{"softunicast": 1, "do": "tun", "device": "a/b", "keys": {}}',
        b'{"softunicast": 1, "do": "tun", "device": "lo%d", "keys": {"pool": "gb", "sources": ["10.1.0.0/16"]}}',
        b'{"softunicast": 1, "do": "tun", "keys": {"sources": [[1]]}}',
        b'{"softunicast": 1, "do": "remove", "name": ""}',
    ]  # fmt: skip
    for record in records:
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asker:
            asker.settimeout(20)
            asker.connect(str(socket_path(at.node.name)))
            asker.send(record)
            answer = json.loads(asker.recv(1 << 16))
            assert (answer["ok"], answer["exit_status"]) == (False, 2), (record[:50], answer)
            assert answer["error"] and "\n" not in answer["error"]
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as hasty:
        hasty.connect(str(socket_path(at.node.name)))
        hasty.send(json.dumps({"softunicast": 1, "do": "tun", "name": "hasty", "keys": KEYS}).encode())
    with Client.of(at.node.name) as agent:
        wait_until(lambda: agent.ask({"do": "list"})[0]["onramps"] == [], 10, "nobody has its TUN")
    assert daemon.process.poll() is None
    assert daemon.events("failed") == []
