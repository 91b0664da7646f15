# SPDX-License-Identifier: Apache-2.0
"""urllib3, and what is built on it: `pool_manager(pool="gb").request("GET", url)`; requests has a module of its own."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import ConnectTimeoutError, NameResolutionError, NewConnectionError
from urllib3.util import Timeout

from softunicast.client.blocking import connect
from softunicast.client.making import dialer
from softunicast.dial.dialer import Dialer

if TYPE_CHECKING:
    _Base = HTTPConnection
else:
    _Base = object


class _Sliced(_Base):
    """What urllib3 calls to get a connected socket, overridden as its documentation of `ConnectionCls` has it."""

    by: Dialer

    def _new_conn(self) -> socket.socket:
        given = self.timeout
        timeout_s = given if isinstance(given, int | float) else Timeout.resolve_default_timeout(given)
        try:
            made = connect((self._dns_host, self.port), timeout=timeout_s, by=self.by)
        except socket.gaierror as error:
            raise NameResolutionError(self.host, self, error) from error
        except TimeoutError as error:
            raise ConnectTimeoutError(self, str(error)) from error
        except OSError as error:
            raise NewConnectionError(self, str(error)) from error
        for option in self.socket_options or ():
            made.setsockopt(*option)
        return made


def pool_classes(by: Dialer) -> dict[str, type[HTTPConnectionPool]]:
    """For PoolManager.pool_classes_by_scheme."""
    plain = type("SlicedHTTPConnection", (_Sliced, HTTPConnection), {"by": by})
    tls = type("SlicedHTTPSConnection", (_Sliced, HTTPSConnection), {"by": by})
    return {
        "http": type("SlicedHTTPConnectionPool", (HTTPConnectionPool,), {"ConnectionCls": plain}),
        "https": type("SlicedHTTPSConnectionPool", (HTTPSConnectionPool,), {"ConnectionCls": tls}),
    }


def pool_manager(
    by: Dialer | None = None, *, manager: dict[str, Any] | None = None, **choice: Any
) -> urllib3.PoolManager:
    """A PoolManager whose connections leave from a slice; `manager`: keyword arguments of urllib3.PoolManager."""
    made = urllib3.PoolManager(**(manager or {}))
    made.pool_classes_by_scheme = pool_classes(by or dialer(**choice))
    return made
