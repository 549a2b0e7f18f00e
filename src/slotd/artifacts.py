"""Results that a client fetches later: kept in memory for a while, within a bound."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass

import trio

from slotd.errors import AnswerTooLarge

__all__ = ["Artifact", "ArtifactLimits", "Artifacts", "Keep"]

COUNT_MAX = 10_000
"""So many are kept at once, however small: each takes some room besides its bytes."""

Keep = Callable[[bytes, str], str]
"""Data and its content type to an id; see :meth:`Artifacts.put`."""


@dataclass(frozen=True, slots=True)
class ArtifactLimits:
    """``max_bytes``: of all together. ``ttl_s``: how long each is kept at most."""

    max_bytes: int = 64 << 20
    ttl_s: float = 3600.0


@dataclass(frozen=True, slots=True)
class Artifact:
    data: bytes
    content_type: str
    until: float


class Artifacts:
    """Pictures and sounds by an id that nobody can guess. Nothing here waits.

    The oldest go first when there is no room for another, and each after
    ``ttl_s`` seconds on trio's clock. ``limits`` is asked at each use: a
    configuration may change.
    """

    def __init__(self, limits: Callable[[], ArtifactLimits] = ArtifactLimits) -> None:
        self._limits = limits
        self._kept: dict[str, Artifact] = {}  # the oldest first
        self._bytes = 0

    @property
    def total_bytes(self) -> int:
        return self._bytes

    def put(self, data: bytes, content_type: str) -> str:
        """Keep ``data``; returns its id. Raises :class:`AnswerTooLarge` if it is larger than the bound."""
        limits, now = self._limits(), trio.current_time()
        if len(data) > limits.max_bytes:
            raise AnswerTooLarge(
                f"a result of {len(data)} bytes is larger than what may be kept of all "
                f"({limits.max_bytes} bytes; omni.artifacts_mb)"
            )
        self._expire(now)
        while self._bytes + len(data) > limits.max_bytes or len(self._kept) >= COUNT_MAX:
            self._drop(next(iter(self._kept)))
        id = secrets.token_urlsafe(18)
        self._kept[id] = Artifact(data, content_type, now + limits.ttl_s)
        self._bytes += len(data)
        return id

    def get(self, id: str) -> Artifact | None:
        """What was kept under this id, unless its time is over."""
        self._expire(trio.current_time())
        return self._kept.get(id)

    def _expire(self, now: float) -> None:
        # A reload may have changed how long, so order of age is not order of end.
        for id in [id for id, artifact in self._kept.items() if artifact.until <= now]:
            self._drop(id)

    def _drop(self, id: str) -> None:
        self._bytes -= len(self._kept.pop(id).data)
