# SPDX-License-Identifier: Apache-2.0
"""What changes by parts is what would be made anew: an agent's tables after any sequence of bindings files."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from softunicast.agent.desired import Memory, desired
from softunicast.agent.facts import Facts
from softunicast.kernel.routing import Device
from softunicast.model.allocator import allocate
from softunicast.model.binding import Binding, Bindings
from softunicast.model.fleet import Plan
from softunicast.model.plan import load_plan

TEXT = """\
prefixes: [{prefix: 198.51.100.0/24}, {prefix: "2001:db8:a::/48"}]
sites:
  lhr:
    nodes:
      lhr1:
        underlay: 10.0.1.11
        uplinks: [up0]
        onramps:
          fish: {device: fish0, pool: gb, sources: [10.77.0.0/24], gateway: 10.77.0.1}
          exact: {device: ex0, pool: ten, slice: "198.51.100.30:9000-9004", sources: [10.78.0.0/24], gateway: 10.78.0.1}
      lhr2: {underlay: 10.0.1.12}
      lhr3: {underlay: 10.0.1.13}
  cdg:
    nodes: {cdg1: {underlay: 10.0.2.11}}
pools:
  gb: {addresses: [198.51.100.10, "2001:db8:a::10", "2001:db8:a::11"], site: lhr, slice_ports: 8192}
  fr: {addresses: [198.51.100.40], site: cdg}
  ten:
    site: lhr
    slices:
      - {slice: "198.51.100.30:9000-9009", node: lhr1}
      - {slice: "198.51.100.30:9010-9019", node: lhr2}
"""
PLANS = [
    load_plan(TEXT, "plan.yaml"),
    load_plan(TEXT.replace("10.78.0.1}", "10.78.0.1, quotas: {flows: 5}}"), "plan.yaml"),
]
BINDINGS = allocate(PLANS[0])
PLACES = range(len(BINDINGS.bindings))
DEVICES = {
    device.name: device
    for device in (
        Device("lo", 1, 65536, 772, ("127.0.0.1",)),
        Device("up0", 2, 1500, addresses=("10.0.1.11",)),
        Device("fish0", 3, 1400),
        Device("ex0", 4, 1400, 65534),
    )
}
FACTS = [
    Facts(7, DEVICES, (), cgroup_root="/sys/fs/cgroup"),
    Facts(7, {name: DEVICES[name] for name in ("lo", "up0")}, (), cgroup_root="/sys/fs/cgroup"),
]


@st.composite
def steps(draw: st.DrawFn) -> tuple[Plan, Facts, tuple[tuple[int, str | None], ...], bool]:
    """Plan, facts, which bindings get which node (None: it goes), and whether the reconciliation goes well."""
    moves = st.tuples(st.sampled_from(PLACES), st.sampled_from(["lhr1", "lhr2", "lhr3", "lhr1", "lhr2", None]))
    return (
        PLANS[draw(st.integers(0, 9)) == 0],
        FACTS[draw(st.integers(0, 9)) == 0],
        tuple(draw(st.lists(moves, max_size=4))),
        draw(st.integers(0, 5)) > 0,
    )


def stepped(before: Bindings, whole: dict[int, Binding], moves: tuple[tuple[int, str | None], ...]) -> Bindings:
    """The next file. `whole`: by place, what is bound; changed in place."""
    epoch = before.epoch + 1
    for place, node in moves:
        one = BINDINGS.bindings[place]
        if node is None:
            whole.pop(place, None)
        elif one.pool != "fr" and (place not in whole or whole[place].node != node):
            whole[place] = replace(one, node=node, epoch=epoch)
    return Bindings(epoch, tuple(whole[place] for place in sorted(whole)))


@given(st.lists(steps(), min_size=1, max_size=8))
def test_by_parts_is_anew(found: list[tuple[Plan, Facts, tuple[tuple[int, str | None], ...], bool]]) -> None:
    memory, last = Memory(), None
    whole = dict(enumerate(BINDINGS.bindings))
    bindings = BINDINGS
    for plan, facts, moves, well in found:
        bindings = stepped(bindings, whole, moves)
        kept = desired(plan, bindings, "lhr1", facts, "digest", last, {}, 100, memory)
        assert kept == desired(plan, bindings, "lhr1", facts, "digest", last, {}, 100)
        again = desired(plan, bindings, "lhr1", facts, "digest", last, {}, 100, memory)
        assert again.resources.tables is kept.resources.tables
        if well:
            last = kept.state
            settled = desired(plan, bindings, "lhr1", facts, "digest", last, {}, 100, memory)
            assert settled.resources.tables is kept.resources.tables
