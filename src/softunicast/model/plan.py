# SPDX-License-Identifier: Apache-2.0
"""The plan: what an operator writes, checked.

    text --document--> plain data and lines --shape--> typed keys --reading--> Plan (model.fleet)

`load_plan` is pure; whoever calls it reads the file. Reference of every key: docs/plan.md.
"""

from __future__ import annotations

from softunicast.model.document import load_document
from softunicast.model.fleet import Node, Onramp, Plan, Pool, Prefix, Settings, Site, StaticSlice, Timers
from softunicast.model.reading import PlanReader
from softunicast.model.shape import check_shape

__all__ = [
    "Node",
    "Onramp",
    "Plan",
    "Pool",
    "Prefix",
    "Settings",
    "Site",
    "StaticSlice",
    "Timers",
    "load_plan",
]


def load_plan(text: str, file: str) -> Plan:
    """Parse and check a plan. `file` is for messages. PlanError: the first mistake; never another exception."""
    document = load_document(text, file)
    return PlanReader(document, check_shape(document)).read()
