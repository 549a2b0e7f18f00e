"""The ``slotd`` command.

Exit codes: 0 done, 1 refused or failed (with the typed error), 2 usage.
"""

from __future__ import annotations

import gc

__all__ = ["main"]


def main() -> None:
    """Entry point of the console script."""
    # What imports make is there to stay: looking it through for garbage costs 15 ms here.
    gc.disable()
    from slotd.cli.root import app

    gc.enable()
    app()
