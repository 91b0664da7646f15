# SPDX-License-Identifier: Apache-2.0
"""The proxy's protocols under damaged input, cut anywhere: no exception, and the cuts do not matter.

Short here; SOFTUNICAST_FUZZ_SECONDS=600 is the long way.
"""

from __future__ import annotations

import os
import random
import time
from ipaddress import ip_address

from softunicast.proxy.core.front import Front
from softunicast.proxy.core.messages import Close, Command, Connect, Endpoint, Failed, Opened, Reason, Received
from softunicast.proxy.core.proxy_header import write_header
from softunicast.proxy.core.socks5 import BadAddress, datagram_head, read_datagram

SECONDS = float(os.environ.get("SOFTUNICAST_FUZZ_SECONDS", "4"))
A, B = Endpoint(ip_address("192.0.2.1"), 1000), Endpoint(ip_address("2001:db8::1"), 443)
SEEDS: tuple[bytes, ...] = (
    b"\x05\x01\x00\x05\x01\x00\x03\x0bexample.org\x01\xbbGET / HTTP/1.0\r\n\r\n",
    b"\x05\x02\x00\x02\x01\x05alice\x06secret\x05\x01\x00\x04" + bytes(15) + b"\x01\x00\x50",
    b"\x05\x01\x00\x05\x03\x00\x01\0\0\0\0\0\0",
    b"CONNECT [2001:db8::1]:443 HTTP/1.1\r\nHost: a\r\nProxy-Authorization: Basic YWxpY2U6c2VjcmV0\r\n\r\n\x16\x03",
    b"GET http://user@example.org:8080/a?b=c HTTP/1.1\r\nHost: b\r\n"
    b"Connection: x, upgrade\r\nUpgrade: websocket\r\nX: y\r\n\r\n",
    b"POST http://example.org HTTP/1.1\r\nHost: b\r\nContent-Length: 5\r\n\r\nhello again",
    b"PUT http://example.org HTTP/1.1\r\nHost: b\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
)


class Anybody:
    anonymous: str | None = "me"

    def check(self, user: str, password: str) -> bool:
        return (user, password) == ("alice", "secret")


def damaged(chance: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(chance.choice((0, 1, 1, 2, 8))):
        at = chance.randrange(len(made) + 1)
        match chance.randrange(4):
            case 0 if made:
                made[at % len(made)] = chance.randrange(256)
            case 1:
                made[at:at] = chance.randbytes(chance.randint(1, 9))
            case 2:
                del made[at : at + chance.randint(1, 9)]
            case _:
                made[at:at] = made[: chance.randint(0, 40)]
    return bytes(made)


def talk(pieces: list[bytes], *, header: bool) -> list[Command]:
    """All commands until the connection is asked for, or closed; what is sent together counts as one."""
    front, given = Front(Anybody(), header=header), []
    for piece in pieces:
        given += front.handle(Received(piece))
    return given


def cut(chance: random.Random, data: bytes) -> list[bytes]:
    at = sorted(chance.randrange(len(data) + 1) for _ in range(chance.randint(0, 5)))
    return [data[first:last] for first, last in zip([0, *at], [*at, len(data)], strict=True) if first < last]


def test_any_bytes_any_cuts() -> None:
    seed = int(os.environ.get("SOFTUNICAST_SEED", time.time_ns() % 1_000_000_007))
    print(f"seed {seed}")
    chance = random.Random(seed)
    counts = {"asked": 0, "closed": 0, "waiting": 0}
    ends = time.monotonic() + SECONDS
    while time.monotonic() < ends or min(counts.values()) <= 80:
        header = chance.random() < 0.3
        data = damaged(chance, (write_header(chance.choice((1, 2)), A, A) if header else b"") + chance.choice(SEEDS))
        whole, parts = talk([data], header=header), talk(cut(chance, data), header=header)
        assert whole == parts or reasons(whole) == reasons(parts) != [], (data, whole, parts)
        last = whole[-1] if whole else None
        counts["closed" if isinstance(last, Close) else "asked" if isinstance(last, Connect) else "waiting"] += 1
    print(counts)


def reasons(commands: list[Command]) -> list[Reason]:
    """Why it was closed: what a message for people quotes may depend on how much had come."""
    return [one.why for one in commands if isinstance(one, Close)]


def test_whatever_came_before_an_answer_can_be_given() -> None:
    seed = int(os.environ.get("SOFTUNICAST_SEED", time.time_ns() % 1_000_000_007))
    print(f"seed {seed}")
    chance = random.Random(seed)
    ends = time.monotonic() + SECONDS / 2
    count = 0
    while time.monotonic() < ends or count <= 200:
        front = Front(Anybody())
        list(front.handle(Received(damaged(chance, chance.choice(SEEDS)))))
        for event in (chance.choice((Opened(A), Opened(B), Failed(chance.choice(list(Reason)), "\0ü\r\nx"))),) * 2:
            for one in front.handle(event):
                assert b"\nx" not in getattr(one, "data", b"").split(b"\r\n\r\n")[0], "a header smuggled in"
        list(front.handle(Received(chance.randbytes(20))))
        count += 1


def test_datagrams() -> None:
    chance = random.Random(1)
    read = 0
    for _ in range(20000):
        data = damaged(chance, datagram_head(chance.choice((A, B))) + b"payload")
        try:
            got = read_datagram(data)
        except BadAddress:
            continue
        if got is not None:
            read += 1
            assert 0 < got[1] <= len(data)
    assert read > 1000
