# SPDX-License-Identifier: Apache-2.0
"""BPF programs: what the kernel knows of them, pins, and runs without attaching (BPF_PROG_TEST_RUN).

Sources: net/bpf/test_run.c; struct bpf_prog_info in include/uapi/linux/bpf.h.
"""

from __future__ import annotations

import ctypes
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

from softunicast.kernel.descriptor import Descriptor, kernel_name, object_info
from softunicast.kernel.libbpf import TestRunOptions, check, libbpf

DATA_ROOM: Final = 4096
INFO_SIZE: Final = 80


class ProgramType(IntEnum):
    """enum bpf_prog_type: those this project loads."""

    SCHED_CLS = 3
    XDP = 6
    CGROUP_SOCK = 9
    SOCK_OPS = 13
    CGROUP_SOCK_ADDR = 18
    TRACING = 26
    SYSCALL = 31


@dataclass(frozen=True, slots=True)
class TestRun:
    """What a test run gave. `duration_ns` is the mean of `repeat` runs, by the kernel's clock.

    `data` is the packet as the program left it, `ctx` the context (struct __sk_buff or xdp_md; for syscall
    programs the argument itself).
    """

    __test__ = False

    retval: int
    data: bytes
    ctx: bytes
    duration_ns: int


class Program(Descriptor):
    """A program, by descriptor. Closing it does not unload it: pins, links and other descriptors keep it."""

    KIND = "program"

    def __init__(self, fd: int, name: str = "", attach_type: int | None = None, section: str = "") -> None:
        """Takes the descriptor over. `attach_type` and `section` are known only for what was just loaded."""
        raw = object_info(fd, INFO_SIZE)
        super().__init__(fd, name or kernel_name(raw[64:80]))
        self.type, self.id = struct.unpack_from("=II", raw)
        self.tag = raw[8:16].hex()
        self.attach_type = attach_type
        self.section = section

    def __repr__(self) -> str:
        return f"<Program {self.name} id {self.id} tag {self.tag}>"

    def test_run(
        self, data: bytes = b"", *, ctx: bytes = b"", repeat: int = 1, data_out_size: int | None = None
    ) -> TestRun:
        """Run it once, or `repeat` times, on `data` (a frame of at least 14 bytes for tc and XDP).

        Syscall programs take only `ctx`, in place. `data_out_size` bounds the packet that comes back
        (default: its length and 4,096 bytes more). `retval` is unsigned, as the kernel gives it.
        Raises OSError: EINVAL for input the program type does not take, ENOSPC for a packet that grew more.
        """
        options = TestRunOptions(sz=ctypes.sizeof(TestRunOptions))
        data_in = ctypes.create_string_buffer(data, max(len(data), 1))
        context = ctypes.create_string_buffer(ctx, max(len(ctx), 1))
        room = len(data) + DATA_ROOM if data_out_size is None else data_out_size
        data_out = ctypes.create_string_buffer(max(room, 1))
        context_out = ctypes.create_string_buffer(max(len(ctx), 1))
        in_place = self.type == ProgramType.SYSCALL
        if ctx:
            options.ctx_in, options.ctx_size_in = ctypes.addressof(context), len(ctx)
        if not in_place:
            options.repeat = repeat
            if data:
                options.data_in, options.data_size_in = ctypes.addressof(data_in), len(data)
                options.data_out, options.data_size_out = ctypes.addressof(data_out), room
            if ctx:
                options.ctx_out, options.ctx_size_out = ctypes.addressof(context_out), len(ctx)
        check(libbpf().bpf_prog_test_run_opts(self.fd, ctypes.byref(options)), f"test run of {self.name}")
        if in_place:
            return TestRun(options.retval, b"", context.raw[: len(ctx)], 0)
        return TestRun(
            options.retval,
            data_out.raw[: options.data_size_out] if data else b"",
            context_out.raw[: options.ctx_size_out] if ctx else b"",
            options.duration,
        )
