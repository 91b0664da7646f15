# SPDX-License-Identifier: Apache-2.0
"""Puts policies on sockets that programs hand over: for those who may not write the storage of sockets themselves."""

from __future__ import annotations

import socket
from dataclasses import dataclass, field, replace

from softunicast.agent.machine import Machine
from softunicast.dial.here import Here
from softunicast.egress.policy import HeldSlice, SlicePart, resolve
from softunicast.egress.tag import check_taggable, tag
from softunicast.errors import UsageError
from softunicast.kernel import netns
from softunicast.model.slice import Slice


@dataclass(slots=True)
class Tagger:
    """One node's."""

    machine: Machine
    _here: Here | None = field(default=None)

    def tag(self, made: socket.socket | None, pool: str, slice_: str | None, client: int) -> None:
        """UsageError: no such pool or slice, no such socket; nothing was changed. KernelError."""
        if made is None:
            raise UsageError("tag: no socket came with the question; send it by SCM_RIGHTS")
        check_taggable(made, netns.cookie())
        if self._here is None:
            self._here = Here(self.machine.node)
        held = self._here.holdings()
        part = None
        if slice_ is not None:
            try:
                wanted = Slice.parse(slice_)
            except ValueError as error:
                raise UsageError(f"slice {error}") from error
            part = SlicePart(wanted.address, wanted.first, wanted.last)
        slices = [HeldSlice(one.index, one.slice, one.pool) for one in held.slices]
        policy = resolve(held.node, held.pools, slices, pool, part)
        tag(self.machine.map("socks"), made.fileno(), replace(policy, client=client))
