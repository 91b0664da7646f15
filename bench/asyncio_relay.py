# SPDX-License-Identifier: Apache-2.0
"""The relay that one writes first: asyncio streams. `python asyncio_relay.py PORT HOST PORT`."""

from __future__ import annotations

import asyncio
import sys


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()
    except OSError:
        writer.transport.abort()


async def main(port: int, host: str, to: int) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, here = await asyncio.open_connection(host, to)
        await asyncio.gather(pass_on(reader, here), pass_on(there, writer))
        here.close()
        writer.close()

    async with await asyncio.start_server(serve, "0.0.0.0", port, backlog=4096) as server:
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
