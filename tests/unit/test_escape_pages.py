# SPDX-License-Identifier: Apache-2.0
"""Pages of `softunicast escape`, its exit status, and the userspace NAT of the older ways on random packets."""

from __future__ import annotations

import errno
import itertools
import json
import os
import random
import socket
from collections.abc import Iterator

import pytest
from click.testing import CliRunner

from softunicast.cli import main
from softunicast.cli.escape import escape
from softunicast.lab import build
from softunicast.lab.escape import mover, pages, steps
from softunicast.lab.escape.notes import Notes
from softunicast.wire import craft
from softunicast.wire.packet import ACK, FIN, RST, SYN, checksum_errors, parse

CLIENT, SERVER, SHARED = "10.8.0.2", "203.0.113.1", "198.51.100.10"


def notes(seen: str = "yes") -> Notes:
    made = Notes(1, "one", "The first", "Something.")
    made.check("a | b", "yes", seen)
    made.figure("cost", 12.34, "µs")
    return made


def test_a_difference_is_shown_on_the_page() -> None:
    assert "| a \\| b | yes | the same |" in pages.markdown([notes()])
    assert "| a \\| b | yes | **no** |" in pages.markdown([notes("no")])


def test_two_runs_have_one_shape_until_a_word_differs() -> None:
    page = pages.markdown([notes()])
    assert (
        pages.shape(page)
        == pages.shape(page.replace("12.3 µs", "1.2e+03 µs"))
        != pages.shape(page.replace("cost", "x"))
    )
    assert pages.shape(page) != pages.shape(pages.markdown([notes("no")]))


def test_figures_of_the_table_of_strategies_are_no_shape() -> None:
    line = "| `snat` | 4.8 (1.19) | 3.4 (1.29) | - | 296,668 | 256 | 0 | hangs | works | a full slice is silent (2) |"
    other = "| `snat` | 14.8 (2.19) | 13.4 (1.9) | - | 96,668 | 384 | 0 | hangs | works | a full slice is silent (2) |"
    assert pages.shape(line) == pages.shape(other) != pages.shape(other.replace("hangs", "works"))
    assert pages.shape("| 9000-9009, each once | 10 | the same |") != pages.shape(
        "| 9000-9009, each once | 11 | the same |"
    )


@pytest.mark.parametrize(("seen", "status"), [("yes", 0), ("no", 1)])
def test_exit_status_says_whether_all_was_as_expected(seen: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(given: Notes) -> None:
        given.check("it", "yes", seen)

    monkeypatch.setattr(steps, "STEPS", (steps.Step(1, "one", "The first", "Something.", run),))
    monkeypatch.setattr(build, "check_tools", lambda *_: None)
    done = CliRunner().invoke(escape, [])
    assert done.exit_code == status
    assert ("all as expected" in done.output) == (status == 0)
    assert ("not as expected, step 1: it" in done.output) == (status == 1)
    assert json.loads(CliRunner().invoke(escape, ["--json"]).output)["ok"] == (status == 0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--step", "99"], "no step 99; there are 1 to 11"),
        (["--step", "x"], "'x' is not a valid integer"),
        (["--json", "--markdown"], "exclude each other"),
    ],
)
def test_wrong_arguments_do_nothing(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["escape", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_steps_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["escape", "--list"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [int(line.split()[0]) for line in listed] == list(range(1, 12))
    assert all(len(step.tried) > 80 and step.title in line for step, line in zip(steps.STEPS, listed, strict=True))


def test_what_stops_an_experiment_is_told() -> None:
    def run(given: Notes) -> None:
        given.check("it", "yes", "yes")
        raise OSError(errno.ENOPROTOOPT, "Protocol not available")

    done = steps.Step(1, "one", "The first", "Something.", run).perform()
    assert not done.ok and "Protocol not available" in done.checks[-1].seen


def test_a_step_without_checks_is_not_well() -> None:
    assert not Notes(1, "", "", "").ok


class Taken:
    """Reservations in a set."""

    def __init__(self) -> None:
        self.held: set[tuple[int, int, bytes, int]] = set()

    def take(self, *key: object) -> bool:
        if key in self.held:
            return False
        self.held.add(key)  # type: ignore[arg-type]
        return True

    def release(self, *key: object) -> None:
        self.held.remove(key)  # type: ignore[arg-type]

    def close(self) -> None: ...


@pytest.fixture
def nat() -> Iterator[tuple[mover.Nat, Taken, int, int]]:
    """A NAT between two packet sockets: its reservations, the client's end, the host's end."""
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(2)]
    (client, its_client), (host, its_host) = pairs
    for sock in (client, host):
        sock.setblocking(False)
    held = Taken()
    ports = range(9000, 9010)
    made = mover.Nat(its_client.fileno(), its_host.fileno(), "", SHARED, ports, held)
    try:
        yield made, held, client.fileno(), host.fileno()
    finally:
        for sock in itertools.chain(*pairs):
            sock.close()


def test_what_is_rewritten_is_undone(nat: tuple[mover.Nat, Taken, int, int]) -> None:
    made, _, client, host = nat
    seed = int(os.environ.get("SOFTUNICAST_SEED", random.randrange(1 << 32)))
    print(f"seed {seed}")
    rng = random.Random(seed)
    for number in range(3000):
        port, remote = rng.randrange(1, 65536), 1000 + number
        data = rng.randbytes(rng.randrange(200))
        tcp = rng.random() < 0.5
        source = f"10.8.{rng.randrange(256)}.{rng.randrange(1, 255)}"
        packet = craft.tcp(source, port, SERVER, remote, data) if tcp else craft.udp(source, port, SERVER, remote, data)
        made.outbound(packet)
        out = os.read(host, 65535)
        seen = parse(out)
        assert checksum_errors(out) == ()
        assert str(seen.source) == SHARED and seen.source_port in range(9000, 9010)
        assert out[28 if not tcp else 40 :] == data
        mine = seen.source_port
        assert mine is not None
        answer = (
            craft.tcp(SERVER, remote, SHARED, mine, data, flags=SYN | ACK)
            if tcp
            else craft.udp(SERVER, remote, SHARED, mine, data)
        )
        made.inbound(answer)
        back = os.read(client, 65535)
        assert checksum_errors(back) == ()
        assert (str(parse(back).destination), parse(back).destination_port) == (source, port)


def test_a_udp_checksum_of_none_stays_none(nat: tuple[mover.Nat, Taken, int, int]) -> None:
    made, _, _, host = nat
    packet = bytearray(craft.udp(CLIENT, 5000, SERVER, 53, b"x"))
    packet[26:28] = b"\0\0"
    made.outbound(bytes(packet))
    assert os.read(host, 65535)[26:28] == b"\0\0"


def test_the_eleventh_is_refused_and_an_end_makes_room(nat: tuple[mover.Nat, Taken, int, int]) -> None:
    made, held, client, host = nat
    ports = {}
    for number in range(10):
        made.outbound(craft.tcp(CLIENT, 5000 + number, SERVER, 443))
        ports[number] = parse(os.read(host, 65535)).source_port or 0
    assert sorted(ports.values()) == list(range(9000, 9010))
    made.outbound(craft.tcp(CLIENT, 6000, SERVER, 443, sequence=99))
    refusal = parse(os.read(client, 65535))
    assert (refusal.tcp_flags, str(refusal.source), refusal.destination_port) == (RST | ACK, SERVER, 6000)
    made.outbound(craft.udp(CLIENT, 6000, SERVER, 443))
    assert parse(os.read(host, 65535)).source_port in range(9000, 9010)  # another protocol has ports of its own
    # Both FINs and the last ACK.
    made.outbound(craft.tcp(CLIENT, 5003, SERVER, 443, flags=FIN | ACK))
    made.inbound(craft.tcp(SERVER, 443, SHARED, ports[3], flags=FIN | ACK))
    assert len(held.held) == 11
    made.outbound(craft.tcp(CLIENT, 5003, SERVER, 443, flags=ACK))
    assert len(held.held) == 10
    made.outbound(craft.tcp(CLIENT, 5003, SERVER, 443, flags=ACK))  # of no flow, and no SYN: nothing
    assert len(held.held) == 10
    made.outbound(craft.tcp(CLIENT, 6001, SERVER, 443))
    assert len(held.held) == 11


def test_udp_is_refused_by_an_icmp_error(nat: tuple[mover.Nat, Taken, int, int]) -> None:
    made, _, client, host = nat
    for number in range(10):
        made.outbound(craft.udp(CLIENT, 5000 + number, SERVER, 53, b"question"))
        assert parse(os.read(host, 65535)).destination_port == 53
    made.outbound(craft.udp(CLIENT, 5010, SERVER, 53, b"question"))
    refusal = parse(os.read(client, 65535))
    assert (refusal.icmp_type, refusal.icmp_code) == (3, 3)
    assert refusal.quoted is not None and refusal.quoted.source_port == 5010
    assert str(refusal.destination) == CLIENT
    assert made.refused == 1
