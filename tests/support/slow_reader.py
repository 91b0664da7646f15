# SPDX-License-Identifier: Apache-2.0
"""Download slowly until a file appears, then as fast as it goes; say how many bytes came and whether they were right.

python slow_reader.py ADDRESS BYTES HURRY_FILE
"""

from __future__ import annotations

import select
import socket
import sys
from pathlib import Path


def main() -> None:
    address, count, hurry = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    with socket.create_connection((address, 80), timeout=60) as sock:
        own = "{}:{}".format(*sock.getsockname())
        sock.sendall(f"GET /bytes/{count}?token={own} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        data = bytearray()
        while piece := sock.recv(65536 if hurry.exists() else 4096):
            data += piece
            if not hurry.exists():
                select.select([], [], [], 0.05)
    body = bytes(data).partition(b"\r\n\r\n")[2]
    line = f"{own}\n".encode()
    right = body == (line * (count // len(line) + 1))[:count]
    print(f"{len(body)} {'right' if right else 'wrong'}")


if __name__ == "__main__":
    main()
