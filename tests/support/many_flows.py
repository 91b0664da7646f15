# SPDX-License-Identifier: Apache-2.0
"""Keep many flows alive: half TCP, half UDP, to the lab's echo server; say after each line on stdin how they fared.

python many_flows.py ADDRESS PORT COUNT

Every flow sends a new word and waits for its echo, all of them again and again. A line on stdin ends the round; the
answer is "COUNT flows, ROUNDS rounds" or what went wrong. A datagram that is lost is not sent again: it went wrong; and
so is an answer that says that the flow comes from another address or port than at first.
"""

from __future__ import annotations

import select
import socket
import sys
from dataclasses import dataclass

PATIENCE_S = 20
PAUSE_S = 0.05


@dataclass
class Flow:
    """One socket. `seen_as`: who the server says it is."""

    sock: socket.socket
    stream: bool
    seen_as: bytes = b""

    def answer(self, word: bytes) -> None:
        """Wait for the echo; OSError when it is another. A stream says once who it is, each datagram does."""
        if not self.stream:
            seen_as, _, got = self.sock.recv(2048).partition(b" ")
        else:
            seen_as, got = self.seen_as, b""
            while not seen_as.endswith(b"\n"):
                seen_as += self._some(1)
            while len(got) < len(word):
                got += self._some(len(word) - len(got))
        if got != word or self.seen_as not in (b"", seen_as):
            raise OSError(f"{seen_as!r}, {got!r} instead of {self.seen_as!r}, {word!r}")
        self.seen_as = seen_as

    def _some(self, most: int) -> bytes:
        piece = self.sock.recv(most)
        if not piece:
            raise OSError("closed")
        return piece


def exchange(flows: list[Flow], number: int) -> None:
    """One word there and back on each."""
    for index, flow in enumerate(flows):
        flow.sock.send(f"{index}:{number};".encode())
    for index, flow in enumerate(flows):
        flow.answer(f"{index}:{number};".encode())


def main() -> None:
    address, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    flows = []
    for index in range(count):
        stream = index % 2 == 0
        sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM)
        sock.settimeout(PATIENCE_S)
        sock.connect((address, port))
        flows.append(Flow(sock, stream))
    print("open", flush=True)
    total = 0
    while True:
        rounds, wrong = 0, ""
        while not select.select([sys.stdin], [], [], PAUSE_S)[0] or not rounds:
            if not wrong:
                try:
                    exchange(flows, total)
                except OSError as error:
                    wrong = f"after {rounds} rounds: {error}"
            rounds, total = rounds + 1, total + 1
        if not sys.stdin.readline():
            return
        print(wrong or f"{count} flows, {rounds} rounds", flush=True)


if __name__ == "__main__":
    main()
