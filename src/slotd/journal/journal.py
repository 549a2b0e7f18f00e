"""The journal's task: reads the bus, writes in batches, answers what is asked of the past."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import structlog
import trio

from slotd.errors import JournalUnavailable
from slotd.events import Event, EventBus, Gap, Subscription
from slotd.journal.entries import GAP, NARROWED, Entry, KeptRequest
from slotd.journal.store import Store, is_broken

__all__ = ["Journal"]

T = TypeVar("T")

log = structlog.get_logger("slotd")

BATCH = 1024
"""So many events are written at once, at most."""

BATCH_S = 0.2
"""So long the first of them waits for others."""

RETRY_S = (1.0, 60.0)
"""The first and the longest wait after a disk has refused."""

CATCH_UP_S = 1.0
"""Longest that a question waits for what has happened before it to be written."""

QUERY_S = 10.0
"""Longest that a question takes."""

FINAL_S = 3.0
"""Longest that the last writing may hold up the end of slotd."""

MAX_SAME_ID = 20
"""Requests told for one id, should it have been used again and again."""


class Journal:
    """Keeps what the bus tells, and tells it again.

    A subscription is its queue: with more than ``queue`` events waiting, the
    oldest are dropped, counted, and noted as a gap. Everything that touches
    the file is done in a thread, one call after the other. A disk that
    refuses is tried again every now and then; meanwhile slotd goes on as
    without a journal, and questions get :class:`JournalUnavailable`.

    ``wall`` is the clock that gaps are stamped with.
    """

    def __init__(
        self,
        path: Path,
        max_events: int,
        max_requests: int,
        queue: int,
        bus: EventBus,
        run_id: str,
        *,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._store = Store(path, max_events, max_requests, run_id)
        self._path = path
        self._queue = queue
        self._bus = bus
        self._run_id = run_id
        self._wall = wall
        self._one = trio.CapacityLimiter(1)  # this is what makes it one call after the other
        self._batch: list[Event] = []
        self._gathering = trio.CancelScope()
        self._asked = False
        self._turn = trio.Event()  # set when a turn is done that begins after now
        self._sound = False
        self._told = False
        self.dropped = 0
        """Events of this run that could not be kept."""

    # --- the task --------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep what happens from now on, until cancelled; then what is left is written, within a bound.

        ``started()`` as soon as nothing can be missed; the file is opened after that.
        """
        with self._bus.subscribe(max_buffered=self._queue, match=NARROWED, lasting=True) as events:
            self._sound = True
            task_status.started()
            try:
                while True:
                    await self._write_turn(events)
            finally:
                # What ends slotd is what people want to read about afterwards.
                with trio.move_on_after(FINAL_S, shield=True):
                    await self._finish(events)
                self._sound = False

    async def _write_turn(self, events: Subscription) -> None:
        with trio.CancelScope() as self._gathering:
            if not self._asked:
                await self._gather(events)
        served, self._turn, self._asked = self._turn, trio.Event(), False
        self._take(events.drain(BATCH - len(self._batch)))
        pause, longest = RETRY_S
        while not await self._write():
            self._sound = False
            served.set()
            await trio.sleep(pause)
            pause = min(2 * pause, longest)
        if self._told:
            self._told = False
            self._take(events.drain(1))  # the gap, if there is one: it comes first
            log.warning("the journal is written again", file=str(self._path), dropped=self.dropped)
        self._sound = True
        served.set()

    async def _gather(self, events: Subscription) -> None:
        """Wait for one, and a little for others."""
        self._take(await events.gather(max(BATCH - len(self._batch), 1), BATCH_S))

    def _take(self, items: list[Event | Gap]) -> None:
        # What an event comes to is worked out in the thread that writes it.
        self._batch += [item if isinstance(item, Event) else self._dropped(item) for item in items]

    def _dropped(self, gap: Gap) -> Event:
        """What is kept in the place of what was missed: it bears the number of the last of them."""
        self.dropped += gap.missed
        return Event(gap.next_seq - 1, self._wall(), GAP, None, {"missed": gap.missed})

    async def _finish(self, events: Subscription) -> None:
        while True:
            self._take(events.drain(BATCH - len(self._batch)))
            if not self._batch or not await self._write():
                break
        await self._call(self._store.close)

    async def _write(self) -> bool:
        """Write the batch; False: the disk will not have it now."""
        if not self._batch:
            return True
        try:
            await self._call(partial(self._store.append, tuple(self._batch)))
        except (sqlite3.Error, OSError) as error:
            await self._refused(error)
            return False
        except Exception:
            # It would fail for ever, and what records slotd must not end it.
            self.dropped += len(self._batch)
            log.exception("a bug in the journal; these entries are lost", entries=len(self._batch))
        self._batch.clear()
        return True

    async def _refused(self, error: Exception) -> None:
        if not self._told:
            self._told = True
            log.warning(
                "the journal cannot be written; what is too much to wait is dropped until it can",
                file=str(self._path),
                error=str(error),
            )
        if is_broken(error):
            remedy = partial(self._store.move_aside, str(error))
        else:
            remedy = partial(self._store.close)  # what is opened anew may be better
        try:
            await self._call(remedy)
        except OSError as worse:
            log.debug("nor can it be moved", file=str(self._path), error=str(worse))

    async def _call(self, call: Callable[[], T]) -> T:
        """In a thread; when cancelled it is left behind, and the next call waits for it to end."""
        return await trio.to_thread.run_sync(call, abandon_on_cancel=True, limiter=self._one)

    # --- questions --------------------------------------------------------------------------

    async def events(
        self,
        *,
        since: float | None = None,
        until: float | None = None,
        kind: str | None = None,
        slot: str | None = None,
        limit: int = 100,
    ) -> list[Entry]:
        """The last ``limit`` entries that match, oldest first; what has just happened included.

        ``since`` and ``until`` are wall clock, seconds since 1970. ``kind``: whole,
        or its first words. Raises :class:`JournalUnavailable`.
        """
        select = partial(
            self._store.events, since=since, until=until, kind=kind, slot=slot, limit=max(limit, 0)
        )
        return await self._ask(select)

    async def request(self, id: str) -> list[KeptRequest]:
        """What is kept of the requests that had this id, newest first. Raises :class:`JournalUnavailable`."""
        return await self._ask(partial(self._store.requests, id, MAX_SAME_ID))

    async def around(self, record: dict[str, Any]) -> list[Entry]:
        """What has happened so far around a request of this run. Raises :class:`JournalUnavailable`."""
        return await self._ask(partial(self._store.around, self._run_id, record))

    async def horizon(self) -> float | None:
        """When the oldest request began that is kept, None if none is. Raises :class:`JournalUnavailable`."""
        return await self._ask(self._store.horizon)

    async def _ask(self, question: Callable[[], T]) -> T:
        try:
            with trio.fail_after(QUERY_S):
                await self._caught_up()
                return await self._call(question)
        except (sqlite3.Error, OSError) as error:
            raise JournalUnavailable(
                f"the journal {self._path} cannot be read: {error}", retry_after_s=1
            ) from error
        except trio.TooSlowError as error:
            raise JournalUnavailable(
                f"the journal {self._path} did not answer within {QUERY_S:g} s", retry_after_s=1
            ) from error

    async def _caught_up(self) -> None:
        if not self._sound:
            return
        with trio.move_on_after(CATCH_UP_S):
            turn, self._asked = self._turn, True
            self._gathering.cancel()
            await turn.wait()
