# SPDX-License-Identifier: Apache-2.0
"""The agent's unix socket: one JSON object a record, a question and its answer. docs/api.md is the reference.

SOCK_SEQPACKET, so that a record is a question whole, descriptors travel with it (SCM_RIGHTS), and the kernel tells who
asks (SO_PEERCRED). The path: /run/softunicast/<node>/agent.sock.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from softunicast.errors import UsageError
from softunicast.kernel import nodes

VERSION: Final = 1
MAX_BYTES: Final = 1 << 16
"""Longest record. unix(7): one is sent whole or not at all."""
SOCKET: Final = "agent.sock"


def socket_path(node: str) -> Path:
    return nodes.run_dir(node) / SOCKET


def pack(message: Mapping[str, Any]) -> bytes:
    """A record. UsageError when it is too long for one."""
    data = json.dumps({"softunicast": VERSION, **message}, separators=(",", ":")).encode()
    if len(data) > MAX_BYTES:
        raise UsageError(f"a message of {len(data)} bytes; at most {MAX_BYTES} fit: name fewer sources")
    return data


def unpack(data: bytes) -> dict[str, Any]:
    """The object in a record. UsageError when it is none, or of another version."""
    try:
        message = json.loads(data.decode())
        json.dumps(message, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise UsageError("not a JSON object; see docs/api.md") from error
    if not isinstance(message, dict) or message.get("softunicast") != VERSION:
        version = message.get("softunicast") if isinstance(message, dict) else None
        raise UsageError(f'version {str(version)[:20]}; this agent speaks {{"softunicast": {VERSION}}}')
    return message
