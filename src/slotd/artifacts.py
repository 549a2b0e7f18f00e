"""Results that a client fetches later: kept in memory for a while, within a bound."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TypeAlias

import trio

from slotd.errors import AnswerTooLarge

__all__ = ["Artifact", "ArtifactLimits", "Artifacts", "Keep", "Piece", "Together"]

COUNT_MAX = 10_000
"""So many are kept at once, however small: each takes some room besides its bytes."""

Piece: TypeAlias = tuple[bytes, str]
"""A result and its content type."""


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
    ``ttl_s`` seconds on trio's clock; but none while its answer is on its way
    (:meth:`together`): an answer must not name what is gone already. ``limits``
    is asked at each use: a configuration may change.
    """

    def __init__(self, limits: Callable[[], ArtifactLimits] = ArtifactLimits) -> None:
        self._limits = limits
        self._kept: dict[str, Artifact] = {}  # the oldest first
        self._bytes = 0
        self._held: set[str] = set()  # of answers that are on their way
        self._held_bytes = 0

    @property
    def total_bytes(self) -> int:
        return self._bytes

    def together(self) -> Together:
        """For the results of one answer, to be entered for as long as it is on its way."""
        return Together(self)

    def put(self, data: bytes, content_type: str) -> str:
        """Keep ``data``, the only result of an answer that is as good as delivered; returns its id.

        Raises as :meth:`Together.put` does.
        """
        with self.together() as together:
            return together.put(data, content_type)

    def get(self, id: str) -> Artifact | None:
        """What was kept under this id, unless its time is over."""
        self._expire(trio.current_time())
        return self._kept.get(id)

    # --- for Together ----------------------------------------------------------------

    def hold(self, pieces: tuple[Piece, ...], beside: int) -> list[str]:
        """Keep all of ``pieces`` or none, until they are let go; ``beside`` so many bytes of the same answer.

        Raises :class:`AnswerTooLarge`, and then nothing has had to go.
        """
        limits, now = self._limits(), trio.current_time()
        size = sum(len(data) for data, _ in pieces)
        self._check(size, len(pieces), beside, limits.max_bytes)
        self._expire(now)
        while self._bytes + size > limits.max_bytes or len(self._kept) + len(pieces) > COUNT_MAX:
            self._drop(next(id for id in self._kept if id not in self._held))
        ids = [secrets.token_urlsafe(18) for _ in pieces]
        for id, (data, content_type) in zip(ids, pieces, strict=True):
            self._kept[id] = Artifact(data, content_type, now + limits.ttl_s)
        self._bytes += size
        self._held.update(ids)
        self._held_bytes += size
        return ids

    def let_go(self, ids: list[str]) -> None:
        """Their answer is delivered, or never will be: from now on they are as old as that."""
        until = trio.current_time() + self._limits().ttl_s
        self._held.difference_update(ids)
        for id in ids:
            artifact = self._kept.pop(id)
            self._kept[id] = replace(artifact, until=until)
            self._held_bytes -= len(artifact.data)

    # --- inside ------------------------------------------------------------------------

    def _check(self, size: int, count: int, beside: int, most: int) -> None:
        if beside + size > most:
            what = f"results of one answer of {beside + size} bytes together are more than"
            if not beside:
                what = f"a result of {size} bytes is larger than what"
            raise AnswerTooLarge(f"{what} may be kept of all ({most} bytes; omni.artifacts_mb)")
        if self._held_bytes + size > most or len(self._held) + count > COUNT_MAX:
            raise AnswerTooLarge(
                f"there is no room for a result of {size} bytes beside those of answers that are on "
                f"their way ({len(self._held)}, of {self._held_bytes} bytes); {most} bytes may be kept "
                "of all (omni.artifacts_mb)"
            )

    def _expire(self, now: float) -> None:
        # A reload may have changed how long, so order of age is not order of end.
        over = [id for id, artifact in self._kept.items() if artifact.until <= now and id not in self._held]
        for id in over:
            self._drop(id)

    def _drop(self, id: str) -> None:
        self._bytes -= len(self._kept.pop(id).data)


class Together:
    """The results of one answer: none of them goes before it is left, so all are there when it is delivered.

    What does not fit beside them is refused instead. Entered once. Once it is
    left they have ``ttl_s`` each, and go by age as all do.
    """

    def __init__(self, artifacts: Artifacts) -> None:
        self._artifacts = artifacts
        self._ids: list[str] = []
        self._bytes = 0

    def __enter__(self) -> Together:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._artifacts.let_go(self._ids)
        self._ids, self._bytes = [], 0

    def put(self, data: bytes, content_type: str) -> str:
        """Keep a result; returns its id. Raises as :meth:`put_all` does."""
        return self.put_all((data, content_type))[0]

    def put_all(self, *pieces: Piece) -> list[str]:
        """Keep all of these, or none; returns their ids, in order.

        Raises :class:`AnswerTooLarge` if they do not fit beside what the answer
        has already, or beside what other answers have that are on their way.
        """
        ids = self._artifacts.hold(pieces, self._bytes)
        self._ids += ids
        self._bytes += sum(len(data) for data, _ in pieces)
        return ids


Keep: TypeAlias = Callable[[], Together]
"""Opens a place for the results of one answer; see :meth:`Artifacts.together`."""
