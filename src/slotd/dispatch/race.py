"""The verdict of tier 3: when does a query know enough? Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TypeAlias

__all__ = ["Miss", "Standing", "Take", "Verdict", "Wait", "race_verdict"]


class Standing(Enum):
    """Where one remote stands in a query's race."""

    LISTS = "lists"
    """Its catalog has the name."""
    LACKS = "lacks"
    """It has answered without it, failed, or was not worth asking."""
    SILENT = "silent"
    """It is being asked."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Nothing is certain yet. Look again at ``until`` at the latest."""

    until: float


@dataclass(frozen=True, slots=True)
class Take:
    """The remote at this place in declared order has the name."""

    index: int


@dataclass(frozen=True, slots=True)
class Miss:
    """Nobody has the name; ``late``: some had not answered when time was up."""

    late: bool


Verdict: TypeAlias = Wait | Take | Miss


def race_verdict(
    standings: Sequence[Standing], now: float, *, hit_at: float | None, grace_s: float, deadline: float
) -> Verdict:
    """The verdict over the remotes, given in declared order.

    The first of those that list the name wins, once every remote before it
    has spoken, or ``grace_s`` after ``hit_at`` (when the first of them all was
    seen to list it), or at the ``deadline``. A miss is certain when nobody is
    silent; at the deadline it is declared.
    """
    winner = next((i for i, s in enumerate(standings) if s is Standing.LISTS), None)
    if winner is None:
        if Standing.SILENT not in standings:
            return Miss(late=False)
        return Miss(late=True) if now >= deadline else Wait(deadline)
    until = deadline if hit_at is None else min(hit_at + grace_s, deadline)
    if now >= until or Standing.SILENT not in standings[:winner]:
        return Take(winner)
    return Wait(until)
