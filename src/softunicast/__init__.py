# SPDX-License-Identifier: Apache-2.0
"""Many servers share the same addresses for outgoing traffic, by slices of source ports, without NAT.

For programs: `connect`, `create_datagram`, `open_connection` (asyncio), `dialer`, and the errors they raise; adapters
for anyio, httpx, requests and aiohttp are modules of `softunicast.client`. docs/library.md is the reference. Each name
is imported when it is first used: `softunicast run` pays for none of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softunicast.client.aio import open_connection as open_connection
    from softunicast.client.blocking import connect as connect
    from softunicast.client.blocking import create_datagram as create_datagram
    from softunicast.client.making import dialer as dialer
    from softunicast.dial.dialer import Dialer as Dialer
    from softunicast.errors import DialError as DialError
    from softunicast.errors import DialTimeout as DialTimeout
    from softunicast.errors import FamilyMissing as FamilyMissing
    from softunicast.errors import KernelError as KernelError
    from softunicast.errors import SliceFull as SliceFull
    from softunicast.errors import SoftunicastError as SoftunicastError
    from softunicast.errors import UsageError as UsageError

_WHERE = {
    "connect": "softunicast.client.blocking",
    "create_datagram": "softunicast.client.blocking",
    "open_connection": "softunicast.client.aio",
    "dialer": "softunicast.client.making",
    "Dialer": "softunicast.dial.dialer",
    **dict.fromkeys(
        (
            "DialError",
            "DialTimeout",
            "FamilyMissing",
            "KernelError",
            "SliceFull",
            "SoftunicastError",
            "UsageError",
        ),
        "softunicast.errors",
    ),
}

__all__ = [
    "DialError",
    "DialTimeout",
    "Dialer",
    "FamilyMissing",
    "KernelError",
    "SliceFull",
    "SoftunicastError",
    "UsageError",
    "connect",
    "create_datagram",
    "dialer",
    "open_connection",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'softunicast' has no attribute {name!r}")
    found = getattr(importlib.import_module(_WHERE[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
