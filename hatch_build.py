# SPDX-License-Identifier: Apache-2.0
"""Hatchling hook: compile the data plane and the proxy's extension module, so that wheels carry them and installing one
needs no compiler.

Building a wheel or an editable install from source needs clang, llvm-strip and libbpf's headers, a C compiler and
Python's headers, unless everything is already there and newer than its sources (make sees to that). The wheel is for
one architecture, and for every Python from 3.11 on (PEP 384). A source archive takes sources only.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):  # type: ignore[type-arg]  # generic only in newer hatchling
    """Runs `make` in bpf/ and native/ before a wheel is packed."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """`version` is "standard" or "editable". RuntimeError, one line, when the compiler fails."""
        if self.target_name != "wheel":
            return
        folder = Path(self.root) / "bpf"
        self._make("bpf", "the BPF objects", "make, clang, llvm and libbpf-dev")
        self._make("native", "the extension module", "make, gcc and python3-dev")
        built = [f"src/softunicast/bpf/{source.stem}.o" for source in sorted(folder.glob("*.bpf.c"))]
        build_data["artifacts"].extend([*built, "src/softunicast/proxy/_relay.abi3.so"])
        build_data["pure_python"] = False
        platform = sysconfig.get_platform().replace("-", "_").replace(".", "_")
        build_data["tag"] = f"cp311-abi3-{platform}"

    def _make(self, folder: str, what: str, packages: str) -> None:
        try:
            subprocess.run(["make", "-C", str(Path(self.root) / folder), f"PYTHON={sys.executable}"], check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise RuntimeError(
                f"{what} did not build: install {packages}, then run `make -C {folder}` to see why"
            ) from error
