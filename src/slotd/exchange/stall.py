"""The stall guard: how long an upstream may say nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import trio

from slotd.errors import StreamStalled

__all__ = ["LATE", "TOTAL", "StallLimits", "Watch"]

TOTAL = "total_timeout_s"
"""The limit whose end is no stall: the upstream may be speaking."""

LATE = 1 / 64
"""By what part of itself the limit on silence inside an answer may be exceeded: a deadline that is
moved with every token costs as much as sending the token."""


@dataclass(frozen=True, slots=True)
class StallLimits:
    """Seconds; 0 means no limit.

    ``first_byte_s``: from sending the request to the first byte of its answer.
    ``idle_s``: silence inside an answer. ``total_s``: the whole of it.
    """

    first_byte_s: float = 600.0
    idle_s: float = 300.0
    total_s: float = 0.0


class Watch:
    """The stall guard: one cancel scope whose deadline moves with progress.

    Use as a context manager around everything that waits for the upstream.
    When its deadline passes, the block ends in :class:`StreamStalled`, whose
    details name the ``limit`` that was passed, silence at most :data:`LATE` of
    it late. ``since`` (trio's clock, default now): from when the whole of the
    answer counts.
    """

    __slots__ = ("_armed", "_begun", "_end", "_limits", "_scope")

    def __init__(self, limits: StallLimits, since: float | None = None) -> None:
        began = trio.current_time() if since is None else since
        self._limits = limits
        self._end = began + limits.total_s if limits.total_s else math.inf
        self._scope = trio.CancelScope()
        self._begun = False
        self._armed = math.inf
        self._arm(trio.current_time() + limits.first_byte_s if limits.first_byte_s else math.inf)

    def _arm(self, at: float) -> None:
        self._armed = min(at, self._end)
        self._scope.deadline = self._armed

    def progressed(self) -> None:
        """The upstream has said something."""
        self._begun = True
        if limit_s := self._limits.idle_s:
            at = trio.current_time() + limit_s
            latest = at + limit_s * LATE
            if not at <= self._armed <= latest:
                self._arm(latest)
        else:
            self._arm(math.inf)

    def pause(self) -> None:
        """The client is being waited for, not the upstream."""
        self._arm(math.inf)

    def __enter__(self) -> Watch:
        self._scope.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: object) -> bool:
        swallowed = bool(self._scope.__exit__(kind, exc, tb))  # type: ignore[arg-type] # a traceback
        if self._scope.cancelled_caught:
            if trio.current_time() >= self._end:
                raise StreamStalled(
                    f"the answer took longer than server.total_timeout_s = {self._limits.total_s:g} s",
                    details={"limit": TOTAL},
                )
            raise self._stalled()
        return swallowed

    def _stalled(self) -> StreamStalled:
        limits = self._limits
        if self._begun:
            limit_s, what, key = limits.idle_s, "more of a stream", "idle_timeout_s"
        else:
            limit_s, what, key = limits.first_byte_s, "the first byte of an answer", "first_byte_timeout_s"
        words = f"no answer for {limit_s:g} s while waiting for {what} (server.{key})"
        return StreamStalled(words, details={"limit": key})
