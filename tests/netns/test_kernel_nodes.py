# SPDX-License-Identifier: Apache-2.0
"""Where a node's things are, cgroups, and the probe. Needs root and clang."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
from pathlib import Path

import pytest

from softunicast.errors import KernelError, ProbeError, UsageError
from softunicast.kernel import cgroup as cgroups
from softunicast.kernel import netns, nodes, probe
from softunicast.kernel.bpf import BpfObject
from softunicast.kernel.libbpf import Command, bpf
from softunicast.kernel.probe import Feature
from softunicast.lab.traces import forget_node
from tests.support.kernel_place import cgroup, compile_bpf, fork, namespace, open_descriptors, pin_folder, unique

SAMPLE = Path(__file__).parents[1] / "bpf" / "kernel_sample.bpf.c"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The run folder, empty."""
    monkeypatch.setattr(nodes, "RUN", tmp_path)
    return tmp_path


def settle(node: str, cookie: int) -> None:
    nodes.run_dir(node).mkdir()
    nodes.node_file(node).write_text(json.dumps({"node": node, "netns_cookie": cookie}))


def test_folders_of_a_node(run: Path) -> None:
    assert nodes.map_pin("lhr1", "flows") == Path("/sys/fs/bpf/softunicast/lhr1/maps/flows")
    assert nodes.program_pin("lhr1", "su_guard") == Path("/sys/fs/bpf/softunicast/lhr1/progs/su_guard")
    assert nodes.link_pin("lhr1", "guard-3") == Path("/sys/fs/bpf/softunicast/lhr1/links/guard-3")
    assert nodes.plan_file("lhr1") == run / "lhr1" / "plan.yaml"
    assert nodes.bindings_file("lhr1") == run / "lhr1" / "bindings.yaml"
    assert nodes.cgroup_dir("lhr1").path == cgroups.root() / "softunicast" / "lhr1"


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a.b", "-a", "a" * 64, "a b"])
def test_names_that_cannot_be_folders(name: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"node {name!r}: ")):
        nodes.pin_dir(name)


def test_the_node_meant_is_the_one_of_this_namespace(run: Path) -> None:
    with pytest.raises(UsageError, match="no node in this network namespace: start the agent"):
        nodes.find_node(None)
    with namespace() as here, namespace() as there, namespace() as nowhere:
        for node, place in {"lhr1": here, "lhr2": there}.items():
            with netns.enter(place):
                settle(node, netns.cookie())
        for node, place in {"lhr1": here, "lhr2": there}.items():
            with netns.enter(place):
                assert nodes.find_node(None) == node
        with netns.enter(nowhere):
            assert nodes.find_node("lhr2") == "lhr2"
            with pytest.raises(UsageError, match=r"no node .* \(nodes: lhr1, lhr2\)"):
                nodes.find_node(None)
            with pytest.raises(UsageError, match=r"node cdg1: not on this machine \(here: lhr1, lhr2\)"):
                nodes.find_node("cdg1")
        with netns.enter(here):
            settle("lhr3", netns.cookie())
            with pytest.raises(UsageError, match=r"several nodes .* \(lhr1, lhr3\): say --node NAME"):
                nodes.find_node(None)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"netns_cookie": null}'])
def test_a_broken_node_file_is_named(run: Path, text: str) -> None:
    settle("lhr1", 1)
    nodes.node_file("lhr1").write_text(text)
    with pytest.raises(KernelError, match=f"{run}/lhr1/node.json: unreadable"):
        nodes.find_node("lhr1")


def test_pinned_maps_open_when_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = compile_bpf(SAMPLE, tmp_path / "sample.bpf.o")
    with pin_folder() as folder:
        monkeypatch.setattr(nodes, "PINS", folder)
        with pytest.raises(UsageError, match=r"node lhr1: no maps at .*: start its agent"):
            nodes.open_maps("lhr1")
        BpfObject.load(built, pin_dir=nodes.pin_dir("lhr1")).close()
        before = open_descriptors()
        with nodes.open_maps("lhr1") as maps:
            assert set(open_descriptors()) == set(before)
            assert list(maps) == ["flows", "numbers", "odd", "prefixes", "stats"]
            assert maps.flows is maps["flows"] and maps.flows.name == "flows"
            with pytest.raises(KernelError, match="maps/none: No such file"):
                maps.none.lookup(b"")
            assert not hasattr(maps, "_private")
        assert set(open_descriptors()) == set(before)


def test_cgroups_are_made_entered_and_removed() -> None:
    with cgroup() as top:
        inner = cgroups.CgroupDir(top.path / "a" / "b")
        assert not inner.exists and inner.create() and not inner.create() and inner.exists
        assert inner.id == inner.path.stat().st_ino != top.id
        ready, tell = os.pipe()

        def stay() -> int:
            inner.add()
            os.write(tell, b"x")
            signal.pause()
            return 0

        child = fork(stay)
        os.read(ready, 1)
        try:
            assert inner.processes() == [child] and top.processes() == []
            assert cgroups.of_process(child) == inner.path
            with pytest.raises(KernelError, match=f"remove cgroup {top.path}: ") as caught:
                top.remove()
            assert caught.value.errno == errno.EBUSY
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            os.close(ready)
            os.close(tell)
        os.close(inner.open())
        assert top.remove() and not top.remove()
        assert inner.processes() == []
        for attempt in (lambda: top.id, top.open, top.add):
            with pytest.raises(KernelError, match=str(top.path)):
                attempt()
        with pytest.raises(KernelError, match=f"cgroup of process {child}: "):
            cgroups.of_process(child)


def test_cgroup2_is_where_the_mounts_say() -> None:
    assert (cgroups.root() / "cgroup.controllers").exists()
    assert cgroups.of_process().is_dir()
    assert cgroups.CgroupDir.below_root("a", "b").path == cgroups.root() / "a" / "b"


def test_this_kernel_has_everything() -> None:
    before = open_descriptors()
    features = probe.probe()
    assert probe.missing(features) == []
    probe.require(features)
    names = [feature.name for feature in features]
    assert len(names) == len(set(names)) and {"BTF", "bpffs", "cgroup2", "TCX"} <= set(names)
    assert all(feature.needed_for and feature.remedy for feature in features)
    assert set(open_descriptors()) == set(before)


def test_tcx_is_told_from_the_kernel_and_clsact_tried() -> None:
    release = tuple(map(int, re.findall(r"\d+", os.uname().release)[:2]))
    assert probe.has_tcx() == (release >= (6, 6))
    before = netns.cookie()
    assert probe.has_clsact()
    assert netns.cookie() == before


def test_without_tcx_clsact_is_required(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "has_tcx", lambda: False)
    monkeypatch.setattr(probe, "has_clsact", lambda: False)
    [absent] = probe.missing(probe.tc_features())
    assert absent.name == "clsact"


def test_what_is_missing_is_named_with_its_remedy() -> None:
    features = [
        Feature("TCX", False, "speed", "boot 6.6", required=False),
        Feature("BTF", False, "programs", "boot one with BTF"),
        Feature("cgroup2", False, "sockets", "mount it"),
        Feature("bpffs", True, "pins", "mount that"),
    ]
    with pytest.raises(ProbeError) as caught:
        probe.require(features)
    assert caught.value.message.splitlines() == [
        "this kernel lacks BTF (needed for programs): boot one with BTF",
        "this kernel lacks cgroup2 (needed for sockets): mount it",
    ]


@pytest.mark.parametrize(
    ("release", "good"), [("6.1.0-18-amd64", True), ("6.18.1", True), ("5.15.0", False), ("weird", False)]
)
def test_kernel_versions(release: str, good: bool) -> None:
    feature = probe.version_feature(release)
    assert feature.present == good and release in feature.needed_for


def test_without_privilege_the_probe_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "try_load", lambda kind: errno.EPERM)
    with pytest.raises(ProbeError, match="run as root"):
        probe.probe()


def test_bpf_raises_what_the_kernel_says() -> None:
    with pytest.raises(OSError, match=r"bpf\(OBJ_GET_INFO_BY_FD\)") as caught:
        bpf(Command.OBJ_GET_INFO_BY_FD, bytes(16))
    assert caught.value.errno in (errno.EBADF, errno.EINVAL)
    assert unique() != unique()


def test_a_lab_forgets_where_tcp_ended() -> None:
    """The namespace of a terminus has a name outside of the lab's."""
    node = f"t-forget-{os.getpid()}"
    name = nodes.terminus_namespace(node, 3)
    netns.create(name)
    try:
        assert nodes.terminus_namespaces(node) == [name]
        forget_node(node)
        assert nodes.terminus_namespaces(node) == []
    finally:
        netns.delete(name)
