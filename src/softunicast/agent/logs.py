# SPDX-License-Identifier: Apache-2.0
"""Logs on stderr: for people on a terminal, JSON lines otherwise (systemd, files)."""

from __future__ import annotations

import sys
from typing import Any, Literal

import structlog

LogFormat = Literal["auto", "human", "json"]


def logger(log_format: LogFormat, **bound: Any) -> Any:
    """A structlog logger with these values bound. `auto`: human when stderr is a terminal."""
    human = log_format == "human" or (log_format == "auto" and sys.stderr.isatty())
    renderer: Any = (
        structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty()) if human else structlog.processors.JSONRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%H:%M:%S" if human else "iso", utc=not human),
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(file=sys.stderr),
        cache_logger_on_first_use=False,
    )
    return structlog.get_logger().bind(**bound)
