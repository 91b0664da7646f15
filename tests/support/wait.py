# SPDX-License-Identifier: Apache-2.0
"""Waiting for what happens elsewhere, with a deadline and without guessing how long it takes."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")
STEP_S = 0.01


def wait_until(fn: Callable[[], T], timeout_s: float, what: str) -> T:
    """Ask `fn` until it gives something true; give that. AssertionError names `what` and the last answer."""
    deadline = time.monotonic() + timeout_s
    while True:
        answer = fn()
        if answer:
            return answer
        if time.monotonic() >= deadline:
            raise AssertionError(f"not within {timeout_s} s: {what} (last answer: {answer!r})")
        select.select([], [], [], STEP_S)
