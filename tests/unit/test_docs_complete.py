# SPDX-License-Identifier: Apache-2.0
"""What the header and the command line have, the docs have: every counter, drop reason, verb, option and JSON key."""

from __future__ import annotations

import inspect
import re
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import click
import pytest

import softunicast
from softunicast.agent.onramp_keeper import Given
from softunicast.api import requests
from softunicast.cli.flows import flow_json
from softunicast.cli.main import VERBS, cli
from softunicast.cli.onramp import onramp
from softunicast.dial.ways import Way
from softunicast.egress.explain import Action, Asked, Explanation, HeldBy, Step
from softunicast.egress.flow_view import FlowView
from softunicast.egress.onramp_view import OnrampView, TenantView
from softunicast.egress.views import CounterView, CrowdView, DropView, SliceView
from softunicast.kernel.abi import COUNTER_MEANINGS, DROP_MEANINGS, Counter, Drop, Flow, Tenant, Use
from softunicast.model.fleet import Onramp

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def rows(page: str, heading: str) -> dict[str, str]:
    """First column (without backticks) -> second, of the table below a heading."""
    text = (DOCS / page).read_text(encoding="utf-8").split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    found = re.findall(r"^\| `([^`]+)` \| (.*?) \|", text, re.M)
    assert len(found) == len({name for name, _ in found}), f"{page}: {heading}: a line stands there twice"
    return dict(found)


def test_every_counter_is_explained() -> None:
    wanted = {counter.name.lower(): COUNTER_MEANINGS[counter] for counter in Counter}
    assert rows("counters.md", "Counters") == wanted


def test_every_drop_reason_is_explained() -> None:
    wanted = {reason.name.lower(): DROP_MEANINGS[reason] for reason in Drop if reason is not Drop.NONE}
    assert rows("counters.md", "Drop reasons") == wanted


def test_every_counter_and_drop_has_its_place_on_the_drawing() -> None:
    text = (DOCS / "counters.md").read_text(encoding="utf-8")
    drawing = set(re.findall(r"[a-z_]+", text.split("```text", 1)[1].split("```", 1)[0]))
    names = {one.name.lower() for one in (*Counter, *Drop)} - {"none"}
    assert names - drawing == set()


def test_meanings_mean_something() -> None:
    for meaning in (*COUNTER_MEANINGS.values(), *DROP_MEANINGS.values()):
        assert len(meaning) >= 4 and "\n" not in meaning


def test_every_word_of_the_library_is_in_library_md() -> None:
    text = (DOCS / "library.md").read_text(encoding="utf-8")
    for name in (*inspect.signature(softunicast.dialer).parameters, *softunicast.__all__):
        assert name in text, name
    for way in Way:
        assert f"`{way.value}`" in text


def test_every_verb_is_listed() -> None:
    assert set(rows("cli.md", "Verbs")) == set(VERBS)


def test_every_option_of_onramp_is_in_cli_md() -> None:
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for command in onramp.commands.values():
        for parameter in command.params:
            if isinstance(parameter, click.Option):
                assert f"`{parameter.opts[0]}" in text or f" {parameter.opts[0]}" in text, parameter.opts[0]


def test_every_key_of_the_agents_socket_is_in_api_md() -> None:
    text = (DOCS / "api.md").read_text(encoding="utf-8")
    shapes = (requests.Add, requests.Tun, requests.Hand, requests.Tag, requests.Remove, requests.List)
    for key in {key for shape in shapes for key in shape.model_fields}:
        assert f"`{key}`" in text, key
    given = Given(Onramp("a", "b", "c", ()), 1, 1, 1, 1)
    for key in given.as_json():
        assert f'"{key}"' in text, key


@pytest.mark.parametrize("verb", ["policy", "slices", "flows", "counters", "drops", "explain", "escape"])
def test_every_option_of_the_verbs_that_show_is_in_cli_md(verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert f"{parameter.opts[0]}" in text, f"{verb} {parameter.opts[0]}"


def test_every_json_key_is_in_cli_md() -> None:
    here = ip_address("198.51.100.20")
    crowd = CrowdView("tcp", here, 443, 1, 10, 0, False)
    one_slice = SliceView(0, here, 1, 2, 0, "ten", 1, "live", 0, {}, 0, 0, crowd, 0)
    flow = FlowView("tcp", here, 1, here, 2, "socket", "open", 1, "", None, None, 0, 0, None, 0, 0, 1)
    drop = DropView("ttl", 1, "x", Flow(local=b"x" * 16), 1.0)
    asked = Asked(6, here, 1, here, 2)
    told = Explanation(asked, Action.DROP, Drop.TTL, "", HeldBy("lhr1", None, None, None), flow, (Step("a", "b"),))
    text = (DOCS / "cli.md").read_text(encoding="utf-8")
    ramp = OnrampView("a", "b", 1, 1, True, "plan", None, None, None, None, Use())
    documents = [
        ramp.as_json(),
        TenantView(None, Tenant()).as_json(),
        one_slice.as_json(),
        flow_json(flow, {}),
        CounterView("a", 1, "b").as_json(),
        drop.as_json(),
    ]
    for key in keys([*documents, told.as_json()]):
        assert f'"{key}"' in text, key


def keys(value: Any) -> set[str]:
    """Every key of a JSON document, however deep."""
    if isinstance(value, dict):
        return set(value) | keys(list(value.values()))
    return set().union(*map(keys, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", text):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"
