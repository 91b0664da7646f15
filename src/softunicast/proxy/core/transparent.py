# SPDX-License-Identifier: Apache-2.0
"""A client that does not know of the proxy: its SYN was for somebody else, and came to us by TPROXY.

It asked by connecting, so there is nothing to read first and no word for a refusal but RST; the session asks for the
upstream connection at once, to where the client meant to connect (the accepted socket's own address).

Source: Documentation/networking/tproxy.rst.
"""

from __future__ import annotations

from collections.abc import Iterable

from softunicast.proxy.core.messages import Close, Command, Event, Failed, Opened, Relay


class Transparent:
    """One client's connection."""

    def handle(self, event: Event) -> Iterable[Command]:
        if isinstance(event, Opened):
            return (Relay(),)
        if isinstance(event, Failed):
            return (Close(event.reason, event.detail),)
        return ()
