# SPDX-License-Identifier: Apache-2.0
"""The tree of errors: what a user sees, and the exit status it gives."""

from __future__ import annotations

import pickle

import pytest

from softunicast.errors import KernelError, PlanError, ProbeError, SoftunicastError, UsageError


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (SoftunicastError("a"), 1, "a"),
        (UsageError("b"), 2, "b"),
        (KernelError("c", errno=1, log="many\nlines"), 1, "c"),
        (ProbeError("d"), 1, "d"),
        (
            PlanError("plan.yaml", 12, "pools.gb: no such site", "add it to sites"),
            2,
            "plan.yaml:12: pools.gb: no such site ; add it to sites",
        ),
        (PlanError("plan.yaml", 0, "empty"), 2, "plan.yaml: empty"),
        (PlanError("", 0, "empty"), 2, "empty"),
    ],
)
def test_one_line_and_an_exit_status(error: SoftunicastError, status: int, line: str) -> None:
    assert str(error) == line
    assert error.exit_status == status
    assert error.message and "\n" not in str(error)


def test_the_tree_is_as_drawn() -> None:
    assert issubclass(PlanError, UsageError) and issubclass(ProbeError, KernelError)
    assert issubclass(UsageError, SoftunicastError) and issubclass(KernelError, SoftunicastError)
    assert not issubclass(UsageError, KernelError)


def test_details_are_kept() -> None:
    error = PlanError("plan.yaml", 3, "x", "y")
    assert (error.file, error.line, error.message, error.remedy) == ("plan.yaml", 3, "x", "y")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error)
    refused = KernelError("load", errno=13, log="verifier\n")
    assert (refused.errno, refused.log) == (13, "verifier\n")
