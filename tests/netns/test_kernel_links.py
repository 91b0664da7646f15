# SPDX-License-Identifier: Apache-2.0
"""Links: what is attached runs, goes on without its maker, is replaced in place, and is gone when detached.

    +-- namespace ------------------+     +-- peer -----------+
    |  a0 10.9.0.1/24 ---------- veth ---------- b0 10.9.0.2  |

Needs root and clang.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from softunicast.errors import KernelError
from softunicast.kernel import clsact, netns
from softunicast.kernel.bpf import (
    AttachType,
    BpfObject,
    Link,
    LinkType,
    attach_cgroup,
    attach_clsact,
    attach_tcx,
    attach_xdp,
    detach_clsact,
)
from tests.support.kernel_place import cgroup, compile_bpf, fork, ip, namespace, open_descriptors, pin_folder
from tests.support.wait import wait_until

SAMPLE = Path(__file__).parents[1] / "bpf" / "kernel_sample.bpf.c"
TC, TWICE, XDP, CONNECT, CREATE = range(5)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_bpf(SAMPLE, tmp_path_factory.mktemp("links") / "kernel_sample.bpf.o")


@pytest.fixture
def loaded(sample: Path) -> Iterator[BpfObject]:
    with BpfObject.load(sample) as found:
        yield found


@pytest.fixture
def ifindex() -> Iterator[int]:
    """a0 of the drawing; the test is inside its namespace."""
    with namespace() as here, namespace() as there, netns.enter(here):
        ip("link", "add", "a0", "type", "veth", "peer", "name", "b0", "netns", there)
        ip("address", "add", "10.9.0.1/24", "dev", "a0")
        ip("link", "set", "a0", "up")
        with netns.enter(there):
            ip("address", "add", "10.9.0.2/24", "dev", "b0")
            ip("link", "set", "b0", "up")
        send_to("10.9.0.2")
        yield socket.if_nametoindex("a0")


def send_to(address: str, port: int = 5000) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", (address, port))


def number(found: BpfObject, index: int) -> int:
    value = found.maps["numbers"].lookup(struct.pack("=I", index))
    assert value is not None
    return int(struct.unpack("=Q", value)[0])


def grows(found: BpfObject, index: int) -> bool:
    """Whether sending a packet makes that program count."""
    before = number(found, index)
    send_to("10.9.0.2")
    return number(found, index) > before


def test_tcx_runs_and_goes_on_from_its_pin(loaded: BpfObject, ifindex: int) -> None:
    with pin_folder() as folder:
        link = attach_tcx(loaded.programs["tc_count"], ifindex, egress=True)
        info = link.info
        assert (info.type, info.ifindex, info.attach_type) == (LinkType.TCX, ifindex, AttachType.TCX_EGRESS)
        assert link.program_id == loaded.programs["tc_count"].id
        link.pin(folder / "guard")
        link.close()
        wait_until(lambda: grows(loaded, TC), 5, "the pinned link counts")

        with Link.open_pinned(folder / "guard") as again:
            assert again.id == info.id
            again.update(loaded.programs["tc_count_twice"])
            assert again.program_id == loaded.programs["tc_count_twice"].id and again.id == info.id
            wait_until(lambda: grows(loaded, TWICE), 5, "the new program counts")
            assert not grows(loaded, TC)
            again.detach()
            assert again.info.ifindex == 0
            again.detach()
        assert not grows(loaded, TWICE)


def test_a_link_without_a_pin_ends_with_its_descriptor(loaded: BpfObject, ifindex: int) -> None:
    with attach_tcx(loaded.programs["tc_count"], ifindex, egress=True):
        wait_until(lambda: grows(loaded, TC), 5, "the link counts")
    assert not grows(loaded, TC)


def test_tcx_goes_ahead_of_what_is_there(loaded: BpfObject, ifindex: int) -> None:
    count, drop = loaded.programs["tc_count"], loaded.programs["tc_drop"]
    with attach_tcx(drop, ifindex, egress=True), attach_tcx(count, ifindex, egress=True):
        wait_until(lambda: grows(loaded, TC), 5, "the later link runs first")


def test_a_link_outlives_its_device_as_an_empty_shell(loaded: BpfObject, ifindex: int) -> None:
    with attach_tcx(loaded.programs["tc_count"], ifindex, egress=False) as link:
        ip("link", "delete", "a0")
        assert wait_until(lambda: link.info.ifindex == 0, 5, "the link lost its device")
        link.detach()
        with pytest.raises(KernelError, match="replace the program"):
            link.update(loaded.programs["tc_drop"])


@pytest.mark.parametrize("generic", [True, False])
def test_xdp(loaded: BpfObject, ifindex: int, generic: bool) -> None:
    program = loaded.programs["xdp_swap"]
    with attach_xdp(program, ifindex, generic=generic) as link:
        info = link.info
        assert (info.type, info.ifindex, info.program_id) == (LinkType.XDP, ifindex, program.id)
        with pytest.raises(KernelError) as caught:
            attach_xdp(program, ifindex, generic=generic)
        assert caught.value.errno == errno.EBUSY


def test_cgroup_hooks_run_for_programs_inside(loaded: BpfObject) -> None:
    hooks = {
        "connect_refuse": AttachType.CGROUP_INET4_CONNECT,
        "sock_count": AttachType.CGROUP_INET_SOCK_CREATE,
    }
    with cgroup() as place:
        fd = place.open()
        links = [attach_cgroup(loaded.programs[name], fd, kind) for name, kind in hooks.items()]
        os.close(fd)
        for link, (name, kind) in zip(links, hooks.items(), strict=True):
            info = link.info
            assert (info.type, info.cgroup_id, info.attach_type) == (LinkType.CGROUP, place.id, kind)
            assert link.program_id == loaded.programs[name].id

        def connect_twice() -> int:
            place.add()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as made:
                made.connect(("127.0.0.1", 8))
                return made.connect_ex(("127.0.0.1", 9))

        assert os.waitstatus_to_exitcode(os.waitpid(fork(connect_twice), 0)[1]) == errno.EADDRNOTAVAIL
        assert (number(loaded, CONNECT), number(loaded, CREATE)) == (2, 1)
        for link in links:
            link.close()


def test_clsact_filters_are_replaced_in_place(loaded: BpfObject, ifindex: int) -> None:
    count, twice = loaded.programs["tc_count"], loaded.programs["tc_count_twice"]
    assert clsact.attached(ifindex, egress=True) is None
    attach_clsact(count, ifindex, egress=True)
    assert clsact.attached(ifindex, egress=True) == count.id
    assert clsact.attached(ifindex, egress=False) is None
    wait_until(lambda: grows(loaded, TC), 5, "the filter counts")
    attach_clsact(twice, ifindex, egress=True)
    assert clsact.attached(ifindex, egress=True) == twice.id
    wait_until(lambda: grows(loaded, TWICE), 5, "the new filter counts")
    assert not grows(loaded, TC)
    assert not detach_clsact(ifindex, egress=False)
    assert detach_clsact(ifindex, egress=True) and not detach_clsact(ifindex, egress=True)
    assert not grows(loaded, TWICE)


def test_what_is_not_there_is_named(loaded: BpfObject, ifindex: int) -> None:
    absent = 0x7FFFFFF0
    for attach in (
        lambda: attach_tcx(loaded.programs["tc_count"], absent, egress=False),
        lambda: attach_clsact(loaded.programs["tc_count"], absent, egress=True),
    ):
        with pytest.raises(KernelError, match=rf"attach \w+ to device {absent}, .*No such device") as caught:
            attach()
        assert caught.value.errno == errno.ENODEV
    assert clsact.attached(absent, egress=True) is None and not detach_clsact(absent, egress=True)
    with pytest.raises(KernelError, match=f"attach xdp_swap to device {absent}, XDP generic: Invalid"):
        attach_xdp(loaded.programs["xdp_swap"], absent, generic=True)
    with pytest.raises(KernelError) as caught:
        attach_tcx(loaded.programs["xdp_swap"], ifindex, egress=True)
    assert caught.value.errno == errno.EINVAL


def test_links_leave_no_descriptor(loaded: BpfObject, ifindex: int) -> None:
    before = open_descriptors()
    link = attach_tcx(loaded.programs["tc_count"], ifindex, egress=True)
    link.close()
    link.close()
    assert set(open_descriptors()) == set(before)
    with pytest.raises(ValueError, match="link is closed"):
        link.detach()
    assert repr(link) == "<Link closed>"


def test_a_missing_pin_is_named() -> None:
    with pin_folder() as folder, pytest.raises(KernelError, match=f"link {folder}/none: No such file"):
        Link.open_pinned(folder / "none")
