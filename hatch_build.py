# SPDX-License-Identifier: Apache-2.0
"""Hatchling hook: compile the data plane, so that wheels carry it and installing one needs no compiler.

Building a wheel or an editable install from source needs clang, llvm-strip and libbpf's headers, unless every
object is already there and newer than its sources (make sees to that). A source archive takes sources only.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # generic only in newer hatchling
    """Runs `make -C bpf` before a wheel is packed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version` is "standard" or "editable". RuntimeError, one line, when the compiler fails."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / "bpf"
        try:
            subprocess.run(["make", "-C", str(folder)], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(
                "the BPF objects did not build: install make, clang, llvm and libbpf-dev, "
                "then run `make -C bpf` to see why"
            ) from error
        built = [f"src/softunicast/bpf/{source.stem}.o" for source in sorted(folder.glob("*.bpf.c"))]
        build_data["artifacts"].extend(built)
