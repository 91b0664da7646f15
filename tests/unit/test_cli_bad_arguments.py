# SPDX-License-Identifier: Apache-2.0
"""Wrong arguments: one clear line on standard error, exit status 2, nothing changed.

In this process, where nothing but arguments is looked at: an argument that is wrong is refused before a node, a
map or a device is opened, so these need no root. A few are done again by the real program.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from softunicast.cli.main import run

EXPLAIN = ("explain", "198.51.100.20:9001", "--from", "203.0.113.1:443")

PLAN = """\
prefixes:
  - {prefix: 198.51.100.0/24, announce: [lhr]}
sites:
  lhr:
    nodes:
      lhr1: {underlay: 10.0.1.11}
pools:
  ten: {site: lhr, slices: [{slice: "198.51.100.20:9000-9009", node: lhr1}]}
"""
BINDINGS = """\
epoch: 1
bindings:
  - {slice: "198.51.100.20:9000-9009", node: lhr1, epoch: 1, pool: ten}
"""

# The command line; what the message must name.
BAD: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "unknown verb": (("flow",), ("'flow'", "--help")),
    "unknown option": (("slices", "--jsno"), ("--jsno",)),
    "argument too many": (("slices", "lhr1"), ("lhr1",)),
    "option without value": (("flows", "--limit"), ("--limit",)),
    "limit is a word": (("flows", "--limit", "many"), ("--limit", "many")),
    "limit 0": (("flows", "--limit", "0"), ("--limit", "0")),
    "limit negative": (("flows", "--limit", "-5"), ("--limit", "-5")),
    "protocol without ports": (("flows", "--proto", "sctp"), ("sctp", "'tcp'")),
    "unknown kind": (("flows", "--kind", "fish"), ("fish", "'packet'")),
    "slice no address": (("flows", "--slice", "somewhere"), ("--slice", "somewhere", "198.51.100.20:9000-9009")),
    "slice backwards": (("flows", "--slice", "198.51.100.20:9009-9000"), ("9009", "9000")),
    "slice port too big": (("flows", "--slice", "198.51.100.20:70000"), ("70000", "0-65535")),
    "slice port a word": (("flows", "--slice", "198.51.100.20:http"), ("http", "number")),
    "remote bad network": (("flows", "--remote", "203.0.113.1/24"), ("203.0.113.1/24", "host bits")),
    "remote bad length": (("flows", "--remote", "203.0.113.0/33"), ("203.0.113.0/33",)),
    "remote no address": (("flows", "--remote", "example.com"), ("example.com", "IP address")),
    "node path": (("slices", "--node", "../../etc"), ("--node", "../../etc")),
    "node empty": (("slices", "--node", ""), ("--node", "empty")),
    "node too long": (("counters", "--node", "n" * 64), ("--node",)),
    "node unknown": (("slices", "--node", "nowhere-at-all"), ("nowhere-at-all", "agent")),
    "explain nothing": (("explain",), ("ADDRESS:PORT",)),
    "explain without sender": (("explain", "198.51.100.20:9001"), ("--from",)),
    "explain no port": (("explain", "198.51.100.20", "--from", "203.0.113.1:443"), ("no port", "ADDRESS:PORT")),
    "explain bad address": (("explain", "198.51.100.300:1", "--from", "203.0.113.1:443"), ("198.51.100.300",)),
    "explain bad port": (("explain", "198.51.100.20:65536", "--from", "203.0.113.1:443"), ("65536",)),
    "explain bracket": (("explain", "[2001:db8::1:80", "--from", "203.0.113.1:443"), ("bracket",)),
    "fragment of IPv4": ((*EXPLAIN, "--fragment", "65536"), ("--fragment 65536", "16 bits")),
    "sender without port": (("explain", "198.51.100.20:1", "--from", "203.0.113.1"), ("--from", "no port")),
    "sender a network": (("explain", "198.51.100.20:1", "--from", "203.0.113.0/24"), ("one address",)),
    "families mixed": (("explain", "198.51.100.20:1", "--from", "[2001:db8::1]:443"), ("IPv6", "IPv4")),
    "udp begins": ((*EXPLAIN, "--proto", "udp", "--begins"), ("--begins", "UDP")),
    "explain protocol": ((*EXPLAIN, "--proto", "gre"), ("gre",)),
    "bindings without plan": ((*EXPLAIN, "--bindings", "{bindings}"), ("--bindings", "--plan")),
    "at without plan": ((*EXPLAIN, "--at", "lhr1"), ("--at", "--plan")),
    "plan without bindings": ((*EXPLAIN, "--plan", "{plan}"), ("--bindings",)),
    "plan and node": ((*EXPLAIN, "--plan", "{plan}", "--bindings", "{bindings}", "--node", "lhr1"), ("--node", "--at")),
    "plan is missing": ((*EXPLAIN, "--plan", "/no/such.yaml", "--bindings", "{bindings}"), ("/no/such.yaml",)),
    "plan is a folder": ((*EXPLAIN, "--plan", "{folder}", "--bindings", "{bindings}"), ("directory",)),
    "plan is no plan": ((*EXPLAIN, "--plan", "{bindings}", "--bindings", "{bindings}"), ("bindings.yaml",)),
    "plan is binary": ((*EXPLAIN, "--plan", "{binary}", "--bindings", "{bindings}"), ("text",)),
    "at no such node": (
        (*EXPLAIN, "--plan", "{plan}", "--bindings", "{bindings}", "--at", "cdg9"),
        ("cdg9", "lhr1"),
    ),
    "bindings of another plan": ((*EXPLAIN, "--plan", "{plan}", "--bindings", "{foreign}"), ("foreign.yaml", "9100")),
    "run without pool": (("run", "--", "true"), ("--pool",)),
    "run without program": (("run", "--pool", "gb"), ("PROGRAM",)),
    "agent without plan": (("agent", "--node", "lhr1"), ("--plan",)),
    "plan verb unknown": (("plan", "aply"), ("aply",)),
    "plan apply without a file": (("plan", "apply"), ("PLAN",)),
    "plan check a missing file": (("plan", "check", "/no/such.yaml"), ("/no/such.yaml",)),
    "lab verb unknown": (("lab", "upp"), ("upp",)),
    "lab shell without a node": (("lab", "shell"), ("NODE",)),
}


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """The files that command lines name, by their {name}."""
    texts = {"plan": PLAN, "bindings": BINDINGS, "foreign": BINDINGS.replace("9000-9009", "9100-9109")}
    for name, text in texts.items():
        (tmp_path / f"{name}.yaml").write_text(text)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    return {name: str(tmp_path / f"{name}.yaml") for name in (*texts, "binary")} | {"folder": str(tmp_path)}


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("name", BAD)
def test_one_line_and_status_2(
    name: str, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, named = BAD[name]
    before = contents(tmp_path)
    status = run([argument.format(**files) for argument in arguments])
    said = capsys.readouterr()
    assert status == 2, said.err
    assert said.out == ""
    assert said.err.endswith("\n") and said.err.count("\n") == 1, f"not one line: {said.err!r}"
    assert said.err.startswith("softunicast: ")
    for text in named:
        assert text in said.err, f"{text!r} is not named: {said.err!r}"
    assert "Traceback" not in said.err
    assert contents(tmp_path) == before


def test_there_are_enough_of_them() -> None:
    assert len(BAD) >= 25


def test_the_files_of_this_test_are_good(files: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    """Otherwise the cases above could fail for the wrong reason."""
    assert run([*EXPLAIN, "--plan", files["plan"], "--bindings", files["bindings"], "--at", "lhr1"]) == 0
    assert "claim" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["unknown verb", "limit 0", "explain no port", "node path", "at without plan"])
def test_by_the_real_program(name: str, files: dict[str, str], tmp_path: Path) -> None:
    arguments, named = BAD[name]
    before = contents(tmp_path)
    command = [sys.executable, "-m", "softunicast.cli", *(argument.format(**files) for argument in arguments)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and all(text in result.stderr for text in named), result.stderr
    assert contents(tmp_path) == before
