"""How the command line speaks: results to stdout, errors to stderr, colours only on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import NoReturn

import structlog
import typer
from rich.console import Console

from slotd.errors import SlotdError

__all__ = ["err", "fail", "out", "quiet_log", "warn"]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def warn(warnings: Iterable[str]) -> None:
    """Print what is suspicious, each thing once."""
    lines = [f"warning: {warning}" for warning in dict.fromkeys(warnings)]
    if lines:  # in one go: each print of rich takes 0.1 ms, and there may be a thousand slots
        err.print("\n".join(lines), markup=False, style="yellow")


def fail(error: SlotdError) -> NoReturn:
    """Print a typed error and leave with exit code 1."""
    err.print(f"[bold red]{error.code}[/]: ", end="")
    err.print(error.message, markup=False)
    for line in error.details.get("log", ()):
        err.print(f"  | {line}", markup=False, style="dim")
    close = error.details.get("close")
    if close:
        err.print(f"  close: {', '.join(close)}", markup=False)
    warn(error.details.get("warnings", ()))
    raise typer.Exit(1)


@contextmanager
def quiet_log() -> Iterator[None]:
    """For commands that are no server: of slotd's log, only warnings, and to stderr."""
    usual = structlog.get_config()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )
    try:
        yield
    finally:
        structlog.configure(**usual)
