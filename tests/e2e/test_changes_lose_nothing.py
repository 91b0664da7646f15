# SPDX-License-Identifier: Apache-2.0
"""Programs and tables are replaced under a steady flood both ways, and not one packet is lost or misdirected.

cdg's nodes steer at native XDP, lhr's at tc. All answers come to cdg: those for lhr are carried by XDP there, taken out
of the tunnel at tc in lhr, half of them carried once more. Numbered datagrams and lines of TCP from programs and from
clients, IPv4 and IPv6; captures at both routers say whether anything left outside its slice.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from softunicast.agent.daemon import Agent, Options
from softunicast.agent.logs import logger
from softunicast.kernel import netns
from softunicast.kernel.abi import Settings
from softunicast.kernel.abi_util import addr_bytes, addr_ip
from softunicast.kernel.bpf import BpfObject, object_path
from softunicast.kernel.links import attach_xdp
from softunicast.lab import topology as facts
from softunicast.lab.scenarios import kill_program
from softunicast.model.address import sort_key
from softunicast.model.binding import Binding, Bindings
from softunicast.model.bindings_file import dump_bindings, load_bindings
from softunicast.model.slice import Slice
from tests.support.dump import PINS, RUN
from tests.support.fleet_lab import FleetLab, fleet_lab
from tests.support.wait import wait_until

FLOOD = Path(__file__).parent.parent / "support" / "flood.py"
PORT = 9
TARGETS = ("203.0.113.7", "2001:db8:f::7")
EVERY_MS = 3
PLACES = {"lhr1": "gb", "c1": "gb", "t1": "gb", "t2": "gb", "cdg1": "fr", "c3": "fr"}
RELOADS = 3
MOVES = 60
CUTS = 8


@pytest.fixture(scope="module")
def lab() -> Iterator[FleetLab]:
    with fleet_lab("changes") as lab, contextlib.ExitStack() as undo:
        for node in facts.SITES["cdg"]:
            # XDP on veth knows no partial checksums, and its frames want XDP at the other end.
            for host, device in ((node, "eth0"), ("r2", node)):
                command = ["ethtool", "-K", device, "tx", "off", "tso", "off", "gso", "off"]
                lab.node(host).run(command, check=True)
        # Without tables, and with nobody's underlay, ours lets all pass.
        nobody = Settings(underlay4=addr_bytes(ip_address("10.255.255.255")), node=1, gue_port=6080, site=1)
        passing = undo.enter_context(
            BpfObject.load(object_path("steer"), settings=nobody.pack(), map_sizes={"owners": 16})
        )
        with lab.enter("r2"):
            for node in facts.SITES["cdg"]:
                port = socket.if_nametoindex(node)
                undo.enter_context(attach_xdp(passing.programs["su_steer"], port, generic=False))
        plan = lab.plan_path.read_text()
        head, cdg = plan.split("  cdg:\n", 1)
        lab.plan_path.write_text(
            f"{head}  cdg:\n" + cdg.replace("uplinks: [eth0]", "uplinks: [eth0]\n        attach: xdp")
        )
        for node in facts.SITES["cdg"]:
            wait_until(lambda node=node: _xdp(lab, node), 60, f"{node} steers at XDP")  # type: ignore[misc]
        command = [sys.executable, str(FLOOD), "answer", str(PORT), *TARGETS]
        child = lab.node("inet").popen(command, stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield lab


def _xdp(lab: FleetLab, node: str) -> dict[str, Any]:
    found: list[dict[str, Any]] = json.loads(lab.node(node).run(["ip", "-j", "-d", "link", "show", "eth0"]).stdout)
    return dict(found[0].get("xdp", {}))


class Floods:
    """Floods from all places while the context lasts; then `check` wants every packet of theirs back."""

    def __init__(self, lab: FleetLab, places: Mapping[str, str] = PLACES, targets: Sequence[str] = TARGETS) -> None:
        self.lab = lab
        self._places = places
        self._targets = targets
        self._children: dict[str, subprocess.Popen[Any]] = {}

    def __enter__(self) -> Floods:
        for where, pool in self._places.items():
            command = [sys.executable, str(FLOOD), "ask", str(PORT), str(EVERY_MS), *self._targets]
            if where in facts.NODES:
                command = ["softunicast", "run", "--pool", pool, "--", *command]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
            self._children[where] = self.lab.node(where).popen(command, **pipes)
        for where, child in self._children.items():
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n", f"{where}: {child.communicate()[1]}"
        return self

    def __exit__(self, *_: object) -> None:
        for child in self._children.values():
            if child.poll() is None:
                child.kill()
                child.communicate()

    def check(self, least: int) -> None:
        """End them. Each datagram and line came back, once, from one and the same address and port."""
        wrong = []
        for child in self._children.values():
            assert child.stdin is not None
            child.stdin.close()
            child.stdin = None
        for where, child in self._children.items():
            out, err = child.communicate(timeout=60)
            assert child.returncode == 0, f"{where}: {err}"
            for flow in json.loads(out):
                whole = flow["received"] == flow["sent"] and not flow["twice"] and len(flow["seen"]) == 1
                if not whole:
                    wrong.append(f"{where}: {flow}")
                if flow["protocol"] == "udp":
                    assert flow["sent"] >= least, f"{where} sent too little to show anything: {flow}"
        drops = {node: {why.name: n for why, n in self.lab.stats(node)[0].items() if n} for node in facts.NODES}
        assert not wrong, "\n".join([*wrong, str(drops)])


def programs(lab: FleetLab, node: str) -> dict[str, int]:
    """Kernel ids of what the node's pinned links run."""
    found = {}
    for path in sorted((PINS / lab.node(node).plan_name / "links").iterdir()):
        done = subprocess.run(["bpftool", "-j", "link", "show", "pinned", path], capture_output=True, check=True)
        found[path.name] = json.loads(done.stdout)["prog_id"]
    return found


def settled(lab: FleetLab, node: str, before: dict[str, int]) -> bool:
    """All links of the node run programs that they did not run before, and the agent is done."""
    state = json.loads((RUN / lab.node(node).plan_name / "node.json").read_text())
    return bool(state["ready"]) and not set(programs(lab, node).items()) & set(before.items())


@pytest.mark.timeout(600)
def test_programs_are_replaced(lab: FleetLab) -> None:
    """New settings are new programs: each link, at tc, XDP and the cgroup, goes over to one (BPF_LINK_UPDATE)."""
    with lab.capture() as capture, Floods(lab) as floods:
        for turn in range(RELOADS):
            before = {node: programs(lab, node) for node in facts.NODES}
            assert any(name.startswith("steer-") for name in before["cdg1"]), before["cdg1"]
            text, count = re.subn(r"udp_s: \d+", f"udp_s: {30 + turn}", lab.plan_path.read_text())
            assert count == 1
            lab.plan_path.write_text(text)
            for node in facts.NODES:
                wait_until(lambda node=node, was=before[node]: settled(lab, node, was), 60, f"{node} has new programs")  # type: ignore[misc]
        floods.check(1000)
    report = capture.report()
    assert report.ok, report.problems()


class Tables:
    """The agents' own work on lhr's and cdg's tables, done in this process, so that hundreds of changes take seconds.
    The agents are dead meanwhile; each node gets its own plan and bindings.
    """

    def __init__(self, lab: FleetLab, folder: Path) -> None:
        self.lab = lab
        self._folder = folder
        self.plan = lab.plan_path.read_text()
        self.bindings = load_bindings(lab.bindings_path.read_text(), "bindings")
        self.epoch = self.bindings.epoch
        for node in facts.NODES:
            kill_program(lab, node, "agent")

    def apply(self, node: str, bindings: Sequence[Binding], plan: str = "") -> int:
        """One reconciliation; how many operations it took."""
        host = self.lab.node(node)
        files = self._folder / f"{node}.plan.yaml", self._folder / f"{node}.bindings.yaml"
        files[0].write_text(plan or self.plan)
        whole = tuple(sorted(bindings, key=lambda held: (sort_key(held.slice.address), held.slice.first)))
        files[1].write_text(dump_bindings(Bindings(self.epoch, whole)))
        with netns.enter(str(host.netns)):
            return Agent(Options(host.plan_name, *files), logger("json")).once()

    def owners(self, node: str, moved: set[str]) -> list[Binding]:
        """The bindings with these slices bound to that node, under the next epoch."""
        self.epoch += 1
        name = self.lab.node(node).plan_name
        return [
            replace(held, node=name, epoch=self.epoch) if str(held.slice) in moved else held
            for held in self.bindings.bindings
        ]


def unused(lab: FleetLab, node: str, address: str) -> list[str]:
    """The slices of a node at an address that hold no claim, beside those that do."""
    state = json.loads((RUN / lab.node(node).plan_name / "node.json").read_text())
    used = {claim.slice for _, claim in lab.claims(node)}
    here = [held for held in state["slices"] if held["slice"].startswith((f"{address}:", f"[{address}]:"))]
    assert used & {held["index"] for held in here}, f"no flow at {address}"
    return [held["slice"] for held in here if held["index"] not in used]


@pytest.fixture(scope="module")
def tables(lab: FleetLab, tmp_path_factory: pytest.TempPathFactory) -> Tables:
    return Tables(lab, tmp_path_factory.mktemp("tables"))


@pytest.mark.timeout(600)
def test_slices_move_beside_flows(lab: FleetLab, tables: Tables) -> None:
    """Slices without flows go from lhr1 to lhr2 and back while flows run in the others of the same addresses."""
    with lab.capture() as capture, Floods(lab) as floods:
        addresses = sorted({str(addr_ip(flow.local)) for flow, _ in lab.claims("lhr1")})
        moving = {text for address in addresses for text in unused(lab, "lhr1", address)[:4]}
        assert len(moving) >= 8, (addresses, moving)
        changed = 0
        for turn in range(MOVES):
            giver, taker = ("lhr1", "lhr2") if turn % 2 == 0 else ("lhr2", "lhr1")
            bindings = tables.owners(taker, moving)
            changed += sum(tables.apply(node, bindings) > 0 for node in (giver, taker))
        assert changed == 2 * MOVES
        floods.check(1000)
    report = capture.report()
    assert report.ok, report.problems()


WIDE = re.compile(r'(slice: "198\.51\.100\.22:4096-6143", node: \S+)\}\n')


@pytest.mark.timeout(600)
def test_an_address_is_cut_anew_and_the_order_of_nodes_changes(lab: FleetLab, tables: Tables) -> None:
    """198.51.100.22 gets and loses a slice of ten ports: parts of 2,048 ports become parts of two, and back.

    cdg forgets lhr2, by which it reaches half of lhr's flows, and learns of it again, under new indices.
    """
    lhr2 = lab.node("lhr2").plan_name
    more, count = WIDE.subn(f'\\1}}\n      - {{slice: "198.51.100.22:8000-8009", node: {lhr2}}}\n', tables.plan)
    assert count == 1
    extra = Binding(Slice.parse("198.51.100.22:8000-8009"), lhr2, 0, "wide")
    less = re.sub(rf"      {lhr2}:\n(?:        .*\n)+", "", tables.plan)
    less = re.sub(rf".*node: {lhr2}\}}\n", "", less)
    assert less.count(lhr2) == 0
    with lab.capture() as capture, Floods(lab) as floods, Floods(lab, {"lhr1": "wide"}, TARGETS[:1]) as wide:
        for _ in range(CUTS):
            for narrow in (True, False):
                now = tables.owners("lhr1", set())
                whole = [*now, replace(extra, epoch=tables.epoch)] if narrow else now
                for node in facts.SITES["lhr"]:
                    assert tables.apply(node, whole, more if narrow else tables.plan)
                others = [held for held in now if held.node != lhr2] if narrow else now
                for node in facts.SITES["cdg"]:
                    assert tables.apply(node, others, less if narrow else tables.plan)
        floods.check(1000)
        wide.check(1000)
    report = capture.report()
    assert report.ok, report.problems()
