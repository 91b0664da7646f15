# SPDX-License-Identifier: Apache-2.0
"""The proxy's policy file: each mistake's line, and what the right ones mean."""

from __future__ import annotations

import re
from ipaddress import ip_address
from pathlib import Path

import pytest

from softunicast.errors import PlanError
from softunicast.proxy import policy
from softunicast.proxy.limits import Counts, Limits
from softunicast.proxy.policy import EXAMPLE, User, read_policy

BASE = """\
listeners:
  main:
    listen: "127.0.0.1:1080"
    anonymous: me
  more: {listen: "[::1]:8080", protocols: [http]}
users:
  me: {pool: gb}
  alice: {tags: {country: GB}, password: secret, allow: [10.0.0.0/8], connections: 2, connects_per_s: 4}
"""
BAD: tuple[tuple[str, str, str], ...] = (
    ('"127.0.0.1:1080"', "here", "3: listeners.main.listen: 'here' names no port ; write ADDRESS:PORT in quotes"),
    ('"127.0.0.1:1080"', '"here:1"', "3: listeners.main.listen: here is a name ; write an address"),
    (
        '"127.0.0.1:1080"',
        '"0.0.0.0:1"',
        "4: listeners.main.anonymous: anybody who reaches 0.0.0.0:1 could use it ; say",
    ),
    ("anonymous: me", "anonymous: you", "4: listeners.main.anonymous: no user you ; name one of: me, alice"),
    ("anonymous: me", "transparent: true", "4: listeners.main.transparent: whose egress is it? ; name a user"),
    ('"[::1]:8080"', '"127.0.0.1:1080"', "5: listeners.more.listen: 127.0.0.1:1080 is main's already"),
    ("protocols: [http]", "protocols: []", "5: listeners.more.protocols: none ; write socks5, http"),
    ("{pool: gb}", "{pool: gb, direct: true}", "7: users.me: pool and direct: one of pool, tags and direct is wanted"),
    ("{pool: gb}", "{password: x}", "7: users.me: no pool: one of pool, tags and direct is wanted"),
    ("password: secret", "password_sha256: 12", "8: users.alice.password_sha256: "),
    ("password: secret", 'password_sha256: "12"', "8: users.alice.password_sha256: not 64 hexadecimal digits ; printf"),
    ("password: secret", 'password: ""', "8: users.alice.password: is empty"),
    ("10.0.0.0/8", "10.0.0.1/8", "8: users.alice.allow[0]: "),
    ("connections: 2", "connections: 0", "8: users.alice.connections: "),
    ("users:", "dns: {user: you}\nusers:", "6: dns.user: no user you ; name one of: me, alice"),
    ("users:", "speed: 9\nusers:", "6: speed: "),
)


@pytest.mark.parametrize(("old", "new", "said"), BAD, ids=[one[2][:40] for one in BAD])
def test_each_mistake_is_one_line(old: str, new: str, said: str) -> None:
    assert BASE.count(old) == 1
    with pytest.raises(PlanError) as caught:
        read_policy(BASE.replace(old, new), "p.yaml")
    assert str(caught.value).startswith("p.yaml:" + said)
    assert " ; " in str(caught.value)


def alice() -> User:
    return read_policy(BASE, "p.yaml").users["alice"]


def test_who_may_pass() -> None:
    config = read_policy(BASE, "p.yaml")
    assert config.check("alice", "secret")
    assert not config.check("alice", "Secret")
    assert not config.check("me", ""), "has no password, so nobody can be it by name"
    assert not config.check("nobody", "secret")


def test_what_is_inside() -> None:
    user = alice()
    reach = {text: user.may_reach(ip_address(text)) for text in ("192.0.2.1", "10.1.2.3", "127.0.0.1", "::1")}
    assert reach == {"192.0.2.1": True, "10.1.2.3": True, "127.0.0.1": False, "::1": False}
    for text in ("::ffff:127.0.0.1", "169.254.169.254", "fe80::1", "224.0.0.1", "fd00::1", "0.0.0.0"):
        assert not user.may_reach(ip_address(text)), text
    assert user.may_reach(ip_address("::ffff:10.1.2.3"))


def test_limits_count_over_workers_and_seconds() -> None:
    counts = Counts(2, 2)
    first, second = Limits(counts, 0), Limits(counts, 1)
    assert first.begin(alice(), 0) is second.begin(alice(), 0) is None
    assert first.begin(alice(), 0) == "user alice has 2 connections already"
    second.end(alice())
    assert first.begin(alice(), 0) is None
    first.end(alice())
    assert first.begin(alice(), 0) == "user alice begins more than 4 connections a second", "two a worker"
    assert first.begin(alice(), 0.6) is None
    counts.clear(0)
    assert counts.total(alice().index) == 0


def test_the_examples_are_sound() -> None:
    assert read_policy(EXAMPLE, "e").users["me"].pools == ("gb",)
    file = Path(__file__).resolve().parents[2] / "examples/proxy/policy.yaml"
    assert read_policy(file.read_text(), file.name).users["bob"].tags == {"country": "GB"}


def test_the_reference_names_every_key() -> None:
    text = (Path(__file__).resolve().parents[2] / "docs/proxy.md").read_text()
    shapes = (policy.ProxyShape, policy.ListenerShape, policy.UserShape)
    words = {*re.findall(r"[a-z_0-9]+", " ".join(re.findall(r"`([^`]*)`", text)))}
    assert {key for shape in shapes for key in shape.model_fields} | set(policy.DnsShape.model_fields) <= words
