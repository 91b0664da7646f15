# SPDX-License-Identifier: Apache-2.0
"""requests: `session.mount("https://", Adapter(pool="gb"))`, and for "http://" the same."""

from __future__ import annotations

from typing import Any

from requests.adapters import HTTPAdapter

from softunicast.client.making import dialer
from softunicast.client.urllib3 import pool_classes
from softunicast.dial.dialer import Dialer


class Adapter(HTTPAdapter):
    """Connections leave from a slice; `adapter`: keyword arguments of requests.adapters.HTTPAdapter."""

    def __init__(self, by: Dialer | None = None, *, adapter: dict[str, Any] | None = None, **choice: Any) -> None:
        self.by = by or dialer(**choice)
        super().__init__(**(adapter or {}))

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        """Called by HTTPAdapter when it is made."""
        super().init_poolmanager(*arguments, **keywords)
        self.poolmanager.pool_classes_by_scheme = pool_classes(self.by)
