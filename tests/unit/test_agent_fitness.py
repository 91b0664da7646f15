# SPDX-License-Identifier: Apache-2.0
"""Each reason that makes a node unfit, alone; and what becomes of fitness and draining."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from softunicast.agent.announcing import judge
from softunicast.agent.fitness import Seen, unfit
from softunicast.announce.bird_conf import Stage
from softunicast.kernel.routing import Device

UP = Device("eth0", 2, 1600, addresses=("10.0.1.11",))
SECOND = Device("eth1", 3, 1600)
FIT = Seen(True, ("eth0", "eth1"), (UP, SECOND), ("10.0.1.11",))


@pytest.mark.parametrize(
    ("changes", "reasons"),
    [
        ({}, []),
        ({"devices": (UP, replace(SECOND, up=False))}, []),
        ({"devices": (replace(UP, up=False), replace(SECOND, up=False))}, ["no uplink is up (eth0, eth1)"]),
        ({"devices": (SECOND,)}, ["underlay address 10.0.1.11 is on no device"]),
        ({"underlays": ("10.0.1.11", "fd00:1::11")}, ["underlay address fd00:1::11 is on no device"]),
        ({"uplinks": ()}, ["no uplink"]),
        ({"ready": False}, ["the data plane is not ready"]),
        ({"detached": ("su_guard at eth0",)}, ["su_guard at eth0 is not attached"]),
    ],
)
def test_reasons(changes: dict[str, Any], reasons: list[str]) -> None:
    assert unfit(replace(FIT, **changes)) == reasons


@pytest.mark.parametrize(
    ("reasons", "since_s", "stage"),
    [
        ([], None, Stage.ANNOUNCED),
        ([], 100.0, Stage.DRAINING),
        ([], 70.0, Stage.WITHDRAWN),
        (["no uplink"], None, Stage.WITHDRAWN),
        (["no uplink"], 100.0, Stage.WITHDRAWN),
    ],
)
def test_stages(reasons: list[str], since_s: float | None, stage: Stage) -> None:
    judged = judge(reasons, since_s, 30, 100.0)
    assert judged.stage is stage
    assert bool(judged.why) == (stage is not Stage.ANNOUNCED)
