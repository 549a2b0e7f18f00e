"""Named deadlines, for the actors of these tests."""

from __future__ import annotations

import math
from collections.abc import Mapping

__all__ = ["Timers"]


class Timers:
    """A table of named deadlines. No tasks: the owner's loop looks at it.

    Setting a name again moves its deadline. A deadline that is due is handed
    out once, by :meth:`pop_due`.
    """

    def __init__(self) -> None:
        self._at: dict[str, float] = {}

    def set(self, name: str, at: float) -> None:
        self._at[name] = at

    def clear(self, name: str) -> None:
        self._at.pop(name, None)

    def view(self) -> Mapping[str, float]:
        return dict(self._at)

    def next(self) -> float:
        """The earliest deadline, or infinity."""
        return min(self._at.values(), default=math.inf)

    def pop_due(self, now: float) -> list[str]:
        """The names due at ``now``, earliest first, removed from the table."""
        due = sorted((at, name) for name, at in self._at.items() if at <= now)
        for _, name in due:
            del self._at[name]
        return [name for _, name in due]
