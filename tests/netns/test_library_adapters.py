# SPDX-License-Identifier: Apache-2.0
"""httpx, requests, urllib3 and aiohttp from slices, plain and TLS, kept alive, crowded and refused."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anyio
import httpx
import pytest
import requests
import urllib3

import softunicast
from softunicast.client import aiohttp as sliced_aiohttp
from softunicast.client.httpx import AsyncTransport, Transport
from softunicast.client.requests import Adapter
from softunicast.client.urllib3 import pool_manager
from softunicast.kernel import netns
from tests.support.quic_end import certificate
from tests.support.sock_node import ADDRESS, ADDRESS2, WORLD, SockNode
from tests.support.whoami import serving

SLICES = ((ADDRESS, 9000, 9009), (ADDRESS2, 40000, 40001))
URL, TLS_URL, CLOSED_URL = f"http://{WORLD}/", f"https://{WORLD}/", f"http://{WORLD}:81/"


@dataclass
class World:
    node: SockNode
    tls: ssl.SSLContext
    ca: Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A web server on ports 80 and 443; this thread is in the node's namespace."""
    file, key = certificate(tmp_path, WORLD)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(file, key)
    asking = ssl.create_default_context(cafile=str(file))
    with SockNode(pinned=True, slices=SLICES) as node:
        plain, tls = node.server(80), node.server(443)
        wrapped = server.wrap_socket(tls, server_side=True, do_handshake_on_connect=False)
        with serving([plain, wrapped]), netns.enter(node.name):
            yield World(node, asking, file)


def sliced(said: str) -> bool:
    host, _, port = said.rpartition(":")
    return host == ADDRESS and int(port) in range(9000, 9010)


def sent(said: str, other: str) -> None:
    """Two answers of one connection, from a slice."""
    assert sliced(said) and said == other


def test_httpx(world: World) -> None:
    with httpx.Client(transport=Transport(pool="ten", verify=world.tls)) as client:
        sent(client.get(URL).text, client.get(URL).text)
        sent(client.get(TLS_URL).text, client.get(TLS_URL).text)
        with pytest.raises(httpx.ConnectError, match=f"{WORLD}:81"):
            client.get(CLOSED_URL)


def test_httpx_with_a_full_slice(world: World) -> None:
    taken = [softunicast.connect((WORLD, 80), pool="other", timeout=5) for _ in range(2)]
    with httpx.Client(transport=Transport(country="FR")) as client:
        with pytest.raises(httpx.ConnectError, match=f"{ADDRESS2}:40000-40001: no port is left") as no:
            client.get(URL)
        cause: BaseException | None = no.value
        while cause is not None and not isinstance(cause, softunicast.SliceFull):
            cause = cause.__cause__ or cause.__context__
        assert cause is not None, "who catches httpx's error finds ours behind it"
    for one in taken:
        one.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_httpx_async(world: World, backend: str) -> None:
    async def talk() -> None:
        async with httpx.AsyncClient(transport=AsyncTransport(pool="ten", verify=world.tls)) as client:
            sent((await client.get(URL)).text, (await client.get(URL)).text)
            sent((await client.get(TLS_URL)).text, (await client.get(TLS_URL)).text)
            with pytest.raises(httpx.ConnectError, match=f"{WORLD}:81"):
                await client.get(CLOSED_URL)

    anyio.run(talk, backend=backend)


def test_requests(world: World) -> None:
    with requests.Session() as session:
        session.mount("http://", Adapter(pool="ten"))
        session.mount("https://", Adapter(pool="ten"))
        sent(session.get(URL, timeout=5).text, session.get(URL, timeout=5).text)
        sent(*(session.get(TLS_URL, timeout=5, verify=str(world.ca)).text for _ in range(2)))
        with pytest.raises(requests.ConnectionError, match=f"{WORLD}:81"):
            session.get(CLOSED_URL, timeout=5)


def test_requests_by_a_proxy(world: World) -> None:
    with requests.Session() as session:
        session.mount("http://", Adapter(pool="ten"))
        proxies = {"http": f"http://{WORLD}:80"}
        assert sliced(session.get("http://origin.example/", timeout=5, proxies=proxies).text), "whom the proxy saw"
        with pytest.raises(softunicast.UsageError, match="only HTTP proxies"):
            session.get("http://origin.example/", timeout=5, proxies={"http": f"socks5h://{WORLD}:80"})


def test_urllib3(world: World) -> None:
    with pool_manager(pool="ten", manager={"ca_certs": str(world.ca)}) as pool:

        def get(url: str) -> str:
            return pool.request("GET", url, retries=False, timeout=5).data.decode()

        sent(get(URL), get(URL))
        sent(get(TLS_URL), get(TLS_URL))
        with pytest.raises(urllib3.exceptions.NewConnectionError, match=f"{WORLD}:81"):
            get(CLOSED_URL)
    taken = [softunicast.connect((WORLD, 80), pool="other", timeout=5) for _ in range(2)]
    with (
        pool_manager(pool="other") as full,
        pytest.raises(urllib3.exceptions.NewConnectionError, match="no port is left") as no,
    ):
        full.request("GET", URL, retries=False)
    assert isinstance(no.value.__cause__, softunicast.SliceFull)
    for one in taken:
        one.close()


def in_aiohttp(work: Callable[[aiohttp.ClientSession], Awaitable[None]], **choice: Any) -> None:
    async def talk() -> None:
        async with aiohttp.ClientSession(connector=sliced_aiohttp.connector(**choice)) as session:
            await work(session)

    anyio.run(talk)


@pytest.mark.parametrize("way", ["tag", "bind"])
def test_aiohttp(world: World, way: str) -> None:
    async def talk(session: aiohttp.ClientSession) -> None:
        async def get(url: str) -> str:
            async with session.get(url, ssl=world.tls) as answer:
                return await answer.text()

        sent(await get(URL), await get(URL))
        sent(await get(TLS_URL), await get(TLS_URL))
        with pytest.raises(aiohttp.ClientConnectorError, match=f"{WORLD}:81"):
            await get(CLOSED_URL)

    in_aiohttp(talk, pool="ten", way=way)


def test_aiohttp_with_a_full_slice(world: World) -> None:
    taken = [softunicast.connect((WORLD, 80), pool="other", timeout=5) for _ in range(2)]

    async def talk(session: aiohttp.ClientSession) -> None:
        with pytest.raises(aiohttp.ClientConnectorError, match="no port is left") as no:
            await session.get(URL)
        assert isinstance(no.value.os_error, softunicast.SliceFull)

    in_aiohttp(talk, pool="other")
    for one in taken:
        one.close()
