# SPDX-License-Identifier: Apache-2.0
"""The text of the one file that is ours; a real BIRD reads it in tests/netns/test_announce.py."""

from __future__ import annotations

from ipaddress import ip_network

import pytest

from softunicast.announce.bird_conf import Announcement, Stage, render

PREFIXES = (ip_network("203.0.113.0/24"), ip_network("198.51.100.0/24"), ip_network("2001:db8:100::/48"))


def test_announced() -> None:
    assert render(Announcement("lhr1", PREFIXES, Stage.ANNOUNCED, 1000, "65535:0")) == (
        "# Written by the softunicast agent of node lhr1: changes are lost.\n"
        "# announced\n"
        "protocol static softunicast4 {\n"
        "\tipv4;\n"
        "\troute 198.51.100.0/24 unreachable { bgp_med = 0; };\n"
        "\troute 203.0.113.0/24 unreachable { bgp_med = 0; };\n"
        "}\n"
        "protocol static softunicast6 {\n"
        "\tipv6;\n"
        "\troute 2001:db8:100::/48 unreachable { bgp_med = 0; };\n"
        "}\n"
    )


@pytest.mark.parametrize(("community", "adds"), [("65001:7", " bgp_community.add((65001,7));"), (None, "")])
def test_draining(community: str | None, adds: str) -> None:
    text = render(Announcement("lhr1", PREFIXES[:1], Stage.DRAINING, 50, community))
    assert f"route 203.0.113.0/24 unreachable {{ bgp_med = 50;{adds} }};" in text


def test_withdrawn_keeps_the_protocols_and_says_why_in_one_line() -> None:
    text = render(Announcement("lhr1", PREFIXES, Stage.WITHDRAWN, why="no\nuplink;  protocol evil {}"))
    assert "# withdrawn: no uplink; protocol evil {}\n" in text
    assert "route" not in text.replace("unreachable", "") and text.count("protocol static") == 2
