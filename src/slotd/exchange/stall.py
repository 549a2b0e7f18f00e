"""The stall guard: how long an upstream may say nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

import trio

from slotd.errors import StreamStalled

__all__ = ["TOTAL", "StallLimits", "Watch"]

TOTAL = "total_timeout_s"
"""The limit whose end is no stall: the upstream may be speaking."""


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
    details name the ``limit`` that was passed. ``since`` (trio's clock, default
    now): from when the whole of the answer counts. Moving a deadline is cheap;
    a scope per chunk is not.
    """

    def __init__(self, limits: StallLimits, since: float | None = None) -> None:
        began = trio.current_time() if since is None else since
        self._limits = limits
        self._end = began + limits.total_s if limits.total_s else math.inf
        self._scope = trio.CancelScope()
        self._what = self._key = ""
        self._set(limits.first_byte_s, "the first byte of an answer", "first_byte_timeout_s")

    def _set(self, limit_s: float, what: str, key: str) -> None:
        at = trio.current_time() + limit_s if limit_s else math.inf
        self._scope.deadline = min(at, self._end)
        self._key = key
        self._what = f"no answer for {limit_s:g} s while waiting for {what} (server.{key})"

    def progressed(self) -> None:
        """The upstream has said something."""
        self._set(self._limits.idle_s, "more of a stream", "idle_timeout_s")

    def pause(self) -> None:
        """The client is being waited for, not the upstream."""
        self._scope.deadline = self._end

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
            raise StreamStalled(self._what, details={"limit": self._key})
        return swallowed
