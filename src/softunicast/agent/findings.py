# SPDX-License-Identifier: Apache-2.0
"""What the agent found on the host and will not change: pure, from facts.

A finding is advice, never an error: slices hold whatever the host's firewall does, because forwarded flows
never meet it and the guard stands behind it. But an operator wants to know why answers to *sockets* die in a
`ct state` firewall.

Why each matters:

- Packets of slice addresses are untracked (our `notrack` rules), so `ct state established accept` never
  matches them (nf_conntrack: state UNTRACKED). A firewall that ends in drop needs one more rule.
- `masquerade` and `snat` need conntrack, so they do not touch untracked packets; said so that nobody wonders.
- `ip_local_reserved_ports` over a slice: a socket's automatic port choice fails there (EADDRNOTAVAIL). Hooks
  that choose themselves are not concerned, programs with IP_LOCAL_PORT_RANGE are.
- Without TCP timestamps a port in TIME_WAIT cannot be used again after one second (RFC 6191), only after
  sixty.
- Strict reverse-path filtering drops answers that come in by another uplink than the one to their sender.
- Answers for other nodes are carried in 32 more bytes (IPv4 20, UDP 8, GUE 4); 52 with an IPv6 underlay.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from softunicast.agent.facts import Facts
from softunicast.agent.resources import NFT_TABLE

GUE_OVERHEAD_V4_BYTES = 32
GUE_OVERHEAD_V6_BYTES = 52
INTERNET_MTU_BYTES = 1500


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """`name`: stable, for filters; `message`: one line, what was found, where, and what to do."""

    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


@dataclass(frozen=True, slots=True)
class Subject:
    """What findings are about: parts of the plan, kept small so that this module needs no plan."""

    uplinks: tuple[str, ...]
    onramps: Mapping[str, str]
    underlays: tuple[str, ...]
    addresses: tuple[str, ...]
    ports: tuple[tuple[int, int], ...]


def find(subject: Subject, facts: Facts) -> list[Finding]:
    """All findings, sorted."""
    return sorted(
        {
            *_devices(subject, facts),
            *_sysctls(subject, facts),
            *_routes(subject, facts),
            *_firewalls(subject, facts),
        }
    )


def _devices(subject: Subject, facts: Facts) -> Iterator[Finding]:
    for name, device in subject.onramps.items():
        if device not in facts.devices:
            yield Finding("onramp-missing", f"on-ramp {name}: no device {device}; it is attached when it appears")
    for underlay in subject.underlays:
        yield from _underlay(subject, facts, underlay)


def _underlay(subject: Subject, facts: Facts, underlay: str) -> Iterator[Finding]:
    carrier = facts.device_of(underlay)
    if carrier is None:
        yield Finding(
            "underlay-missing",
            f"underlay address {underlay} is on no device; other nodes cannot carry answers here until it is",
        )
        return
    overhead = GUE_OVERHEAD_V6_BYTES if ":" in underlay else GUE_OVERHEAD_V4_BYTES
    for uplink in subject.uplinks:
        device_ = facts.devices.get(uplink)
        if device_ is None:
            continue
        # Where one device is both, answers come as large as the Internet sends them, not as large as it could.
        largest = min(device_.mtu, INTERNET_MTU_BYTES) if device_ == carrier else device_.mtu
        if carrier.mtu < largest + overhead:
            yield Finding(
                "underlay-mtu",
                f"underlay device {carrier.name} has MTU {carrier.mtu}: answers of {largest} bytes that are carried to "
                f"another node need {largest + overhead}; raise it, or announce a smaller MSS (advmss "
                f"{carrier.mtu - overhead - 40})",
            )


def _sysctls(subject: Subject, facts: Facts) -> Iterator[Finding]:
    if facts.sysctls.get("net/ipv4/tcp_timestamps") == "0":
        yield Finding(
            "tcp-timestamps",
            "net.ipv4.tcp_timestamps=0: ports in TIME_WAIT rest for a minute instead of a second; set it to 1",
        )
    reserved = facts.sysctls.get("net/ipv4/ip_local_reserved_ports", "").strip()
    if reserved and (hit := _overlap(reserved, subject.ports)):
        yield Finding(
            "reserved-ports",
            f"net.ipv4.ip_local_reserved_ports={reserved} covers ports {hit} of a slice: "
            "programs that choose ports themselves fail there; take them out",
        )
    for device in ("all", *subject.uplinks):
        if facts.sysctls.get(f"net/ipv4/conf/{device}/rp_filter") == "1":
            yield Finding(
                "rp-filter",
                f"net.ipv4.conf.{device}.rp_filter=1 (strict): answers that come in by another "
                "uplink than the route to their sender are dropped; the agent sets the uplinks' own to 2",
            )


def _overlap(reserved: str, ports: Iterable[tuple[int, int]]) -> str:
    for part in reserved.split(","):
        low, _, high = part.strip().partition("-")
        for first, last in ports:
            if int(low) <= last and first <= int(high or low):
                return part.strip()
    return ""


def _routes(subject: Subject, facts: Facts) -> Iterator[Finding]:
    versions = {4 if "." in address else 6 for address in subject.addresses}
    for version in sorted(versions):
        defaults = [route for route in facts.defaults if route.version == version]
        ours = [route for route in defaults if any(hop.device in subject.uplinks for hop in route.hops)]
        if not ours:
            yield Finding(
                "no-default-route",
                f"no IPv{version} default route by an uplink ({', '.join(subject.uplinks)}): "
                "packets from slices are unreachable until there is one",
            )
        elif len(defaults) > 1:
            lines = "; ".join(" ".join(str(hop) for hop in route.hops) for route in defaults)
            yield Finding(
                "several-default-routes",
                f"several IPv{version} default routes ({lines}): slices use those by "
                f"an uplink, in the order of their metrics",
            )


def _firewalls(subject: Subject, facts: Facts) -> Iterator[Finding]:
    yield from _nft(subject, facts.ruleset)
    for text in facts.iptables:
        yield from _iptables(subject, text)


def _advice(subject: Subject, what: str, rule: Mapping[int, str]) -> str:
    remedies = []
    for version, text in rule.items():
        addresses = [address for address in subject.addresses if (":" in address) == (version == 6)]
        if addresses:
            remedies.append(text.format(", ".join(addresses), ",".join(addresses)))
    return (
        f"{what} relies on `ct state` for input, and packets of slices are untracked: answers to sockets need a rule "
        f"before it: {' ; '.join(remedies)}"
    )


def _nft(subject: Subject, ruleset: Iterable[Mapping[str, Any]]) -> Iterator[Finding]:
    chains: dict[tuple[str, str, str], str] = {}
    jumps: dict[tuple[str, str, str], set[str]] = {}
    rules: list[Mapping[str, Any]] = []
    for item in ruleset:
        if "chain" in item:
            chain = item["chain"]
            chains[chain["family"], chain["table"], chain["name"]] = chain.get("hook", "")
        elif "rule" in item:
            rules.append(item["rule"])
    for rule in rules:
        place = (rule["family"], rule["table"], rule["chain"])
        for expression in rule.get("expr", ()):
            for verb in ("jump", "goto"):
                if isinstance(expression, dict) and verb in expression:
                    jumps.setdefault(place, set()).add(expression[verb]["target"])
    at_input = _reachable(chains, jumps, "input")
    at_postrouting = _reachable(chains, jumps, "postrouting")
    for rule in rules:
        family, table, chain = place = (rule["family"], rule["table"], rule["chain"])
        if (family, table) == ("inet", NFT_TABLE):
            continue
        where = f"nft {family} {table} {chain}"
        text = _keys(rule.get("expr", ()))
        if place in at_input and "ct state" in text and not text & {"untracked"}:
            remedy = f"nft insert rule {family} {table} {chain}"
            rules_ = {4: remedy + " ip daddr {{ {0} }} accept", 6: remedy + " ip6 daddr {{ {0} }} accept"}
            yield Finding("ct-state-firewall", _advice(subject, where, rules_))
        for verb in ("masquerade", "snat"):
            if place in at_postrouting and verb in text:
                yield Finding(
                    "nat",
                    f"{where} has {verb}: it does not touch packets of slices (untracked), only the "
                    "node's other traffic",
                )


def _reachable(
    chains: Mapping[tuple[str, str, str], str], jumps: Mapping[tuple[str, str, str], set[str]], hook: str
) -> set[tuple[str, str, str]]:
    seen: set[tuple[str, str, str]] = set()
    work = [place for place, at in chains.items() if at == hook]
    while work:
        place = work.pop()
        if place not in seen:
            seen.add(place)
            work += [(place[0], place[1], target) for target in jumps.get(place, ())]
    return seen


def _keys(expression: Any) -> set[str]:
    """Verbs, keys and words anywhere in an nft JSON expression; `ct state` for {"ct": {"key": "state"}}."""
    found: set[str] = set()
    if isinstance(expression, dict):
        for key, value in expression.items():
            found.add(key)
            if key == "ct" and isinstance(value, dict):
                found.add(f"ct {value.get('key')}")
            found |= _keys(value)
    elif isinstance(expression, list | tuple):
        for value in expression:
            found |= _keys(value)
    elif isinstance(expression, str):
        found.add(expression)
    return found


def _iptables(subject: Subject, text: str) -> Iterator[Finding]:
    table = ""
    for line in text.splitlines():
        if line.startswith("*"):
            table = line[1:]
        if not line.startswith("-A "):
            continue
        chain = line.split()[1]
        if (
            table == "filter"
            and chain != "FORWARD"
            and chain != "OUTPUT"
            and ("--ctstate" in line or "-m state" in line)
        ):
            remedy = f"-I {chain} -m conntrack --ctstate UNTRACKED -d {{1}} -j ACCEPT"
            rules = {4: f"iptables {remedy}", 6: f"ip6tables {remedy}"}
            yield Finding("ct-state-firewall", _advice(subject, f"iptables {table} {chain}", rules))
        if table == "nat" and ("-j MASQUERADE" in line or "-j SNAT" in line):
            yield Finding(
                "nat",
                f"iptables nat {chain} has {line.rsplit('-j ', 1)[1]}: it does not touch packets of "
                "slices (untracked), only the node's other traffic",
            )
