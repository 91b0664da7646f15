# SPDX-License-Identifier: Apache-2.0
"""The shapes of questions: strict, like those of a plan. What they mean is the keeper's (agent.onramp_keeper)."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from softunicast.errors import UsageError


class _Question(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    softunicast: int


class Add(_Question):
    """`make` nothing: the device is somebody else's."""

    do: Literal["add"]
    name: str
    device: str | None = None
    make: Literal["tun", "tap"] | None = None
    keys: dict[str, Any] = {}


class Tun(_Question):
    do: Literal["tun"]
    name: str | None = None
    device: str | None = None
    tap: bool = False
    keys: dict[str, Any] = {}


class Hand(_Question):
    do: Literal["socket"]
    name: str | None = None
    device: str | None = None
    keys: dict[str, Any] = {}


class Tag(_Question):
    """`client`: the seed of the address choice, 0: by the pool alone."""

    do: Literal["tag"]
    pool: str
    slice: str | None = None
    client: Annotated[int, Field(ge=0, le=0xFFFFFFFF)] = 0


class Remove(_Question):
    do: Literal["remove"]
    name: str


class List(_Question):
    do: Literal["list"]


Question = Add | Tun | Hand | Tag | Remove | List
_READER: Final[TypeAdapter[Question]] = TypeAdapter(Annotated[Question, Field(discriminator="do")])


def read(message: dict[str, Any]) -> Question:
    """UsageError, one line, when it is no question."""
    try:
        return _READER.validate_python(message)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = "".join(one if one.isprintable() else "?" for one in ".".join(map(str, first["loc"]))) or "do"
        raise UsageError(f"{where[:60]}: {' '.join(first['msg'].split())[:200]}; see docs/api.md") from error
