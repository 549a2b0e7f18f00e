"""How alike vectors are. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

__all__ = ["likeness"]


def likeness(vectors: Sequence[Sequence[float]]) -> list[list[float]]:
    """The cosine of each two, three digits; 0 with one that has no length or another one's."""
    lengths = [math.hypot(*vector) for vector in vectors]

    def cosine(i: int, j: int) -> float:
        length = lengths[i] * lengths[j]
        if len(vectors[i]) != len(vectors[j]) or not length:
            return 0.0
        dot = math.fsum(a * b for a, b in zip(vectors[i], vectors[j], strict=True))
        return round(dot / length, 3)

    return [[cosine(i, j) for j in range(len(vectors))] for i in range(len(vectors))]
