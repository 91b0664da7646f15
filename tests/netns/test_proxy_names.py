# SPDX-License-Identifier: Apache-2.0
"""Names: a real DNS server is asked by way of a user's pool; one of a host's two addresses leads nowhere (RFC 8305).

dnsmasq answers at WORLD2. HOLE6 and HOLE4 are addresses whose SYNs the world takes and never answers.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.proxy_node import PATIENCE_S, Proxy, curl, origin
from tests.support.proxy_place import within
from tests.support.sock_node import ADDRESS, ADDRESS2, WORLD, WORLD2, WORLD6, SockNode
from tests.support.wait import wait_until

ADDRESS6 = "2001:db8:51::20"
SLICES = ((ADDRESS, 9000, 9063), (ADDRESS6, 9100, 9163), (ADDRESS2, 9200, 9263))
HOLE4, HOLE6 = "203.0.113.99", "2001:db8:f::99"
NAMES = {"hole6.example": (WORLD, HOLE6), "hole4.example": (HOLE4, WORLD6), "both.example": (WORLD, WORLD6)}
CONNECT_S = 15
ATTEMPT_DELAY_S = 0.25
POLICY = f"""
listeners: {{main: {{listen: "127.0.0.1:PORT", anonymous: me}}}}
users: {{me: {{pool: ten}}, asker: {{pool: other}}}}
dns: {{servers: [{WORLD2}], user: asker}}
connect_s: {CONNECT_S}
access_log: LOG
"""
HOLES = f"""
table inet hole {{
    chain in {{
        type filter hook prerouting priority raw;
        ip6 daddr {HOLE6} tcp flags syn counter drop
        ip daddr {HOLE4} tcp flags syn counter drop
    }}
}}
"""


class Names:
    """The node, its world's dnsmasq and holes, the proxy."""

    def __init__(self, node: SockNode, proxy: Proxy, log: Path) -> None:
        self.node, self.proxy, self._log = node, proxy, log

    def asked(self) -> list[tuple[str, int, str, str]]:
        """Queries as dnsmasq saw them: address, port, type, name."""
        found = re.findall(r" ([0-9a-f.:]+)/(\d+) query\[(\w+)\] (\S+) from", self._log.read_text())
        return [(address, int(port), kind, name) for address, port, kind, name in found]

    def lost(self) -> dict[str, int]:
        """SYNs that fell into each hole."""
        command = within(self.node.world, ["nft", "-j", "list", "table", "inet", "hole"])
        listed = json.loads(subprocess.run(command, capture_output=True, check=True, timeout=20).stdout)
        found = {}
        for rule in (one["rule"]["expr"] for one in listed["nftables"] if "rule" in one):
            counter = next(one["counter"]["packets"] for one in rule if "counter" in one)
            found[rule[0]["match"]["right"]] = counter
        return found

    def who(self, name: str, scheme: str = "socks5h") -> tuple[str, float]:
        """Whom the origin of that name saw, and in how many seconds."""
        by = ["-p"] if scheme == "http" else []
        by += ["-x", f"{scheme}://127.0.0.1:1080", "-w", " %{time_total}"]
        done = curl(*by, f"http://{name}/who", ns=self.node.name)
        assert done.returncode == 0, done.stderr
        address, _, took_s = done.stdout.split()
        return address, float(took_s)


@pytest.fixture
def names(tmp_path: Path) -> Iterator[Names]:
    log = tmp_path / "dns.log"
    records = [f"--host-record={name},{','.join(addresses)}" for name, addresses in NAMES.items()]
    options = [
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--no-resolv",
        "--no-hosts",
        "--user=root",
        "--pid-file=",
        "--bind-interfaces",
        f"--listen-address={WORLD2}",
        "--local=/example/",
        "--local-ttl=300",
        "--log-queries=extra",
    ]
    with SockNode(pinned=True, slices=SLICES) as node, log.open("wb") as said:
        node.attach_guard()
        subprocess.run(within(node.world, ["nft", "-f", "-"]), input=HOLES.encode(), check=True, timeout=20)
        command = within(node.world, ["dnsmasq", *options, "--log-facility=-", *records])
        with subprocess.Popen(command, stderr=said) as server:
            try:
                wait_until(lambda: "started" in log.read_text(), PATIENCE_S, "dnsmasq")
                with (
                    origin(WORLD, 80, node.world),
                    origin(WORLD6, 80, node.world),
                    Proxy(POLICY, tmp_path, node.name, port=1080) as proxy,
                ):
                    yield Names(node, proxy, log)
            finally:
                server.terminate()


@pytest.mark.parametrize("scheme", ["socks5h", "http"])
def test_where_ipv6_leads_nowhere_ipv4_is_taken(names: Names, scheme: str) -> None:
    address, took_s = names.who("hole6.example", scheme)
    assert address == ADDRESS
    assert names.lost()[HOLE6] > 0, "IPv6 was tried"
    assert ATTEMPT_DELAY_S <= took_s < CONNECT_S / 2, "it had its head start, and no more"
    entry = names.proxy.entries(1)[0]
    assert (entry["target"], entry["remote"]) == ("hole6.example:80", f"{WORLD}:80")
    wait_until(lambda: not names.node.alive(), PATIENCE_S, "the claim of the attempt that lost to be given back")


def test_ipv6_first(names: Names) -> None:
    """Where both lead somewhere, or IPv4 nowhere, nobody waits for IPv4."""
    for name in ("both.example", "hole4.example"):
        address, took_s = names.who(name)
        assert address == ADDRESS6
        assert took_s < CONNECT_S / 2


def test_questions_leave_from_a_slice_of_the_one_who_asks(names: Names) -> None:
    """Of another pool than the connections', and no oftener than the answer's TTL wants."""
    for scheme in ("socks5h", "http", "socks5h"):
        assert names.who("both.example", scheme)[0] == ADDRESS6
    asked = names.asked()
    assert sorted((kind, name) for _, _, kind, name in asked) == [("A", "both.example"), ("AAAA", "both.example")]
    for address, port, _, _ in asked:
        assert address == ADDRESS2
        assert 9200 <= port <= 9263
    assert len({port for _, port, _, _ in asked}) == 2, "a port of its own for each question"
    for name, said in (("none.example", "dns_error"), ("refused.invalid", "dns_timeout")):
        done = curl("-i", "-x", "http://127.0.0.1:1080", f"http://{name}/", ns=names.node.name)
        assert f"error={said}; " in done.stdout
        what = {"dns_error": "no address", "dns_timeout": "no answer"}[said]
        assert done.stdout.endswith(f"{name}: {what}\n")
        assert names.asked()[-1][::3] == (ADDRESS2, name)
