# SPDX-License-Identifier: Apache-2.0
"""bpf/Makefile, on a copy of its folder with one small source. Needs clang, no root."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAME = "kernel_sample.bpf"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    copy = tmp_path / "bpf"
    copy.mkdir()
    shutil.copy(ROOT / "bpf/Makefile", copy)
    shutil.copytree(ROOT / "bpf/include", copy / "include")
    return copy


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-C", str(folder), f"OUT={folder / 'out'}", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def add_sample(folder: Path) -> Path:
    """Put the source there; where its object will be."""
    shutil.copy(ROOT / "tests/bpf" / f"{NAME}.c", folder)
    return folder / "out" / f"{NAME}.o"


def age(path: Path) -> None:
    """Make a file one minute older."""
    os.utime(path, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns - 60_000_000_000))


def test_no_source_is_no_error(folder: Path) -> None:
    done = make(folder)
    assert done.returncode == 0, done.stderr


def test_objects_keep_btf_and_drop_dwarf(folder: Path) -> None:
    built = add_sample(folder)
    done = make(folder)
    assert done.returncode == 0, done.stderr
    sections = subprocess.run(["readelf", "-SW", built], capture_output=True, text=True, check=True).stdout
    assert ".BTF" in sections and ".BTF.ext" in sections and ".debug_info" not in sections
    assert [entry.name for entry in built.parent.iterdir() if entry.is_file()] == [built.name]


def test_a_header_that_changed_builds_again_and_nothing_else_does(folder: Path) -> None:
    built = add_sample(folder)
    make(folder)
    for path in (*folder.rglob("*.h"), *folder.glob("*.c"), folder / "Makefile", built):
        age(path)
    age(folder / "include/abi.h")
    first = built.stat().st_mtime_ns
    make(folder)
    assert built.stat().st_mtime_ns == first
    (folder / "include/abi.h").touch()
    make(folder)
    assert built.stat().st_mtime_ns > first


def test_what_does_not_compile_leaves_the_old_object(folder: Path) -> None:
    built = add_sample(folder)
    make(folder)
    before = built.read_bytes()
    age(built)
    source = folder / f"{NAME}.c"
    source.write_text(source.read_text() + "\nint unused(void) { int x; }\n")
    done = make(folder)
    assert done.returncode != 0 and "error" in done.stderr
    assert built.read_bytes() == before
    assert [entry.name for entry in built.parent.iterdir() if entry.is_file()] == [built.name]


def test_the_same_sources_give_the_same_object_anywhere(folder: Path, tmp_path: Path) -> None:
    add_sample(folder)
    other = tmp_path / "elsewhere" / "bpf"
    shutil.copytree(folder, other)
    make(folder)
    make(other)
    one, two = ((place / "out" / f"{NAME}.o").read_bytes() for place in (folder, other))
    assert one == two and str(tmp_path).encode() not in one


def test_clean_leaves_nothing(folder: Path) -> None:
    add_sample(folder)
    make(folder)
    assert make(folder, "clean").returncode == 0
    assert list((folder / "out").iterdir()) == []
