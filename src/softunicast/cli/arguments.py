# SPDX-License-Identifier: Apache-2.0
"""What people type, turned into values: endpoints, slices, protocols, kinds of claim, nodes.

Every type here fails with one line that names the text, says what is wrong with it, and shows what to
write instead. Nothing is read from the system: a bad argument is refused before anything is opened.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network

PROTOCOLS = ("tcp", "udp", "icmp")
KINDS = ("socket", "packet", "local", "peer")

# IANA protocol numbers; "icmp" means ICMPv6 when the addresses are IPv6.
TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
PROTOCOL_NAMES = {TCP: "tcp", UDP: "udp", ICMP: "icmp", ICMPV6: "icmpv6"}


def protocol_number(name: str, version: int) -> int:
    """The IP protocol number of `tcp`, `udp` or `icmp` for IP version 4 or 6."""
    if name == "icmp":
        return ICMP if version == 4 else ICMPV6
    return TCP if name == "tcp" else UDP


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and a port (for ICMP echo: the id), host order."""

    address: IPAddress
    port: int

    def __str__(self) -> str:
        return endpoint_text(self.address, self.port)


@dataclass(frozen=True, slots=True)
class Place:
    """Part of a slice's space to list: an address and inclusive ports."""

    address: IPAddress
    first: int = 0
    last: int = 65535

    def holds(self, address: IPAddress, port: int) -> bool:
        return address == self.address and self.first <= port <= self.last


@dataclass(frozen=True, slots=True)
class Remote:
    """Remote ends to list: a network and, if given, one port."""

    network: IPNetwork
    port: int | None = None

    def holds(self, address: IPAddress, port: int) -> bool:
        return address in self.network and (self.port is None or self.port == port)


def endpoint_text(address: IPAddress, port: int) -> str:
    """`198.51.100.20:9001`, `[2001:db8::1]:443`."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


def _split(text: str) -> tuple[str, str | None]:
    """Host part and what follows its colon; brackets around IPv6 are removed."""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise ValueError("has a bracket without its pair")
        return host, rest[1:] if rest else None
    if text.count(":") > 1:
        return text, None
    host, colon, rest = text.partition(":")
    return host, rest if colon else None


def _address(text: str) -> IPAddress:
    try:
        return ipaddress.ip_address(text)
    except ValueError as error:
        raise ValueError(f"{text!r} is not an IP address") from error


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"port {text!r} is not a number")
    if int(text) > 65535:
        raise ValueError(f"port {int(text)} is not within 0-65535")
    return int(text)


def parse_endpoint(text: str) -> Endpoint:
    """`ADDRESS:PORT` or `[ADDRESS6]:PORT`. Raises ValueError that says what is wrong."""
    host, port = _split(text)
    address = _address(host)
    if port is None or port == "":
        raise ValueError("has no port")
    return Endpoint(address, _port(port))


def parse_place(text: str) -> Place:
    """`ADDRESS`, `ADDRESS:PORT` or `ADDRESS:FIRST-LAST`. Raises ValueError."""
    host, ports = _split(text)
    address = _address(host)
    if ports is None:
        return Place(address)
    first_text, dash, last_text = ports.partition("-")
    first = _port(first_text)
    last = _port(last_text) if dash else first
    if last < first:
        raise ValueError(f"first port {first} is above last port {last}")
    return Place(address, first, last)


def parse_remote(text: str) -> Remote:
    """`ADDRESS`, `NETWORK/LENGTH` or `ADDRESS:PORT`. Raises ValueError."""
    if "/" in text:
        try:
            return Remote(ipaddress.ip_network(text))
        except ValueError as error:
            raise ValueError(f"is not a network ({error})") from error
    host, port = _split(text)
    address = _address(host)
    return Remote(ipaddress.ip_network(address), None if port is None else _port(port))


if TYPE_CHECKING:
    _ParamType = click.ParamType[Any]
else:  # generic only since click 8.2
    _ParamType = click.ParamType


class _Parsed(_ParamType):
    """A click type around one of the parsers above."""

    name = "text"
    example = ""

    def parse(self, text: str) -> Any:
        raise NotImplementedError

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return self.parse(value)
        except ValueError as error:
            what = str(error)
            said = what if what.startswith(repr(value)) else f"{value!r}: {what}"
            self.fail(f"{said}; write {self.example}", param, ctx)


class EndpointType(_Parsed):
    name = "address:port"
    example = "ADDRESS:PORT, like 203.0.113.1:443 or [2001:db8::1]:443"

    def parse(self, text: str) -> Endpoint:
        return parse_endpoint(text)


class PlaceType(_Parsed):
    name = "address[:first-last]"
    example = "ADDRESS or ADDRESS:FIRST-LAST, like 198.51.100.20:9000-9009"

    def parse(self, text: str) -> Place:
        return parse_place(text)


class RemoteType(_Parsed):
    name = "address[:port]"
    example = "ADDRESS, ADDRESS:PORT or NETWORK/LENGTH, like 203.0.113.1:443 or 203.0.113.0/24"

    def parse(self, text: str) -> Remote:
        return parse_remote(text)


class NameType(_Parsed):
    """Names of nodes: they become names of folders, so they are checked as such before any is opened."""

    name = "name"
    example = "1 to 63 letters, digits, - and _, like lhr1"

    def parse(self, text: str) -> str:
        good = text and text.isascii() and text[0].isalnum() and len(text) <= 63
        if not good or not all(letter.isalnum() or letter in "_-" for letter in text):
            raise ValueError("is no name" if text else "is empty")
        return text


ENDPOINT = EndpointType()
PLACE = PlaceType()
REMOTE = RemoteType()
NAME = NameType()
EXISTING_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)

node_option = click.option(
    "--node", type=NAME, metavar="NAME", help="The node; default: the one of this network namespace."
)
log_format_option = click.option(
    "--log-format",
    type=click.Choice(["auto", "human", "json"]),
    default="auto",
    show_default=True,
    help="auto: human on a terminal, JSON otherwise.",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Write JSON; the keys are in docs/cli.md.")
