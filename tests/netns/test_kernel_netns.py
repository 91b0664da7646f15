# SPDX-License-Identifier: Apache-2.0
"""Namespaces, and what is asked of them: sysctls, TUN devices, nft. Needs root."""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from softunicast.errors import KernelError, UsageError
from softunicast.kernel import netns, nft, sysctl
from softunicast.kernel.netlink import Netlink
from softunicast.kernel.tun import open_tun
from tests.support.kernel_place import ip, namespace, open_descriptors, unique


def inode() -> int:
    return Path("/proc/thread-self/ns/net").stat().st_ino


def test_enter_and_come_back() -> None:
    outside, cookie = inode(), netns.cookie()
    before = open_descriptors()
    with namespace() as name:
        assert name in netns.names()
        with netns.enter(name):
            assert inode() != outside and netns.cookie() != cookie
            inside = netns.cookie()
            with netns.enter(f"/run/netns/{name}"):
                assert netns.cookie() == inside
            with netns.enter(None):
                assert netns.cookie() == inside
        assert (inode(), netns.cookie()) == (outside, cookie)
        with pytest.raises(RuntimeError, match="inside"), netns.enter(name):
            raise RuntimeError("inside")
        assert inode() == outside
    assert name not in netns.names()
    assert set(open_descriptors()) == set(before)


def test_only_the_thread_that_enters_is_inside() -> None:
    with namespace() as name, ThreadPoolExecutor(1) as older:
        outside = older.submit(inode).result()
        with netns.enter(name):
            assert inode() != outside
            assert older.submit(inode).result() == outside
            assert netns.in_thread(inode) == inode()  # made in here, it is in here


def test_children_inherit_the_namespace() -> None:
    with namespace() as name, netns.enter(name):
        shown = subprocess.run(["readlink", "/proc/self/ns/net"], capture_output=True, text=True, check=True)
        assert shown.stdout.strip() == f"net:[{inode()}]"


def test_names_are_taken_once_and_missing_ones_named() -> None:
    with namespace() as name, pytest.raises(UsageError, match=f"network namespace {name}: already there"):
        netns.create(name)
    assert not netns.delete(name)
    with pytest.raises(UsageError, match=f"{name}: there is none"), netns.enter(name):
        pass
    with pytest.raises(KernelError, match="enter network namespace /proc/self/ns/uts: Invalid argument"):
        with netns.enter("/proc/self/ns/uts"):
            pass


def test_iproute2_sees_what_we_make() -> None:
    with namespace() as name:
        shown = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=True)
        assert name in shown.stdout.split()


def test_sysctls_are_of_the_namespace() -> None:
    forwarding = "net.ipv4.ip_forward"
    outside = sysctl.get(forwarding)
    with namespace() as name:
        assert sysctl.put(forwarding, 1, netns=name) == "0"
        assert sysctl.get(forwarding, netns=name) == "1"
        assert sysctl.put("net/ipv4/ip_forward", "1", netns=name) == "1"
        assert sysctl.put("net.ipv4.ip_local_port_range", "1024 2048", netns=name).split() == ["32768", "60999"]
        with netns.enter(name):
            assert sysctl.get("net.ipv4.ip_local_port_range") == "1024\t2048"
    assert sysctl.get(forwarding) == outside


def test_sysctls_that_are_refused_are_named() -> None:
    with namespace() as name:
        with pytest.raises(KernelError, match=r"sysctl net\.ipv4\.none: No such file"):
            sysctl.get("net.ipv4.none", netns=name)
        with pytest.raises(KernelError, match=r"sysctl net\.ipv4\.ip_forward: cannot set 'x': Invalid"):
            sysctl.put("net.ipv4.ip_forward", "x", netns=name)


@pytest.mark.parametrize("tap", [False, True])
def test_a_tun_device_gives_bare_packets(tap: bool) -> None:
    with namespace() as name, netns.enter(name), Netlink() as netlink:
        fd = open_tun("fish0", tap=tap)
        assert netlink.devices()["fish0"].ethernet == tap
        ip("address", "add", "10.8.0.1/24", "dev", "fish0")
        ip("link", "set", "fish0", "up")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"hello", ("10.8.0.2", 7))
        while True:
            assert select.select([fd], [], [], 5)[0], "no packet came out of the device"
            packet = os.read(fd, 2048)
            if tap and packet[12:14] != b"\x08\x06" and packet[12:14] != b"\x08\x00":
                continue
            if not tap and packet[0] >> 4 != 4:
                continue
            break
        with pytest.raises(KernelError, match="device fish0: Device or resource busy") as caught:
            open_tun("fish0", tap=tap)
        assert caught.value.errno == errno.EBUSY
        os.close(fd)
        assert "fish0" not in netlink.devices()


@pytest.mark.parametrize("name", ["", "a" * 16])
def test_device_names_the_kernel_cannot_have(name: str) -> None:
    with pytest.raises(UsageError, match="must have 1 to 15 characters"):
        open_tun(name)


def test_nft_is_all_or_nothing() -> None:
    with namespace() as name, netns.enter(name):
        assert nft.list_ruleset() == [] and nft.list_table("inet", "t") is None
        nft.run("table inet t { chain c { type filter hook output priority raw; ip saddr 10.0.0.1 notrack; }; }")
        kinds = [next(iter(entry)) for entry in nft.list_table("inet", "t") or []]
        assert kinds == ["table", "chain", "rule"]
        assert nft.list_ruleset("inet") and not nft.list_ruleset("ip")
        with pytest.raises(KernelError, match=r"nft -f -: .*No such file or directory") as caught:
            nft.run("add table inet u\nadd rule inet u none accept\n")
        assert caught.value.log and "\n" not in str(caught.value)
        assert nft.list_table("inet", "u") is None
        assert nft.delete_table("inet", "t") and not nft.delete_table("inet", "t")


def test_cookies_are_numbers_of_the_kernel() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        raw = probe.getsockopt(socket.SOL_SOCKET, 71, 8)
    assert netns.cookie() == struct.unpack("=Q", raw)[0]
    assert unique() not in netns.names()
    assert netns.path_of("a") == Path("/run/netns/a") and netns.path_of("/x/y") == Path("/x/y")
