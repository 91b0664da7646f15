# SPDX-License-Identifier: Apache-2.0
"""The pure heart of the agent: order, idempotence, refusals. A fake machine applies operations to a model of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest

from softunicast.agent import operations as op
from softunicast.agent.diff import Desired, Observed, diff
from softunicast.agent.resources import Attachment, Build, Hook, Notrack, Resources
from softunicast.agent.state import NodeState
from softunicast.errors import UsageError
from softunicast.kernel.routing import NextHop, Route, Rule

BUILD = Build("b" * 64, 1, b"settings", {"flows": 1024})
LINKS = (
    Attachment("su_connect4", "su_connect4", Hook.CGROUP),
    Attachment("guard-2", "su_guard", Hook.EGRESS, "up0", 2),
    Attachment("uplink_in-2", "su_uplink_in", Hook.INGRESS, "up0", 2),
    Attachment("onramp_in-3", "su_onramp_in", Hook.INGRESS, "fish0", 3),
)
WANTED = Resources(
    tables={"slices": {b"\0" * 4: b"S"}, "addresses": {b"a": b"A"}, "owners": {b"o": b"O"}},
    links={link.name: link for link in LINKS},
    addresses=frozenset({"198.51.100.10/32"}),
    rules=frozenset({Rule(4, "198.51.100.10")}),
    routes=frozenset({Route(4, 1 << 31), Route(4, 1, (NextHop(2, "10.0.1.1", "up0"),))}),
    sysctls={"net/ipv4/conf/up0/arp_ignore": "1"},
    notrack=Notrack(frozenset({"198.51.100.10"})),
    files={"plan.yaml": "plan"},
)
DESIRED = Desired(BUILD, WANTED, NodeState("lhr1", 7, 1, bindings_epoch=3, started_s=100))
EMPTY = Observed(Resources(sysctls={"net/ipv4/conf/up0/arp_ignore": "0"}, addresses=frozenset({"127.0.0.1/8"})))


class FakeMachine:
    """Does to an `Observed` what the kernel would do."""

    def __init__(self, observed: Observed, fail_at: int = -1) -> None:
        self.observed = observed
        self.fail_at = fail_at
        self.next_program = 100

    def run(self, operations: list[op.Operation]) -> None:
        for position, operation in enumerate(operations):
            if position == self.fail_at:
                raise InterruptedError(str(operation))
            operation.apply(self)

    def _put(self, **changes: object) -> None:
        self.observed = replace(self.observed, resources=replace(self.observed.resources, **changes))  # type: ignore[arg-type]

    def mount_bpffs(self) -> None:
        self.observed = replace(self.observed, bpffs=True)

    def load_programs(self, build: Build) -> None:
        assert self.observed.bpffs
        names = {link.program for link in LINKS}
        programs = {name: self.next_program + at for at, name in enumerate(sorted(names))}
        self.next_program += 100
        self.observed = replace(self.observed, programs=programs)

    def fill_map(self, name: str, updates: Mapping[bytes, bytes], deletions: tuple[bytes, ...]) -> None:
        assert self.observed.programs
        table = {**self.observed.resources.tables.get(name, {}), **updates}
        for key in deletions:
            del table[key]
        self._put(tables={**self.observed.resources.tables, name: table})

    def attach(self, link: Attachment) -> None:
        self._put(links={**self.observed.resources.links, link.name: link})
        self._link(link)

    def update_link(self, link: Attachment) -> None:
        assert self.observed.resources.links[link.name] == link
        self._link(link)

    def _link(self, link: Attachment) -> None:
        program = self.observed.programs[link.program]
        self.observed = replace(self.observed, link_programs={**self.observed.link_programs, link.name: program})

    def detach(self, name: str) -> None:
        self._put(links={key: link for key, link in self.observed.resources.links.items() if key != name})

    def set_sysctl(self, path: str, value: str) -> None:
        self._put(sysctls={**self.observed.resources.sysctls, path: value})

    def add_address(self, address: str) -> None:
        self._put(addresses=self.observed.resources.addresses | {address})

    def delete_address(self, address: str) -> None:
        self._put(addresses=self.observed.resources.addresses - {address})

    def add_rule(self, rule: Rule) -> None:
        self._put(rules=self.observed.resources.rules | {rule})

    def delete_rule(self, rule: Rule) -> None:
        self._put(rules=self.observed.resources.rules - {rule})

    def set_route(self, route: Route) -> None:
        same = {
            have
            for have in self.observed.resources.routes
            if (have.version, have.metric) == (route.version, route.metric)
        }
        self._put(routes=(self.observed.resources.routes - same) | {route})

    def delete_route(self, route: Route) -> None:
        self._put(routes=self.observed.resources.routes - {route})

    def set_notrack(self, notrack: Notrack) -> None:
        self._put(notrack=notrack)

    def set_ready(self, ready: bool) -> None:
        self.observed = replace(self.observed, ready=ready)

    def adopt(self) -> None:
        assert "su_connect4" in self.observed.resources.links

    def write_file(self, name: str, text: str) -> None:
        self._put(files={**self.observed.resources.files, name: text})

    def save_state(self, state: NodeState) -> None:
        self.observed = replace(self.observed, state=state)


def applied(desired: Desired = DESIRED, observed: Observed = EMPTY) -> Observed:
    machine = FakeMachine(observed)
    machine.run(diff(desired, observed))
    return machine.observed


def lines(desired: Desired, observed: Observed) -> list[str]:
    return [str(operation) for operation in diff(desired, observed)]


def test_order_is_the_safety() -> None:
    kinds = [type(operation).__name__ for operation in diff(DESIRED, EMPTY)]
    assert kinds[0] == "SaveState"
    assert kinds[1] == "LoadPrograms"
    assert kinds[-2:] == ["SetReady", "SaveState"]
    text = lines(DESIRED, EMPTY)
    where = {line.split(" at ")[0]: at for at, line in enumerate(text)}
    last_fill = max(at for at, line in enumerate(text) if line.startswith("map "))
    assert last_fill < where["attach su_guard"] < text.index("address 198.51.100.10/32 on lo")
    assert text.index("address 198.51.100.10/32 on lo") < where["attach su_connect4"]
    assert where["attach su_connect4"] < text.index("adopt living sockets (TCP, UDP)") < where["attach su_onramp_in"]
    assert text.index("map owners: set 1 entry") < text.index("map addresses: set 1 entry")
    unreachable = next(at for at, line in enumerate(text) if "unreachable" in line)
    assert unreachable < next(at for at, line in enumerate(text) if "via 10.0.1.1" in line)


def test_bpffs_is_mounted_before_anything_is_pinned() -> None:
    unmounted = replace(EMPTY, bpffs=False)
    kinds = [type(operation).__name__ for operation in diff(DESIRED, unmounted)]
    assert kinds[:3] == ["SaveState", "MountBpffs", "LoadPrograms"]
    assert diff(DESIRED, applied(observed=unmounted)) == []


def test_nothing_to_do_when_nothing_changed() -> None:
    assert diff(DESIRED, applied()) == []


@pytest.mark.parametrize("fail_at", range(len(diff(DESIRED, EMPTY))))
def test_broken_off_anywhere_the_door_is_closed_and_the_next_run_completes(fail_at: int) -> None:
    machine = FakeMachine(EMPTY, fail_at)
    operations = diff(DESIRED, EMPTY)
    with pytest.raises(InterruptedError):
        machine.run(operations)
    assert machine.observed.ready is (fail_at == len(operations) - 1)
    machine.fail_at = -1
    machine.run(diff(DESIRED, machine.observed))
    assert machine.observed.ready
    assert diff(DESIRED, machine.observed) == []
    state = machine.observed.state
    assert state is not None
    assert state.sysctls_before == {"net/ipv4/conf/up0/arp_ignore": "0"}
    assert state.addresses_added == ("198.51.100.10/32",)


def test_new_programs_update_every_link_and_attach_none() -> None:
    changed = replace(DESIRED, build=replace(BUILD, hash="c" * 64))
    kinds = [type(operation).__name__ for operation in diff(changed, applied())]
    assert kinds == ["SaveState", "LoadPrograms", *["UpdateLink"] * len(LINKS), "SaveState"]


def test_a_device_that_came_writes_no_state() -> None:
    more = Attachment("guard_other-9", "su_onramp_in", Hook.EGRESS, "new", 9)
    changed = replace(DESIRED, resources=replace(WANTED, links={**WANTED.links, more.name: more}))
    assert lines(changed, applied()) == ["attach su_onramp_in at tc egress of new (9)"]


def test_a_link_whose_device_went_is_taken_away_and_one_whose_index_came_back_is_made_again() -> None:
    have = applied()
    dead = {
        name: replace(link, ifindex=0, device="") if name == "guard-2" else link for name, link in LINKS_BY_NAME.items()
    }
    observed = replace(have, resources=replace(have.resources, links=dead))
    assert lines(DESIRED, observed) == [
        "detach su_guard at tc egress of a device that is gone (0)",
        "attach su_guard at tc egress of up0 (2)",
    ]
    fewer = {name: link for name, link in LINKS_BY_NAME.items() if name != "onramp_in-3"}
    without = replace(DESIRED, resources=replace(WANTED, links=fewer))
    assert lines(without, have) == ["detach su_onramp_in at tc ingress of fish0 (3)"]


LINKS_BY_NAME = {link.name: link for link in LINKS}


def test_a_missing_hook_closes_the_door_until_sockets_are_adopted() -> None:
    have = applied()
    links = {name: link for name, link in have.resources.links.items() if name != "su_connect4"}
    observed = replace(have, resources=replace(have.resources, links=links))
    assert lines(DESIRED, observed) == [
        "close: fish may not claim until living sockets are adopted",
        "attach su_connect4 at the root cgroup",
        "adopt living sockets (TCP, UDP)",
        "open: fish may claim",
    ]


def test_what_is_no_longer_wanted_goes_and_sysctls_come_back() -> None:
    less = replace(
        WANTED,
        tables={"slices": {}, "addresses": {}, "owners": {}},
        addresses=frozenset(),
        rules=frozenset(),
        routes=frozenset(),
        sysctls={},
        notrack=Notrack(),
    )
    have = applied()
    after = applied(replace(DESIRED, resources=less), have)
    assert after.resources.addresses == {"127.0.0.1/8"}
    assert after.resources.sysctls == {"net/ipv4/conf/up0/arp_ignore": "0"}
    assert after.resources.tables == {"slices": {}, "addresses": {}, "owners": {}}
    assert not after.resources.rules
    assert not after.resources.routes
    assert after.state is not None
    assert after.state.sysctls_before == {}
    assert after.state.addresses_added == ()


def test_an_address_of_the_operator_is_not_ours_to_remove() -> None:
    observed = replace(EMPTY, resources=replace(EMPTY.resources, addresses=frozenset({"198.51.100.10/32"})))
    have = applied(observed=observed)
    assert have.state is not None
    assert have.state.addresses_added == ()
    gone = replace(DESIRED, resources=replace(WANTED, addresses=frozenset()))
    assert "remove" not in " ".join(lines(gone, have))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"netns_cookie": 8}, "runs in another network namespace"),
        ({"bindings_epoch": 4}, "older than epoch 4"),
        ({"abi_version": 2}, "its maps have layout 2"),
        ({"map_sizes": {"flows": 512}}, "map flows has room for 512 entries, the plan asks for 1024"),
    ],
)
def test_refusals(change: dict[str, object], message: str) -> None:
    have = applied()
    assert have.state is not None
    observed = replace(have, state=replace(have.state, **change))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        diff(DESIRED, observed)


def test_pins_without_node_json_are_refused() -> None:
    with pytest.raises(UsageError, match=r"node[.]json is gone"):
        diff(DESIRED, replace(EMPTY, pins_without_state=True))


def test_every_operation_is_one_line() -> None:
    for operation in diff(DESIRED, EMPTY):
        assert "\n" not in str(operation)
        assert len(str(operation)) < 200
