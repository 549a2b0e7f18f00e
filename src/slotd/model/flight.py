"""One download that several askers wait for, and the rules of joining and leaving it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import trio

from slotd.actor.snapshot import Snapshot
from slotd.errors import ActorGone
from slotd.model.errors import ModelFetchFailed
from slotd.model.progress import Progress, Report

__all__ = ["Flight"]

TELL_EVERY_S = 0.1
"""An asker hears of progress at most so often; what happens between is not queued but skipped."""


@dataclass(frozen=True, slots=True)
class _State:
    progress: Progress
    outcome: Path | ModelFetchFailed | ActorGone | None = None


class Flight:
    """A download under way.

    The task that carries it out calls :meth:`report` and, once, :meth:`land`
    or :meth:`fail`; all three are synchronous. Every asker runs :meth:`follow`
    in its own task, so a slow or broken ``progress`` callback is its own
    asker's trouble. The download lives in ``scope``; who cancels it is
    decided by :attr:`askers`, which the store counts.
    """

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.askers = 0
        self._state = Snapshot(_State(Progress("waiting", 0)))
        self._over = trio.Event()

    def report(self, progress: Progress) -> None:
        if self._state.value.outcome is None:
            self._state.publish(_State(progress))

    def land(self, path: Path) -> None:
        self._end(path)

    def fail(self, error: ModelFetchFailed | ActorGone) -> None:
        self._end(error)

    def _end(self, outcome: Path | ModelFetchFailed | ActorGone) -> None:
        if self._state.value.outcome is None:
            self._state.publish(replace(self._state.value, outcome=outcome))
            self._over.set()

    async def follow(self, progress: Report) -> Path:
        """Wait for the outcome, telling ``progress`` on the way; the last progress is always told.

        Raises the flight's error, a copy for each asker.
        """
        told: Progress | None = None
        while True:
            state, version = self._state.value, self._state.version
            if state.progress != told:
                told = state.progress
                progress(told)
            if state.outcome is not None:
                return _settle(state.outcome)
            with trio.move_on_after(TELL_EVERY_S):
                await self._over.wait()
            await self._state.wait_change(version)


def _settle(outcome: Path | ModelFetchFailed | ActorGone) -> Path:
    match outcome:
        case ModelFetchFailed():
            raise outcome.again() from outcome
        case ActorGone():
            raise ActorGone(outcome.actor, outcome.message) from outcome
        case path:
            return path
