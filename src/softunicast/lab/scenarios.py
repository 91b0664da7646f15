# SPDX-License-Identifier: Apache-2.0
"""`softunicast lab scenario`: something breaks while everybody has flows, and what it cost is printed.

    fail-node   cdg1, which half of all answers come to, goes dark: its line is cut; then it comes back
    fail-site   cdg, which all answers come to, is cut off: its line to the internet and the backbone; then it is back
    backbone    the line between the sites is cut while answers for lhr come to cdg; then it is mended
    mtu         the internet's lines take 1,400 bytes all at once; transfers both ways before and after
    drain       cdg1 is drained: `softunicast announce drain`, withdrawn a little later, then undrained
    bird        BIRD at cdg1 is killed with -9 and started again; then so is the agent there
    flap        cdg's line to the internet goes down and up, five times

Each is a function from a lab to a Result: what was done when, what the flows of each node paid, and whose were to
survive. A survivor's connection must not break. What BGP takes to notice is part of the price and
printed; it is BFD's 0.8 s here.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from softunicast.errors import KernelError, UsageError

from . import build
from . import topology as facts
from .cost import COLUMNS, Bill, Cost
from .lab import Lab, wait_until

BEFORE_S: Final = 1.0
DOWN_S: Final = 4.0
AFTER_S: Final = 2.0
FLAPS: Final = 5
FLAP_S: Final = 1.0
CONVERGE_S: Final = 30.0
ANSWER_S: Final = 10
NO_ANSWER_S: Final = 1
TRANSFER_BYTES: Final = 300_000
TRANSFER_S: Final = 10


@dataclass(slots=True)
class Result:
    """What happened, when (seconds since the flows ran), and what it cost; `must_live`: nodes whose connections were
    not to break; `facts` are measured besides, in the words they are printed with.
    """

    scenario: str
    must_live: tuple[str, ...]
    steps: list[tuple[float, str]] = field(default_factory=list)
    costs: dict[str, Cost] = field(default_factory=dict)
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def wrong(self) -> list[str]:
        """What was not as promised, a line each."""
        found = list(self.problems)
        for node in self.must_live:
            cost = self.costs.get(node)
            if cost is not None and cost.broken:
                found.append(f"{cost.broken} connections of {node} broke, the first: {cost.errors[0]}")
        return found


class Happening:
    """The clock of a scenario: notes each step with its time."""

    def __init__(self, lab: Lab, result: Result, say: Callable[[str], None]) -> None:
        self.lab = lab
        self.result = result
        self._say = say
        self._began_s = time.monotonic()

    def step(self, what: str, act: Callable[[], object] | None = None) -> None:
        """Note it, then do it."""
        at_s = time.monotonic() - self._began_s
        self.result.steps.append((at_s, what))
        self._say(f"{at_s:6.2f} s  {what}")
        if act is not None:
            act()

    def rest(self, seconds: float) -> None:
        """Let the flows go on."""
        time.sleep(seconds)

    def converge(self, what: str, condition: Callable[[], bool]) -> None:
        """Wait for it and note how long it took."""
        began_s = time.monotonic()
        wait_until(condition, what, patience_s=CONVERGE_S)
        self.step(f"{what} (after {time.monotonic() - began_s:.2f} s)")


def set_link(lab: Lab, host: str, device: str, *, up: bool) -> None:
    """Pull or plug a cable: with one end of a veth pair down the other has no carrier.

    IPv6 addresses of a device that goes down are kept (sysctl keep_addr_on_down), as a router's configuration is.
    """
    lab.node(host).run(["sysctl", "-qw", f"net.ipv6.conf.{device}.keep_addr_on_down=1"], check=True)
    lab.node(host).run(["ip", "link", "set", device, "up" if up else "down"], check=True)


def restore_routes(lab: Lab, host: str) -> None:
    """What a router's own configuration puts back after its device was down: the static routes of the drawing."""
    text = "".join(f"route replace {route}\n" for route in facts.ROUTES.get(host, ()))
    lab.node(host).run(["ip", "-batch", "-"], input=text, check=True)


@contextmanager
def happening(lab: Lab, name: str, must_live: Sequence[str], say: Callable[[str], None]) -> Iterator[Happening]:
    """Flows run before, during and after what happens inside."""
    result = Result(name, tuple(must_live))
    with Bill(lab) as bill:
        scene = Happening(lab, result, say)
        scene.rest(BEFORE_S)
        yield scene
        scene.rest(AFTER_S)
        result.costs = bill.costs()


def _spread(lab: Lab, router: str, count: int) -> bool:
    return all(len(lab.next_hops(router, str(fleet))) == count for fleet in (facts.FLEET, facts.FLEET6))


def _internet_sends_to(lab: Lab, router: str) -> bool:
    number = 1 if router == "r1" else 5
    side = 1 if router == "r1" else 2
    wanted = {str(facts.FLEET): [f"192.0.2.{number}"], str(facts.FLEET6): [f"2001:db8:e:{side}::1"]}
    return all(lab.next_hops("inet", network) == hops for network, hops in wanted.items())


def fail_node(lab: Lab, say: Callable[[str], None]) -> Result:
    """cdg1 goes dark and comes back."""
    others = [node for node in facts.NODES if node != "cdg1"]
    with happening(lab, "fail-node", others, say) as scene:
        scene.step("cdg1's line is cut", lambda: set_link(lab, "r2", "cdg1", up=False))
        scene.converge("r2 spreads over cdg2 alone", lambda: _spread(lab, "r2", 1))
        scene.rest(DOWN_S)
        scene.step("cdg1's line is back", lambda: set_link(lab, "r2", "cdg1", up=True))
        scene.converge("r2 spreads over both", lambda: _spread(lab, "r2", 2))
    return scene.result


def fail_site(lab: Lab, say: Callable[[str], None]) -> Result:
    """cdg is cut off from internet and backbone, and comes back. Each site has a client ask the web server."""
    with happening(lab, "fail-site", facts.SITES["lhr"], say) as scene:
        scene.step("cdg is cut off: internet and backbone", lambda: cut_site(lab, up=False))
        scene.converge("the internet sends to r1", lambda: _internet_sends_to(lab, "r1"))
        _asks(scene, "c1", answered=True)
        _asks(scene, "c3", answered=False)
        scene.rest(DOWN_S)
        scene.step("cdg is back", lambda: cut_site(lab, up=True))
        scene.converge("the internet sends to r2 again", lambda: _internet_sends_to(lab, "r2"))
        _asks(scene, "c1", answered=True)
        _asks(scene, "c3", answered=True)
    return scene.result


def _asks(scene: Happening, client: str, *, answered: bool) -> None:
    """A client asks the web server whom it sees. A problem unless it is answered, or not, as it should be."""
    patience_s = ANSWER_S if answered else NO_ANSWER_S
    done = scene.lab.node(client).run(["curl", "-sS", "-m", str(patience_s), f"http://{facts.WEB[0]}/"])
    told = done.stdout.strip() if done.returncode == 0 else ""
    scene.step(f"{client} asks the web server: {told or 'no answer'}")
    if bool(told) != answered:
        wanted = "no answer" if answered else "an answer"
        scene.result.problems.append(f"{client} had {wanted} from the web server: {told or done.stderr.strip()}")


def cut_site(lab: Lab, *, up: bool) -> None:
    """Pull or plug both cables of r2 to the world: at their far ends, so that cdg knows no more than its carrier."""
    set_link(lab, "inet", "r2", up=up)
    set_link(lab, "r1", "bb0", up=up)
    if up:
        restore_routes(lab, "r1")
        restore_routes(lab, "r2")


def backbone(lab: Lab, say: Callable[[str], None]) -> Result:
    """The line between the sites is cut: cdg cannot carry to lhr until it is mended."""
    with happening(lab, "backbone", facts.NODES, say) as scene:
        scene.step("the backbone is cut", lambda: set_link(lab, "r1", "bb0", up=False))
        scene.rest(DOWN_S)

        def mend() -> None:
            set_link(lab, "r1", "bb0", up=True)
            restore_routes(lab, "r1")
            restore_routes(lab, "r2")

        scene.step("the backbone is mended", mend)
        scene.rest(DOWN_S)
    return scene.result


def mtu(lab: Lab, say: Callable[[str], None]) -> Result:
    """Smaller lines than senders believe: they are told, and adapt."""
    with happening(lab, "mtu", facts.NODES, say) as scene:
        _transfers(scene, "with full-sized lines", facts.ECHO[0], facts.ECHO6[0])
        scene.step("the lines between routers and internet take 1,400 bytes", lambda: _internet_mtu(lab, 1400))
        before = _told(lab)
        _transfers(scene, "through the small ones", facts.ECHO[1], facts.ECHO6[1])
        told = _told(lab) - before
        _internet_mtu(lab, 1500)
        scene.result.facts.append(f"the routers told senders {told} times that a packet was too big")
        if not told:
            scene.result.problems.append("no packet was too big: the transfers show nothing")
    return scene.result


def _internet_mtu(lab: Lab, size: int) -> None:
    """The internet's servers go on to announce a full-sized MSS, as if the small line were far from them."""
    lab.node("inet").run(
        ["sysctl", "-qw", "net.ipv4.route.min_adv_mss=1460", "net.ipv6.route.min_adv_mss=1440"], check=True
    )
    for router in facts.ROUTERS.values():
        lab.node(router).run(["ip", "link", "set", "inet0", "mtu", str(size)], check=True)
        lab.node("inet").run(["ip", "link", "set", router, "mtu", str(size)], check=True)


def _told(lab: Lab) -> int:
    """Packets that the routers found too big and said so (nstat(8): both families)."""
    counters = [
        json.loads(lab.node(router).run(["nstat", "-aszj"], check=True).stdout)["kernel"]
        for router in facts.ROUTERS.values()
    ]
    return sum(int(counter["IpFragFails"]) + int(counter["Ip6FragFails"]) for counter in counters)


def _transfers(scene: Happening, when: str, *targets: str) -> None:
    """TRANSFER_BYTES there and back again, to each target, from a program and from both kinds of clients."""
    lab = scene.lab
    for where in ("lhr1", "c1", "t2", "c3"):
        for target in targets:
            place = f"TCP6:[{target}]:7" if ":" in target else f"TCP:{target}:7"
            command = [
                "sh",
                "-c",
                f"head -c {TRANSFER_BYTES} /dev/zero | timeout {TRANSFER_S} socat -t 5 - {place} | wc -c",
            ]
            if where in facts.NODES:
                command = ["softunicast", "run", "--pool", "gb", "--", *command]
            began_s = time.monotonic()
            done = lab.node(where).run(command)
            took_s = time.monotonic() - began_s
            whole = done.stdout.strip().isdigit() and int(done.stdout) > TRANSFER_BYTES
            if whole:
                scene.result.facts.append(
                    f"{when}: {where} sent {TRANSFER_BYTES:,} bytes to {target} and had them back in {took_s:.2f} s"
                )
            else:
                said = done.stderr.strip() or f"{done.stdout.strip()} bytes came back"
                scene.result.problems.append(f"{when}: {where} to {target}: {said}")
    scene.step(f"transfers {when} are done")


def drain(lab: Lab, say: Callable[[str], None]) -> Result:
    """cdg1 is taken out of service as an operator does it, and put back: it goes on owning its slices all the while."""
    with happening(lab, "drain", facts.NODES, say) as scene:
        scene.step("cdg1 is drained", lambda: _announce(lab, "cdg1", "drain"))
        scene.converge("r2 spreads over cdg2 alone", lambda: _spread(lab, "r2", 1))
        scene.converge("cdg1's prefixes are withdrawn", lambda: _stage(lab, "cdg1") == "withdrawn")
        scene.rest(AFTER_S)
        scene.step("cdg1 is put back", lambda: _announce(lab, "cdg1", "undrain"))
        scene.converge("r2 spreads over both", lambda: _spread(lab, "r2", 2))
    lost = sum(cost.lost for cost in scene.result.costs.values())
    if lost:
        scene.result.problems.append(f"{lost} datagrams were lost")
    return scene.result


def _announce(lab: Lab, node: str, verb: str) -> None:
    done = lab.node(node).softunicast("announce", verb, "--node", lab.node(node).plan_name)
    if done.returncode:
        raise KernelError(f"lab: announce {verb} at {node}: {done.stderr.strip()}")


def _stage(lab: Lab, node: str) -> str:
    """announced, draining or withdrawn."""
    done = lab.node(node).softunicast("announce", "status", "--node", lab.node(node).plan_name, "--json")
    return str(json.loads(done.stdout)["stage"])


def bird_dies(lab: Lab, say: Callable[[str], None]) -> Result:
    """BIRD at cdg1 is killed: the routers stop sending there, the node goes on carrying and owning. Then its agent."""
    with happening(lab, "bird", facts.NODES, say) as scene:
        scene.step("BIRD at cdg1 is killed with -9", lambda: kill_program(lab, "cdg1", "bird"))
        scene.converge("r2 spreads over cdg2 alone", lambda: _spread(lab, "r2", 1))
        scene.rest(AFTER_S)
        scene.step("BIRD at cdg1 is started again", lambda: lab.start_bird("cdg1"))
        scene.converge("r2 spreads over both", lambda: _spread(lab, "r2", 2))
        scene.step("the agent at cdg1 is killed with -9", lambda: kill_program(lab, "cdg1", "agent"))
        scene.rest(DOWN_S)
        if not _spread(lab, "r2", 2):
            scene.result.problems.append("the agent's death withdrew its node")
        scene.step("the agent at cdg1 is started again", lambda: lab.start_agents(["cdg1"]))
        if not _spread(lab, "r2", 2):
            scene.result.problems.append("the agent's return withdrew its node")
    return scene.result


def kill_program(lab: Lab, node: str, program: str) -> None:
    """kill -9 to a node's BIRD ("bird") or agent ("agent"). UsageError when there is none."""
    found = [pid for pid in build.processes([lab.node(node).netns]) if _is(program, build.command_line(pid))]
    if not found:
        raise UsageError(f"lab: no {program} runs at {node}; softunicast lab status shows what does")
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(build.command_line(pid) for pid in found), f"{program} at {node} is dead")


def _is(program: str, words: Sequence[str]) -> bool:
    if program == "bird":
        return bool(words) and words[0].rpartition("/")[2] == "bird"
    return "softunicast.cli" in words and "agent" in words


def flap(lab: Lab, say: Callable[[str], None]) -> Result:
    """cdg's line to the internet goes down and up: answers come here and there."""
    with happening(lab, "flap", facts.NODES, say) as scene:
        for number in range(FLAPS):
            scene.step(f"cdg's line to the internet goes down ({number + 1} of {FLAPS})")
            set_link(lab, "inet", "r2", up=False)
            scene.rest(FLAP_S)
            set_link(lab, "inet", "r2", up=True)
            scene.step("and up")
            scene.rest(FLAP_S)
        scene.converge("the internet sends to r2 again", lambda: _internet_sends_to(lab, "r2"))
    return scene.result


SCENARIOS: Final[dict[str, Callable[[Lab, Callable[[str], None]], Result]]] = {
    "fail-node": fail_node,
    "fail-site": fail_site,
    "backbone": backbone,
    "mtu": mtu,
    "drain": drain,
    "bird": bird_dies,
    "flap": flap,
}


def bill_text(result: Result) -> list[str]:
    """The costs as lines of a table, sums last."""
    whole = Cost("all")
    for cost in result.costs.values():
        whole.flows += cost.flows
        whole.packets += cost.packets
        whole.lost += cost.lost
        whole.silence_s = max(whole.silence_s, cost.silence_s)
        whole.broken += cost.broken
        whole.opened += cost.opened
        whole.refused += cost.refused
    rows = [COLUMNS, *(cost.row() for cost in (*result.costs.values(), whole))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
