"""The ``slotd`` command.

Exit codes: 0 done, 1 refused or failed (with the typed error), 2 usage.
"""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script."""
    from slotd.cli.root import app

    app()
