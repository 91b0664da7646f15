# SPDX-License-Identifier: Apache-2.0
"""The proxy's resolver against a server of ours on the loopback: cached by TTL, joined, truncated, silent, lying."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address
from threading import Thread

import dns.flags
import dns.message
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest

from softunicast.model.address import IPAddress
from softunicast.proxy.core.messages import Reason
from softunicast.proxy.dns import Resolver
from softunicast.proxy.loop import Loop

HERE = ip_address("127.0.0.1")
RECORDS = {
    ("both.example.", "A"): (60, ["192.0.2.1", "192.0.2.2"]),
    ("both.example.", "AAAA"): (60, ["2001:db8::1"]),
    ("four.example.", "A"): (1, ["192.0.2.4"]),
    ("big.example.", "A"): (60, [f"192.0.2.{number}" for number in range(1, 200)]),
    ("alias.example.", "CNAME"): (60, ["four.example."]),
}


def same_port() -> tuple[socket.socket, socket.socket]:
    """A listener and a UDP socket; the port of one may be somebody's of the other kind."""
    while True:
        tcp, udp = socket.create_server(("127.0.0.1", 0)), socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            udp.bind(tcp.getsockname())
        except OSError:
            tcp.close()
            udp.close()
            continue
        return tcp, udp


class Server:
    """A name server that counts; `lies`: first answers with another id."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, str]] = []
        self.lies = False
        self.tcp, self.udp = same_port()
        self.port = self.udp.getsockname()[1]
        for work in (self._datagrams, self._streams):
            Thread(target=work, daemon=True).start()

    def close(self) -> None:
        self.tcp.shutdown(socket.SHUT_RD)  # wakes accept()
        self.tcp.close()
        self.udp.close()

    def answer(self, data: bytes) -> dns.message.Message:
        question = dns.message.from_wire(data)
        name, kind = question.question[0].name, dns.rdatatype.to_text(question.question[0].rdtype)
        self.asked.append((str(name), kind))
        answer = dns.message.make_response(question)
        alias = RECORDS.get((str(name), "CNAME"))
        if alias is not None:
            answer.answer.append(dns.rrset.from_text(name, alias[0], "IN", "CNAME", *alias[1]))
            name = answer.answer[0][0].target
        found = RECORDS.get((str(name), kind))
        if found is not None:
            answer.answer.append(dns.rrset.from_text(name, found[0], "IN", kind, *found[1]))
        elif not any(one == str(name) for one, _ in RECORDS):
            answer.set_rcode(dns.rcode.NXDOMAIN)
        return answer

    def _datagrams(self) -> None:
        while True:
            try:
                data, client = self.udp.recvfrom(4096)
            except OSError:
                return
            if b"mute" in data:
                continue
            answer = self.answer(data)
            if b"big" in data:
                answer.answer.clear()
                answer.flags |= dns.flags.TC
            if self.lies:
                right, answer.id = answer.id, answer.id ^ 1
                self.udp.sendto(answer.to_wire(), client)
                answer.id = right
            self.udp.sendto(answer.to_wire(), client)

    def _streams(self) -> None:
        while True:
            try:
                client, _ = self.tcp.accept()
            except OSError:
                return
            with client:
                data = client.recv(4096)
                wire = self.answer(data[2:]).to_wire(max_size=65535)
                client.sendall(len(wire).to_bytes(2, "big") + wire)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


class Asker:
    """A resolver in a loop that runs until all are answered."""

    def __init__(self, server: Server, timeout_s: float = 20) -> None:
        self.loop = Loop()
        self.resolver = Resolver(self.loop, [HERE], timeout_s, port=server.port)

    def ask(self, *names: str) -> list[tuple[list[str], list[Reason]]]:
        left = len(names)
        results: list[tuple[list[str], list[Reason]]] = []

        def told_of(at: int) -> Callable[[object, Reason | None, bool], None]:
            def told(addresses: object, reason: Reason | None, last: bool) -> None:
                nonlocal left
                assert isinstance(addresses, tuple)
                got: tuple[IPAddress, ...] = addresses
                results[at][0].extend(map(str, got))
                if reason is not None:
                    results[at][1].append(reason)
                left -= last
                if not left:
                    self.loop.stop()

            return told

        for at, name in enumerate(names):
            results.append(([], []))
            self.resolver.ask(name, told_of(at))
        if left:
            self.loop.later(30, self.loop.stop)
            self.loop.run()
        return results


def test_both_families_asked_once_and_kept(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softunicast.proxy.dns.TRY_S", 20)
    asker = Asker(server)
    first, second = asker.ask("both.example", "both.example")
    assert sorted(first[0]) == sorted(second[0]) == ["192.0.2.1", "192.0.2.2", "2001:db8::1"]
    kept = asker.ask("both.example")[0]
    assert sorted(kept[0]) == sorted(first[0])
    assert sorted(server.asked) == [("both.example.", "A"), ("both.example.", "AAAA")]


def test_no_longer_than_the_ttl(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("softunicast.proxy.dns.TRY_S", 20)
    asker = Asker(server)
    assert asker.ask("four.example")[0] == (["192.0.2.4"], [Reason.NAME_UNKNOWN])
    asker.loop.now = time.monotonic() + 2
    assert asker.ask("four.example")[0][0] == ["192.0.2.4"]
    assert server.asked.count(("four.example.", "A")) == 2


def test_aliases_truncation_and_what_is_not(server: Server) -> None:
    alias, big, none = Asker(server).ask("alias.example", "big.example", "none.example")
    assert alias[0] == ["192.0.2.4"]
    assert len(big[0]) == 199
    assert none == ([], [Reason.NAME_UNKNOWN] * 2)


def test_an_answer_to_something_else_is_none(server: Server) -> None:
    server.lies = True
    assert Asker(server).ask("four.example")[0][0] == ["192.0.2.4"]


def test_silence_has_an_end(server: Server) -> None:
    assert Asker(server, timeout_s=0.2).ask("mute.example")[0] == ([], [Reason.NAME_TIMEOUT] * 2)


@pytest.mark.parametrize("name", ["a..b", "x" * 64 + ".example"])
def test_names_that_are_none(server: Server, name: str) -> None:
    assert Asker(server).ask(name)[0] == ([], [Reason.NAME_UNKNOWN])
