"""How the command line speaks: results to stdout, errors to stderr, colours only on a terminal."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn

import typer
from rich.console import Console

from slotd.errors import SlotdError

__all__ = ["err", "fail", "out", "warn"]

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)


def warn(warnings: Iterable[str]) -> None:
    """Print what is suspicious."""
    for warning in warnings:
        err.print(f"warning: {warning}", markup=False, style="yellow")


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
