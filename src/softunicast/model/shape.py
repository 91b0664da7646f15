# SPDX-License-Identifier: Apache-2.0
"""The shape of a plan file: which keys, of which types. Strict: "5" is not 5, and no key is ignored.

Only types and simple bounds here; names, addresses and what they mean to each other are model.reading's.
Pydantic's errors are turned into one PlanError: unknown keys first (a misspelt key is also a missing one),
then by line.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from typing import Annotated, Final, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from softunicast.errors import PlanError
from softunicast.model.document import Document, Path, Value, path_text
from softunicast.model.fleet import BirdSpeaker, Probes, Settings, Terminate, Timers


def _one_or_many(value: object) -> object:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_one_or_many)]


def _in_list(value: object) -> object:
    return value if isinstance(value, list) else [value]


OneOrMore = Annotated[list[str], BeforeValidator(_in_list)]
"""A text, or a list of them; what is neither is called no text rather than no list."""
Seconds = Annotated[int, Field(ge=1, le=604800)]


def _all_or_each(value: object) -> object:
    return {"": value} if isinstance(value, str) else value


ByDevice = Annotated[dict[str, str], BeforeValidator(_all_or_each)]
"""A text for all devices (under ""), or a mapping of devices to texts."""


class Shape(BaseModel):
    """Base of all shapes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


S = TypeVar("S", bound=Shape)


class PrefixShape(Shape):
    prefix: str
    announce: Texts | None = None


class QuotasShape(Shape):
    flows: Annotated[int, Field(ge=1, le=16777216)] | None = None
    new_flows_per_s: Annotated[int, Field(ge=1, le=1000000)] | None = None


class OnrampShape(Shape):
    device: str | None = None
    pool: str | None = None
    sources: Texts
    gateway: str | None = None
    gateway4: str | None = None
    gateway6: str | None = None
    slice: str | None = None
    tenant: str | None = None
    bypass: Texts = []
    mapping: str | None = None
    filtering: str | None = None
    mss: Annotated[int, Field(ge=256, le=65495)] | None = None
    quotas: QuotasShape = QuotasShape()
    strategy: str | None = None
    handshake: str | None = None


class DrainShape(Shape):
    med: Annotated[int, Field(ge=0, le=0xFFFFFFFF)] = BirdSpeaker().drain_med
    community: str | None = BirdSpeaker().drain_community
    settle_s: Annotated[float, Field(ge=0, le=86400)] = BirdSpeaker().drain_settle_s


class BirdShape(Shape):
    control: str = BirdSpeaker().control
    include: str | None = None
    drain: DrainShape = DrainShape()


class NodeShape(Shape):
    underlay: OneOrMore
    uplinks: Texts = []
    onramps: dict[str, OnrampShape] = {}
    bypass: Texts = []
    weight: Annotated[int, Field(ge=1, le=1000)] = 1
    bird: BirdShape | None = None
    attach: ByDevice = {}


class SiteShape(Shape):
    nodes: dict[str, NodeShape]


class StaticShape(Shape):
    slice: str
    node: str


class PoolShape(Shape):
    site: str
    addresses: Texts = []
    prefix: str | None = None
    count: Annotated[int, Field(ge=1, le=65536)] | None = None
    slice_ports: int | None = None
    slice_ports6: int | None = None
    slices: list[StaticShape] = []
    nodes: Texts | None = None
    tags: dict[str, str] = {}


class TimersShape(Shape):
    tcp_transitory_s: Seconds = Timers().tcp_transitory_s
    tcp_established_s: Seconds = Timers().tcp_established_s
    tcp_linger_s: Seconds = Timers().tcp_linger_s
    sock_linger_s: Seconds = Timers().sock_linger_s
    sock_reuse_s: Seconds = Timers().sock_reuse_s
    udp_s: Seconds = Timers().udp_s
    icmp_s: Seconds = Timers().icmp_s


class ProbesShape(Shape):
    interval_ms: Annotated[int, Field(ge=50, le=60000)] = Probes().interval_ms
    lost: Annotated[int, Field(ge=1, le=20)] = Probes().lost


class TerminateShape(Shape):
    connect_s: Annotated[float, Field(ge=1, le=600)] = Terminate().connect_s
    access_log: str | None = None


class SettingsShape(Shape):
    mark: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] = Settings().mark
    mark_mask: Annotated[int, Field(ge=1, le=0xFFFFFFFF)] | None = None
    gue_port: Annotated[int, Field(ge=1, le=65535)] = Settings().gue_port
    answer_ping: bool = Settings().answer_ping
    flows: Annotated[int, Field(ge=1024, le=16777216)] = Settings().flows
    full_ms: Annotated[int, Field(ge=0, le=1000)] = Settings().full_ms
    udp_wildcard_fraction: Annotated[float, Field(ge=0, le=0.9)] = Settings().udp_wildcard_fraction
    timers: TimersShape = TimersShape()
    probes: ProbesShape = ProbesShape()
    terminate: TerminateShape = TerminateShape()


class PlanShape(Shape):
    prefixes: list[PrefixShape]
    sites: dict[str, SiteShape]
    pools: dict[str, PoolShape]
    settings: SettingsShape = SettingsShape()


PAGE: Final = "docs/plan.md"
_EXAMPLES: Final[dict[str, str]] = {
    "prefixes": "prefixes: [{prefix: 198.51.100.0/24}]",
    "sites": "sites: {lhr: {nodes: {lhr1: {underlay: 10.0.1.11}}}}",
    "pools": "pools: {gb: {site: lhr, addresses: 198.51.100.10}}",
    "prefix": "prefix: 198.51.100.0/24",
    "nodes": "nodes: {lhr1: {underlay: 10.0.1.11}}",
    "underlay": "underlay: 10.0.1.11",
    "sources": "sources: 10.1.0.0/24",
    "site": "site: lhr",
    "slice": "slice: 198.51.100.20:9000-9009",
    "node": "node: lhr1",
}
_WANTED: Final[dict[str, str]] = {
    "string_type": "text",
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "bool_type": "true or false",
    "list_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
}


def check_shape(document: Document) -> PlanShape:
    """The document as a PlanShape, or PlanError."""
    return checked(document, PlanShape, shape_at, _EXAMPLES, PAGE)


def checked(
    document: Document, top: type[S], at: Callable[[Path], type[Shape]], examples: Mapping[str, str], page: str
) -> S:
    """A document as that shape, or PlanError. `at`: the shape whose keys are wanted at a path; `examples`: what to add
    where a key is missing; `page`: where all is told."""
    try:
        return top.model_validate(document.data)
    except ValidationError as error:
        found = error.errors(include_url=False)
    raise _first(document, found, at, examples, page)


def check_onramp_shape(document: Document, path: Path, keys: Mapping[str, Value]) -> OnrampShape:
    """One on-ramp's keys, which stand at `path`, as an OnrampShape, or PlanError."""
    try:
        return OnrampShape.model_validate(dict(keys))
    except ValidationError as error:
        found = error.errors(include_url=False)
    for item in found:
        item["loc"] = (*path, *item["loc"])
    raise _first(document, found, shape_at, _EXAMPLES, PAGE)


def _first(
    document: Document,
    found: list[ErrorDetails],
    at: Callable[[Path], type[Shape]],
    examples: Mapping[str, str],
    page: str,
) -> PlanError:
    """Unknown keys before all others, then by line."""
    found.sort(key=lambda item: (item["type"] != "extra_forbidden", document.line(_path(item)), _path_key(item)))
    return _plan_error(document, found[0], at, examples, page)


def _path(item: ErrorDetails) -> Path:
    return tuple(item["loc"])


def _path_key(item: ErrorDetails) -> str:
    return path_text(_path(item))


def shape_at(path: Path) -> type[Shape]:
    """The shape whose keys are wanted at a path of a plan file."""
    match path:
        case ("prefixes", _):
            return PrefixShape
        case ("sites", _):
            return SiteShape
        case ("sites", _, "nodes", _):
            return NodeShape
        case ("sites", _, "nodes", _, "bird"):
            return BirdShape
        case ("sites", _, "nodes", _, "bird", "drain"):
            return DrainShape
        case ("sites", _, "nodes", _, "onramps", _):
            return OnrampShape
        case ("sites", _, "nodes", _, "onramps", _, "quotas"):
            return QuotasShape
        case ("onramps", _):
            return OnrampShape
        case ("onramps", _, "quotas"):
            return QuotasShape
        case ("pools", _):
            return PoolShape
        case ("pools", _, "slices", _):
            return StaticShape
        case ("settings",):
            return SettingsShape
        case ("settings", "timers"):
            return TimersShape
        case ("settings", "probes"):
            return ProbesShape
        case ("settings", "terminate"):
            return TerminateShape
        case _:
            return PlanShape


def _plan_error(
    document: Document, item: ErrorDetails, at: Callable[[Path], type[Shape]], examples: Mapping[str, str], page: str
) -> PlanError:
    path, kind, given = _path(item), item["type"], item["input"]
    name = path_text(path)
    if kind == "extra_forbidden":
        known = list(at(path[:-1]).model_fields)
        near = difflib.get_close_matches(str(path[-1]), known, n=1, cutoff=0.6)
        remedy = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
        return PlanError(document.file, document.key_line(path), f"{name}: unknown key", remedy)
    if kind == "missing":
        example = examples.get(str(path[-1]), f"{path[-1]}: ...")
        return PlanError(document.file, document.line(path), f"{name}: missing", f"add `{example}`")
    if path and isinstance(path[-1], int) and not isinstance(_value(document, path[:-1]), list):
        path = path[:-1]
        name = path_text(path)
    if kind in _WANTED:
        wanted = _WANTED[kind]
        if kind == "string_type" and isinstance(given, (bool, int, float)):
            remedy = "put it in quotes"
        elif given is None:
            remedy = "fill it in or remove the key"
        else:
            remedy = f"write {wanted}"
        return PlanError(document.file, document.line(path), f"{name}: {wanted} is wanted, not {_shown(given)}", remedy)
    bounds = item.get("ctx", {})
    bound = bounds.get("ge", bounds.get("le"))
    if kind in ("greater_than_equal", "less_than_equal"):
        word = "at least" if kind == "greater_than_equal" else "at most"
        problem, remedy = f"{given} is out of range", f"{word} {bound}"
    else:
        problem, remedy = item["msg"].replace("\n", " "), f"see {page}"
    return PlanError(document.file, document.line(path), f"{name}: {problem}", remedy)


def _value(document: Document, path: Path) -> object:
    value: object = document.data
    for step in path:
        if isinstance(value, dict):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def _shown(value: object) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = str(value)
    return repr(text if len(text) <= 40 else f"{text[:37]}...") if isinstance(value, str) else text[:40]
