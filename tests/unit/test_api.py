# SPDX-License-Identifier: Apache-2.0
"""What the agent's socket understands: any record is a question or one line."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from softunicast.api import requests
from softunicast.api.protocol import MAX_BYTES, pack, unpack
from softunicast.errors import UsageError

JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda children: st.lists(children) | st.dictionaries(st.text(), children),
    max_leaves=20,
)
QUESTIONS = [
    ({"do": "add", "name": "x", "keys": {"sources": ["10.0.0.0/8"]}}, requests.Add),
    ({"do": "add", "name": "x", "make": "tap", "device": "tap0", "keys": {}}, requests.Add),
    ({"do": "tun", "name": None, "tap": False, "keys": {}}, requests.Tun),
    ({"do": "socket", "keys": {}}, requests.Hand),
    ({"do": "remove", "name": "x"}, requests.Remove),
    ({"do": "list"}, requests.List),
]


@pytest.mark.parametrize(("question", "kind"), QUESTIONS)
def test_questions(question: dict[str, Any], kind: type) -> None:
    assert isinstance(requests.read(unpack(pack(question))), kind)


@given(st.binary())
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(UsageError) as refused:
        requests.read(unpack(data))
    assert "\n" not in str(refused.value)


@given(JSON)
def test_any_json(value: Any) -> None:
    message = {"softunicast": 1, "do": "tun", **value} if isinstance(value, dict) else value
    try:
        found = requests.read(unpack(json.dumps(message).encode()))
    except UsageError as error:
        assert "\n" not in str(error) and len(str(error)) < 400
    else:
        assert isinstance(found, requests.Question)


def test_a_record_has_its_length() -> None:
    with pytest.raises(UsageError, match=f"at most {MAX_BYTES} fit"):
        pack({"do": "list", "keys": "x" * MAX_BYTES})
