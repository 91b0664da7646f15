# SPDX-License-Identifier: Apache-2.0
"""The generated codec says what bpf/include/abi.h says. Needs clang and bpftool, no root."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from softunicast.kernel import abi
from tools import gen_abi as generator

ROOT = Path(__file__).resolve().parents[2]
HEADER = (ROOT / "bpf/include/abi.h").read_text()
STRUCTS = re.findall(r"^struct (su_\w+) \{", HEADER, re.M)
ENUMS = re.findall(r"^enum (su_\w+) \{", HEADER, re.M)


def test_committed_module_is_what_the_header_gives() -> None:
    text = generator.generate()
    assert text == generator.OUTPUT.read_text(), "run python tools/gen_abi.py and commit what it writes"


@pytest.mark.parametrize("name", [*STRUCTS, *ENUMS])
def test_every_type_has_a_class(name: str) -> None:
    if name == "su_addr":
        return  # bytes on the Python side
    assert hasattr(abi, generator.class_name(name)), f"add {name} to bpf/abi_types.c"


def test_sizes_are_those_the_header_asserts() -> None:
    asserted = dict(re.findall(r"_Static_assert\(sizeof\(struct (su_\w+)\) == (\d+)", HEADER))
    assert set(asserted) >= set(STRUCTS) - {"su_addr"}
    for name, size in asserted.items():
        assert int(size) == getattr(abi, generator.class_name(name)).SIZE, name


def test_every_numeric_define_is_a_constant() -> None:
    defines = dict(re.findall(r"^#define SU_(\w+) (\w+)\b(?!\()", HEADER, re.M))
    numbers = {name: text for name, text in defines.items() if text[0].isdigit()}
    assert {"ABI_VERSION", "NONE", "WORD_GEN_SHIFT", "GUE_PORT"} <= set(numbers)
    for name, text in numbers.items():
        assert getattr(abi, name) == int(text.rstrip("uUlL"), 0), name


def test_every_drop_and_counter_has_a_meaning() -> None:
    assert set(abi.DROP_MEANINGS) == set(abi.Drop)
    assert set(abi.COUNTER_MEANINGS) == set(abi.Counter)
    assert all(abi.DROP_MEANINGS.values()) and all(abi.COUNTER_MEANINGS.values())
    assert abi.DROP_MEANINGS[abi.Drop.SLICE_FULL] == "no port left towards that destination"


def test_flags_are_distinct_bits_and_enums_count() -> None:
    for flag in (abi.SliceFlag, abi.PolicyFlag, abi.SockFlag, abi.OnrampFlag, abi.TcpSeen):
        assert all(int(member).bit_count() == 1 for member in flag)
    assert len(abi.Drop) <= abi.DROP_MAX and len(abi.Counter) <= abi.COUNTER_MAX


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"name": "a", "type_id": 1, "bits_offset": 16}, "padding before it is not explicit"),
        ({"name": "a", "type_id": 1, "bits_offset": 3}, "a bitfield"),
        ({"name": "a", "type_id": 2, "bits_offset": 0}, "is not supported"),
    ],
)
def test_generator_refuses_layouts_it_cannot_show(broken: dict[str, object], complaint: str) -> None:
    types = {
        1: {"id": 1, "kind": "INT", "name": "int", "size": 4, "encoding": "(none)"},
        2: {"id": 2, "kind": "PTR", "name": "(anon)", "type_id": 1},
    }
    entry = {"kind": "STRUCT", "name": "su_x", "size": 8, "members": [broken]}
    with pytest.raises(ValueError, match=complaint):
        generator.layout(entry, types)


def test_generator_refuses_hidden_padding_at_the_end() -> None:
    types = {1: {"id": 1, "kind": "INT", "name": "int", "size": 4, "encoding": "(none)"}}
    entry = {
        "kind": "STRUCT",
        "name": "su_x",
        "size": 8,
        "members": [{"name": "a", "type_id": 1, "bits_offset": 0}],
    }
    with pytest.raises(ValueError, match="padding at its end"):
        generator.layout(entry, types)
