"""What a user sees while a model comes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeAlias

__all__ = ["Phase", "Progress", "Report"]

Phase: TypeAlias = Literal["waiting", "downloading", "verifying", "unpacking"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the present phase is, in bytes of that phase's own work.

    ``downloading`` counts what has arrived, bytes of an earlier run included,
    out of what the server says will; ``unpacking`` and ``verifying`` count
    what was written or read. ``waiting`` (for another slotd or another
    download) counts what lies on disk so far. ``total_bytes`` None: unknown.
    Within a phase ``done_bytes`` falls only when a download must start over.
    """

    phase: Phase
    done_bytes: int
    total_bytes: int | None = None


Report: TypeAlias = Callable[[Progress], None]
