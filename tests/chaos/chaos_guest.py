"""A trio run that a synchronous caller drives, on virtual time, in one thread.

For Hypothesis' state machines, whose rules are plain functions: trio runs as a
guest, and only while a rule asks it to. Between rules nothing moves, time
included, so a sequence of rules always gives the same run.
"""

from __future__ import annotations

import queue
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import outcome
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

__all__ = ["Guest"]

T = TypeVar("T")
HOST_PATIENCE_S = 20.0
"""Real seconds without any progress of trio's after which the run counts as hung."""


class Guest:
    """A trio run with one nursery. :meth:`close` it."""

    def __init__(self) -> None:
        self._inbox: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self._clock = MockClock()
        self._ended: outcome.Outcome[None] | None = None
        self._nursery: trio.Nursery | None = None
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._inbox.put,
            done_callback=self._done,
            host_uses_signal_set_wakeup_fd=True,
            clock=self._clock,
        )
        self._pump(lambda: self._nursery is not None)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    def _done(self, ended: outcome.Outcome[None]) -> None:
        self._ended = ended

    def _pump(self, until: Callable[[], bool]) -> None:
        while not until():
            if self._ended is not None:
                self._ended.unwrap()
                raise AssertionError("the run has ended")
            try:
                self._inbox.get(timeout=HOST_PATIENCE_S)()
            except queue.Empty:
                raise AssertionError("trio has come to a halt") from None

    def call(self, function: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Await something in the run, to its end. Raises what it raises."""
        result: list[outcome.Outcome[T]] = []

        async def run() -> None:
            result.append(await outcome.acapture(function, *args))

        self._start(run)
        self._pump(lambda: bool(result))
        return result[0].unwrap()

    def spawn(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Begin something in the run, and let it go on until all wait."""
        self._start(function, *args)
        self.settle()

    def act(self, function: Callable[..., object], *args: Any) -> Any:
        """Call something synchronous in the run, and let go on what follows, until all wait."""

        async def run() -> object:
            return function(*args)

        value = self.call(run)
        self.settle()
        return value

    def settle(self) -> None:
        """Let everything go on until all tasks wait. No time passes."""
        self.call(wait_all_tasks_blocked)

    def advance(self, seconds: float, check: Callable[[], None]) -> None:
        """Let so much time pass, from one deadline to the next, with a check at each."""
        self.call(self._advance, seconds, check)

    def jump(self, seconds: float) -> None:
        """Let so much time have passed all at once."""
        self._clock.jump(seconds)
        self.settle()

    async def _advance(self, seconds: float, check: Callable[[], None]) -> None:
        until = trio.current_time() + seconds
        while True:
            await wait_all_tasks_blocked()
            check()
            left = until - trio.current_time()
            if left <= 0:
                return
            due = trio.lowlevel.current_statistics().seconds_to_next_deadline
            self._clock.jump(min(left, max(due, 0.0) + 1e-9))

    def close(self) -> None:
        """Cancel the run, and wait for its end. Raises what it ended with."""
        if self._ended is None:
            assert self._nursery is not None
            self._token.run_sync_soon(self._nursery.cancel_scope.cancel)
            while self._ended is None:
                self._inbox.get(timeout=HOST_PATIENCE_S)()
        self._ended.unwrap()

    def _start(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        nursery = self._nursery
        assert nursery is not None
        self._token.run_sync_soon(lambda: nursery.start_soon(function, *args))
