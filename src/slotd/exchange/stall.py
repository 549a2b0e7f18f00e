"""The stall guard: how long an upstream may say nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import NoReturn, Self

import trio

from slotd.errors import StreamStalled

__all__ = ["LATE_S", "TOTAL", "StallLimits", "Stalls", "Watch"]

TOTAL = "total_timeout_s"
"""The limit whose end is no stall: the upstream may be speaking."""

LOOK_S = 0.1
"""How often the guard looks: a deadline that moves with every token costs as much as sending it."""

LATE_S = 2 * LOOK_S
"""By how much a limit may be exceeded: one look to begin to count, one to see that it is passed."""


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
    """One request that waits for its upstream. Made by :meth:`Stalls.watch`, watched inside its ``with``."""

    __slots__ = ("_began", "_end", "_guard", "_limits", "_paused", "_since", "_spoke", "_spoken")

    def __init__(
        self, guard: Stalls, limits: StallLimits, end: Callable[[StreamStalled], None], began: float | None
    ) -> None:
        self._guard = guard
        self._limits = limits
        self._end = end
        self._began = began  # None: when the guard looks first
        self._since: float | None = None  # from when silence counts; likewise
        self._spoke = False  # since the guard has looked
        self._spoken = False  # at all
        self._paused = False

    def progressed(self) -> None:
        """The upstream has said something."""
        self._spoke = True

    def pause(self) -> None:
        """The client is being waited for, not the upstream, until that says something again."""
        self._spoke = False
        self._spoken = self._paused = True

    def look(self, now: float) -> None:
        """End the request if it has passed a limit."""
        if self._spoke:
            self._spoken, self._spoke, self._paused = True, False, False
            self._since = now
        if self._since is None:
            self._since = now
        if self._began is None:
            self._began = now
        if self._limits.total_s and now >= self._began + self._limits.total_s:
            self._pass(TOTAL, f"the answer took longer than server.{TOTAL} = {self._limits.total_s:g} s")
        elif not self._paused:
            limits = self._limits
            if self._spoken:
                limit_s, what, key = limits.idle_s, "more of a stream", "idle_timeout_s"
            else:
                limit_s, what, key = (
                    limits.first_byte_s,
                    "the first byte of an answer",
                    "first_byte_timeout_s",
                )
            if limit_s and now - self._since >= limit_s:
                self._pass(key, f"no answer for {limit_s:g} s while waiting for {what} (server.{key})")

    def _pass(self, limit: str, words: str) -> None:
        del self._guard._watches[self]
        self._end(StreamStalled(words, details={"limit": limit}))

    def __enter__(self) -> Self:
        watches = self._guard._watches
        if not watches:
            self._guard._some.set()
        watches[self] = None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._guard._watches.pop(self, None)


class Stalls:
    """Looks after the requests that wait for upstreams. :meth:`run` must run meanwhile."""

    def __init__(self) -> None:
        self._watches: dict[Watch, None] = {}
        self._some = trio.Event()

    def watch(
        self, limits: StallLimits, end: Callable[[StreamStalled], None], began: float | None = None
    ) -> Watch:
        """Call ``end``, once, when a limit is passed, at most :data:`LATE_S` late; it must not block.

        ``began`` (trio's clock, default about now): from when the whole of the answer counts.
        """
        return Watch(self, limits, end, began)

    async def run(self) -> NoReturn:
        """Look again and again, while there is anything to look at. Until cancelled."""
        while True:
            if not self._watches:
                self._some = trio.Event()
                await self._some.wait()
            await trio.sleep(LOOK_S)
            now = trio.current_time()
            for watch in tuple(self._watches):
                watch.look(now)
