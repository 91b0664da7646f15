# SPDX-License-Identifier: Apache-2.0
"""Clients of the fleet reach each other: two punch a UDP hole (RFC 5128 section 3.3) through mappings that let in only
whom they sent to, behind one node, two nodes, two sites.

Each learns its own outer address from an echo server of the internet, as from STUN, and tells the other. What goes
between them stays within the fleet: it turns round at the sender's node and is carried to the receiver's.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from softunicast.kernel.abi import Counter, Drop
from tests.support.fleet_lab import FleetLab, fleet_lab
from tests.support.wait import wait_until

ECHO = {4: ("203.0.113.7", 7), 6: ("2001:db8:f::7", 7)}
KEYS = ", mapping: endpoint-independent, filtering: address-and-port-dependent"
PATIENCE_S = 15
NODE = {"c1": "lhr1", "t1": "lhr1", "c2": "lhr2", "t2": "lhr2", "c3": "cdg1", "t4": "cdg2"}
FLEET = ("198.51.100.", "2001:db8:100::")


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with fleet_lab("punch", onramp_keys=KEYS) as lab:
        yield lab


class Peer:
    """A client's socket and its outer address."""

    def __init__(self, lab: FleetLab, name: str, version: int) -> None:
        with lab.enter(name):
            self.socket = socket.socket(socket.AF_INET if version == 4 else socket.AF_INET6, socket.SOCK_DGRAM)
        self.socket.settimeout(PATIENCE_S)
        self.outer = self.ask(ECHO[version])

    def ask(self, server: tuple[str, int]) -> tuple[str, int]:
        """What that echo server says that it saw."""
        self.socket.sendto(b"who am I?", server)
        place, _, _ = self.socket.recv(100).decode().partition(" ")
        address, _, port = place.rpartition(":")
        return address.strip("[]"), int(port)

    def hears(self) -> tuple[bytes, tuple[str, int]] | None:
        """The next datagram and whom it is from; None: nothing is waiting."""
        self.socket.setblocking(False)
        try:
            data, source = self.socket.recvfrom(100)
        except BlockingIOError:
            return None
        finally:
            self.socket.settimeout(PATIENCE_S)
        return data, source[:2]

    def waits(self) -> tuple[bytes, tuple[str, int]]:
        data, source = self.socket.recvfrom(100)
        return data, source[:2]


PAIRS = [("c1", "c3"), ("c1", "t1"), ("c1", "c2"), ("t2", "t4")]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("one", "other"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_two_clients_punch_a_hole(lab: FleetLab, one: str, other: str, version: int) -> None:
    filtered = lab.stats(NODE[other])[0][Drop.FILTERED]
    turned = lab.stats(NODE[one])[1][Counter.HAIRPINNED]
    with lab.capture() as capture:
        first, second = Peer(lab, one, version), Peer(lab, other, version)
        with first.socket, second.socket:
            assert first.outer != second.outer
            assert first.outer[0].startswith(FLEET[version == 6])
            first.socket.sendto(b"too early", second.outer)
            wait_until(
                lambda: lab.stats(NODE[other])[0][Drop.FILTERED] == filtered + 1, 10, "the other has not called yet"
            )
            second.socket.sendto(b"hello", first.outer)
            assert first.waits() == (b"hello", second.outer), "seen from its outer address (RFC 4787 REQ-9a)"
            first.socket.sendto(b"hello back", second.outer)
            assert second.waits() == (b"hello back", first.outer)
            assert second.hears() is None
            assert lab.stats(NODE[one])[1][Counter.HAIRPINNED] >= turned + 2
            # And the mapping is one for all remotes.
            for server in (lab.fresh(), lab.fresh()) if version == 4 else ():
                assert first.ask((server, 7)) == first.outer
    report = capture.report()
    assert report.ok, report.problems()


def test_an_error_comes_back_from_client_to_client(lab: FleetLab) -> None:
    """RFC 5508 REQ-7: nobody listens any more at the other's port, and its host says so."""
    first, second = Peer(lab, "c1", 4), Peer(lab, "c3", 4)
    with first.socket, second.socket:
        second.socket.sendto(b"hello", first.outer)
        first.socket.sendto(b"hello", second.outer)
        assert second.waits() == (b"hello", first.outer)
        second.socket.close()
        first.socket.connect(second.outer)
        first.socket.send(b"are you there?")
        with pytest.raises(ConnectionRefusedError):
            # The other's "hello" may have been let in, when ours was there before it.
            for _ in range(2):
                first.socket.recv(10)


def test_no_destination_is_logged(lab: FleetLab) -> None:
    """RFC 6888 REQ-12: agents' logs know nodes and slices, but not where flows go."""
    destination = lab.fresh()
    for name, node in NODE.items():
        peer = Peer(lab, name, 4)
        with peer.socket:
            assert peer.ask((destination, 7)) == peer.outer
            assert peer.outer[0] in str(lab.json(node, "flows"))
    logs = {node: lab.log(f"agent-{node}") for node in NODE.values()}
    assert all("attachment" in log for log in logs.values())
    assert [node for node, log in logs.items() if destination in log or ECHO[4][0] in log] == []
