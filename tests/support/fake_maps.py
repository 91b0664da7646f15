# SPDX-License-Identifier: Apache-2.0
"""Maps that are dictionaries, for what only reads."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from softunicast.kernel.abi import Claim, Flow, Kind, State
from softunicast.kernel.abi_util import Word, addr_bytes


class FakeMap:
    """lookup, lookup_percpu and items of kernel.bpf.Map."""

    def __init__(self, entries: dict[bytes, bytes] | None = None, copies: list[bytes] | None = None) -> None:
        self.entries = entries if entries is not None else {}
        self.copies = copies if copies is not None else []

    def lookup(self, key: bytes) -> bytes | None:
        return self.entries.get(key)

    def lookup_percpu(self, key: bytes) -> list[bytes]:
        return self.copies if key == bytes(4) else []

    def items(self) -> Iterator[tuple[bytes, bytes]]:
        return iter(list(self.entries.items()))


def packed(text: str) -> bytes:
    return addr_bytes(ip_address(text))


def u32(number: int) -> bytes:
    return number.to_bytes(4, "little")


def flow(local: str, local_port: int, remote: str, remote_port: int, proto: int = 6) -> Flow:
    return Flow(packed(local), packed(remote) if remote else bytes(16), local_port, remote_port, proto)


def claim(
    kind: Kind,
    owner: int,
    *,
    state: State = State.OPEN,
    seen_s: int = 1000,
    born_s: int = 990,
    slice_index: int = 0,
    inner: str = "",
    inner_port: int = 0,
    generation: int = 7,
) -> Claim:
    return Claim(
        word=Word(generation, state, seen_s).pack(),
        owner=owner,
        inner=packed(inner) if inner else bytes(16),
        inner_port=inner_port,
        kind=kind,
        slice=slice_index,
        born_s=born_s,
        tenant=3,
    )
