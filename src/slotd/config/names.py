"""The name that was probably meant: stricter than mere likeness.

In a configuration a wrong suggestion sends the reader astray ("port" is not a
misspelt "priority"), so a near name must be a few slips away, or a longer or
shorter form of the same word.
"""

from __future__ import annotations

from collections.abc import Iterable

from slotd.names import close_names

__all__ = ["nearest", "slips"]


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` is a slip of, or None."""
    return next((near for near in close_names(name, known) if _plausible(name, near)), None)


def _plausible(name: str, near: str) -> bool:
    short, long = sorted((name.casefold(), near.casefold()), key=len)
    if len(short) >= 3 and short in long:
        return True
    return slips(short, long) <= max(1, len(long) // 3)


def slips(a: str, b: str) -> int:
    """How many letters must be added, left out, replaced or swapped with their neighbour."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        before, last, row = row, before, [i]
        for j, y in enumerate(b, 1):
            cost = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (x != y))
            if i > 1 and j > 1 and x == b[j - 2] and a[i - 2] == y:
                cost = min(cost, last[j - 2] + 1)
            row.append(cost)
    return row[-1]
