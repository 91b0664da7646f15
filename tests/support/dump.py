# SPDX-License-Identifier: Apache-2.0
"""An independent dump of what a node has in the kernel, for "the same before and after".

Nothing of softunicast is used: bpftool, ip, nft, tc and /proc/sys tell. What lives by itself is left out: ages of
routes and addresses, counters, what an agent learns of other nodes by asking them (two flags in `nodes`, peers.json),
and (unless asked for) the contents of maps that flows write.

    python3 -m tests.support.dump --node lhr1 [--netns NAME] [--volatile] > before.json
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import hashlib
import json
import os
import platform
import struct
import subprocess
from pathlib import Path
from typing import Any

PINS = Path("/sys/fs/bpf/softunicast")
RUN = Path("/run/softunicast")
VOLATILE_MAPS = {
    "flows",
    "origin",
    "slots",
    "crowds",
    "crowd_new",
    "stats",
    "last_drops",
    "control",
    "work",
    "hops",
    "onramp_hints",
    "tells",
    "ways",
    "frags",
    "permits",
    "uses",
    "tenants",
}
# struct su_node of bpf/include/abi.h: an underlay of 16 bytes, then flags; DOWN is 2, UNFIT 4.
LEARNED_MAP = "nodes"
LEARNED_BYTE = 16
LEARNED_BITS = 2 | 4
LEARNED_FILES = {"agent.lock", "agent.sock", "peers.json"}
NO_DUMP = {"socks", "work", "hops", "onramp_hints", "tells", "ways", "frags"}
VOLATILE_KEYS = {
    "expires",
    "cacheinfo",
    "valid_life_time",
    "preferred_life_time",
    "handle",
    "bytes_memlock",
    "loaded_at",
}
VOLATILE_KEYS |= {"pids", "run_time_ns", "run_cnt", "metainfo"}
MANY = 10_000
SYSCALL_BPF = {"x86_64": 321, "aarch64": 280}
BPF_OBJ_GET = 7
BPF_MAP_LOOKUP_BATCH = 24
SYSCTLS = (
    "net/ipv4/ip_forward",
    "net/ipv4/tcp_tw_reuse",
    "net/ipv4/conf/{}/arp_announce",
    "net/ipv4/conf/{}/arp_ignore",
    "net/ipv4/conf/{}/proxy_arp",
    "net/ipv4/conf/{}/rp_filter",
    "net/ipv4/conf/{}/forwarding",
    "net/ipv6/conf/{}/forwarding",
)


def _run(netns: str | None, *command: str) -> str:
    prefix = ["nsenter", f"--net=/run/netns/{netns}"] if netns else []
    done = subprocess.run([*prefix, *command], capture_output=True, text=True, check=False, timeout=120)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _json(netns: str | None, *command: str) -> Any:
    text = _run(netns, *command)
    return _steady(json.loads(text)) if text.strip() else []


def _steady(value: Any) -> Any:
    """Without what changes by itself; lists of objects in a fixed order."""
    if isinstance(value, dict):
        return {key: _steady(item) for key, item in value.items() if key not in VOLATILE_KEYS}
    if isinstance(value, list):
        return [_steady(item) for item in value]
    return value


def _pins(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


def _bpf(command: int, attribute: bytearray) -> int:
    """bpf(2), straight: bpftool takes a minute for an array of a million elements."""
    libc = ctypes.CDLL(None, use_errno=True)
    area = (ctypes.c_char * 128).from_buffer(attribute.ljust(128, b"\0"))
    result = int(libc.syscall(SYSCALL_BPF[platform.machine()], command, area, 128))
    attribute[:] = area.raw[: len(attribute)]
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _array_digest(path: Path, value_size: int, count: int) -> str:
    """sha256 over all values of an array, in order."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    fd = _bpf(BPF_OBJ_GET, bytearray(struct.pack("=QII", ctypes.addressof(name), 0, 0)))
    try:
        keys, values = ctypes.create_string_buffer(4 * count), ctypes.create_string_buffer(value_size * count)
        cursor = ctypes.create_string_buffer(8)
        pointers = [ctypes.addressof(area) for area in (cursor, keys, values)]
        with contextlib.suppress(FileNotFoundError):  # ENOENT: the end was reached
            _bpf(BPF_MAP_LOOKUP_BATCH, bytearray(struct.pack("=QQQQIIQQ", 0, *pointers, count, fd, 0, 0)))
        return hashlib.sha256(values.raw).hexdigest()
    finally:
        os.close(fd)


def _planned(entry: dict[str, Any]) -> dict[str, Any]:
    """An entry of `nodes` without what probing writes there."""
    value = [int(byte, 16) for byte in entry["value"]]
    value[LEARNED_BYTE] &= ~LEARNED_BITS
    return {"key": entry["key"], "value": value}


def _map(path: Path, volatile: bool) -> dict[str, Any]:
    about = _json(None, "bpftool", "-j", "map", "show", "pinned", str(path))
    found = {key: about.get(key) for key in ("id", "type", "bytes_key", "bytes_value", "max_entries")}
    if path.name in NO_DUMP or (not volatile and path.name in VOLATILE_MAPS):
        return found
    if about["type"] == "array" and about["max_entries"] > MANY:
        found["sha256"] = _array_digest(path, about["bytes_value"], about["max_entries"])
    else:
        text = _run(None, "bpftool", "-j", "map", "dump", "pinned", str(path))
        told = json.loads(text)
        if path.name == LEARNED_MAP:
            told = [_planned(entry) for entry in told]
        entries = sorted(json.dumps(entry, sort_keys=True) for entry in told)
        found["entries"] = len(entries)
        found["sha256"] = hashlib.sha256("\n".join(entries).encode()).hexdigest()
    return found


def _sysctls(netns: str | None) -> dict[str, str]:
    devices = [link["ifname"] for link in json.loads(_run(netns, "ip", "-j", "link", "show"))]
    names = [
        name
        for pattern in SYSCTLS
        for name in ([pattern.format(device) for device in ["all", *devices]] if "{}" in pattern else [pattern])
    ]
    text = _run(netns, "sh", "-c", "for n in \"$@\"; do printf '%s=' $n; cat /proc/sys/$n || echo; done", "sh", *names)
    return dict(line.split("=", 1) for line in text.splitlines())


def dump(node: str, netns: str | None = None, *, volatile: bool = False) -> dict[str, Any]:
    """Everything, as one comparable value. `netns` is a name under /run/netns; None: the current one."""
    pins = PINS / node
    devices = [link["ifname"] for link in json.loads(_run(netns, "ip", "-j", "link", "show"))]
    return {
        "maps": {path.name: _map(path, volatile) for path in _pins(pins / "maps")},
        "programs": {
            path.name: _json(None, "bpftool", "-j", "prog", "show", "pinned", str(path))
            for path in _pins(pins / "progs")
        },
        "links": {
            path.name: _json(None, "bpftool", "-j", "link", "show", "pinned", str(path))
            for path in _pins(pins / "links")
        },
        "addresses": _json(netns, "ip", "-j", "address", "show"),
        "rules": [_json(netns, "ip", "-j", family, "rule", "show") for family in ("-4", "-6")],
        "routes": [_json(netns, "ip", "-j", family, "route", "show", "table", "all") for family in ("-4", "-6")],
        "nft": _json(netns, "nft", "-j", "list", "ruleset"),
        "qdiscs": _json(netns, "tc", "-j", "qdisc", "show"),
        "filters": {
            f"{device} {side}": _json(netns, "tc", "-j", "filter", "show", "dev", device, side)
            for device in devices
            for side in ("ingress", "egress")
        },
        "sysctls": _sysctls(netns),
        "files": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in _pins(RUN / node)
            if path.name not in LEARNED_FILES and not path.name.startswith(".")
        },
    }


def differences(before: Any, after: Any, place: str = "") -> list[str]:
    """Where two dumps differ, one line each; [] when they are the same."""
    if isinstance(before, dict) and isinstance(after, dict):
        lines = []
        for key in sorted({*before, *after}, key=str):
            if key not in before or key not in after:
                lines.append(f"{place}/{key}: only {'before' if key in before else 'after'}")
            else:
                lines += differences(before[key], after[key], f"{place}/{key}")
        return lines
    if isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        return [
            line
            for at, pair in enumerate(zip(before, after, strict=True))
            for line in differences(*pair, f"{place}/{at}")
        ]
    return [] if before == after else [f"{place}: {str(before)[:200]} -> {str(after)[:200]}"]


def main() -> None:
    parser = argparse.ArgumentParser(description="dump what a node has in the kernel, as JSON")
    parser.add_argument("--node", required=True)
    parser.add_argument("--netns")
    parser.add_argument("--volatile", action="store_true", help="also the contents of maps that flows write")
    options = parser.parse_args()
    print(json.dumps(dump(options.node, options.netns, volatile=options.volatile), indent=1, sort_keys=True))


if __name__ == "__main__":
    main()
