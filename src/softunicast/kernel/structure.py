# SPDX-License-Identifier: Apache-2.0
"""What the generated classes of kernel.abi are: frozen dataclasses with slots, quick to import.

@dataclass(frozen=True, slots=True) executes the text of six methods for each class: 40 ms for all of abi.h, which
`softunicast run` would pay each time it starts a program. Here the methods are written once, below, and __init__ is
written out by the generator; the dataclass machinery only notes the fields. What a caller sees is the same: equality
and hash by fields, within one class; repr(); FrozenInstanceError; dataclasses.fields() and replace().
"""

from __future__ import annotations

from dataclasses import FrozenInstanceError, dataclass
from typing import Any, Final, TypeVar, dataclass_transform

T = TypeVar("T")

put: Final = object.__setattr__
"""For __init__ alone: everybody else meets FrozenInstanceError."""


class Structure:
    """Base of the generated classes."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        return values(self) == values(other) if other.__class__ is self.__class__ else NotImplemented

    def __hash__(self) -> int:
        return hash(values(self))

    def __reduce__(self) -> tuple[object, ...]:
        return self.__class__, values(self)

    def __repr__(self) -> str:
        shown = (f"{name}={value!r}" for name, value in zip(names(self), values(self), strict=True))
        return f"{self.__class__.__qualname__}({', '.join(shown)})"

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"cannot delete field {name!r}")


def names(of: Any) -> tuple[str, ...]:
    """Names of the fields, in their order."""
    found: tuple[str, ...] = of.__match_args__
    return found


def values(of: Any) -> tuple[object, ...]:
    """Values of the fields, in their order."""
    return tuple(getattr(of, name) for name in names(of))


@dataclass_transform(frozen_default=True, eq_default=True)
def structure(cls: type[T]) -> type[T]:
    """The decorator. `cls` derives from Structure, writes its own __init__ and has a default for every field."""
    return dataclass(init=False, repr=False, eq=False, slots=True)(cls)
