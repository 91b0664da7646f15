# SPDX-License-Identifier: Apache-2.0
"""Small fleets at random, as YAML, so that every plan here went through the reader."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import strategies as st

from softunicast.model.plan import Plan, load_plan

NODES = [f"n{number}" for number in range(6)]
PORTS = [1024, 2048, 4096, 16384, 32768, 65536]


@dataclass(frozen=True)
class Shape:
    """`nodes`: name -> weight. `addresses` last octets of the pool's addresses; `static` of single-slice ones."""

    nodes: tuple[tuple[str, int], ...]
    addresses: tuple[int, ...]
    slice_ports: int
    static: tuple[tuple[int, int, int, str], ...] = ()
    six: int = 0

    def text(self) -> str:
        nodes = ", ".join(f"{name}: {{underlay: 10.0.0.{name[1:]}, weight: {weight}}}" for name, weight in self.nodes)
        lines = [
            'prefixes: [{prefix: 198.51.100.0/24}, {prefix: "2001:db8::/48"}]',
            f"sites: {{lhr: {{nodes: {{{nodes}}}}}}}",
            "pools:",
        ]
        if self.addresses:
            inside = ", ".join(f"198.51.100.{octet}" for octet in self.addresses)
            lines.append(f"  gb: {{site: lhr, addresses: [{inside}], slice_ports: {self.slice_ports}}}")
        if self.static:
            inside = ", ".join(
                f'{{slice: "198.51.100.{octet}:{first}-{last}", node: {node}}}'
                for octet, first, last, node in self.static
            )
            lines.append(f"  ten: {{site: lhr, slices: [{inside}]}}")
        if self.six or not (self.addresses or self.static):
            lines.append(f'  six: {{site: lhr, prefix: "2001:db8::/64", count: {max(1, self.six)}}}')
        return "\n".join(lines) + "\n"

    def plan(self) -> Plan:
        return load_plan(self.text(), "plan.yaml")


@st.composite
def shapes(draw: st.DrawFn, *, equal: bool = False, pools: bool = True) -> Shape:
    """A fleet of one site. `equal`: all weights 1; without `pools` only the allocated one."""
    names = draw(st.lists(st.sampled_from(NODES), min_size=1, max_size=6, unique=True))
    nodes = tuple((name, 1 if equal else draw(st.integers(1, 5))) for name in names)
    addresses = tuple(draw(st.lists(st.integers(10, 20), min_size=1, max_size=4, unique=True)))
    static: list[tuple[int, int, int, str]] = []
    if pools:
        for octet in draw(st.lists(st.integers(30, 32), max_size=2, unique=True)):
            first = 1024
            for _ in range(draw(st.integers(1, 3))):
                first += draw(st.integers(0, 5000))
                last = first + draw(st.integers(0, 3000))
                static.append((octet, first, last, draw(st.sampled_from(names))))
                first = last + 1
    six = draw(st.integers(0, 4)) if pools else 0
    return Shape(nodes, addresses, draw(st.sampled_from(PORTS)), tuple(static), six)
