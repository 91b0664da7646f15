# SPDX-License-Identifier: Apache-2.0
"""The nft table `inet softunicast`: packets of slice addresses are untracked, both ways.

Two chains at priority raw (-300), before conntrack (-200): answers in prerouting, sockets' packets in output.
The addresses are in two sets, so that a change of slices replaces elements and never a rule. The whole table
is replaced in one nft transaction: no packet sees it half done.

    table inet softunicast {
        set slices4 { type ipv4_addr; }            set slices6 { type ipv6_addr; } chain prerouting { type
        filter hook prerouting priority raw; ip daddr @slices4 notrack; ... saddr ... } chain output { type
        filter hook output priority raw; ip saddr @slices4 notrack; ... daddr ... }
    }

Rendering and reading are pure.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from typing import Any, Final

from softunicast.agent.resources import NFT_TABLE, Notrack
from softunicast.kernel import nft

_CHAINS: Final = {"prerouting": ("daddr", "saddr"), "output": ("saddr", "daddr")}
_SETS: Final = {"ip": ("slices4", "ipv4_addr"), "ip6": ("slices6", "ipv6_addr")}


def render(notrack: Notrack) -> str:
    """The nft script that replaces the table by this one, in one transaction."""
    lines = [f"add table inet {NFT_TABLE}", f"delete table inet {NFT_TABLE}", f"table inet {NFT_TABLE} {{"]
    for (name, type_), addresses in zip(_SETS.values(), (notrack.v4, notrack.v6), strict=True):
        elements = ", ".join(sorted(addresses))
        lines.append(f"  set {name} {{ type {type_}; {f'elements = {{ {elements} }};' if elements else ''} }}")
    for chain, fields in _CHAINS.items():
        lines.append(f"  chain {chain} {{ type filter hook {chain} priority raw; policy accept;")
        lines += [f"    {family} {field} @{name} notrack" for family, (name, _) in _SETS.items() for field in fields]
        lines.append("  }")
    lines.append("}")
    return "\n".join(lines) + "\n"


def _expected_rules() -> list[tuple[str, str, str, str]]:
    return sorted(
        (chain, family, field, f"@{name}")
        for chain, fields in _CHAINS.items()
        for family, (name, _) in _SETS.items()
        for field in fields
    )


def read(ruleset: Iterable[Mapping[str, Any]]) -> Notrack | None:
    """The table as nft's JSON shows it; None when it is not there or not as `render` makes it (then it is
    replaced)."""
    sets: dict[str, frozenset[str]] = {}
    rules: list[tuple[str, str, str, str]] = []
    chains: set[tuple[str, str, int]] = set()
    for item in ruleset:
        for kind, value in item.items():
            if not isinstance(value, Mapping) or (value.get("family"), value.get("table")) != (
                "inet",
                NFT_TABLE,
            ):
                continue
            if kind == "set":
                sets[value["name"]] = frozenset(str(ipaddress.ip_address(text)) for text in value.get("elem", ()))
            elif kind == "chain":
                chains.add((value["name"], value.get("hook", ""), value.get("prio", 0)))
            elif kind == "rule":
                rules.append((value["chain"], *_rule(value.get("expr", ()))))
    if chains != {(chain, chain, -300) for chain in _CHAINS} or sorted(rules) != _expected_rules():
        return None
    try:
        return Notrack(*(sets[name] for name, _ in _SETS.values()))
    except KeyError:
        return None


def _rule(expression: Any) -> tuple[str, str, str]:
    try:
        match, verdict = expression
        left = match["match"]["left"]["payload"]
        if "notrack" in verdict and match["match"]["op"] == "==":
            return left["protocol"], left["field"], match["match"]["right"]
    except (KeyError, TypeError, ValueError):
        pass
    return "", "", ""


def replace(notrack: Notrack) -> None:
    """Replace the table, atomically. KernelError."""
    nft.run(render(notrack))


def delete() -> bool:
    """Remove the table; False when there was none."""
    return nft.delete_table("inet", NFT_TABLE)
