# SPDX-License-Identifier: Apache-2.0
"""An HTTP/3 server that says whom it sees, and a client that reaches it through UDP ASSOCIATE of a SOCKS5 proxy.

    python h3_end.py serve ADDRESS PORT FOLDER          certificate and key are made in FOLDER; prints "ready"
    python h3_end.py get PROXY PORT ADDRESS PORT BYTES  prints {"status", "seen": "ADDRESS:PORT", "right": bool}

GET /N is answered with N bytes and a header `seen`, POST with the number of bytes that came. HTTP/3 and QUIC by
aioquic; it takes any transport of datagrams, here one that puts RFC 1928's header (section 7) before each.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from aioquic.asyncio import QuicConnectionProtocol, serve
from aioquic.h3.connection import H3_ALPN, H3Connection
from aioquic.h3.events import DataReceived, H3Event, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import QuicEvent

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
from tests.support.quic_end import body, certificate  # noqa: E402 - it is run as a program, too

PATIENCE_S = 60
UPLOAD_BYTES = 100_000


class Http3(QuicConnectionProtocol):
    """Bodies whole, by stream."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.http = H3Connection(self._quic)
        self.heads: dict[int, dict[str, str]] = {}
        self.bodies: dict[int, bytes] = {}

    def quic_event_received(self, event: QuicEvent) -> None:
        for each in self.http.handle_event(event):
            self.http_event(each)
        self.transmit()

    def http_event(self, event: H3Event) -> None:
        if isinstance(event, HeadersReceived):
            self.heads[event.stream_id] = {name.decode(): value.decode() for name, value in event.headers}
            self.bodies[event.stream_id] = b""
        elif isinstance(event, DataReceived):
            self.bodies[event.stream_id] += event.data
        if isinstance(event, HeadersReceived | DataReceived) and event.stream_ended:
            self.whole(event.stream_id, self.heads.pop(event.stream_id), self.bodies.pop(event.stream_id))

    def whole(self, stream: int, head: dict[str, str], body: bytes) -> None:
        raise NotImplementedError

    def say(self, stream: int, head: dict[str, str], body: bytes = b"") -> None:
        packed = [(name.encode(), value.encode()) for name, value in head.items()]
        self.http.send_headers(stream, packed, end_stream=not body)
        if body:
            self.http.send_data(stream, body, end_stream=True)
        self.transmit()


class Server(Http3):
    """`peer` is where its datagrams come from."""

    def __init__(self, quic: QuicConnection, stream_handler: object = None) -> None:
        super().__init__(quic)
        self.peer: tuple[Any, ...] = ("", 0)

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        self.peer = addr
        super().datagram_received(data, addr)

    def whole(self, stream: int, head: dict[str, str], body_: bytes) -> None:
        answer = body(int(head[":path"][1:])) if head[":method"] == "GET" else str(len(body_)).encode()
        self.say(stream, {":status": "200", "seen": f"{self.peer[0]}:{self.peer[1]}"}, answer)


class Client(Http3):
    """`ask()`: a request, its answer's head and body."""

    def __init__(self, quic: QuicConnection) -> None:
        super().__init__(quic)
        self._answers: dict[int, asyncio.Future[tuple[dict[str, str], bytes]]] = {}

    def whole(self, stream: int, head: dict[str, str], body: bytes) -> None:
        self._answers.pop(stream).set_result((head, body))

    async def ask(self, method: str, path: str, body: bytes = b"") -> tuple[dict[str, str], bytes]:
        stream = self._quic.get_next_available_stream_id()
        answer = self._answers[stream] = asyncio.get_running_loop().create_future()
        head = {":method": method, ":scheme": "https", ":authority": "quic.example", ":path": path}
        self.say(stream, head, body)
        return await answer


class Associated(asyncio.DatagramTransport):
    """The transport of `inner`, a protocol that speaks with remotes, over a socket that speaks with the proxy."""

    def __init__(self, inner: asyncio.DatagramProtocol) -> None:
        super().__init__()
        self._inner = inner
        self._outer: asyncio.DatagramTransport | None = None

    # The protocol of the socket

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._outer = cast(asyncio.DatagramTransport, transport)
        self._inner.connection_made(self)

    def datagram_received(self, data: bytes, addr: Any) -> None:
        length = {1: 4, 4: 16}[data[3]]
        assert data[:3] == bytes(3), "no fragments"
        source = (str(ip_address(data[4 : 4 + length])), int.from_bytes(data[4 + length : 6 + length], "big"))
        self._inner.datagram_received(data[6 + length :], source)

    def error_received(self, error: Exception) -> None:
        self._inner.error_received(error)

    def connection_lost(self, error: Exception | None) -> None:
        self._inner.connection_lost(error)

    # The transport of the protocol

    def sendto(self, data: Any, addr: Any = None) -> None:
        assert self._outer is not None
        address = ip_address(addr[0])
        head = b"\0\0\0" + bytes((1 if address.version == 4 else 4,)) + address.packed + addr[1].to_bytes(2, "big")
        self._outer.sendto(head + bytes(data))

    def close(self) -> None:
        assert self._outer is not None
        self._outer.close()


async def associate(proxy: tuple[str, int]) -> tuple[asyncio.StreamWriter, tuple[str, int]]:
    """The TCP connection that an association lives as long as, and where its datagrams go (RFC 1928 sections 4, 6)."""
    reader, writer = await asyncio.open_connection(*proxy)
    writer.write(b"\x05\x01\x00\x05\x03\x00\x01" + bytes(6))
    method, answer = await reader.readexactly(2), await reader.readexactly(10)
    assert (method, answer[:4]) == (b"\x05\x00", b"\x05\x00\x00\x01"), (method, answer)
    return writer, (str(ip_address(answer[4:8])), int.from_bytes(answer[8:], "big"))


async def get(proxy: tuple[str, int], target: tuple[str, int], count: int) -> dict[str, Any]:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=H3_ALPN, verify_mode=ssl.CERT_NONE)
    configuration.server_name = "quic.example"
    control, relay = await associate(proxy)
    client = Client(QuicConnection(configuration=configuration))
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: Associated(client), remote_addr=relay)  # type: ignore[arg-type]
    client.connect(target)
    await client.wait_connected()
    asked = [client.ask("GET", f"/{count}"), client.ask("GET", "/10"), client.ask("POST", "/", body(UPLOAD_BYTES))]
    (head, first), (_, second), (_, third) = await asyncio.gather(*asked)
    client.close()
    await client.wait_closed()
    control.close()
    right = (first, second, third) == (body(count), body(10), str(UPLOAD_BYTES).encode())
    return {"status": head[":status"], "seen": head["seen"], "right": right}


async def serve_for_good(address: str, port: int, folder: Path) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=H3_ALPN)
    configuration.load_cert_chain(*certificate(folder))
    await serve(address, port, configuration=configuration, create_protocol=Server)
    print("ready", flush=True)
    await asyncio.Event().wait()


def main(what: str, *rest: str) -> None:
    if what == "serve":
        asyncio.run(serve_for_good(rest[0], int(rest[1]), Path(rest[2])))
    else:
        asked = get((rest[0], int(rest[1])), (rest[2], int(rest[3])), int(rest[4]))
        print(json.dumps(asyncio.run(asyncio.wait_for(asked, PATIENCE_S))))


if __name__ == "__main__":
    main(*sys.argv[1:])
