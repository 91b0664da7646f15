# SPDX-License-Identifier: Apache-2.0
"""requests: `session.mount("https://", Adapter(pool="gb"))`, and for "http://" the same."""

from __future__ import annotations

from typing import Any

from requests.adapters import HTTPAdapter
from urllib3 import ProxyManager

from softunicast.client.making import dialer
from softunicast.client.urllib3 import pool_classes
from softunicast.dial.dialer import Dialer
from softunicast.errors import UsageError


class Adapter(HTTPAdapter):
    """Connections leave from a slice; `adapter`: keyword arguments of requests.adapters.HTTPAdapter."""

    def __init__(self, by: Dialer | None = None, *, adapter: dict[str, Any] | None = None, **choice: Any) -> None:
        self.by = by or dialer(**choice)
        super().__init__(**(adapter or {}))

    def init_poolmanager(self, *arguments: Any, **keywords: Any) -> None:
        """Called by HTTPAdapter when it is made."""
        super().init_poolmanager(*arguments, **keywords)
        self.poolmanager.pool_classes_by_scheme = pool_classes(self.by)

    def proxy_manager_for(self, proxy: str, **keywords: Any) -> ProxyManager:
        """Connections to an HTTP proxy leave from a slice as well. UsageError: a SOCKS proxy, which would not."""
        if not proxy.lower().startswith(("http://", "https://")):
            raise UsageError(f"proxy {proxy}: only HTTP proxies are reached from a slice; use one, or none")
        manager: ProxyManager = super().proxy_manager_for(proxy, **keywords)
        manager.pool_classes_by_scheme = pool_classes(self.by)
        return manager
