# SPDX-License-Identifier: Apache-2.0
"""What systemd is told, word for word; that systemd does it is tests/netns/test_policy.py's."""

from __future__ import annotations

import pytest

from softunicast.cli.policy_unit import helper_of, next_step, place_of, quoted, unit_name, unit_text
from softunicast.errors import UsageError


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("nginx", "nginx.service"),
        ("nginx.service", "nginx.service"),
        ("php8.2-fpm", "php8.2-fpm.service"),
        ("worker@.service", "worker@.service"),
        ("worker@7", "worker@7.service"),
        ("egress-gb.slice", "egress-gb.slice"),
    ],
)
def test_names_as_systemctl_takes_them(text: str, name: str) -> None:
    assert unit_name(text) == name


@pytest.mark.parametrize("text", ["", "a/b", "../x", "x.socket", "x.timer", ".service", "x y"])
def test_what_is_no_unit_with_sockets(text: str) -> None:
    with pytest.raises(UsageError):
        unit_name(text)


def test_a_drop_in() -> None:
    assert str(place_of("nginx.service")) == "nginx.service.d/50-softunicast.conf"
    text = unit_text("nginx.service", "lhr1", ["/usr/bin/softunicast"], ["--pool", "gb"])
    assert "After=softunicast-agent@lhr1.service\n" in text
    command = "/usr/bin/softunicast policy --cgroup self --node lhr1 --pool gb || exit 255"
    assert f'ExecCondition=+/bin/sh -c "{command}"\n' in text
    assert next_step("nginx.service") == "systemctl daemon-reload && systemctl restart nginx.service"


def test_a_helper_of_a_slice() -> None:
    assert helper_of("egress-gb.slice") == str(place_of("egress-gb.slice")) == "softunicast-policy-egress-gb.service"
    text = unit_text("egress-gb.slice", "lhr1", ["softunicast"], ["--pool", "gb", "--slice", "[2001:db8::1]:5000-5009"])
    assert "Slice=egress-gb.slice\nExecStart=softunicast policy --cgroup parent --node lhr1 --pool gb --slice " in text
    assert "enable --now softunicast-policy-egress-gb.service" in next_step("egress-gb.slice")
    assert "stop softunicast-policy-egress-gb.service" in next_step("egress-gb.slice", removed=True)


def test_what_systemd_reads_for_itself_is_escaped() -> None:
    assert quoted('a "b" 100% $HOME \\') == 'a \\"b\\" 100%% $$HOME \\\\'
