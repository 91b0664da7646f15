# SPDX-License-Identifier: Apache-2.0
"""What a stranger says of fish: coturn's turnutils_natdiscovery (RFC 5780), which has never heard of us, asks a STUN
server with two addresses and two ports, and names the mapping, the filtering and hairpinning that it finds."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from softunicast.kernel import netns
from softunicast.kernel.abi import Counter, OnrampFlag
from tests.support.dataplane import (
    CLIENT,
    GATEWAY,
    SERVER,
    TUN_CLIENT,
    TUN_GATEWAY,
    TUN_ONRAMP,
    VETH_ONRAMP,
    Dataplane,
    Place,
    place,
    run,
    running,
)
from tests.support.wait import wait_until

SECOND_SERVER = "203.0.113.2"
MAPPED = "198.51.100.21"
PORT = 3478
EIM, ADF, APDF = OnrampFlag.EIM, OnrampFlag.ADF, OnrampFlag.APDF


@contextmanager
def stun_server(where: Place, folder: Path) -> Iterator[None]:
    """coturn's server on two addresses of the world, each with two ports, as RFC 5780 section 6 wants them."""
    log = folder / "turnserver.log"
    command = (
        "turnserver -n --no-cli --no-tls --no-dtls --simple-log --log-file=stdout"
        f" --listening-ip={SERVER} --listening-ip={SECOND_SERVER} --listening-port={PORT}"
        f" --alt-listening-port={PORT + 1} --relay-ip={SERVER} --userdb={folder}/turndb --pidfile={folder}/pid"
    )
    with netns.enter(where.world), log.open("wb") as out:
        server = subprocess.Popen(command.split(), stdout=out, stderr=out)
    try:
        with netns.enter(where.world):
            wait_until(lambda: run(f"ss -Hlun sport = :{PORT + 1}").count("203.0.113.") >= 2, 20, "turnserver listens")
        yield
    finally:
        server.send_signal(signal.SIGKILL)
        server.wait(10)


@pytest.fixture(scope="module")
def where(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    with place() as made, stun_server(made, tmp_path_factory.mktemp("turn")):
        yield made


@pytest.fixture
def plane(where: Place) -> Iterator[Dataplane]:
    with running(where) as made:
        made.add_slice(MAPPED, 9000, 9063, udp_exact_first=9016)
        yield made


def configure(where: Place, plane: Dataplane, who: str, flags: int) -> None:
    if who == "client":
        plane.add_onramp(VETH_ONRAMP, where.veth, l2=True, gateway=GATEWAY, udp=flags)
    else:
        plane.add_onramp(TUN_ONRAMP, where.tun_ifindex, l2=False, gateway=TUN_GATEWAY, udp=flags)


def discover(where: Place, who: str, *what: str) -> str:
    """What turnutils_natdiscovery says, its lines in one."""
    local = ["-L", CLIENT if who == "client" else TUN_CLIENT]
    with netns.enter(where.of(who)):
        done = subprocess.run(
            ["turnutils_natdiscovery", *what, *local, "-p", str(PORT), SERVER],
            capture_output=True, text=True, timeout=60, check=False,
        )  # fmt: skip
    return done.stdout + done.stderr


FOUND = {
    "address and port dependent": (0, "Address and Port Dependent Mapping", "Address and Port Dependent Filtering"),
    "all independent": (EIM, "Endpoint Independent Mapping", "Endpoint Independent Filtering"),
    "address dependent": (EIM | ADF, "Endpoint Independent Mapping", "Address Dependent Filtering"),
    "port dependent": (EIM | APDF, "Endpoint Independent Mapping", "Address and Port Dependent Filtering"),
}


@pytest.mark.parametrize("who", ["client", "tun"])
@pytest.mark.parametrize("name", FOUND)
def test_behaviour_is_what_is_configured(where: Place, plane: Dataplane, who: str, name: str) -> None:
    flags, mapping, filtering = FOUND[name]
    configure(where, plane, who, flags)
    said = discover(where, who, "-m", "-f")
    for _ in range(3):
        # Each remote has a port of its own choosing: one time in thirty two of the three are the same by chance.
        if flags or mapping in said:
            break
        said = discover(where, who, "-m", "-f")
    assert re.findall(r"NAT with (.* Mapping)", said) == [mapping]
    assert re.findall(r"NAT with (.* Filtering)", said) == [filtering]


@pytest.mark.parametrize("who", ["client", "tun"])
def test_hairpinning_is_found(where: Place, plane: Dataplane, who: str) -> None:
    configure(where, plane, who, EIM)
    said = discover(where, who, "-H")
    assert "successful hairpinning" in said
    assert plane.count(Counter.HAIRPINNED) == 1
    assert plane.drops() == {}
