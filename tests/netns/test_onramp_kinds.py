# SPDX-License-Identifier: Apache-2.0
"""Real things behind on-ramps: a WireGuard client, a container of systemd-nspawn, a program that speaks Ethernet."""

from __future__ import annotations

import contextlib
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path

import pytest

from softunicast.api.client import Client
from softunicast.kernel import netns
from softunicast.kernel.tun import open_tun
from softunicast.wire.craft import ethernet
from softunicast.wire.packet import Packet, parse
from tests.support.agent_node import Daemon
from tests.support.onramp_node import PATIENCE_S, POOL_ADDRESS, SERVER, OnrampNode, onramp_node, question, run
from tests.support.wait import wait_until

NETWORK = "10.64.1.0/24"
CLIENT = "10.64.1.2"
GATEWAY = "10.64.1.1"
GUEST_MAC = "02:00:5e:10:00:02"
ARP = 0x0806


@pytest.fixture
def at(tmp_path: Path) -> Iterator[OnrampNode]:
    with onramp_node(tmp_path) as made:
        yield made


@pytest.fixture
def daemon(at: OnrampNode) -> Iterator[Daemon]:
    with at.node.daemon("--interval", "1") as running:
        yield running


def attached(at: OnrampNode, name: str) -> None:
    wait_until(lambda: at.listed()[name]["attached"], PATIENCE_S, f"{name} is attached")


def wireguard_keys() -> tuple[str, str]:
    """Private and public."""
    private = run("wg", "genkey")
    public = subprocess.run(["wg", "pubkey"], input=private, capture_output=True, text=True, timeout=20, check=True)
    return private, public.stdout.strip()


@contextlib.contextmanager
def wireguard(device: str, namespace: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """A wireguard-go in that namespace, its device there; its public key and the file with its private one."""
    private, public = wireguard_keys()
    key = folder / f"{device}.key"
    key.write_text(private)
    with netns.enter(namespace):
        process = subprocess.Popen(
            ["wireguard-go", "-f", device], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
    try:
        with netns.enter(namespace):
            wait_until(
                lambda: device in subprocess.run(["wg", "show"], capture_output=True, text=True, check=False).stdout,
                PATIENCE_S,
                f"{device} answers",
            )
        yield public, key
    finally:
        process.kill()
        process.wait()
        Path(f"/var/run/wireguard/{device}.sock").unlink(missing_ok=True)


def test_a_wireguard_client_goes_out(at: OnrampNode, daemon: Daemon, tmp_path: Path) -> None:
    """On-ramp is the server's device: what comes out of the tunnel is a client's packet."""
    ours, theirs = f"wgs{os.getpid()}", f"wgc{os.getpid()}"
    outside = at.namespace("wg")
    at.node.ip("link", "add", "out0", "type", "veth", "peer", "name", "out0", "netns", outside)
    at.node.ip("address", "add", "192.168.77.1/24", "dev", "out0")
    at.node.ip("link", "set", "out0", "up")
    at.add("wg", "--device", ours, "--pool", "gb", "--source", NETWORK, "--gateway", GATEWAY, "--tenant", "roadwarrior")
    with (
        wireguard(ours, at.node.netns, tmp_path) as (server_key, server_file),
        wireguard(theirs, outside, tmp_path) as (client_key, client_file),
    ):
        with netns.enter(at.node.netns):
            run("wg", "set", ours, "private-key", str(server_file), "listen-port", "51820",
                "peer", client_key, "allowed-ips", f"{CLIENT}/32")  # fmt: skip
            run("ip", "address", "add", f"{GATEWAY}/32", "dev", ours)
            run("ip", "link", "set", ours, "up")
        with netns.enter(outside):
            run("ip", "address", "add", "192.168.77.2/24", "dev", "out0")
            run("ip", "link", "set", "out0", "up")
            run("wg", "set", theirs, "private-key", str(client_file), "peer", server_key, "allowed-ips", "0.0.0.0/0",
                "endpoint", "192.168.77.1:51820")  # fmt: skip
            run("ip", "address", "add", f"{CLIENT}/24", "dev", theirs)
            run("ip", "link", "set", theirs, "up")
            run("ip", "route", "add", "default", "dev", theirs)
        attached(at, "wg")
        talking = at.talk(outside, b"through the tunnel", keep=True)
        at.say(talking, b"more than one packet " * 5000)
        talking.close()
        with netns.enter(outside):
            assert "1 received" in run("ping", "-c", "1", "-W", "5", SERVER)
        assert [address for _, address, _ in at.echo.seen] == [POOL_ADDRESS]
        tenant = at.tenants()["roadwarrior"]
        assert tenant["flows"] == 2 and tenant["out_bytes"] > 100_000 and tenant["in_bytes"] > 100_000
    drops = {one["name"]: one["count"] for one in at.json("drops")["drops"]}
    assert (drops["spoofed"], drops["malformed"], drops["slice_full"]) == (0, 0, 0)


def tree(folder: Path) -> Path:
    """The least that systemd-nspawn takes for an operating system: busybox."""
    for name in ("bin", "usr/bin", "etc", "proc", "sys", "dev", "tmp", "run", "var"):
        (folder / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "bin" / "busybox")
    (folder / "bin" / "sh").symlink_to("busybox")
    (folder / "etc" / "os-release").write_text("ID=test\n")
    return folder


def test_a_container_goes_out(at: OnrampNode, daemon: Daemon, tmp_path: Path) -> None:
    """systemd-nspawn makes the veth when the container starts; the on-ramp was added before."""
    machine = f"c{os.getpid()}"
    device = f"ve-{machine}"
    at.add("box", "--device", device, "--pool", "gb", "--source", NETWORK, "--gateway", GATEWAY, "--tenant", "box")
    assert not at.listed()["box"]["attached"]
    script = f"""
        b=/bin/busybox
        $b ip address add {CLIENT}/24 dev host0 && $b ip link set host0 up && $b ip route add default via {GATEWAY}
        until $b ping -c 1 -W 1 {SERVER}; do :; done
        $b echo container | $b nc -w 5 {SERVER} 7
        """
    command = ["systemd-nspawn", "--quiet", "--register=no", "--keep-unit", "-D", str(tree(tmp_path / "root")),
               "--network-veth", "-M", machine, "/bin/sh", "-c", script]  # fmt: skip
    with netns.enter(at.node.netns):
        container = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
    try:
        wait_until(lambda: device in at.node.inside("ip", "-brief", "link"), PATIENCE_S, "the container has its device")
        at.node.ip("address", "add", f"{GATEWAY}/32", "dev", device)
        at.node.ip("link", "set", device, "up")
        said, _ = container.communicate(timeout=60)
    finally:
        container.kill()
        container.wait()
    assert container.returncode == 0, said
    assert "container" in said.splitlines(), said
    assert [(proto, address) for proto, address, _ in at.echo.seen] == [("tcp", POOL_ADDRESS)]
    wait_until(lambda: not at.listed()["box"]["attached"], PATIENCE_S, "the container's device is gone")
    assert at.tenants()["box"]["flows"] >= 2
    assert daemon.events("failed") == []


class Guest:
    """What a microVM's kernel does on its network card, as far as it is needed: ARP, and IP in Ethernet."""

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.gateway_mac = ""

    def frame(self, timeout_s: float = PATIENCE_S) -> bytes:
        """The next one; empty: none came."""
        ready, _, _ = select.select([self.fd], [], [], timeout_s)
        return os.read(self.fd, 65535) if ready else b""

    def arp(self, operation: int, to: str, target: str) -> None:
        body = b"\0\1\x08\0\6\4" + operation.to_bytes(2, "big") + bytes.fromhex(GUEST_MAC.replace(":", ""))
        body += ip_address(CLIENT).packed + bytes(6 if operation == 1 else 0)
        body += b"" if operation == 1 else bytes.fromhex(to.replace(":", ""))
        os.write(self.fd, ethernet(to, GUEST_MAC, body + ip_address(target).packed, ARP))

    def find_gateway(self) -> None:
        """Asked again every half second, as kernels do: a tap that was just opened drops what it sends for a while."""
        deadline = time.monotonic() + PATIENCE_S
        while not self.gateway_mac and time.monotonic() < deadline:
            self.arp(1, "ff:ff:ff:ff:ff:ff", GATEWAY)
            frame = self.frame(0.5)
            if frame[12:14] == ARP.to_bytes(2, "big") and frame[20:22] == b"\0\2":
                self.gateway_mac = frame[22:28].hex(":")
        assert self.gateway_mac, "the gateway did not answer"

    def send(self, packet: bytes) -> None:
        os.write(self.fd, ethernet(self.gateway_mac, GUEST_MAC, packet))

    def receive(self, text: bytes) -> Packet:
        """The packet with that text; meanwhile questions for our address are answered."""
        while True:
            frame = self.frame()
            assert frame, "no frame came"
            if frame[12:14] == ARP.to_bytes(2, "big") and frame[20:22] == b"\0\1":
                self.arp(2, frame[6:12].hex(":"), str(ip_address(frame[28:32])))
            elif frame[12:14] == b"\x08\0" and frame.endswith(text):
                assert frame[:6].hex(":") == GUEST_MAC
                return parse(frame[14:])


@pytest.mark.parametrize("way", ["kept", "leased"])
def test_a_tap_and_a_guest_that_speaks_ethernet(at: OnrampNode, daemon: Daemon, way: str) -> None:
    if way == "kept":
        at.add("vm", "--tap", "--pool", "gb", "--source", NETWORK, "--gateway", GATEWAY)
        with netns.enter(at.node.netns):
            fd = open_tun("vm", tap=True)
    else:
        with Client.of(at.node.name) as agent:
            fd = agent.tun({"pool": "gb", "sources": [NETWORK], "gateway": GATEWAY}, name="vm", tap=True).fd
    guest = Guest(fd)
    guest.find_gateway()
    for number in range(2):
        text = f"packet {number}".encode()
        guest.send(question(CLIENT, 4000, text))
        answer = guest.receive(text)
        assert (str(answer.source), str(answer.destination), answer.destination_port) == (SERVER, CLIENT, 4000)
    assert {address for _, address, _ in at.echo.seen} == {POOL_ADDRESS}
    os.close(fd)
    if way == "leased":
        wait_until(lambda: "vm" not in at.listed(), PATIENCE_S, "the lease is over")
    else:
        assert at.listed()["vm"]["attached"], "it stays for the next guest"
        done = at.onramp("remove", "vm")
        assert done.stdout == "on-ramp vm: removed, and device vm\n"
