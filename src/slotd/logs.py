"""slotd's own log: structlog, to stderr, for people on a terminal and as JSON elsewhere."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import msgspec
import structlog

__all__ = ["configure", "says", "set_level"]

_LEVELS = logging.getLevelNamesMapping()


class _Level:
    """A processor that drops what is below the level in force, which may change.

    structlog's own filter is part of the logger's class, and loggers keep theirs.
    """

    minimum = logging.INFO

    def __call__(
        self, logger: object, method: str, event: structlog.types.EventDict
    ) -> structlog.types.EventDict:
        name = "warning" if method == "warn" else "error" if method == "exception" else method
        if _LEVELS.get(name.upper(), logging.CRITICAL) < self.minimum:
            raise structlog.DropEvent
        return event


_level = _Level()


def set_level(level: str) -> None:
    """From now on, say what is at least at this level ("debug", "info", "warning", "error")."""
    _level.minimum = _LEVELS[level.upper()]


def says(level: str) -> bool:
    """Whether something of this level would be said now."""
    return _LEVELS[level.upper()] >= _level.minimum


def _json(fields: Any, **_: Any) -> str:
    # Several times as fast as the standard library's, and there is a line for each request.
    try:
        text = msgspec.json.encode(fields, enc_hook=repr).decode()
    except (TypeError, ValueError, RecursionError):
        text = "\udcff"  # something in it is no Unicode
    # What is not ASCII is escaped: who reads the log may take it for something else.
    return text if text.isascii() else json.dumps(fields, default=repr)


def configure(level: str) -> None:
    """Set up once, at the edge. Libraries' loggers stay at warnings."""
    set_level(level)
    renderer: structlog.types.Processor = (
        structlog.dev.ConsoleRenderer() if sys.stderr.isatty() else structlog.processors.JSONRenderer(_json)
    )
    structlog.configure(
        processors=[
            _level,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.DEBUG),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
