# SPDX-License-Identifier: Apache-2.0
"""`softunicast plan` in process: what it prints, what it writes, and what it leaves alone."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest

from softunicast.cli.main import run
from softunicast.model.bindings_file import load_bindings

PLAN = Path(__file__).parents[2] / "examples/plan.yaml"
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def three(tmp_path: Path) -> Path:
    """The example with a third node at lhr."""
    path = tmp_path / "three.yaml"
    path.write_text(PLAN.read_text().replace("      lhr2:", "      lhr3: {underlay: 10.0.1.13}\n      lhr2:"))
    return path


def test_check(capsys: Capture) -> None:
    assert run(["plan", "check", str(PLAN)]) == 0
    assert capsys.readouterr().out == f"{PLAN}: good: 1 prefix, 2 sites, 3 nodes, 2 pools, 5 addresses, 125 slices\n"


def test_check_with_bindings(tmp_path: Path, three: Path, capsys: Capture) -> None:
    bindings = tmp_path / "b.yaml"
    assert run(["plan", "apply", str(PLAN), "--bindings", str(bindings)]) == 0
    capsys.readouterr()
    assert run(["plan", "check", str(PLAN), "--bindings", str(bindings)]) == 0
    assert capsys.readouterr().out.splitlines()[1:] == [
        f"{bindings}: good: epoch 1, 125 slices bound",
        "  cdg1: 0 slices",
        "  lhr1: 63 slices",
        "  lhr2: 62 slices",
    ]
    text = bindings.read_text().splitlines()
    bindings.write_text("\n".join(text[:-2]) + "\n")
    assert run(["plan", "check", str(PLAN), "--bindings", str(bindings)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "  nobody: 2 slices; `softunicast plan apply` gives them out"
    assert run(["plan", "check", str(PLAN), "--bindings", str(bindings), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["counts"]["slice"] == 125
    assert found["bindings"]["epoch"] == 1
    assert run(["plan", "apply", str(three), "--bindings", str(bindings)]) == 0
    assert run(["plan", "check", str(PLAN), "--bindings", str(bindings)]) == 2


def test_apply_writes_once(tmp_path: Path, capsys: Capture) -> None:
    bindings = tmp_path / "b.yaml"
    assert run(["plan", "apply", str(PLAN), "--bindings", str(bindings)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "gb: 62 new slices of lhr1, 198.51.100.10:2048-4095 to 198.51.100.13:61440-63487",
        "gb: 62 new slices of lhr2, 198.51.100.10:4096-6143 to 198.51.100.13:63488-65535",
        "ten: 1 new slice of lhr1, 198.51.100.20:9000-9009",
        "site lhr: 125 new",
        f"{bindings}: wrote epoch 1: 0 moved, 125 new, 0 gone, 0 unchanged",
    ]
    before = bindings.stat()
    assert run(["plan", "apply", str(PLAN), "--bindings", str(bindings)]) == 0
    assert capsys.readouterr().out == f"{bindings}: nothing to do, epoch 1: 0 moved, 0 new, 0 gone, 125 unchanged\n"
    after = bindings.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert [path.name for path in tmp_path.iterdir()] == ["b.yaml"]


def test_dry_run_and_diff_write_nothing_and_tell_the_same(tmp_path: Path, three: Path, capsys: Capture) -> None:
    bindings = tmp_path / "b.yaml"
    assert run(["plan", "apply", str(PLAN), "--bindings", str(bindings), "--dry-run"]) == 0
    assert not bindings.exists()
    run(["plan", "apply", str(PLAN), "--bindings", str(bindings)])
    good = bindings.read_bytes()
    capsys.readouterr()
    assert run(["plan", "apply", str(three), "--bindings", str(bindings), "--dry-run"]) == 0
    told = capsys.readouterr().out
    assert run(["plan", "diff", str(three), "--bindings", str(bindings)]) == 0
    assert capsys.readouterr().out == told
    lines = told.splitlines()
    assert lines[-1] == f"{bindings}: would write epoch 2: 41 moved, 0 new, 0 gone, 84 unchanged"
    assert lines[-2] == "site lhr: 41 moved within"
    assert len(lines) == 43
    assert all(" -> lhr3 (gb)" in line for line in lines[:-2])
    assert bindings.read_bytes() == good


def test_json(tmp_path: Path, three: Path, capsys: Capture) -> None:
    bindings = tmp_path / "b.yaml"
    run(["plan", "apply", str(PLAN), "--bindings", str(bindings)])
    capsys.readouterr()
    assert run(["plan", "apply", str(three), "--bindings", str(bindings), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["epoch_before"], found["epoch"], found["changed"], found["unchanged"]) == (1, 2, True, 84)
    assert len(found["moved"]) == 41
    assert set(found["moved"][0]) == {"slice", "node", "site", "epoch", "pool", "from", "from_site"}
    assert {item["node"] for item in found["moved"]} == {"lhr3"}


def test_a_pool_that_changes_its_site(tmp_path: Path, capsys: Capture) -> None:
    bindings, plan = tmp_path / "b.yaml", tmp_path / "p.yaml"
    run(["plan", "apply", str(PLAN), "--bindings", str(bindings)])
    capsys.readouterr()
    plan.write_text(PLAN.read_text().replace("198.51.100.13], site: lhr", "198.51.100.13], site: cdg"))
    assert run(["plan", "diff", str(plan), "--bindings", str(bindings)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "gb: homed at cdg now, was at lhr: 124 slices change site"
    assert lines[1] == "198.51.100.10:2048-4095 lhr1 -> cdg1 (gb)"
    assert lines[-3:] == [
        "site cdg: 124 from other sites",
        "site lhr: 124 to other sites",
        f"{bindings}: would write epoch 2: 124 moved, 0 new, 0 gone, 1 unchanged",
    ]
    assert run(["plan", "apply", str(plan), "--bindings", str(bindings), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sites"]["cdg"] == {"within": 0, "came": 124, "left": 0, "orphans": 0, "new": 0, "gone": 0}
    assert {(item["from_site"], item["site"]) for item in found["moved"]} == {("lhr", "cdg")}
    after = load_bindings(bindings.read_text(), "b")
    assert {binding.epoch for binding in after.bindings if binding.pool == "gb"} == {2}
    assert {binding.epoch for binding in after.bindings if binding.pool == "ten"} == {1}


def test_a_node_that_is_gone(tmp_path: Path, three: Path, capsys: Capture) -> None:
    bindings = tmp_path / "b.yaml"
    run(["plan", "apply", str(three), "--bindings", str(bindings)])
    capsys.readouterr()
    assert run(["plan", "diff", str(PLAN), "--bindings", str(bindings)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert not any("homed" in line for line in lines)
    assert lines[-2] == "site lhr: 41 from nodes that are gone"


def test_gone_and_renamed(tmp_path: Path, capsys: Capture) -> None:
    bindings, plan = tmp_path / "b.yaml", tmp_path / "p.yaml"
    run(["plan", "apply", str(PLAN), "--bindings", str(bindings)])
    capsys.readouterr()
    text = PLAN.read_text()
    plan.write_text(text.replace("  ten: {", "  eleven: {").replace("198.51.100.10-198.51.100.13", "198.51.100.10"))
    assert run(["plan", "apply", str(plan), "--bindings", str(bindings)]) == 0
    told = capsys.readouterr().out
    assert "198.51.100.20:9000-9009 lhr1 pool ten -> eleven\n" in told
    assert "gone slices of lhr1, 198.51.100.11:" in told
    assert "93 gone, " in told


def test_bindings_of_another_plan_are_left_alone(tmp_path: Path, capsys: Capture) -> None:
    bindings, plan = tmp_path / "b.yaml", tmp_path / "p.yaml"
    run(["plan", "apply", str(PLAN), "--bindings", str(bindings)])
    good = bindings.read_bytes()
    plan.write_text(PLAN.read_text().replace("198.51.100.", "203.0.113."))
    capsys.readouterr()
    assert run(["plan", "apply", str(plan), "--bindings", str(bindings)]) == 2
    assert capsys.readouterr().err == (
        f"softunicast: {bindings}: of another plan: none of its addresses is in {plan}; name this plan's own file,"
        " or a new one\n"
    )
    assert bindings.read_bytes() == good


def test_a_symbolic_link_stays_one(tmp_path: Path) -> None:
    real, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    link.symlink_to(real)
    real.write_text("epoch: 0\nbindings: []\n")
    assert run(["plan", "apply", str(PLAN), "--bindings", str(link)]) == 0
    assert link.is_symlink()
    assert load_bindings(real.read_text(), "b").epoch == 1


def test_applies_at_once_follow_each_other(tmp_path: Path, three: Path) -> None:
    bindings = tmp_path / "b.yaml"
    run(["plan", "apply", str(PLAN), "--bindings", str(bindings)])
    threads = [
        threading.Thread(target=run, args=(["plan", "apply", str(plan), "--bindings", str(bindings)],))
        for plan in (three, PLAN, three, PLAN)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = load_bindings(bindings.read_text(), "b")
    assert 2 <= found.epoch <= 5
    assert len(found.bindings) == 125


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["check", "{dir}/none.yaml"], "{dir}/none.yaml: no such file; name the plan file"),
        (["check", "{dir}"], "{dir}: cannot be read (Is a directory); name the plan file"),
        (["check", "{dir}/binary"], "{dir}/binary: not UTF-8 text (byte 0); save it as UTF-8"),
        (["check", "{plan}", "--bindings", "{dir}/none"], "{dir}/none: no such file; name the bindings file"),
        (["apply", "{plan}", "--bindings", "{dir}/no/b"], "{dir}/no/b: its folder {dir}/no cannot be used"
         " (No such file or directory); make it first"),
        (["apply", "{plan}", "--bindings", "{dir}"], "{dir}: cannot be read (Is a directory); name the bindings file"),
        (["apply", "{plan}"], "Missing option '--bindings'; see `softunicast plan apply --help`"),
        (["apply"], "Missing argument 'PLAN'; see `softunicast plan apply --help`"),
    ],
)  # fmt: skip
def test_bad_arguments(arguments: list[str], line: str, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    fill = {"dir": tmp_path, "plan": PLAN}
    assert run(["plan", *(argument.format(**fill) for argument in arguments)]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err == f"softunicast: {line.format(**fill)}\n"
    assert [path.name for path in tmp_path.iterdir()] == ["binary"]


@pytest.mark.parametrize(
    ("arguments", "word"), [(["aply"], "aply"), (["check", str(PLAN), "--bindigs", "x"], "--bindigs")]
)
def test_misspelt_arguments(arguments: list[str], word: str, capsys: Capture) -> None:
    # The words are click's and differ between its versions.
    assert run(["plan", *arguments]) == 2
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    assert word in written.err
