# SPDX-License-Identifier: Apache-2.0
"""A QUIC server that says whom it sees, and its client. Ordinary programs: nothing here knows softunicast.

    python quic_end.py serve ADDRESS PORT FOLDER       certificate and key are made in FOLDER; prints "ready"
    python quic_end.py fetch ADDRESS PORT BYTES        prints {"seen": "ADDRESS:PORT", "bytes": N, "right": bool}

One bidirectional stream: the client sends the number of bytes it wants, the server answers with a line, the address and
port that it sees, and the bytes. QUIC by aioquic (RFC 9000); ALPN "softunicast-test".
"""

from __future__ import annotations

import asyncio
import datetime
import json
import ssl
import sys
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from aioquic.asyncio import QuicConnectionProtocol, connect, serve
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

ALPN = ["softunicast-test"]
LINE = b"every byte of this stream has come the whole way\n"


def body(count: int) -> bytes:
    return (LINE * (count // len(LINE) + 1))[:count]


def certificate(folder: Path, address: str | None = None) -> tuple[Path, Path]:
    """A self-signed certificate (for that address, too) and its key, PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "quic.example")])
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
    if address is not None:
        names = x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))])
        builder = builder.add_extension(names, critical=False)
    made = builder.sign(key, hashes.SHA256())
    paths = folder / "quic.crt", folder / "quic.key"
    paths[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


class Server(QuicConnectionProtocol):
    """One connection; `peer` is where its datagrams come from."""

    def __init__(self, quic: QuicConnection, stream_handler: object = None) -> None:
        super().__init__(quic, self.answer)
        self.peer: tuple[Any, ...] = ("", 0)

    def datagram_received(self, data: bytes | str, addr: Any) -> None:
        self.peer = addr
        super().datagram_received(data, addr)

    def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(self._answer(reader, writer))
        self._answering = task  # asyncio keeps tasks by weak references only

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = int(await reader.readline())
        writer.write(f"{self.peer[0]}:{self.peer[1]}\n".encode() + body(count))
        writer.write_eof()


async def serve_for_good(address: str, port: int, folder: Path) -> None:
    configuration = QuicConfiguration(is_client=False, alpn_protocols=ALPN)
    configuration.load_cert_chain(*certificate(folder))
    await serve(address, port, configuration=configuration, create_protocol=Server)
    print("ready", flush=True)
    await asyncio.Event().wait()


async def fetch(address: str, port: int, count: int) -> None:
    configuration = QuicConfiguration(is_client=True, alpn_protocols=ALPN, verify_mode=ssl.CERT_NONE)
    async with connect(address, port, configuration=configuration) as client:
        reader, writer = await client.create_stream()
        writer.write(f"{count}\n".encode())
        writer.write_eof()
        seen = (await reader.readline()).decode().strip()
        received = await reader.read()
    print(json.dumps({"seen": seen, "bytes": len(received), "right": received == body(count)}))


def main(what: str, address: str, port: str, last: str) -> None:
    if what == "serve":
        asyncio.run(serve_for_good(address, int(port), Path(last)))
    else:
        asyncio.run(asyncio.wait_for(fetch(address, int(port), int(last)), 30))


if __name__ == "__main__":
    main(*sys.argv[1:])
