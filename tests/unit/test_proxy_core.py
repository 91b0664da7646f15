# SPDX-License-Identifier: Apache-2.0
"""The proxy's protocols: `<<` what the client sends or became of its request, `>>` what the proxy does about it."""

from __future__ import annotations

import base64
from ipaddress import ip_address

import pytest

from softunicast.proxy.core.front import Front
from softunicast.proxy.core.messages import (
    Associate,
    Claim,
    Close,
    Command,
    Connect,
    Endpoint,
    Failed,
    Opened,
    Reason,
    Received,
    Relay,
    Send,
)
from softunicast.proxy.core.proxy_header import SIGNATURE, BadHeader, read_header, write_header
from softunicast.proxy.core.socks5 import datagram_head, read_datagram

LOCAL = Endpoint(ip_address("198.51.100.20"), 9001)
OPENED = Opened(LOCAL)
SOCKS_OPENED = Send(bytes.fromhex("05000001c633641423 29".replace(" ", "")))


class People:
    """alice has a password; `anonymous` may be somebody."""

    def __init__(self, anonymous: str | None = None) -> None:
        self.anonymous = anonymous

    def check(self, user: str, password: str) -> bool:
        return (user, password) == ("alice", "se:cret")


class Talk:
    """A conversation: `talk << bytes or event`, then `talk >> command` for each command that comes of it."""

    def __init__(self, people: People | None = None, header: bool = False, protocols: tuple[str, ...] = ()) -> None:
        self.front = Front(people or People(), protocols or ("socks5", "http"), header=header)
        self.given: list[Command] = []

    def __lshift__(self, said: bytes | Opened | Failed) -> Talk:
        assert not self.given, f"not expected: {self.given}"
        self.given = list(self.front.handle(Received(said) if isinstance(said, bytes) else said))
        return self

    def __rshift__(self, wanted: Command) -> Talk:
        assert self.given, f"nothing was given; wanted: {wanted}"
        assert self.given.pop(0) == wanted
        return self

    def silence(self) -> None:
        assert self.given == []


def basic(text: str) -> bytes:
    return b"Proxy-Authorization: Basic " + base64.b64encode(text.encode()) + b"\r\n"


def test_socks_with_user_and_password() -> None:
    talk = Talk()
    talk << b"\x05\x02\x00\x02" >> Send(b"\x05\x02")
    talk << b"\x01\x05alice\x07se:cret" >> Send(b"\x01\x00")
    talk << b"\x05\x01\x00\x03\x0bexample.org\x01\xbb" >> Connect("alice", Endpoint("example.org", 443), "socks5")
    talk << OPENED >> SOCKS_OPENED >> Relay()
    talk.silence()


def test_socks_anonymous_all_at_once_and_ahead_of_the_answer() -> None:
    talk = Talk(People("anyone"))
    talk << b"\x05\x01\x00" + b"\x05\x01\x00\x01\xcb\x00\x71\x01\x00\x50" + b"GET /"
    talk >> Send(b"\x05\x00") >> Connect("anyone", Endpoint(ip_address("203.0.113.1"), 80), "socks5")
    talk << b" HTTP/1.0\r\n"
    talk.silence()
    talk << OPENED >> SOCKS_OPENED >> Relay(b"GET / HTTP/1.0\r\n")


def test_socks_byte_by_byte() -> None:
    talk = Talk()
    said = b"\x05\x01\x02" + b"\x01\x05alice\x07se:cret" + b"\x05\x01\x00\x04" + bytes(15) + b"\x09\x00\x50"
    commands = [command for byte in said for command in talk.front.handle(Received(bytes((byte,))))]
    target = Endpoint(ip_address("::9"), 80)
    assert commands == [Send(b"\x05\x02"), Send(b"\x01\x00"), Connect("alice", target, "socks5")]


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        (Reason.REFUSED, 5),
        (Reason.NETWORK_UNREACHABLE, 3),
        (Reason.HOST_UNREACHABLE, 4),
        (Reason.TIMEOUT, 6),
        (Reason.FORBIDDEN, 2),
        (Reason.POOL_FULL, 1),
    ],
)
def test_socks_says_why_not(reason: Reason, code: int) -> None:
    talk = Talk(People("anyone"))
    talk << b"\x05\x01\x00" >> Send(b"\x05\x00")
    talk << b"\x05\x01\x00\x01\xcb\x00\x71\x01\x00\x50"
    talk >> Connect("anyone", Endpoint(ip_address("203.0.113.1"), 80), "socks5")
    talk << Failed(reason, "so it is") >> Send(bytes((5, code, 0, 1, 0, 0, 0, 0, 0, 0))) >> Close(reason, "so it is")
    talk << b"more"
    talk.silence()


def test_socks_wrong_password_and_no_method() -> None:
    talk = Talk(People("anyone"))
    talk << b"\x05\x02\x00\x02" >> Send(b"\x05\x02")
    talk << b"\x01\x05alice\x01x" >> Send(b"\x01\x01")
    talk >> Close(Reason.DENIED, "user 'alice': unknown, or a wrong password")
    Talk() << b"\x05\x01\x00" >> Send(b"\x05\xff") >> Close(Reason.DENIED, "no credentials")


def test_socks_associate_and_bind() -> None:
    talk = Talk(People("anyone"))
    talk << b"\x05\x01\x00" >> Send(b"\x05\x00")
    talk << b"\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00" >> Associate("anyone", Endpoint(ip_address("0.0.0.0"), 0))
    talk << OPENED >> SOCKS_OPENED >> Relay()
    talk = Talk(People("anyone"))
    talk << b"\x05\x01\x00" >> Send(b"\x05\x00")
    talk << b"\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00" >> Send(bytes((5, 7, 0, 1, 0, 0, 0, 0, 0, 0)))
    talk >> Close(Reason.UNSUPPORTED, "SOCKS command 2")


def test_socks_a_wrong_kind_of_address() -> None:
    talk = Talk(People("anyone"))
    talk << b"\x05\x01\x00" >> Send(b"\x05\x00")
    talk << b"\x05\x01\x00\x09\x00\x00" >> Send(bytes((5, 8, 0, 1, 0, 0, 0, 0, 0, 0)))
    talk >> Close(Reason.BAD_REQUEST, "address type 9")


def test_socks_datagrams() -> None:
    head = datagram_head(Endpoint(ip_address("203.0.113.1"), 53))
    assert read_datagram(head + b"x") == (Endpoint(ip_address("203.0.113.1"), 53), len(head))
    assert read_datagram(b"\0\0\0\x03\x04host\x00\x35y") == (Endpoint("host", 53), 11)
    assert read_datagram(b"\0\0\x01" + head[3:]) is None, "a fragment"
    assert read_datagram(b"\0\0\0\x01\x01") is None


def test_connect_with_credentials() -> None:
    talk = Talk()
    talk << b"CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n" + basic("alice:se:cret")
    talk << b"\r\n\x16\x03" >> Connect("alice", Endpoint("example.org", 443), "connect")
    talk << OPENED >> Send(b"HTTP/1.1 200 Connection established\r\n\r\n") >> Relay(b"\x16\x03")


def test_connect_to_an_ipv6_address() -> None:
    talk = Talk(People("anyone"))
    talk << b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: x\r\n\r\n"
    talk >> Connect("anyone", Endpoint(ip_address("2001:db8::1"), 443), "connect")


def answer(talk: Talk) -> tuple[bytes, Close]:
    sent, closed = talk.given
    talk.given = []
    assert isinstance(sent, Send)
    assert isinstance(closed, Close)
    return sent.data, closed


@pytest.mark.parametrize("given", [b"", basic("alice:wrong"), basic("bob"), b"Proxy-Authorization: Basic =\r\n"])
def test_http_without_right_credentials(given: bytes) -> None:
    talk = Talk() << b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n" + given + b"\r\n"
    data, closed = answer(talk)
    assert data.startswith(b"HTTP/1.1 407 Proxy Authentication Required\r\n")
    assert b'proxy-authenticate: Basic realm="softunicast"' in data
    assert closed.why is Reason.DENIED


@pytest.mark.parametrize(
    ("reason", "status", "token"),
    [
        (Reason.REFUSED, b"502 Bad Gateway", b"connection_refused"),
        (Reason.TIMEOUT, b"504 Gateway Timeout", b"connection_timeout"),
        (Reason.POOL_FULL, b"503 Service Unavailable", b"connection_limit_reached"),
        (Reason.FORBIDDEN, b"403 Forbidden", b"destination_ip_prohibited"),
        (Reason.NAME_UNKNOWN, b"502 Bad Gateway", b"dns_error"),
        (Reason.USER_LIMIT, b"429 Too Many Requests", b"connection_limit_reached"),
    ],
)
def test_http_says_why_not(reason: Reason, status: bytes, token: bytes) -> None:
    talk = Talk(People("anyone"))
    talk << b"CONNECT example.org:443 HTTP/1.1\r\nHost: x\r\n\r\n"
    talk >> Connect("anyone", Endpoint("example.org", 443), "connect")
    data, _ = answer(talk << Failed(reason, 'pool "gb"'))
    assert data.startswith(b"HTTP/1.1 " + status + b"\r\n")
    assert b"Proxy-Status: softunicast; error=" + token + b'; details="pool \\"gb\\""\r\n' in data
    assert data.endswith(b'\r\n\r\npool "gb"\n')


def test_a_plain_request_is_rewritten() -> None:
    talk = Talk()
    talk << (
        b"POST http://user@example.org:8080/a?b=c HTTP/1.1\r\nHost: other.org\r\nConnection: keep-alive, X-Hop\r\n"
        b"X-Hop: 1\r\nProxy-Connection: keep-alive\r\nKeep-Alive: 5\r\nAccept: */*\r\nContent-Length: 5\r\n"
        + basic("alice:se:cret")
        + b"\r\nhe"
    )
    talk >> Connect("alice", Endpoint("example.org", 8080), "http")
    (
        talk
        << OPENED
        >> Relay(
            b"POST /a?b=c HTTP/1.1\r\nHost: example.org:8080\r\nAccept: */*\r\nContent-Length: 5\r\n"
            b"Via: 1.1 softunicast\r\nConnection: close\r\n\r\nhe",
            3,
        )
    )


def test_what_follows_a_plain_request_stays_here() -> None:
    talk = Talk(People("anyone"))
    talk << b"GET http://example.org HTTP/1.1\r\nHost: x\r\n\r\nGET http://secret.org/ HTTP/1.1\r\n"
    talk >> Connect("anyone", Endpoint("example.org", 80), "http")
    head = b"GET / HTTP/1.1\r\nHost: example.org\r\nVia: 1.1 softunicast\r\nConnection: close\r\n\r\n"
    talk << OPENED >> Relay(head, 0)


def test_an_upgrade_is_passed_on() -> None:
    talk = Talk(People("anyone"))
    talk << b"GET http://h/ HTTP/1.1\r\nHost: h\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    talk >> Connect("anyone", Endpoint("h", 80), "http")
    head = b"GET / HTTP/1.1\r\nHost: h\r\nVia: 1.1 softunicast\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
    talk << OPENED >> Relay(head, None)


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET https://h/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET http://h:99999/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"GET http://[::1/ HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"CONNECT h HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"CONNECT h:0 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"CONNECT ::1:80 HTTP/1.1\r\nHost: h\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", 400),
        (b"GET http://h/ HTTP/1.1\r\nHost: h\r\nX: " + b"y" * 40000, 431),
        (b"PUT http://h/ HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n", 411),
        (b"PUT http://h/ HTTP/1.1\r\nHost: h\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400),
    ],
)
def test_what_is_no_request(said: bytes, status: int) -> None:
    data, closed = answer(Talk(People("anyone")) << said)
    assert data.startswith(b"HTTP/1.1 %d " % status)
    assert closed.why is Reason.BAD_REQUEST


def test_a_listener_for_one_protocol() -> None:
    Talk(protocols=("http",)) << b"\x05\x01\x00" >> Close(Reason.BAD_REQUEST, "this listener does not speak socks5")
    Talk(protocols=("socks5",)) << b"GET " >> Close(Reason.BAD_REQUEST, "this listener does not speak http")


SOURCE, DESTINATION = Endpoint(ip_address("192.0.2.1"), 50000), Endpoint(ip_address("203.0.113.1"), 443)


def test_a_proxy_header_before_the_rest() -> None:
    talk = Talk(People("anyone"), header=True)
    talk << b"PROXY TCP4 192.0.2.1 203.0.113.1 50000 443\r\n\x05\x01\x00"
    talk >> Claim(SOURCE, DESTINATION) >> Send(b"\x05\x00")
    talk = Talk(People("anyone"), header=True)
    talk << SIGNATURE[:5]
    talk.silence()
    talk << SIGNATURE[5:] + b"\x20\x00\x00\x03tlv" >> Claim(None)
    talk << b"\x05\x01\x00" >> Send(b"\x05\x00")
    Talk(header=True) << b"\x05\x01\x00" >> Close(Reason.BAD_REQUEST, "no PROXY header")


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize(("a", "b"), [("192.0.2.1", "203.0.113.1"), ("2001:db8::1", "2001:db8::2")])
def test_proxy_headers_there_and_back(version: int, a: str, b: str) -> None:
    source, destination = Endpoint(ip_address(a), 1), Endpoint(ip_address(b), 65535)
    header = write_header(version, source, destination)
    assert read_header(header + b"rest") == (Claim(source, destination), len(header))
    assert all(read_header(header[:cut]) is None for cut in range(len(header)))


@pytest.mark.parametrize(
    "header",
    [
        b"PROXY TCP4 192.0.2.1 203.0.113.1 50000 65536\r\n",
        b"PROXY TCP4 192.0.2.1 ::1 1 2\r\n",
        b"PROXY UDP4 192.0.2.1 203.0.113.1 1 2\r\n",
        b"PROXY TCP4 " + b"1" * 100,
        b"GET / HTTP/1.1\r\n",
        SIGNATURE + b"\x31\x11\x00\x0c" + bytes(12),
        SIGNATURE + b"\x21\x11\x00\x0b" + bytes(11),
        SIGNATURE + b"\x21\x11\xff\xff",
    ],
)
def test_wrong_proxy_headers(header: bytes) -> None:
    with pytest.raises(BadHeader):
        read_header(header)
