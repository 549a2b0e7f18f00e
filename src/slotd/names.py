"""Near names, for errors that say what was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["close_names", "nearest"]


def close_names(name: str, known: Iterable[str], *, limit: int = 5) -> tuple[str, ...]:
    """Known names that look like ``name``, closest first, at most ``limit``."""
    pool = {k.casefold(): k for k in known}
    hits = difflib.get_close_matches(name.casefold(), list(pool), n=limit, cutoff=0.5)
    return tuple(pool[h] for h in hits)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The closest known name, or None if none is close."""
    hits = close_names(name, known, limit=1)
    return hits[0] if hits else None
